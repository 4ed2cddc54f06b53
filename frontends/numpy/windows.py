"""What a Python slice means on a symbolic size: slice and size -> bounds within the axis.

Invariant: 0 <= start <= stop <= size for all sizes, as Python's own clipping would give it.
Clipped places are written with `min` alone, so that `x[2:]` and `x[:-2]` have equal lengths.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

from retrograde.compiler.errors import TraceError
from retrograde.compiler.ir import dims
from retrograde.compiler.ir.dims import Dim, Poly
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.location import where
from retrograde.numpy import primitives as p


@dataclass(frozen=True)
class Bounds:
    """`start:stop:step` on an axis that is reversed first if `reverse`; `step` is positive."""

    start: Dim
    stop: Dim
    step: int = 1
    reverse: bool = False


def bounds(s: slice, size: Dim) -> Bounds:
    """What `s` selects of an axis of `size`."""
    step = 1 if s.step is None else _plain(s.step, "step")
    if not isinstance(step, int):
        raise p.misfit(f"the slice step {step} is symbolic: give an integer")
    if step == 0:
        raise p.misfit("a slice with step 0: give a step of at least 1, or -1 to go backwards")
    start = None if s.start is None else _plain(s.start, "start")
    stop = None if s.stop is None else _plain(s.stop, "stop")
    if step > 0:
        first, last = _place(start, size, 0), _place(stop, size, size)
        return _ordered(first, last, step, False)
    # Place i of the axis is place size - 1 - i of the reversed one.
    first = 0 if start is None else size - _place_after(start, size)
    last = size if stop is None else size - _place_after(stop, size)
    return _ordered(first, last, -step, True)


def position(index: Any, size: Dim, axis: int) -> Dim:
    """The place of an integer index, from the front; ShapeError unless it is always inside."""
    i = _plain(index, "index")
    if dims.dominates(i, 0):
        place = i
    elif dims.dominates(-1, i):
        place = size + i
    else:
        raise p.misfit(f"whether index {i} counts from the end cannot be decided: bound its sizes")
    below = dims.decide_le(place + 1, size)
    inside = below is True and dims.dominates(place, 0)
    if inside:
        return place
    if below is False or dims.decide_le(0, place) is False:
        raise p.misfit(f"index {i} is out of range on axis {axis} of size {size}")
    names = ", ".join(s.name for s in dims.symbols(size))
    raise p.misfit(
        f"index {i} may be out of range on axis {axis} of size {size}: give {names} a bound, "
        f"rg.dim({names.split(', ')[0]!r}, min=...)"
    )


def _place(bound: Dim | None, size: Dim, default: Dim) -> Dim:
    """Where a bound of a rising slice lies, clipped to the axis."""
    if bound is None:
        return default
    if dims.dominates(bound, 0):
        return bound if dims.dominates(size, bound) else dims.dim_min(bound, size)
    if dims.dominates(-1, bound):
        return size - (-bound if dims.dominates(size, -bound) else dims.dim_min(-bound, size))
    raise p.misfit(f"whether the bound {bound} counts from the end cannot be decided: bound it")


def _place_after(bound: Dim, size: Dim) -> Dim:
    """One behind the place of a bound of a falling slice, clipped: from 0 to `size`."""
    if dims.same(bound, -1):
        return size
    return _place(bound + 1, size, 0)


def _ordered(start: Dim, stop: Dim, step: int, reverse: bool) -> Bounds:
    if dims.dominates(stop, start):
        return Bounds(start, stop, step, reverse)
    # The length as a maximum, so that slices of equal length have equal shapes.
    return Bounds(stop - dims.dim_max(stop - start, 0), stop, step, reverse)


def _plain(value: Any, what: str) -> Dim:
    if isinstance(value, Poly):
        return value
    if isinstance(value, Expr):
        raise TraceError(
            f"{where()}the {what} of a slice is a traced value, so its length would depend on "
            "data: take a window of fixed length n with rnp.take(x, start + rnp.arange(n), axis)"
        )
    try:
        return operator.index(value)
    except TypeError:
        raise p.misfit(f"the {what} of a slice is {value!r}: give an integer") from None
