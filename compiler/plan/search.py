"""Search for a lower placement.  Input: a problem and a height; output: offsets within it, if any.

Invariant: what `descend` finds fits the height, and `exhausted` is claimed only after every
canonical placement was ruled out, so it is a proof.  Dynamic storage allocation is NP-hard (Garey &
Johnson, "Computers and Intractability", 1979, problem SR2): every search here works to a limit.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retrograde.compiler.plan.fit import FAR, Array, Fitted, Problem, fit
from retrograde.compiler.plan.skyline import skyline

# Beyond this many buffers one descent takes longer than any placement is worth.
_MOST_FOR_DESCENT = 6000


@dataclass(frozen=True)
class Descent:
    """`offsets` if the height was met; otherwise whether every possibility was ruled out."""

    offsets: Array | None
    exhausted: bool = False


class _Cover:
    """By section: the least value among the buffers that live there, for values that change.

    A range of sections is the union of two ranges whose length is a power of two (a sparse table,
    filled from the top), so the cost is that of sections x log(sections), not sections x buffers.
    """

    def __init__(self, first: Array, last: Array, sections: int) -> None:
        level = np.frexp((last - first).astype(np.float64))[1] - 1  # 2**level <= length
        width = sections + 1
        cells = np.concatenate((level * width + first, level * width + last - (1 << level)))
        sort = np.argsort(cells, kind="stable")
        self._cells, self._heads = np.unique(cells[sort], return_index=True)
        self._buffers = np.tile(np.arange(len(first)), 2)[sort]
        self._shape = (int(level.max()) + 1, width)

    def lowest(self, values: Array) -> Array:
        table = np.full(self._shape, FAR)
        table.reshape(-1)[self._cells] = np.minimum.reduceat(values[self._buffers], self._heads)
        for level in range(len(table) - 1, 0, -1):
            half = 1 << (level - 1)
            upper, lower = table[level], table[level - 1]
            np.minimum(lower, upper, out=lower)
            np.minimum(lower[half:], upper[:-half], out=lower[half:])
        return table[0, :-1]


def _choices(low: Array, size: Array, offset: int, item: int) -> list[int]:
    """Buffers that may be laid down after `item` at `offset`; the most promising one is last."""
    # Above this line, some buffer that is still to come would fit underneath: it should come first.
    ceiling = int((low + size).min())
    if ceiling <= offset:
        return []
    open_ = np.flatnonzero((low >= offset) & (low < ceiling))
    found = open_[np.argsort(low[open_], kind="stable")].tolist()
    # Buffers at one offset never meet, so only one order of laying them down is tried.
    return [b for b in reversed(found) if b > item or low[b] > offset]


def descend(
    problem: Problem,
    height: int,
    order: Sequence[int],
    *,
    dead_ends: int,
    deadline: float | None = None,
) -> Descent:
    """Depth-first search over canonical placements that stay within `height`.

    A placement is canonical if every buffer rests on the floor or on another and none could slide
    below; buffers are laid down by rising offset.  Any placement can be settled into such a one
    without growing, so none is missed.  That idea, ruling out a choice under which another buffer
    would still fit, and bounding each section by what must still pass through it, are those of
    Moffitt, "MiniMalloc: a lightweight memory allocator for hardware-accelerated machine learning"
    (ASPLOS 2023).  `order` breaks ties between choices.
    """
    count = len(problem)
    at = np.asarray(order)
    first, last, size = problem.first[at], problem.last[at], problem.size[at]
    firsts, lasts, sizes = first.tolist(), last.tolist(), size.tolist()
    cover = _Cover(first, last, problem.sections)
    rest = problem.totals()  # by section: what has yet to be laid down
    low = np.zeros(count, np.int64)  # by buffer: the top of what lies below it; far once laid down
    if int(rest.max()) > height:
        return Descent(None, exhausted=True)

    # What is laid down: buffer, offset, whose `low` it raised, and from what.
    path: list[tuple[int, int, Array, Array]] = []
    stack: list[list[int]] = []
    options = _choices(low, size, 0, -1)
    visited = 0
    while True:
        if not options:
            if not path:
                return Descent(None, exhausted=True)
            item, offset, changed, before = path.pop()
            low[changed] = before
            low[item] = offset
            rest[firsts[item] : lasts[item]] += sizes[item]
            options = stack.pop()
            continue
        visited += 1
        if visited - len(path) > dead_ends:
            return Descent(None)
        if deadline is not None and not visited & 15 and time.perf_counter() > deadline:
            return Descent(None)
        item = options.pop()
        begin, end, offset = firsts[item], lasts[item], int(low[item])
        top = offset + sizes[item]
        here = rest[begin:end]
        if top - sizes[item] + int(here.max()) > height:
            continue
        here -= sizes[item]
        low[item] = FAR
        changed = np.flatnonzero((first < end) & (last > begin) & (low < top))
        before = low[changed]
        low[changed] = top
        if len(path) + 1 == count:
            offsets = np.zeros(count, np.int64)
            for laid, where, _, _ in [*path, (item, offset, changed, before)]:
                offsets[at[laid]] = where
            return Descent(offsets)
        # No section can continue below the lowest of the buffers that still pass through it.
        floor = np.maximum(cover.lowest(low), offset)
        if int((floor + rest)[rest > 0].max()) > height:
            low[changed] = before
            low[item] = offset
            here += sizes[item]
            continue
        path.append((item, offset, changed, before))
        stack.append(options)
        options = _choices(low, size, offset, item)


def search(
    problem: Problem,
    best: Fitted,
    orders: Sequence[list[int]],
    *,
    target: int,
    deadline: float,
    seed: int = 0,
) -> tuple[Fitted, bool]:
    """Lower `best` towards `target` until the deadline; whether nothing lower than it exists.

    Skylines come first; then descents and local search take turns, and the descents' patience
    doubles from round to round.
    """
    chance = random.Random(seed)
    floor = target  # no placement is lower than this, or none needs to be
    patience = 64
    kept = list(orders[0])
    best = _skylines(problem, best, floor, chance, deadline)
    while best.height > floor and time.perf_counter() < deadline:
        begun = time.perf_counter()
        tries = list(orders)
        if patience > 64:
            tries += [_shaken(order, chance) for order in orders]
        for order in tries if len(problem) <= _MOST_FOR_DESCENT else ():
            for height in dict.fromkeys((floor, (floor + best.height) // 2, best.height - 1)):
                if not floor <= height < best.height:
                    continue
                found = descend(problem, height, order, dead_ends=patience, deadline=deadline)
                if found.offsets is not None:
                    best = problem.fitted(found.offsets)
                elif found.exhausted:
                    floor = max(floor, height + 1)
            if best.height <= floor or time.perf_counter() > deadline:
                break
        patience *= 2
        share = min(deadline, time.perf_counter() + max(0.05, time.perf_counter() - begun))
        if best.height > floor:
            best, kept = _reorder(problem, best, kept, chance, floor, share)
    return best, floor > target and best.height <= floor


def _skylines(
    problem: Problem, best: Fitted, floor: int, chance: random.Random, deadline: float
) -> Fitted:
    """Skylines, wider and wider and by lot, for the larger part of the time."""
    until = time.perf_counter() + 0.7 * (deadline - time.perf_counter())
    for attempt in itertools.count():
        if best.height <= floor or time.perf_counter() > until:
            return best
        width = 8 if not attempt else 32 << min(attempt // 8, 4)
        lot = chance if attempt > 1 else None
        found = skyline(problem, width, below=best.height, deadline=until, chance=lot)
        if found is not None:
            best = found
        elif width * attempt > 64 * len(problem):  # small problems have seen all there is
            return best
    return best


def _shaken(order: Sequence[int], chance: random.Random) -> list[int]:
    """`order` with every buffer moved a little, the far ones no further than the near ones."""
    spread = max(2.0, len(order) / 8)
    keys = [place + chance.uniform(0, spread) for place in range(len(order))]
    return [order[place] for place in sorted(range(len(order)), key=keys.__getitem__)]


def _reorder(
    problem: Problem,
    best: Fitted,
    kept: list[int],
    chance: random.Random,
    target: int,
    deadline: float,
) -> tuple[Fitted, list[int]]:
    """Local search over orders: the buffer that broke the height comes earlier the next time."""
    current, stale, took = list(kept), 0, 0.0
    while best.height > target and (begun := time.perf_counter()) + took < deadline:
        run = fit(problem, current, limit=best.height - 1, best=chance.random() < 0.1)
        took = max(took, time.perf_counter() - begun)
        if run.stuck < 0:
            best, kept, stale = run, list(current), 0
            continue
        stale += 1
        if stale <= 200:
            place = current.index(run.stuck)
            current.insert(chance.randrange(place) if place else 0, current.pop(place))
            continue
        current, stale = list(kept), 0
        for _ in range(1 + chance.randrange(4)):
            a, b = chance.randrange(len(current)), chance.randrange(len(current))
            current[a], current[b] = current[b], current[a]
    return best, kept
