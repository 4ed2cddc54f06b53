"""Greedy placement.  Input: lifetimes, sizes and an order; output: one offset for each buffer.

Invariant: buffers that live at the same time never overlap, whatever the order.  Taking the buffers
by falling size, each into the lowest gap that holds it, is the greedy-by-size offset calculation of
Pisarchyk & Lee, "Efficient memory management for deep neural net inference" (2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
FAR = int(np.iinfo(np.int64).max // 4)  # above every offset, and still safe to add to


@dataclass(frozen=True)
class Problem:
    """Buffers of positive size and length; `first`, `last` are half-open ranges of sections.

    A section is an instant at which the live set is as large as it gets: after some starts, before
    the next end.  Two buffers meet exactly when they share a section, and no instant is fuller.
    """

    first: Array
    last: Array
    size: Array
    sections: int

    @classmethod
    def of(cls, start: Array, end: Array, size: Array) -> Problem:
        """The problem of buffers that live for [start, end), at whatever scale of time."""
        starts = np.unique(start)
        ended = np.searchsorted(np.unique(end), starts, "right")
        instants = starts[np.append(ended[1:] > ended[:-1], True)]
        first = np.searchsorted(instants, start).astype(np.int32)
        last = np.searchsorted(instants, end).astype(np.int32)
        return cls(first, last, size, len(instants))

    def __len__(self) -> int:
        return len(self.size)

    def totals(self) -> Array:
        """By section: how much is alive there."""
        change = np.zeros(self.sections + 1, np.int64)
        np.add.at(change, self.first, self.size)
        np.subtract.at(change, self.last, self.size)
        return np.cumsum(change)[:-1]

    def crowding(self) -> Array:
        """By buffer: how much is alive in the fullest section it passes through."""
        ranges = np.stack((self.first, self.last), axis=1).reshape(-1)
        peaks: Array = np.maximum.reduceat(np.append(self.totals(), 0), ranges)[::2]
        return peaks

    def conflicts(self) -> Array:
        """By buffer: how many buffers live at a time when it does, itself included."""
        begun = np.searchsorted(np.sort(self.first), self.last)
        over = np.searchsorted(np.sort(self.last), self.first, "right")
        return begun - over

    def order(self, *keys: Array) -> list[int]:
        """Indices by falling keys, the first key first; what is equal in all keeps its order."""
        indices: list[int] = np.lexsort(tuple(-key for key in keys[::-1])).tolist()
        return indices

    def fitted(self, offsets: Array) -> Fitted:
        """`offsets` with the height they reach."""
        return Fitted(offsets, int((offsets + self.size).max()))


@dataclass(frozen=True)
class Fitted:
    """Offsets and height of one placement; `stuck` is the buffer that broke the limit, or -1."""

    offsets: Array
    height: int
    stuck: int = -1


def fit(problem: Problem, order: Sequence[int], *, best: bool = False, limit: int = FAR) -> Fitted:
    """Place buffers in `order`, each in the lowest (or with `best` the tightest) gap that holds it.

    Stops at the first buffer that would reach above `limit`.
    """
    count = len(problem)
    firsts, lasts, sizes = problem.first.tolist(), problem.last.tolist(), problem.size.tolist()
    offsets = np.zeros(count, np.int64)
    # What is placed, sorted by offset: lifetimes in `when`, offset and top in `where`.  The first
    # entry is the floor and the last the open sky; both always live, so every gap has two ends.
    when = np.empty((2, count + 2), np.int32)
    where = np.empty((2, count + 2), np.int64)
    when[:, :2] = [[0, 0], [problem.sections + 1] * 2]
    where[:, :2] = [[0, FAR], [0, FAR]]
    placed, height = 2, 0
    for item in order:
        first, last, size = firsts[item], lasts[item], sizes[item]
        starts, ends = when[:, :placed]
        meets = starts < last
        meets &= ends > first
        low, tops = where[:, :placed][:, meets]
        np.maximum.accumulate(tops, out=tops)
        gaps = low[1:] - tops[:-1]
        if best:
            gaps[gaps < size] = FAR + 1
            hole = int(gaps.argmin())
        else:
            hole = int((gaps >= size).argmax())
        offset = int(tops[hole])
        top = offset + size
        if top > height:
            if top > limit:
                return Fitted(offsets, top, item)
            height = top
        offsets[item] = offset
        at = int(where[0, :placed].searchsorted(offset, "right"))
        when[:, at + 1 : placed + 1] = when[:, at:placed]
        where[:, at + 1 : placed + 1] = where[:, at:placed]
        when[0, at], when[1, at], where[0, at], where[1, at] = first, last, offset, top
        placed += 1
    return Fitted(offsets, height)
