"""Softmax and its kin: softmax, log_softmax, logsumexp, token_nll.

Each carries its decomposition into core ops, an independent NumPy reference, and a gradient rule of
its own where that keeps less alive.  f16 and bf16 are computed in f32.  Invariant: a row of -inf is
an empty row, never a NaN by itself; a NaN in a row reaches the row's results.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde.compiler.errors import DataError, DTypeError, ShapeError
from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.dtypes import DType
from retrograde.compiler.ir.expr import Expr, as_expr, cast
from retrograde.compiler.ir.graph import Attrs, TensorType, same_shape
from retrograde.compiler.ir.op import Op, VjpContext, recomputing
from retrograde.compiler.ir.registry import Kind, lookup, register
from retrograde.compiler.ops.declare import TRANSCENDENTAL, require, wide, work
from retrograde.compiler.ops.index import gather, scatter_add
from retrograde.compiler.ops.move import Cotangents, check_axes, listed, only
from retrograde.compiler.ops.reduce import reduced_shape

Array = npt.NDArray[Any]


def widened(x: Expr) -> Expr:
    """`x` in the type it is computed in: f16 and bf16 in f32."""
    return cast(x, wide(x.dtype))


def widened_array(x: Array) -> Array:
    """The same of an array."""
    return x.astype(wide(dtypes.dtype(x.dtype)).numpy, copy=False)


def lowest(dtype: DType) -> float:
    """The smallest finite number: a row's maximum is raised to it, so that -inf - max is -inf."""
    return float(np.finfo(dtype.numpy).min)


def reshaped(x: Expr, shape: Sequence[Dim]) -> Expr:
    """`x` in another shape; itself where it has it."""
    if same_shape(x.shape, shape):
        return x
    out: Expr = lookup("reshape")(x, shape=tuple(shape))
    return out


def row_sum(x: Expr, axes: tuple[int, ...]) -> Expr:
    """The sums along `axes`, which stay with size 1."""
    out: Expr = lookup("sum")(x, axes=axes, keepdims=True)
    return out


def row_dot(a: Expr, b: Expr, axis: int) -> Expr:
    """The sums of a*b along `axis`, which stays with size 1, without the array of products."""
    rest = tuple(i for i in range(a.ndim) if i != axis)
    out = lookup("dot_general")(a, b, contract=((axis,), (axis,)), batch=(rest, rest))
    return reshaped(out, reduced_shape(a.shape, (axis,), True))


def _row_max(x: Expr, axes: tuple[int, ...]) -> Expr:
    """The largest of each row, at least the lowest number, also of a row that may be empty."""
    if any(dims.decide_le(1, x.shape[a]) is not True for a in axes):
        nothing = (0,) * x.ndim
        one = tuple(int(i in axes) for i in range(x.ndim))
        x = lookup("pad")(x, low=one, high=nothing, interior=nothing, value=lowest(x.dtype))
    top = lookup("max")(x, axes=axes, keepdims=True)
    out: Expr = lookup("maximum")(top, lowest(x.dtype))
    return out


