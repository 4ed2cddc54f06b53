"""The live rows of a ragged loop: its mask, [time, batch] -> how many rows each step runs.

Invariant: rows at or beyond the count of a step do not have the step; it is counted from the mask
alone, whatever order the rows stand in.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

KEPT_COUNTS = 256  # numbers of rows whose views are kept; others are made again

Turn = Callable[[int], None]


def counts(xp: Any, mask: Any) -> Any:
    """The number of leading rows up to the last live one, for each step, as an array of `xp`."""
    if mask.shape[1] == 0:
        return xp.zeros(mask.shape[0], dtype=np.int64)
    place = xp.arange(1, mask.shape[1] + 1, dtype=np.int64)
    return xp.max(xp.multiply(mask, place), axis=1)


class LiveRows:
    """What one run of a ragged loop leaves out."""

    def __init__(self, rows: Sequence[int], batch: int) -> None:
        self.rows = rows
        self.batch = batch

    def turns(self, reverse: bool) -> Iterator[int]:
        """The steps that have a live row, in the order of the loop."""
        order = range(len(self.rows))
        return (t for t in (reversed(order) if reverse else order) if self.rows[t])

    def clear(self, stacked: Any, axis: int | None) -> None:
        """Writes zeros where no turn writes; `axis` holds the rows, if turns leave rows out."""
        inner = 1 if axis is None else stacked.shape[axis] // max(self.batch, 1)
        for first, last, n in self._runs():
            if n == 0:
                stacked[first:last] = 0
            elif axis is not None and n < self.batch:
                before = (slice(None),) * (axis - 1)
                stacked[(slice(first, last), *before, slice(n * inner, None))] = 0

    def _runs(self) -> Iterator[tuple[int, int, int]]:
        """(first step, step behind the last, rows) of each run of steps with as many rows."""
        first = 0
        for t in range(1, len(self.rows) + 1):
            if t == len(self.rows) or self.rows[t] != self.rows[first]:
                yield first, t, self.rows[first]
                first = t


def for_each_count(make: Callable[[int], Turn]) -> Callable[[int], Turn]:
    """`make`, which binds the views of a turn, called once for each number of rows."""
    return functools.lru_cache(maxsize=KEPT_COUNTS)(make)
