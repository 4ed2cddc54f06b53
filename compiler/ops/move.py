"""Ops that only rearrange: cast, reshape, transpose, broadcast_to, flip, concatenate.

Operand -> the same elements in other places (or, for cast, in another type).  Invariant: sizes
that must agree agree provably, for all values of the symbols; else ShapeError.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde.compiler.errors import ShapeError
from retrograde.compiler.ir import dims
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.expr import Expr, broadcast_shapes
from retrograde.compiler.ir.expr import cast as cast_expr
from retrograde.compiler.ir.graph import Attrs, TensorType, same_shape
from retrograde.compiler.ir.op import Op, VjpContext, no_cost, unbroadcast
from retrograde.compiler.ir.registry import Kind, lookup, register
from retrograde.compiler.ops.declare import one_dtype

Array = npt.NDArray[Any]
Cotangents = tuple[Expr | None, ...]


def only(cotangents: Cotangents) -> Expr:
    """The cotangent of an op of one result; a gradient rule runs only where there is one."""
    (g,) = cotangents
    assert g is not None
    return g


def listed(sizes: Sequence[Dim]) -> str:
    """A shape as messages show it."""
    return f"[{', '.join(map(str, sizes))}]"


def check_axes(axes: Sequence[int], rank: int) -> None:
    """ShapeError unless `axes` are distinct axes, counted from the front, of `rank` dimensions."""
    if any(not 0 <= a < rank for a in axes) or len(set(axes)) != len(axes):
        raise ShapeError(f"axes {tuple(axes)} are not distinct axes of {rank} dimensions")


# --- cast


def _cast_infer(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    return (TensorType(attrs["dtype"], types[0].shape),)


def _cast(attrs: Attrs, x: Array) -> Array:
    with np.errstate(invalid="ignore", over="ignore"):
        return x.astype(attrs["dtype"].numpy)


def _cast_vjp(ctx: VjpContext, cotangents: Cotangents) -> list[Expr | None]:
    return [cast_expr(only(cotangents), ctx.inputs[0].dtype)]


cast = register(
    Op(
        "cast",
        Kind.ELEMENTWISE,
        _cast_infer,
        _cast,
        _cast_vjp,
        doc="the elements as `dtype`",
        convention="floats to integers truncate as NumPy does, and what does not fit is what "
        "NumPy makes of it; to bool: not equal to 0 (NaN is true)",
        numpy='{xp}.copyto({out}, {0}, casting="unsafe")',
        c="rg_cast_{t}_{r}({0})",
    )
)

# --- reshape


def _reshape_infer(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    (x,), shape = types, tuple(attrs["shape"])
    if not dims.same(x.size, dims.product(shape)):
        raise ShapeError(
            f"{x} does not provably hold as many elements as {listed(shape)} "
            f"({x.size} against {dims.product(shape)})"
        )
    return (TensorType(x.dtype, shape),)


def _reshape(attrs: Attrs, x: Array) -> Array:
    return x.reshape(attrs["shape"])


def _reshape_vjp(ctx: VjpContext, cotangents: Cotangents) -> list[Expr | None]:
    return [lookup("reshape")(only(cotangents), shape=ctx.inputs[0].shape)]


reshape = register(
    Op(
        "reshape",
        Kind.MOVE,
        _reshape_infer,
        _reshape,
        _reshape_vjp,
        doc="the elements, in row-major order, in another `shape`",
        cost=no_cost,
    )
)

# --- transpose


def _transpose_infer(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    (x,), perm = types, attrs["perm"]
    if sorted(perm) != list(range(x.ndim)):
        raise ShapeError(f"perm {tuple(perm)} does not order the {x.ndim} axes of {x}")
    return (TensorType(x.dtype, tuple(x.shape[i] for i in perm)),)


def _transpose(attrs: Attrs, x: Array) -> Array:
    return x.transpose(attrs["perm"])


def _transpose_vjp(ctx: VjpContext, cotangents: Cotangents) -> list[Expr | None]:
    perm = ctx.attrs["perm"]
    back = tuple(perm.index(i) for i in range(len(perm)))
    return [lookup("transpose")(only(cotangents), perm=back)]


transpose = register(
    Op(
        "transpose",
        Kind.MOVE,
        _transpose_infer,
        _transpose,
        _transpose_vjp,
        doc="axis i of the result is axis `perm[i]` of the operand",
        cost=no_cost,
    )
)

# --- broadcast_to


def _broadcast_infer(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    (x,), shape = types, tuple(attrs["shape"])
    if x.ndim > len(shape) or not same_shape(broadcast_shapes(x.shape, shape), shape):
        raise ShapeError(f"{x} does not stretch to {listed(shape)}: only axes of size 1 do")
    return (TensorType(x.dtype, shape),)


def _broadcast(attrs: Attrs, x: Array) -> Array:
    return np.broadcast_to(x, attrs["shape"])


def _broadcast_vjp(ctx: VjpContext, cotangents: Cotangents) -> list[Expr | None]:
    return [unbroadcast(only(cotangents), ctx.inputs[0].type)]


broadcast_to = register(
    Op(
        "broadcast_to",
        Kind.MOVE,
        _broadcast_infer,
        _broadcast,
        _broadcast_vjp,
        doc="the operand repeated along new leading axes and axes of size 1, up to `shape`",
        cost=no_cost,
    )
)

# --- flip


def _flip_infer(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    check_axes(attrs["axes"], types[0].ndim)
    return (types[0],)


def _flip(attrs: Attrs, x: Array) -> Array:
    return np.flip(x, attrs["axes"])


def _flip_vjp(ctx: VjpContext, cotangents: Cotangents) -> list[Expr | None]:
    return [lookup("flip")(only(cotangents), axes=ctx.attrs["axes"])]


flip = register(
    Op(
        "flip",
        Kind.MOVE,
        _flip_infer,
        _flip,
        _flip_vjp,
        doc="the elements in reverse order along `axes`",
        cost=no_cost,
    )
)

# --- concatenate


def _concatenate_infer(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    if not types:
        raise ShapeError("nothing to concatenate: give at least one array")
    axis, first = attrs["axis"], types[0]
    if not 0 <= axis < first.ndim:
        raise ShapeError(f"{first} has no axis {axis} to concatenate along")
    total: Dim = 0
    for t in types:
        rest = [d for i, d in enumerate(t.shape) if i != axis]
        if t.ndim != first.ndim or not same_shape(
            rest, [d for i, d in enumerate(first.shape) if i != axis]
        ):
            shapes = ", ".join(map(str, types))
            raise ShapeError(f"{shapes} do not agree in all axes but {axis}")
        total = total + t.shape[axis]
    shape = (*first.shape[:axis], total, *first.shape[axis + 1 :])
    return (TensorType(one_dtype(types), shape),)


def _concatenate(attrs: Attrs, *arrays: Array) -> Array:
    return np.concatenate(arrays, attrs["axis"])


def _concatenate_vjp(ctx: VjpContext, cotangents: Cotangents) -> list[Expr | None]:
    g, axis = only(cotangents), ctx.attrs["axis"]
    parts: list[Expr | None] = []
    offset: Dim = 0
    for x, need in zip(ctx.inputs, ctx.needs, strict=True):
        end = offset + x.shape[axis]
        start = tuple(offset if i == axis else 0 for i in range(g.ndim))
        stop = tuple(end if i == axis else d for i, d in enumerate(g.shape))
        step = (1,) * g.ndim
        parts.append(lookup("slice")(g, start=start, stop=stop, step=step) if need else None)
        offset = end
    return parts


concatenate = register(
    Op(
        "concatenate",
        Kind.MOVE,
        _concatenate_infer,
        _concatenate,
        _concatenate_vjp,
        doc="the operands one behind the other along `axis`",
        promotion="common",
        cost=no_cost,
    )
)
