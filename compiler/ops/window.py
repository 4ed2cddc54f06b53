"""Ops on strided windows of a tensor: slice, pad, set_slice.

`slice` reads a window, `pad` writes an operand into a window of a constant, `set_slice` into a
window of another operand; each is the adjoint of a neighbour.  Attributes are tuples with one
entry an axis: sizes may be symbolic, steps and interior gaps are plain integers.  Invariant: a
window that provably leaves its tensor is refused at once, else the sizes of a run are checked.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde.compiler.errors import ShapeError
from retrograde.compiler.ir import dims
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.expr import Expr, zeros
from retrograde.compiler.ir.graph import Attrs, TensorType
from retrograde.compiler.ir.op import Op, VjpContext, no_cost
from retrograde.compiler.ir.registry import Kind, lookup, register
from retrograde.compiler.ops.declare import one_dtype
from retrograde.compiler.ops.move import Cotangents, listed, only

Array = npt.NDArray[Any]


def _check_ranks(rank: int, attrs: Attrs, *names: str) -> None:
    for name in names:
        if len(attrs[name]) != rank:
            raise ShapeError(f"{name} {listed(attrs[name])} needs an entry for each of {rank} axes")


def _check_steps(steps: Sequence[Any], least: int, name: str) -> None:
    if any(not isinstance(s, int) or s < least for s in steps):
        raise ShapeError(f"{name} {listed(steps)} must be plain integers of at least {least}")


def _ordered(*sizes: Dim) -> bool:
    """Whether the sizes rise, as far as that can be decided."""
    return all(dims.decide_le(a, b) is not False for a, b in itertools.pairwise(sizes))


def extent(size: Dim, step: int) -> Dim:
    """From the first of `size` elements that lie `step` apart to behind the last."""
    if step == 1:
        return size
    return size + dims.dim_max(size - 1, 0) * (step - 1)


# --- slice


def _slice_infer(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = types
    _check_ranks(x.ndim, attrs, "start", "stop", "step")
    _check_steps(attrs["step"], 1, "step")
    shape: list[Dim] = []
    windows = zip(x.shape, attrs["start"], attrs["stop"], attrs["step"], strict=True)
    for axis, (size, start, stop, step) in enumerate(windows):
        if not _ordered(0, start, stop, size):
            raise ShapeError(f"the slice {start}:{stop} leaves axis {axis} of {x}")
        length = stop - start
        shape.append(length if step == 1 else dims.floordiv(length + (step - 1), step))
    return (TensorType(x.dtype, tuple(shape)),)


def _slice(attrs: Attrs, x: Array) -> Array:
    windows = list(zip(attrs["start"], attrs["stop"], attrs["step"], strict=True))
    for axis, (size, (start, stop, _)) in enumerate(zip(x.shape, windows, strict=True)):
        if not 0 <= start <= stop <= size:
            raise ShapeError(f"the slice {start}:{stop} leaves axis {axis} of size {size}")
    return x[tuple(slice(*w) for w in windows)]


def _slice_vjp(ctx: VjpContext, cotangents: Cotangents) -> list[Expr | None]:
    g, start, step = only(cotangents), ctx.attrs["start"], ctx.attrs["step"]
    sizes = zip(ctx.inputs[0].shape, start, g.shape, step, strict=True)
    high = tuple(size - a - extent(n, s) for size, a, n, s in sizes)
    return [lookup("pad")(g, low=start, high=high, interior=tuple(s - 1 for s in step))]


slice_ = register(
    Op(
        "slice",
        Kind.MOVE,
        _slice_infer,
        _slice,
        _slice_vjp,
        doc="the elements from `start` up to `stop`, each `step`-th, along every axis",
        convention="0 <= start <= stop <= size: front ends resolve negative and missing bounds",
        cost=no_cost,
    )
)

# --- pad


def _pad_infer(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = types
    _check_ranks(x.ndim, attrs, "low", "high", "interior")
    _check_steps(attrs["interior"], 0, "interior")
    shape: list[Dim] = []
    for size, low, high, gap in zip(
        x.shape, attrs["low"], attrs["high"], attrs["interior"], strict=True
    ):
        if not (_ordered(0, low) and _ordered(0, high)):
            raise ShapeError(f"padding by {low} and {high}: it cannot be negative, slice instead")
        shape.append(low + extent(size, gap + 1) + high)
    return (TensorType(x.dtype, tuple(shape)),)


def _pad(attrs: Attrs, x: Array) -> Array:
    low, high, gaps = attrs["low"], attrs["high"], attrs["interior"]
    if any(n < 0 for n in (*low, *high)):
        raise ShapeError(f"padding by {listed(low)} and {listed(high)}: it cannot be negative")
    extents = [extent(n, gap + 1) for n, gap in zip(x.shape, gaps, strict=True)]
    shape = tuple(a + n + b for a, n, b in zip(low, extents, high, strict=True))
    out = np.full(shape, np.asarray(attrs["value"]).astype(x.dtype), x.dtype)
    window = zip(low, extents, gaps, strict=True)
    out[tuple(slice(a, a + n, gap + 1) for a, n, gap in window)] = x
    return out


def _pad_vjp(ctx: VjpContext, cotangents: Cotangents) -> list[Expr | None]:
    g, low = only(cotangents), ctx.attrs["low"]
    step = tuple(gap + 1 for gap in ctx.attrs["interior"])
    window = zip(low, ctx.inputs[0].shape, step, strict=True)
    stop = tuple(a + extent(n, s) for a, n, s in window)
    return [lookup("slice")(g, start=low, stop=stop, step=step)]


pad = register(
    Op(
        "pad",
        Kind.MOVE,
        _pad_infer,
        _pad,
        _pad_vjp,
        doc="`low` times `value` before, `high` times behind, `interior` times between the "
        "elements along every axis",
        cost=no_cost,
        defaults={"value": 0.0},
    )
)

# --- set_slice


def _set_slice_infer(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    x, y = types
    one_dtype(types)
    _check_ranks(x.ndim, attrs, "start", "step")
    _check_steps(attrs["step"], 1, "step")
    if y.ndim != x.ndim:
        raise ShapeError(f"{y} is written into {x}: the ranks differ")
    windows = zip(x.shape, y.shape, attrs["start"], attrs["step"], strict=True)
    for axis, (size, length, start, step) in enumerate(windows):
        if not (_ordered(0, start) and _ordered(start + extent(length, step), size)):
            raise ShapeError(f"{y} written at {start}, step {step}, leaves axis {axis} of {x}")
    return (x,)


def _set_slice(attrs: Attrs, x: Array, y: Array) -> Array:
    window = zip(attrs["start"], y.shape, attrs["step"], strict=True)
    ends = [a + extent(n, s) for a, n, s in window]
    for axis, (start, end, size) in enumerate(zip(attrs["start"], ends, x.shape, strict=True)):
        if not 0 <= start <= end <= size:
            raise ShapeError(f"the slice {start}:{end} leaves axis {axis} of size {size}")
    out = x.copy()
    out[tuple(slice(*w) for w in zip(attrs["start"], ends, attrs["step"], strict=True))] = y
    return out


def _set_slice_vjp(ctx: VjpContext, cotangents: Cotangents) -> list[Expr | None]:
    g, y = only(cotangents), ctx.inputs[1]
    start, step = ctx.attrs["start"], ctx.attrs["step"]
    gx = gy = None
    if ctx.needs[0]:
        gx = lookup("set_slice")(g, zeros(y.type), start=start, step=step)
    if ctx.needs[1]:
        window = zip(start, y.shape, step, strict=True)
        stop = tuple(a + extent(n, s) for a, n, s in window)
        gy = lookup("slice")(g, start=start, stop=stop, step=step)
    return [gx, gy]


set_slice = register(
    Op(
        "set_slice",
        Kind.MOVE,
        _set_slice_infer,
        _set_slice,
        _set_slice_vjp,
        doc="operand 0 with operand 1 written into the window from `start` by `step`",
        cost=no_cost,
        inplace=(0,),
    )
)
