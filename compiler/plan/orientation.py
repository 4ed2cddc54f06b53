"""A placement as an order.  Input: buffers and valid offsets; output: who lies below whom.

Invariant: at whatever sizes, the offsets read off an orientation keep apart every two buffers that
live at the same time; at the sizes it was made from they are no higher than the placement.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retrograde.compiler.errors import DataError, ShapeError
from retrograde.compiler.plan.fit import Problem, fit
from retrograde.compiler.plan.lifetimes import Buffer, check_buffers, whole


@dataclass(frozen=True, slots=True)
class Orientation:
    """An acyclic order of the buffers: an edge (a, b) says that b lies above a.

    `order` lists all buffers from the bottom up, `edges` are sorted by where their target stands in
    it.  Only neighbours are linked; all pairs that ever live together are ordered by a path.
    """

    edges: tuple[tuple[int, int], ...]
    order: tuple[int, ...]

    def offsets(self, sizes: Sequence[int]) -> tuple[list[int], int]:
        """Offsets and height at other sizes: every offset is a longest path."""
        if len(sizes) != len(self.order):
            raise ShapeError(f"{len(sizes)} sizes were given for {len(self.order)} buffers")
        if min(sizes, default=0) < 0:
            raise DataError(f"a buffer cannot have a negative size: {min(sizes)}")
        offsets = [0] * len(sizes)
        for below, above in self.edges:
            offset = offsets[below] + sizes[below]
            if offset > offsets[above]:
                offsets[above] = offset
        return offsets, max(map(int.__add__, offsets, sizes), default=0)


def orient(buffers: Sequence[Buffer], offsets: Sequence[int]) -> Orientation:
    """Read the order of the buffers off a valid placement, in one sweep over time.

    The live buffers are kept sorted by offset.  One that starts is linked to its two neighbours;
    the link between those follows and is dropped.  One that ends needs no new link: what lay below
    it is still below what lay above.
    """
    check_buffers(buffers)
    if len(offsets) != len(buffers):
        raise ShapeError(f"{len(offsets)} offsets were given for {len(buffers)} buffers")
    for index, offset in enumerate(offsets):
        if whole(offset, "an offset") < 0:
            raise DataError(f"buffer {index} cannot lie at offset {offset}, below the arena")
    rank = _bottom_up(buffers, offsets)
    order = sorted(range(len(buffers)), key=rank.__getitem__)

    # At one instant the ends come before the starts: half-open lifetimes do not meet there.
    lasting = [i for i, buffer in enumerate(buffers) if buffer.end > buffer.start]
    events = [(buffers[i].start, 1, rank[i], i) for i in lasting]
    events += [(buffers[i].end, 0, rank[i], i) for i in lasting]
    events.sort()
    live: list[int] = []  # ranks of the live buffers, rising
    edges: set[tuple[int, int]] = set()  # between ranks
    for _, starts, here, index in events:
        at = bisect_left(live, here)
        if not starts:
            live.pop(at)
            continue
        if at:
            _check_apart(buffers, offsets, order[live[at - 1]], index)
            edges.add((live[at - 1], here))
        if at < len(live):
            _check_apart(buffers, offsets, index, order[live[at]])
            edges.add((here, live[at]))
            if at:
                edges.discard((live[at - 1], live[at]))
        live.insert(at, here)
    linked = sorted(edges, key=lambda edge: (edge[1], edge[0]))
    return Orientation(tuple((order[a], order[b]) for a, b in linked), tuple(order))


def _bottom_up(buffers: Sequence[Buffer], offsets: Sequence[int]) -> list[int]:
    """By buffer: its place in one order of all buffers, by offset and then by top.

    A buffer of no size may lie anywhere now and need room at other sizes.  All of them go to the
    bottom, which is consistent; among each other they are placed as if they had one byte each.
    """
    empty = [i for i, b in enumerate(buffers) if b.size == 0 and b.end > b.start]
    layer = [0] * len(buffers)
    if empty:
        start = np.array([buffers[i].start for i in empty])
        end = np.array([buffers[i].end for i in empty])
        problem = Problem.of(start, end, np.ones(len(empty), np.int64))
        layers = fit(problem, problem.order(problem.last - problem.first)).offsets.tolist()
        for index, where in zip(empty, layers, strict=True):
            layer[index] = where
    keys = [
        (offset, offset + b.size, 0, index) if b.size else (-1, -1, layer[index], index)
        for index, (b, offset) in enumerate(zip(buffers, offsets, strict=True))
    ]
    rank = [0] * len(buffers)
    for place, index in enumerate(sorted(range(len(buffers)), key=keys.__getitem__)):
        rank[index] = place
    return rank


def _check_apart(buffers: Sequence[Buffer], offsets: Sequence[int], below: int, above: int) -> None:
    """Neighbours must not overlap; if none do at any instant, no two live buffers do."""
    if buffers[below].size == 0 or buffers[above].size == 0:
        return
    if offsets[below] + buffers[below].size > offsets[above]:
        raise DataError(
            f"buffers {below} and {above} overlap: {buffers[below]} at offset {offsets[below]}, "
            f"{buffers[above]} at offset {offsets[above]}"
        )
