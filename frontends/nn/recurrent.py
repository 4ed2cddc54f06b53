"""Cells over time: x [B, T, inputs] -> y [B, T, width] and the last carry.

The batch is always axis 0 and time axis 1, as with PyTorch's `batch_first=True`; what is
[T, B, inputs] goes in as `rnp.swapaxes(x, 0, 1)`, a view.  `lengths` [B] says how many steps each
row has; `segments` [B, T] has a number for each step, and where it changes the carry is the initial
one again.  Invariant: what stands in `x` beyond the lengths, NaN and infinities included, changes
no bit of any result or gradient; y is zero there, and the last carry is that of each row's own last
step; what is made of a segment does not depend on the others.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import retrograde.numpy as rnp
from retrograde import masks, tree
from retrograde.compiler.errors import ShapeError, TraceError
from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.expr import narrowed
from retrograde.compiler.ir.location import skip_frames_under, where
from retrograde.jitted import shared_jit
from retrograde.loops import scan
from retrograde.nn import checks, context
from retrograde.nn.module import Module
from retrograde.numpy.primitives import Array
from retrograde.tracing import expression, is_traced

skip_frames_under(os.path.abspath(__file__))


class Recurrent(Module):
    """Any cell over time: a function or module `cell(carry, x) -> (carry, y)` of one step.

    x, y and the carry are arrays or trees of them, each with the batch as its first axis; in the
    cell x has no time axis.  Without a `carry`, the loop begins with `cell.initial(batch)`, in a
    dtype that holds both it and x.  `reverse` runs from each row's last step to its first.  With
    `lengths`, the cell sees zeros in place of the steps beyond a row's end, and what it makes of
    them is not used.  With `segments`, what the segment before left is replaced by
    `cell.initial(batch)`; a `carry` that is given is that of the first segment."""

    cell: Any

    def __init__(self, cell: Callable[[Any, Any], tuple[Any, Any]]) -> None:
        if not callable(cell):
            raise TraceError(
                f"{where()}Recurrent takes a cell, cell(carry, x) -> (carry, y); got a "
                f"{type(cell).__name__}"
            )
        self.cell = cell

    def initial(self, batch: Dim) -> Any:
        """The first carry for `batch` rows."""
        make = getattr(self.cell, "initial", None)
        if make is None:
            raise TraceError(
                f"{where()}this cell has no initial(batch), the carry before the first step: give "
                "it one, or pass carry="
            )
        return make(batch)

    def __call__(
        self,
        x: Any,
        carry: Any = None,
        lengths: Any = None,
        reverse: bool = False,
        segments: Any = None,
    ) -> tuple[Any, Any]:
        if not is_traced() and not context.at_work():
            return self._at_once(x, carry, lengths, bool(reverse), segments)
        leaves = tree.leaves(x)
        batch, time = _sizes(leaves)
        carry = self._first(batch, leaves) if carry is None else carry
        steps, cell = tree.map(_swapped, x), self.cell
        if segments is not None:
            _check_segments(segments, batch, time)
            begins = masks.changes(segments, reverse=bool(reverse))
            steps, cell = (steps, _swapped(begins)), self._resetting(batch)
        carry, y = scan(cell, carry, steps, reverse=reverse, lengths=lengths)
        return tree.map(_swapped, y), carry

    def _resetting(self, batch: Dim) -> Callable[[Any, Any], tuple[Any, Any]]:
        """The cell, which begins anew in the rows whose step begins a segment."""

        def begun(begins: Array, first: Any, carry: Any) -> Any:
            each = rnp.reshape(begins, (batch, *(1,) * (len(carry.shape) - 1)))
            return rnp.where(each, rnp.astype(first, carry.dtype), carry)

        def step(carry: Any, given: Any) -> tuple[Any, Any]:
            x, begins = given
            first = self.initial(batch)
            if tree.structure(first) != tree.structure(carry):
                raise TraceError(
                    f"{where()}with segments the carry is made by the cell's initial(batch) too: "
                    "give one of the same structure"
                )
            carry = tree.map(lambda c, i: begun(begins, i, c), carry, first)
            after: tuple[Any, Any] = self.cell(carry, x)
            return after

        return step

    def _at_once(
        self, x: Any, carry: Any, lengths: Any, reverse: bool, segments: Any
    ) -> tuple[Any, Any]:
        """The same on plain arrays: compiled, and kept with the code of the cell."""
        lengths, segments = (
            np.asarray(given) if isinstance(given, (list, tuple)) else given
            for given in (lengths, segments)
        )
        code = type(self.cell).__call__ if isinstance(self.cell, Module) else self.cell
        run = shared_jit(code, ("recurrent",), _run)
        out: tuple[Any, Any] = run(self, x, carry, lengths, reverse, segments)
        return out

    def _first(self, batch: Dim, leaves: Sequence[Any]) -> Any:
        floats = [x.dtype for x in leaves if dtypes.dtype(x.dtype).is_float]

        def promoted(c: Any) -> Any:
            if not hasattr(c, "dtype") or not dtypes.dtype(c.dtype).is_float:
                return c
            wide = rnp.astype(c, rnp.result_type(c.dtype, *floats))
            return narrowed(expression(wide)) if is_traced() else wide

        return tree.map(promoted, self.initial(batch))


def _run(
    layer: Recurrent, x: Any, carry: Any, lengths: Any, reverse: bool, segments: Any
) -> tuple[Any, Any]:
    return layer(x, carry, lengths, reverse, segments)


def _check_segments(segments: Any, batch: Dim, time: Dim) -> None:
    shape = getattr(segments, "shape", ())
    if len(shape) != 2 or not all(map(dims.same, shape, (batch, time))):
        got = checks.shown(segments) if shape else type(segments).__name__
        raise ShapeError(
            f"{where()}the segments are {got}: a number for each of {time} steps of {batch} rows"
        )


def _sizes(leaves: Sequence[Any]) -> tuple[Dim, Dim]:
    """The batch and the time of what runs through a cell."""
    for x in leaves:
        if not hasattr(x, "shape") or len(x.shape) < 2:
            got = checks.shown(x) if hasattr(x, "shape") else type(x).__name__
            raise ShapeError(f"{where()}a recurrent layer takes [batch, time, ...], got {got}")
    if not leaves:
        raise ShapeError(f"{where()}a recurrent layer takes arrays [batch, time, ...], got none")
    first = leaves[0].shape
    for x in leaves:
        if not all(map(dims.same, x.shape[:2], first[:2])):
            raise ShapeError(
                f"{where()}what runs through a recurrent layer has one batch and one time: "
                f"{checks.shown(leaves[0])} and {checks.shown(x)}"
            )
    return first[0], first[1]


def _swapped(x: Array) -> Array:
    """Batch and time change places: a view."""
    if len(x.shape) < 2:
        raise ShapeError(
            f"{where()}the cell's y has no batch axis: over all steps it is {checks.shown(x)}"
        )
    return rnp.swapaxes(x, 0, 1)
