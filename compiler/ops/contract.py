"""The contraction of two tensors: dot_general, which every matmul, einsum and projection becomes.

Attributes are pairs (axes of the left, axes of the right operand): `contract` is summed over,
`batch` runs along in both.  The result has the batch axes, then the free axes of the left operand,
then those of the right.  Invariant: f16 and bf16 are summed in f32 and rounded once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde.compiler.errors import ShapeError
from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.graph import Attrs, TensorType
from retrograde.compiler.ir.op import Op, VjpContext
from retrograde.compiler.ir.registry import Kind, lookup, register
from retrograde.compiler.ops.declare import one_dtype
from retrograde.compiler.ops.move import Cotangents, check_axes, only

Array = npt.NDArray[Any]
Axes = tuple[int, ...]


def free_axes(rank: int, *used: Sequence[int]) -> Axes:
    """The axes of an operand that are neither contracted nor batch axes."""
    taken = {a for axes in used for a in axes}
    return tuple(i for i in range(rank) if i not in taken)


def _infer(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    lhs, rhs = types
    contract, batch = attrs["contract"], attrs["batch"]
    for t, *used in zip(types, contract, batch, strict=True):
        check_axes(tuple(a for axes in used for a in axes), t.ndim)
    for what, (left, right) in (("contract", contract), ("batch", batch)):
        if len(left) != len(right):
            raise ShapeError(f"{what} pairs axes {left} of {lhs} with {right} of {rhs}")
        for i, j in zip(left, right, strict=True):
            if not dims.same(lhs.shape[i], rhs.shape[j]):
                raise ShapeError(
                    f"{lhs} and {rhs} do not fit: {lhs.shape[i]} on axis {i} of the left against "
                    f"{rhs.shape[j]} on axis {j} of the right operand"
                )
    shape = (
        *(lhs.shape[i] for i in batch[0]),
        *(lhs.shape[i] for i in free_axes(lhs.ndim, contract[0], batch[0])),
        *(rhs.shape[i] for i in free_axes(rhs.ndim, contract[1], batch[1])),
    )
    return (TensorType(one_dtype(types), shape),)


def _evaluate(attrs: Attrs, lhs: Array, rhs: Array) -> Array:
    contract, batch = attrs["contract"], attrs["batch"]
    free = [free_axes(x.ndim, c, b) for x, c, b in zip((lhs, rhs), contract, batch, strict=True)]
    shared, summed = [lhs.shape[i] for i in batch[0]], [lhs.shape[i] for i in contract[0]]
    rows, columns = ([x.shape[i] for i in f] for x, f in zip((lhs, rhs), free, strict=True))
    b, m, k, n = (math.prod(sizes) for sizes in (shared, rows, summed, columns))
    left = lhs.transpose((*batch[0], *free[0], *contract[0])).reshape(b, m, k)
    right = rhs.transpose((*batch[1], *contract[1], *free[1])).reshape(b, k, n)
    if dtypes.dtype(lhs.dtype).is_float and lhs.dtype.itemsize == 2:
        left, right = left.astype(np.float32), right.astype(np.float32)
    out: Array = np.matmul(left, right).astype(lhs.dtype)
    return out.reshape((*shared, *rows, *columns))


def _arranged(part: Expr, held: Axes) -> Expr:
    """`part`, whose axis i is axis held[i] of an operand, in that operand's order."""
    if held == tuple(range(len(held))):
        return part
    out: Expr = lookup("transpose")(part, perm=tuple(held.index(i) for i in range(len(held))))
    return out


def _partners(axes: Axes, partners: Axes) -> Axes:
    """`partners` in the rising order of the axes they are paired with."""
    return tuple(j for _, j in sorted(zip(axes, partners, strict=True)))


def _vjp(ctx: VjpContext, cotangents: Cotangents) -> list[Expr | None]:
    g, (lhs, rhs) = only(cotangents), ctx.inputs
    (left, right), (left_batch, right_batch) = ctx.attrs["contract"], ctx.attrs["batch"]
    left_free = free_axes(lhs.ndim, left, left_batch)
    right_free = free_axes(rhs.ndim, right, right_batch)
    lead = tuple(range(len(left_batch)))
    middle = len(lead) + len(left_free)
    rows, columns = tuple(range(len(lead), middle)), tuple(range(middle, g.ndim))
    dot = lookup("dot_general")
    d_lhs = d_rhs = None
    if ctx.needs[0]:  # batch, left free, then what the right operand holds: its contracted axes
        part = dot(g, rhs, contract=(columns, right_free), batch=(lead, right_batch))
        d_lhs = _arranged(part, (*left_batch, *left_free, *_partners(right, left)))
    if ctx.needs[1]:  # batch, what the left operand holds: its contracted axes, then right free
        part = dot(lhs, g, contract=(left_free, rows), batch=(left_batch, lead))
        d_rhs = _arranged(part, (*right_batch, *_partners(left, right), *right_free))
    return [d_lhs, d_rhs]


def _cost(inputs: Sequence[TensorType], outputs: Sequence[TensorType], attrs: Attrs) -> Dim:
    summed = dims.product(inputs[0].shape[i] for i in attrs["contract"][0])
    return 2 * outputs[0].size * summed


dot_general = register(
    Op(
        "dot_general",
        Kind.CONTRACT,
        _infer,
        _evaluate,
        _vjp,
        mixed="half",
        doc="the sum over the `contract` axes of the products, along the `batch` axes",
        convention="zeros where nothing is summed; f16 and bf16 are summed in f32; of booleans: or "
        "of ands",
        promotion="common",
        cost=_cost,
    )
)
