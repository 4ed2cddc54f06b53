"""row_dot: sums of products along rows, the one contraction that groups with elementwise ops."""

from __future__ import annotations

from typing import Any

import numpy as np

from retrograde.compiler.errors import ShapeError
from retrograde.compiler.ir.dims import same
from retrograde.compiler.ir.expr import Expr, broadcast_shapes
from retrograde.compiler.ir.graph import Attrs, TensorType, same_shape
from retrograde.compiler.ir.op import Op, VjpContext, unbroadcast
from retrograde.compiler.ir.registry import Kind, register
from retrograde.compiler.ops.declare import one_dtype, require


def _infer(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    a, b = types
    one_dtype(types)
    require(a, "float")
    if not a.shape or not b.shape or not same(a.shape[-1], b.shape[-1]):
        raise ShapeError(f"{a} and {b} need a last axis of the same size")
    if not same_shape(broadcast_shapes(a.shape, b.shape), a.shape):
        raise ShapeError(f"{b} does not stretch to {a}")
    return (TensorType(a.dtype, (*a.shape[:-1], 1)),)


def _row_dot(attrs: Attrs, a: Any, b: Any) -> Any:
    wide = np.float32 if a.dtype.itemsize == 2 else a.dtype
    return np.vecdot(a.astype(wide), b.astype(wide))[..., None].astype(a.dtype)


def _vjp(ctx: VjpContext, cotangents: tuple[Expr | None, ...]) -> list[Expr | None]:
    a, b = ctx.inputs
    (g,) = cotangents
    assert g is not None
    return [b * g if ctx.needs[0] else None, unbroadcast(a * g, b.type) if ctx.needs[1] else None]


row_dot = register(
    Op(
        "row_dot",
        Kind.REDUCE,
        _infer,
        _row_dot,
        _vjp,
        doc="the sum of products along the last axis, which stays with size 1",
        convention="f16 and bf16 are summed in f32",
        promotion="common",
    )
)
