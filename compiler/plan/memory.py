"""Offsets for buffers in one arena.  Input: lifetimes and sizes; output: where each buffer lies.

Invariant: buffers that live at the same time never overlap, and no placement is lower than the
bound reported with it.  Plain data: this knows nothing of the IR, so public instances run as well.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from retrograde.compiler.errors import DataError
from retrograde.compiler.plan.fit import Array, Fitted, Problem, fit
from retrograde.compiler.plan.lifetimes import (
    Buffer,
    lower_bound,
    round_up,
    whole,
)
from retrograde.compiler.plan.orientation import Orientation, orient
from retrograde.compiler.plan.search import descend, search
from retrograde.compiler.plan.skyline import skyline

__all__ = ["Buffer", "Orientation", "Placement", "lower_bound", "orient", "place"]


@dataclass(frozen=True, slots=True)
class Placement:
    """Where every buffer lies.  `proven` if a search has ruled out everything below `height`."""

    offsets: tuple[int, ...]
    height: int
    lower_bound: int
    proven: bool = False

    @property
    def gap(self) -> int:
        """Bytes between the height and the bound."""
        return self.height - self.lower_bound

    @property
    def gap_fraction(self) -> float:
        """The gap as a fraction of the bound."""
        return self.gap / self.lower_bound if self.lower_bound else 0.0

    @property
    def optimal(self) -> bool:
        """Whether no placement can be lower, by the bound or by exhaustive search."""
        return self.proven or self.height == self.lower_bound

    def __str__(self) -> str:
        state = "optimal" if self.optimal else f"gap {self.gap_fraction:.2%}"
        return f"{self.height} bytes for {len(self.offsets)} buffers ({state})"


@dataclass
class _Group:
    """Buffers that are placed on their own, above `base`."""

    members: Array
    base: int
    problem: Problem
    best: Fitted

    @property
    def height(self) -> int:
        return self.base + self.best.height


def place(buffers: Sequence[Buffer], time_limit: float | None = None, align: int = 1) -> Placement:
    """Place `buffers` in one arena, as low as the effort allows.

    Without a time limit the result is a function of the input alone: a portfolio of greedies and
    short searches that stops as soon as the max-live bound is met.  With one, a search goes on for
    at most so many seconds.  Offsets are multiples of `align`; sizes count rounded up to it.
    """
    align = whole(align, "align")
    if align < 1:
        raise DataError(f"align must be at least 1, not {align}")
    if time_limit is not None and not time_limit >= 0:
        raise DataError(f"time_limit must be None or some seconds from 0 on, not {time_limit!r}")
    deadline = None if time_limit is None else time.perf_counter() + time_limit
    bound = lower_bound(buffers, align)

    size = np.array([round_up(b.size, align) for b in buffers], np.int64)
    start = np.array([b.start for b in buffers], np.int64)
    end = np.array([b.end for b in buffers], np.int64)
    offsets = np.zeros(len(buffers), np.int64)
    groups = list(_groups(start, end, size, offsets))
    for group in groups:
        _portfolio(group, bound, deadline)
    proven = _lower_the_tallest(groups, bound, deadline)
    for group in groups:
        offsets[group.members] = group.base + group.best.offsets
    height = int((offsets + size).max(initial=0))
    return Placement(tuple(offsets.tolist()), height, bound, proven and height > bound)


def _groups(start: Array, end: Array, size: Array, offsets: Array) -> Iterator[_Group]:
    """Split into problems that share no instant; what meets everything goes to the bottom.

    Both steps lose nothing: a buffer that meets all others of its group has each of them wholly
    above or below it, so it can sink to the floor.  Buffers of no size or no length stay at 0.
    """
    work = [(np.flatnonzero((size > 0) & (end > start)), 0)]
    while work:
        members, base = work.pop()
        members = members[np.argsort(start[members], kind="stable")]
        starts, ends = start[members], end[members]
        reach = np.maximum.accumulate(ends)
        cuts = np.flatnonzero(starts[1:] >= reach[:-1]) + 1
        if len(cuts):
            work.extend((part, base) for part in np.split(members, cuts))
            continue
        if not len(members):
            continue
        meets_all = (starts < ends.min()) & (ends > starts.max())
        if meets_all.any():
            bottom = members[meets_all]
            tops = base + np.cumsum(size[bottom])
            offsets[bottom] = tops - size[bottom]
            work.append((members[~meets_all], int(tops[-1])))
            continue
        problem = Problem.of(starts, ends, size[members])
        yield _Group(members, base, problem, Fitted(np.zeros(len(members), np.int64), -1))


# What the portfolio may spend on one group, in seconds as `_fit_cost` and `_descent_cost` estimate
# them.  Estimates, not a clock, so that the same input gets the same treatment every time.
_BUDGET = 0.1


def _fit_cost(count: int) -> float:
    return count * (9.5e-6 + 1.6e-9 * count)


def _descent_cost(count: int) -> float:
    return (count + _DEAD_ENDS) * (25e-6 + 15e-9 * count)


def _skyline_cost(count: int) -> float:
    return count * (40e-6 + 20e-9 * count)


_COSTS = {"fit": _fit_cost, "descend": _descent_cost, "skyline": _skyline_cost}

# A descent that succeeds mostly goes straight down; one that fails is better begun anew.
_DEAD_ENDS = 250


def _orders(problem: Problem) -> Iterator[list[int]]:
    """Orders worth trying, the most fruitful first."""
    size, length = problem.size, problem.last - problem.first
    area = size * length.astype(np.float64)  # may exceed 64 bits
    yield problem.order(size, length)
    yield problem.order(area, size)
    yield problem.order(length, size)
    yield problem.order(problem.crowding(), length, size)
    yield problem.order(problem.conflicts(), size)
    yield problem.order(-problem.first, size)


def _portfolio(group: _Group, bound: int, deadline: float | None) -> None:
    """Greedies and short descents until the bound is met or the budget is spent."""
    problem, target = group.problem, bound - group.base
    orders = list(_orders(problem))
    by_size, by_area, by_length, by_crowding, *_ = orders
    group.best = fit(problem, by_size)
    # Greedies (first fit or best fit), descents (to the bound, or part of the way there), and
    # skylines (so many at a time).
    steps: list[tuple[str, float, list[int]]] = [
        ("descend", 0.0, by_crowding),
        ("fit", 0, by_area),
        ("skyline", 1, by_area),
        ("descend", 0.0, by_length),
        ("descend", 0.0, by_size),
        ("fit", 0, by_length),
        ("fit", 1, by_size),
        *(("descend", part, by_crowding) for part in (0.5, 0.5, 0.5)),
        *(("descend", part, by_length) for part in (0.5, 0.5)),
        *(("fit", 0, order) for order in orders[3:]),
        *(("fit", 1, order) for order in orders[1:]),
    ]
    spent = 0.0
    for kind, how, order in steps:
        if group.best.height <= target:
            return
        if deadline is not None and time.perf_counter() > deadline:
            return
        spends = _COSTS[kind](len(problem))
        second_greedy = kind == "fit" and order is by_area and not how  # worth it at any size
        if spent + spends > _BUDGET and not second_greedy:
            continue
        spent += spends
        if kind == "fit":
            run = fit(problem, order, best=bool(how), limit=group.best.height - 1)
            if run.stuck < 0:
                group.best = run
            continue
        if kind == "skyline":
            lower = skyline(problem, int(how), below=group.best.height)
            if lower is not None:
                group.best = lower
            continue
        height = target + int(how * (group.best.height - 1 - target))
        found = descend(problem, height, order, dead_ends=_DEAD_ENDS)
        if found.offsets is not None:
            group.best = problem.fitted(found.offsets)


def _lower_the_tallest(groups: list[_Group], bound: int, deadline: float | None) -> bool:
    """Search on the tallest group while there is time; whether its height is proven the least."""
    if deadline is None or not groups:
        return False
    proven = False
    while time.perf_counter() < deadline and not proven:
        tallest, *others = heapq.nlargest(2, groups, key=lambda group: group.height)
        if tallest.height <= bound:
            return False
        # Once it is below the next one, that one is the tallest.
        target = max([bound, *(min(group.height, tallest.height - 1) for group in others)])
        tallest.best, proven = search(
            tallest.problem,
            tallest.best,
            list(_orders(tallest.problem)),
            target=target - tallest.base,
            deadline=deadline,
        )
    return proven
