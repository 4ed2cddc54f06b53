"""Peak against cost, from keeping everything down: a DAG and a base order -> recipes.

Invariant: recipes fall in peak and rise in cost, strictly; each runs the nodes in the base order,
with recomputations inserted right before the first run that needs them, each node at most twice.

What is dropped is a set of values, each with the base run after which it goes.  Greedily, those
values come first that cost the least time for the memory they free where it is scarce: bytes times
the runs near the peak for which nobody reads them.  What a recomputation reads has to be there, so
a candidate brings along what it takes: an input that is gone is kept longer, or is recomputed too,
whichever is cheaper at the price of memory paid so far.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde.compiler.errors import DataError
from retrograde.compiler.plan.dag import Dag, Recipe, total

Array = npt.NDArray[Any]
_STEPS = 120  # about so many simulations; each moves several values if there are many
_DEEP = 24  # recomputations that one candidate may bring along


@dataclass(frozen=True)
class _Played:
    """An order and what it takes; positions are those of the base order that runs belong to."""

    order: list[int]
    slots: list[int]  # by run
    memory: Array  # by run
    ends: list[int]  # by node: the slot of the last reader of its first run
    again: dict[int, int]  # by node that runs twice: the slot of its second run
    gaps: tuple[Array, Array, Array]  # node, slot of one read of its first run, slot of the next

    @property
    def peak(self) -> int:
        return int(self.memory.max(initial=0))


def frontier(
    dag: Dag,
    *,
    given_order: Sequence[int] | None = None,
    scratch: Sequence[int] | None = None,
    groups: Iterable[Sequence[int]] = (),
    pinned: Collection[int] = (),
) -> list[Recipe]:
    """Recipes from the cheapest, which runs every node once, to that of the lowest peak found.

    `given_order` runs each needed node once, after its predecessors (it may run others as well);
    without it the nodes run by rising index or as `Dag.topological` has them.  `scratch[i]`: bytes
    that are there only while node i runs.  `groups`: lists of nodes that do the same in repeated
    blocks; they are also moved together, and their first few.  `pinned` nodes run once only.

    Heuristic; the bound of each recipe is the cost of running everything once.
    """
    base = _base(dag, given_order)
    simulation = _Simulation(dag, base, scratch)
    once = total(dag.cost[i] for i in base)
    fixed = set(pinned)
    together = [[i for i in base if i in set(group) and i not in fixed] for group in groups]
    dropped: dict[int, int] = {}
    played = simulation.play(dropped)
    best = [Recipe(tuple(played.order), played.peak, once, once)]
    floor = max((simulation.working[i] for i in base), default=0)
    step = max(1, (played.peak - floor) // _STEPS)
    chooser = _Chooser(dag, fixed, together)
    tried = 0
    while played.peak > floor and tried < 3 * _STEPS:
        tried += 1
        more = chooser.choose(played, dropped, step)
        if not more:
            break
        dropped |= more
        played = simulation.play(dropped)
        cost = total(dag.cost[i] for i in played.order)
        best.append(Recipe(tuple(played.order), played.peak, cost, once))
    return pareto(best)


def pareto(recipes: Iterable[Recipe]) -> list[Recipe]:
    """Those that no other one beats in both peak and cost, by rising cost."""
    found: list[Recipe] = []
    for recipe in sorted(recipes, key=lambda r: (r.cost, r.peak)):
        if not found or recipe.peak < found[-1].peak:
            found.append(recipe)
    return found


def _base(dag: Dag, given: Sequence[int] | None) -> list[int]:
    if given is None:
        return [i for i in dag.topological if i in dag.needed]
    done: set[int] = set()
    for i in given:
        if not 0 <= i < len(dag) or i in done or not done.issuperset(dag.predecessors[i]):
            raise DataError(f"the given order runs node {i} where it cannot")
        done.add(i)
    if missing := dag.needed - done:
        raise DataError(f"the given order leaves out node {min(missing)}")
    return list(given)


class _Simulation:
    """Plays the base order with some values dropped and made again on demand."""

    def __init__(self, dag: Dag, base: list[int], scratch: Sequence[int] | None) -> None:
        self.dag, self.base = dag, base
        self.extra = scratch if scratch is not None else [0] * len(dag)
        self.working = [dag.working(i) + self.extra[i] for i in range(len(dag))]
        self.extras = np.array(self.extra, np.int64)
        self.sizes = np.array(dag.size, np.int64)

    def play(self, dropped: Mapping[int, int]) -> _Played:
        """`dropped`: by node the slot after which its first value goes."""
        before = self.dag.predecessors
        leaving: dict[int, list[int]] = {}
        for node, slot in dropped.items():
            leaving.setdefault(slot, []).append(node)
        gone: set[int] = set()
        again: dict[int, int] = {}
        made = [-1] * len(self.dag)
        order: list[int] = []
        slots: list[int] = []
        ends: list[int] = []
        reads: list[tuple[int, int]] = []  # of first runs: node, slot
        for slot, node in enumerate(self.base):
            todo = [node]
            if gone and not gone.isdisjoint(before[node]):
                todo = self._asked(node, gone)
            for run in todo:
                now = len(order)
                for p in before[run]:
                    ends[made[p]] = now
                    if p not in again:
                        reads.append((p, slot))
                if run in gone:
                    gone.discard(run)
                    again[run] = slot
                else:
                    reads.append((run, slot))
                made[run] = now
                order.append(run)
                slots.append(slot)
                ends.append(now)
            gone.update(leaving.get(slot, ()))
        for node in self.dag.outputs:
            ends[made[node]] = len(order) - 1
            if node not in again:
                reads.append((node, len(self.base)))
        runs = np.array(order, np.int64)
        change = np.zeros(len(order) + 1, np.int64)
        change[:-1] = self.sizes[runs]
        np.subtract.at(change, np.array(ends, np.int64) + 1, self.sizes[runs])
        memory = np.cumsum(change[:-1]) + self.extras[runs]
        nodes, when = np.array(reads, np.int64).reshape(-1, 2).T
        sort = np.argsort(nodes, kind="stable")
        nodes, when = nodes[sort], when[sort]
        pairs = np.flatnonzero((nodes[1:] == nodes[:-1]) & (when[1:] > when[:-1] + 1))
        last = np.zeros(len(self.dag), np.int64)
        last[nodes] = when  # of several, the last one stays
        gaps = nodes[pairs], when[pairs], when[pairs + 1]
        return _Played(order, slots, memory, last.tolist(), again, gaps)

    def _asked(self, node: int, gone: set[int]) -> list[int]:
        """What has to run for `node`, each after what it reads; `node` is last."""
        found: list[int] = []
        done: set[int] = set()
        stack = [node]
        while stack:
            run = stack[-1]
            missing = [p for p in self.dag.predecessors[run] if p in gone and p not in done]
            if missing:
                stack.append(missing[0])
                continue
            stack.pop()
            if run not in done:
                done.add(run)
                found.append(run)
        return found


class _Chooser:
    """Picks what to drop next."""

    def __init__(self, dag: Dag, pinned: Collection[int], groups: list[list[int]]) -> None:
        self.dag, self.pinned, self.groups = dag, pinned, groups
        self.price = 0.0  # the most that was paid for a byte near the peak

    def choose(self, played: _Played, dropped: Mapping[int, int], step: int) -> dict[int, int]:
        """About `step` bytes near the peak, or one whole group, at the lowest price there is."""
        near = played.memory > played.peak - step
        count = np.zeros(max(played.slots, default=0) + 3, np.int64)
        np.add.at(count, np.array(played.slots, np.int64)[near] + 1, 1)
        crowd = np.cumsum(count)  # crowd[b] - crowd[a + 1]: runs near the peak strictly between
        everything = int(crowd[-1])
        nodes, begins, ends = played.gaps
        inside = crowd[ends] - crowd[np.minimum(begins + 1, ends)]
        scarce = crowd.tolist()
        found: dict[int, tuple[float, float, dict[int, int]]] = {}
        for at in np.flatnonzero(inside).tolist():
            node = int(nodes[at])
            if node in dropped or node in self.pinned or not self.dag.size[node]:
                continue
            offer = self._offer(
                node, int(begins[at]), int(ends[at]), int(inside[at]), played, dropped, scarce
            )
            if offer and (node not in found or offer[0] / offer[1] < found[node][0]):
                cost, gain, moves = offer
                found[node] = cost / gain, gain, moves
        if not found:
            return {}
        order = sorted(found, key=lambda i: (found[i][0], -found[i][2][i], i))
        more: dict[int, int] = {}
        gained, cost = 0.0, 0.0
        for i in self._together(order, found):
            ratio, gain, moves = found[i]
            if more and (gained >= step * everything or ratio > 1.05 * (cost / gained) + 1e-300):
                break
            more |= {k: v for k, v in moves.items() if k not in more}
            gained += gain
            cost += ratio * gain
        self.price = max(self.price, cost / gained if gained else 0.0)
        return more

    def _together(
        self, order: list[int], found: Mapping[int, tuple[float, float, dict[int, int]]]
    ) -> list[int]:
        """The candidates by price; after the first one those of its group, in their order."""
        group = next((g for g in self.groups if order[0] in g), [])
        first = [i for i in group if i in found and found[i][0] <= 1.05 * found[order[0]][0]]
        return first + [i for i in order if i not in set(first)]

    def _offer(
        self,
        node: int,
        begin: int,
        end: int,
        inside: int,
        played: _Played,
        dropped: Mapping[int, int],
        scarce: list[int],
    ) -> tuple[float, float, dict[int, int]] | None:
        """Cost, bytes times runs near the peak, and what is dropped with `node`; None if in vain."""
        dag = self.dag
        gain = float(dag.size[node]) * inside
        price = max(self.price, dag.cost[node] / gain)
        cost = 0.0
        moves = {node: begin}
        work = [node]
        while work:
            run = work.pop()
            cost += dag.cost[run]
            for p in dag.predecessors[run]:
                if p in moves or played.ends[p] >= end:
                    continue
                if p in dropped:
                    if end < played.again.get(p, 0):  # its second run moves ahead, and it stays
                        here = scarce[played.again[p]] - scarce[end]
                        gain -= dag.size[p] * here
                    continue
                kept = dag.size[p] * (scarce[end] - scarce[min(played.ends[p] + 1, end)])
                if not kept:
                    continue
                runs_again = p not in self.pinned and len(moves) < _DEEP
                if runs_again and self._again(p, end, played, dropped) < price * kept:
                    moves[p] = played.ends[p]
                    work.append(p)
                else:
                    gain -= kept
            if gain <= 0:
                return None
        return cost, gain, moves

    def _again(
        self, node: int, end: int, played: _Played, dropped: Mapping[int, int], depth: int = 3
    ) -> float:
        """About what running `node` once more costs, with what it reads that is gone by then."""
        cost = self.dag.cost[node]
        if depth:
            for p in self.dag.predecessors[node]:
                if played.ends[p] < end and p not in dropped:
                    cost += self._again(p, end, played, dropped, depth - 1)
        return cost
