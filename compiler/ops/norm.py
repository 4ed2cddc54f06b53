"""Normalisation over the last axis: layer_norm, rms_norm.

Operands: x, then a gain and (layer_norm) a bias of the last axis' size, both optional.  Results:
the normalised tensor and the row statistics, from which the gradient recomputes the rest.
Invariant: of x's size, only x itself is kept for the gradient; f16 and bf16 are computed in f32,
and so are the statistics.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde.compiler.errors import ShapeError
from retrograde.compiler.ir import dims
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.expr import Expr, cast, dim_number
from retrograde.compiler.ir.graph import Attrs, TensorType
from retrograde.compiler.ir.op import Op, VjpContext, recomputing
from retrograde.compiler.ir.registry import Kind, lookup, register
from retrograde.compiler.ops.composite import reshaped, row_dot, row_sum, widened, widened_array
from retrograde.compiler.ops.declare import one_dtype, require, wide, work
from retrograde.compiler.ops.move import Cotangents

Array = npt.NDArray[Any]


def _infer(statistics: int, most: int) -> Any:
    def infer(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
        if not 1 <= len(types) <= most:
            raise ShapeError(f"takes 1 to {most} operands, got {len(types)}")
        x, *parameters = types
        one_dtype(types)
        require(x, "float")
        if x.ndim == 0:
            raise ShapeError(f"{x} has no last axis to normalise")
        for t in parameters:
            if t.ndim != 1 or not dims.same(t.shape[0], x.shape[-1]):
                raise ShapeError(f"a gain or bias is {t}: it has the size of the last axis of {x}")
        row = TensorType(wide(x.dtype), (*x.shape[:-1], 1))
        return (x, *(row,) * statistics)

    return infer


def _per(x: Expr, size: Dim) -> Expr:
    """x / size; NaN for size 0, as of a mean of nothing."""
    static = isinstance(size, int)
    out: Expr = x * (1.0 / size if size else math.nan) if static else x / dim_number(size)
    return out


def _gain_gradient(rstd: Expr, products: Expr) -> Expr:
    """The sum over all rows of rstd * products."""
    lead = tuple(range(products.ndim - 1))
    out = lookup("dot_general")(rstd, products, contract=(lead, lead), batch=((), ()))
    return reshaped(out, products.shape[-1:])


def _weighted_sum(x: Expr, gain: Expr | None) -> Expr:
    """The row sums of x * gain."""
    last = x.ndim - 1
    if gain is None:
        return row_sum(x, (last,))
    out = lookup("dot_general")(x, gain, contract=((last,), (0,)), batch=((), ()))
    return reshaped(out, (*x.shape[:-1], 1))


def _sum_of(*parts: Expr | None) -> Expr | None:
    total: Expr | None = None
    for part in parts:
        if part is not None:
            total = part if total is None else total + part
    return total


# --- layer_norm


def _layer_norm(attrs: Attrs, x: Array, *parameters: Array) -> tuple[Array, ...]:
    w = widened_array(x)
    with np.errstate(all="ignore"):
        count = np.asarray(w.shape[-1], w.dtype)
        mean = w.sum(-1, keepdims=True) / count
        centred = w - mean
        rstd = 1 / np.sqrt(np.square(centred).sum(-1, keepdims=True) / count + attrs["eps"])
        y = centred * rstd
    if parameters:
        y = y * widened_array(parameters[0])
    if len(parameters) == 2:
        y = y + widened_array(parameters[1])
    return y.astype(x.dtype), mean, rstd.astype(w.dtype)


def _layer_norm_decompose(attrs: Attrs, x: Expr, *parameters: Expr) -> tuple[Expr, ...]:
    w, last, size = widened(x), x.ndim - 1, x.shape[-1]
    mean = _per(row_sum(w, (last,)), size)
    centred = w - mean
    rstd = lookup("rsqrt")(_per(row_dot(centred, centred, last), size) + attrs["eps"])
    y = centred * rstd
    if parameters:
        y = y * widened(parameters[0])
    if len(parameters) == 2:
        y = y + widened(parameters[1])
    return cast(y, x.dtype), mean, rstd


def _layer_norm_vjp(ctx: VjpContext, cotangents: Cotangents) -> list[Expr | None]:
    # With c = x - mean, s = rstd, n = size: y = c s gain + bias, d mean/dx = 1/n and
    # d s/dx = -s^3 c/n.  Summing over a row:  dx = gy gain s - (c K + M)  with
    # K = s^3 (sum gy gain c + g_s)/n  and  M = (s sum gy gain - g_mean)/n.
    x, *parameters = ctx.inputs
    _, mean, rstd = ctx.outputs
    gy, g_mean, g_rstd = cotangents
    gain = widened(parameters[0]) if parameters else None
    size = x.shape[-1]
    out: list[Expr | None] = [None] * len(ctx.inputs)
    with recomputing(ctx):
        centred = widened(x) - mean
    along = across = direct = None
    if gy is not None:
        g = widened(gy)
        products = g * centred
        if gain is not None and ctx.needs[1]:
            out[1] = cast(_gain_gradient(rstd, products), x.dtype)
        if len(parameters) == 2 and ctx.needs[2]:
            lead = tuple(range(x.ndim - 1))
            out[2] = cast(lookup("sum")(g, axes=lead, keepdims=False), x.dtype)
        if not ctx.needs[0]:
            return out
        along = _weighted_sum(products, gain)
        across = rstd * _weighted_sum(g, gain)
        direct = (g if gain is None else g * gain) * rstd
    along = _sum_of(along, g_rstd)
    across = _sum_of(across, None if g_mean is None else -g_mean)
    correction = None
    if along is not None:
        correction = centred * _per(rstd * rstd * rstd * along, size)
    if across is not None:
        correction = _sum_of(correction, _per(across, size))
    assert correction is not None
    gx = -correction if direct is None else direct - correction
    out[0] = cast(_filled(gx, x), x.dtype)
    return out


def _filled(gx: Expr, x: Expr) -> Expr:
    """`gx` over the whole shape of x (it is one number a row where only the mean is used)."""
    if dims.same(gx.shape[-1], x.shape[-1]):
        return gx
    out: Expr = lookup("broadcast_to")(gx, shape=x.shape)
    return out


layer_norm = register(
    Op(
        "layer_norm",
        Kind.COMPOSITE,
        _infer(2, 3),
        _layer_norm,
        _layer_norm_vjp,
        doc="(x - mean) / sqrt(variance + `eps`) over the last axis, times gain, plus bias; the "
        "mean and 1/sqrt(variance + `eps`) of each row (Ba, Kiros & Hinton 2016)",
        convention="gain and bias may be left out; the variance is that of the population",
        promotion="float",
        cost=work(10),
        decompose=_layer_norm_decompose,
        defaults={"eps": 1e-5},
    )
)

# --- rms_norm


def _rms_norm(attrs: Attrs, x: Array, *parameters: Array) -> tuple[Array, ...]:
    w = widened_array(x)
    with np.errstate(all="ignore"):
        count = np.asarray(w.shape[-1], w.dtype)
        rstd = 1 / np.sqrt(np.square(w).sum(-1, keepdims=True) / count + attrs["eps"])
        y = w * rstd
    if parameters:
        y = y * widened_array(parameters[0])
    return y.astype(x.dtype), rstd.astype(w.dtype)


def _rms_norm_decompose(attrs: Attrs, x: Expr, *parameters: Expr) -> tuple[Expr, ...]:
    w, last = widened(x), x.ndim - 1
    rstd = lookup("rsqrt")(_per(row_dot(w, w, last), x.shape[-1]) + attrs["eps"])
    y = w * rstd
    if parameters:
        y = y * widened(parameters[0])
    return cast(y, x.dtype), rstd


def _rms_norm_vjp(ctx: VjpContext, cotangents: Cotangents) -> list[Expr | None]:
    # As for layer_norm, with mean 0: dx = gy gain s - x s^3 (sum gy gain x + g_s)/n.
    x, *parameters = ctx.inputs
    _, rstd = ctx.outputs
    gy, g_rstd = cotangents
    gain = widened(parameters[0]) if parameters else None
    w = widened(x)
    out: list[Expr | None] = [None] * len(ctx.inputs)
    along = direct = None
    if gy is not None:
        g = widened(gy)
        products = g * w
        if gain is not None and ctx.needs[1]:
            out[1] = cast(_gain_gradient(rstd, products), x.dtype)
        if not ctx.needs[0]:
            return out
        along = _weighted_sum(products, gain)
        direct = (g if gain is None else g * gain) * rstd
    total = _sum_of(along, g_rstd)
    assert total is not None
    correction = w * _per(rstd * rstd * rstd * total, x.shape[-1])
    out[0] = cast(-correction if direct is None else direct - correction, x.dtype)
    return out


rms_norm = register(
    Op(
        "rms_norm",
        Kind.COMPOSITE,
        _infer(1, 2),
        _rms_norm,
        _rms_norm_vjp,
        doc="x / sqrt(mean of x^2 + `eps`) over the last axis, times gain; the factor "
        "1/sqrt(mean of x^2 + `eps`) of each row (Zhang & Sennrich 2019)",
        convention="gain may be left out",
        promotion="float",
        cost=work(6),
        decompose=_rms_norm_decompose,
        defaults={"eps": 1e-5},
    )
)