def _infer_rows(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = types
    require(x, "float")
    check_axes((attrs["axis"],), x.ndim)
    return (x,)


def _empty(x: Expr, axes: Sequence[int]) -> bool:
    """Whether the rows are known to have no elements: nothing has a maximum then."""
    return any(dims.same(x.shape[a], 0) for a in axes)


# --- softmax


def _softmax(attrs: Attrs, x: Array) -> Array:
    axis, w = attrs["axis"], widened_array(x)
    top = w.max(axis, keepdims=True, initial=-np.inf)
    with np.errstate(all="ignore"):
        e = np.exp(w - np.where(np.isneginf(top), 0, top))
        total = e.sum(axis, keepdims=True)
        out: Array = (e / np.where(total == 0, 1, total)).astype(x.dtype)
    return out


def _softmax_decompose(attrs: Attrs, x: Expr) -> Expr:
    axes = (attrs["axis"],)
    if _empty(x, axes):
        return x
    w = widened(x)
    e = lookup("exp")(w - _row_max(w, axes))
    # The largest element adds e^0 = 1: a sum below 1 is that of an empty row.
    return cast(e / lookup("maximum")(row_sum(e, axes), 1.0), x.dtype)


def _softmax_vjp(ctx: VjpContext, cotangents: Cotangents) -> list[Expr | None]:
    y, g = widened(ctx.outputs[0]), widened(only(cotangents))
    gx = (g - row_dot(g, y, ctx.attrs["axis"])) * y
    return [cast(gx, ctx.inputs[0].dtype)]


softmax = register(
    Op(
        "softmax",
        Kind.COMPOSITE,
        _infer_rows,
        _softmax,
        _softmax_vjp,
        doc="e^x divided by its sum along `axis`",
        convention="zeros on a row of -inf; NaN all along a row that holds one",
        promotion="float",
        cost=work(TRANSCENDENTAL + 6),
        decompose=_softmax_decompose,
    )
)

# --- log_softmax


def _log_softmax(attrs: Attrs, x: Array) -> Array:
    axis, w = attrs["axis"], widened_array(x)
    top = w.max(axis, keepdims=True, initial=-np.inf)
    with np.errstate(all="ignore"):
        shifted = w - np.where(np.isneginf(top), 0, top)
        total = np.exp(shifted).sum(axis, keepdims=True)
        return (shifted - np.log(np.where(total == 0, 1, total))).astype(x.dtype)


def _log_softmax_decompose(attrs: Attrs, x: Expr) -> Expr:
    axes = (attrs["axis"],)
    if _empty(x, axes):
        return x
    w = widened(x)
    shifted = w - _row_max(w, axes)
    total = lookup("maximum")(row_sum(lookup("exp")(shifted), axes), 1.0)
    return cast(shifted - lookup("log")(total), x.dtype)


def _log_softmax_vjp(ctx: VjpContext, cotangents: Cotangents) -> list[Expr | None]:
    y, g = widened(ctx.outputs[0]), widened(only(cotangents))
    gx = g - lookup("exp")(y) * row_sum(g, (ctx.attrs["axis"],))
    return [cast(gx, ctx.inputs[0].dtype)]


log_softmax = register(
    Op(
        "log_softmax",
        Kind.COMPOSITE,
        _infer_rows,
        _log_softmax,
        _log_softmax_vjp,
        mixed="wide",
        doc="the logarithm of softmax along `axis`",
        convention="-inf on a row of -inf; NaN all along a row that holds one",
        promotion="float",
        cost=work(TRANSCENDENTAL + 6),
        decompose=_log_softmax_decompose,
    )
)

# --- logsumexp


def _logsumexp_infer(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = types
    require(x, "float")
    return (TensorType(x.dtype, reduced_shape(x.shape, attrs["axes"], attrs["keepdims"])),)


def _logsumexp(attrs: Attrs, x: Array) -> Array:
    axes, w = attrs["axes"], widened_array(x)
    top = w.max(axes, keepdims=True, initial=-np.inf)
    top = np.where(np.isinf(top), 0, top)
    with np.errstate(all="ignore"):
        total = np.log(np.exp(w - top).sum(axes, keepdims=True)) + top
    out: Array = total.astype(x.dtype)
    return out if attrs["keepdims"] else out.squeeze(axes)


def _logsumexp_decompose(attrs: Attrs, x: Expr) -> Expr:
    axes = attrs["axes"]
    shape = reduced_shape(x.shape, axes, attrs["keepdims"])
    if _empty(x, axes):
        out: Expr = lookup("broadcast_to")(as_expr(-math.inf, x.dtype), shape=shape)
        return out
    w = widened(x)
    top = lookup("minimum")(_row_max(w, axes), -lowest(w.dtype))  # inf - max stays inf
    total = lookup("log")(row_sum(lookup("exp")(w - top), axes)) + top
    return reshaped(cast(total, x.dtype), shape)


def _logsumexp_vjp(ctx: VjpContext, cotangents: Cotangents) -> list[Expr | None]:
    x, y, g = widened(ctx.inputs[0]), widened(ctx.outputs[0]), widened(only(cotangents))
    kept = reduced_shape(x.shape, ctx.attrs["axes"], True)
    with recomputing(ctx):
        level = lookup("maximum")(reshaped(y, kept), lowest(x.dtype))
        weights = lookup("exp")(x - level)
    return [cast(weights * reshaped(g, kept), ctx.inputs[0].dtype)]


logsumexp = register(
    Op(
        "logsumexp",
        Kind.COMPOSITE,
        _logsumexp_infer,
        _logsumexp,
        _logsumexp_vjp,
        mixed="wide",
        doc="the logarithm of the sum of e^x over `axes`",
        convention="-inf over no elements and over -inf alone, with zero gradients there",
        promotion="float",
        cost=work(TRANSCENDENTAL + 4),
        decompose=_logsumexp_decompose,
        defaults={"keepdims": False},
    )
)

# --- token_nll


def _nll_infer(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    logits, targets = types
    require(logits, "float")
    if not targets.dtype.is_integer:
        raise DTypeError(f"the targets are {targets}: class indices are integers")
    if logits.ndim == 0 or not same_shape(logits.shape[:-1], targets.shape):
        raise ShapeError(
            f"logits {logits} need targets of shape {listed(logits.shape[:-1])}, got {targets}"
        )
    row = TensorType(wide(logits.dtype), targets.shape)
    return row, row


def _nll(attrs: Attrs, logits: Array, targets: Array) -> tuple[Array, Array]:
    classes = logits.shape[-1]
    wrong = targets[(targets < 0) | (targets >= classes)]
    if wrong.size:
        raise DataError(f"target {wrong.flat[0]} is out of range for {classes} classes")
    w = widened_array(logits)
    lse = _logsumexp({"axes": (w.ndim - 1,), "keepdims": False}, w)
    picked = np.take_along_axis(w, targets[..., None].astype(np.intp), -1)[..., 0]
    with np.errstate(invalid="ignore"):
        return lse - picked, lse


def _rows_and_places(logits: Expr, targets: Expr) -> tuple[Expr, tuple[Expr, Expr]]:
    """The logits as a matrix, and the row and column of each target in it."""
    count = targets.size
    rows = lookup("iota")(size=count, dtype=dtypes.i32)
    matrix = reshaped(logits, (count, logits.shape[-1]))
    return matrix, (rows, reshaped(targets, (count,)))


def _nll_decompose(attrs: Attrs, logits: Expr, targets: Expr) -> tuple[Expr, Expr]:
    lse = logsumexp(widened(logits), axes=(logits.ndim - 1,))
    matrix, places = _rows_and_places(logits, targets)
    picked = gather(matrix, *places, axes=(0, 1), wrap=False)
    return lse - reshaped(widened(picked), targets.shape), lse


def _nll_vjp(ctx: VjpContext, cotangents: Cotangents) -> list[Expr | None]:
    logits, targets = ctx.inputs
    lse = ctx.outputs[1]
    kept = (*lse.shape, 1)
    g_nll, g_lse = cotangents
    g = g_lse if g_nll is None else g_nll if g_lse is None else g_nll + g_lse
    assert g is not None
    with recomputing(ctx):
        level = lookup("maximum")(lse, lowest(lse.dtype))
        weights = lookup("exp")(widened(logits) - reshaped(level, kept))
    gx = weights * reshaped(g, kept)
    if g_nll is not None:
        matrix, places = _rows_and_places(gx, targets)
        at_targets = -reshaped(g_nll, (targets.size,))
        matrix = scatter_add(matrix, at_targets, *places, axes=(0, 1), wrap=False)
        gx = reshaped(matrix, logits.shape)
    return [cast(gx, logits.dtype), None]


token_nll = register(
    Op(
        "token_nll",
        Kind.COMPOSITE,
        _nll_infer,
        _nll,
        _nll_vjp,
        doc="the negative log likelihood of each target under softmax of the last axis of the "
        "logits, and the logsumexp of the logits (both f32 for f16 and bf16)",
        convention="a target below 0 or beyond the classes is a DataError; NaN on a row of -inf, "
        "with zero gradients if its cotangent is zero",
        cost=work(TRANSCENDENTAL + 4),
        decompose=_nll_decompose,
        checks_data=True,
    )
)
