"""Cutting an iteration space into tiles: arrays of one size -> tuples of tile views.

Invariant: the tiles of an array cover it once; a broadcast operand is cut only along axes it has.
The cut depends on the sizes and strides alone, never on threads or time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from retrograde.compiler.plan.fused import TILE_ELEMENTS


class Tiles:
    """The tiles of one fused step, made once per size and walked at every run."""

    def __init__(
        self,
        shape: Sequence[int],
        arrays: Sequence[Any],
        scratch: Sequence[Any],
        rows: Sequence[bool],
        whole_rows: bool,
        limit: int = TILE_ELEMENTS,
        moving: Sequence[int] = (),
    ) -> None:
        """`moving`: the arrays that have the turns of a loop as their first axis."""
        turns = min((len(arrays[i]) for i in moving), default=1)
        if not turns:  # a loop that never turns
            shape, arrays, moving = (0, *shape[1:]), [], ()
        first = [x[0, ...] if i in moving else x for i, x in enumerate(arrays)]
        space, aligned = _merged(tuple(shape), first, whole_rows)
        self.arrays = aligned
        # Stacked arrays lie dense, so each turn has the axes that the first one got.
        self.moving = {i: arrays[i].reshape((turns, *aligned[i].shape)) for i in moving}
        self.axis, self.count = _cut(space, whole_rows, limit)
        self.space = space
        self.scratch = scratch
        self.rows = rows
        self._spare: dict[int, tuple[Any, ...]] = {}
        self.single = self.axis == 0 and self.count >= space[0]
        self.fixed = [(*aligned, *self._scratch(space[0]))] if self.single else None
        tiles = math.prod(space[: self.axis]) * -(-space[self.axis] // max(self.count, 1))
        if not self.single and not moving and tiles <= 16:
            self.fixed = list(self._walk(aligned))

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return iter(self.fixed) if self.fixed is not None else self._walk(self.arrays)

    def at(self, turn: int) -> Iterator[tuple[Any, ...]] | tuple[tuple[Any, ...]]:
        """The tiles for one turn of a loop."""
        arrays = list(self.arrays)
        for i, stacked in self.moving.items():
            arrays[i] = stacked[turn]
        if self.single:
            return ((*arrays, *self._scratch(self.space[0])),)
        return self._walk(arrays)

    def _walk(self, whole: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
        for lead in _indices(self.space[: self.axis]):
            arrays = [_at(x, lead) for x in whole]
            size, extent = self.count, self.space[self.axis]
            for first in range(0, extent, size):
                part = slice(first, first + size)
                cut = (x[part] if x.shape[0] != 1 or extent == 1 else x for x in arrays)
                yield (*cut, *self._scratch(min(size, extent - first)))

    def _scratch(self, extent: int) -> tuple[Any, ...]:
        """The scratch tiles for a tile of `extent` along the cut axis."""
        found = self._spare.get(extent)
        if found is None:
            shape = (extent, *self.space[self.axis + 1 :])
            row = (*shape[:-1], 1)
            shapes = [row if is_row else shape for is_row in self.rows]
            found = self._spare[extent] = tuple(
                x[: math.prod(s)].reshape(s) for x, s in zip(self.scratch, shapes, strict=True)
            )
        return found


def _at(x: Any, lead: tuple[int, ...]) -> Any:
    for i in lead:
        x = x[i if x.shape[0] != 1 else 0]
    return x


def _indices(shape: Sequence[int]) -> Iterator[tuple[int, ...]]:
    if not shape:
        yield ()
        return
    for i in range(shape[0]):
        for rest in _indices(shape[1:]):
            yield (i, *rest)


def _merged(
    shape: tuple[int, ...], arrays: Sequence[Any], whole_rows: bool
) -> tuple[tuple[int, ...], list[Any]]:
    """The space with axes joined where every array allows it, and the arrays under that shape."""
    rank = len(shape)
    aligned = [x.reshape((1,) * (rank - x.ndim) + x.shape) if x.ndim < rank else x for x in arrays]
    groups = [[0]]
    for i in range(1, rank):
        last = whole_rows and i == rank - 1
        if not last and all(_joins(x, shape, groups[-1], i) for x in aligned):
            groups[-1].append(i)
        else:
            groups.append([i])
    if len(groups) == rank:
        return shape, aligned
    space = tuple(math.prod(shape[i] for i in g) for g in groups)
    joined = [x.reshape([math.prod(x.shape[i] for i in g) for g in groups]) for x in aligned]
    return space, joined


def _joins(x: Any, shape: tuple[int, ...], group: Sequence[int], j: int) -> bool:
    """Whether axis j of `x` and the axes of `group` before it step like one axis."""
    before = [i for i in group if shape[i] != 1]
    if shape[j] == 1 or not before:
        return True
    i = before[-1]  # the axes further out were compared with this one
    full = x.shape[i] == shape[i]
    if full != (x.shape[j] == shape[j]):
        return False
    return not full or bool(x.strides[i] == x.strides[j] * x.shape[j])


def _cut(space: tuple[int, ...], whole_rows: bool, limit: int) -> tuple[int, int]:
    """The axis to cut and how much of it a tile takes, the axes before it one by one."""
    if whole_rows and len(space) == 1:  # one row
        return 0, space[0]
    last = len(space) - (2 if whole_rows else 1)
    for axis in range(last + 1):
        inner = math.prod(max(n, 1) for n in space[axis + 1 :])  # empty rows are rows
        if inner <= limit or axis == last:
            return axis, max(1, min(space[axis], limit // inner))
    raise AssertionError("unreachable")
