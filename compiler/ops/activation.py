"""Activations made of several elementwise ops: gelu, silu.

Invariant: the gradient recomputes from x, which alone is kept.  The formulas are those with the
fewest passes over an array, and tanh before exp, which NumPy computes in twice the time.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde.compiler.ir.expr import Expr, cast
from retrograde.compiler.ir.graph import Attrs, TensorType
from retrograde.compiler.ir.op import Op, VjpContext, recomputing
from retrograde.compiler.ir.registry import Kind, lookup, register
from retrograde.compiler.ops.composite import widened, widened_array
from retrograde.compiler.ops.declare import TRANSCENDENTAL, require, work
from retrograde.compiler.ops.move import Cotangents, only

Array = npt.NDArray[Any]

# Hendrycks & Gimpel 2016: gelu(x) = x (1 + tanh u)/2 with u = sqrt(2/pi) (x + 0.044715 x^3).
LINEAR = math.sqrt(2.0 / math.pi)
CUBIC = 0.044715 * LINEAR


def _infer(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    require(types[0], "float")
    return types


# --- gelu


def _gelu(attrs: Attrs, x: Array) -> Array:
    w = widened_array(x)
    if attrs["approximate"]:
        inner = np.tanh(LINEAR * w + CUBIC * w * w * w)
    else:
        inner = lookup("erf").evaluate({}, w * math.sqrt(0.5))
    out: Array = (0.5 * w * (1 + inner)).astype(x.dtype)
    return out


def _gelu_decompose(attrs: Attrs, x: Expr) -> Expr:
    w = widened(x)
    if attrs["approximate"]:
        inner = lookup("tanh")((w * w * CUBIC + LINEAR) * w)
    else:
        inner = lookup("erf")(w * math.sqrt(0.5))
    return cast((inner + 1.0) * w * 0.5, x.dtype)


def _gelu_vjp(ctx: VjpContext, cotangents: Cotangents) -> list[Expr | None]:
    x = ctx.inputs[0]
    with recomputing(ctx):
        slope = (_tanh_slope if ctx.attrs["approximate"] else _erf_slope)(widened(x))
    return [cast(slope * widened(only(cotangents)), x.dtype)]


def _tanh_slope(x: Expr) -> Expr:
    """(1 + t) (1/2 + v (1 - t)) with t = tanh u, v = x u'/2: 13 passes."""
    square = x * x
    t = lookup("tanh")((square * CUBIC + LINEAR) * x)
    v = (square * (1.5 * CUBIC) + 0.5 * LINEAR) * x
    out: Expr = ((1.0 - t) * v + 0.5) * (t + 1.0)
    return out


def _erf_slope(x: Expr) -> Expr:
    """The normal distribution's function plus x times its density."""
    below = (lookup("erf")(x * math.sqrt(0.5)) + 1.0) * 0.5
    density = lookup("exp")(x * x * -0.5) * (1.0 / math.sqrt(2.0 * math.pi))
    out: Expr = density * x + below
    return out


gelu = register(
    Op(
        "gelu",
        Kind.COMPOSITE,
        _infer,
        _gelu,
        _gelu_vjp,
        doc="x times the normal distribution's function of x: by erf, or with `approximate` by "
        "tanh (Hendrycks & Gimpel 2016)",
        promotion="float",
        cost=work(TRANSCENDENTAL + 7),
        decompose=_gelu_decompose,
        defaults={"approximate": True},
    )
)

# --- silu


def _silu(attrs: Attrs, x: Array) -> Array:
    w = widened_array(x)
    out: Array = (w * lookup("sigmoid").evaluate({}, w)).astype(x.dtype)
    return out


def _silu_decompose(attrs: Attrs, x: Expr) -> Expr:
    w = widened(x)
    return cast(w / (lookup("exp")(-w) + 1.0), x.dtype)


def _silu_vjp(ctx: VjpContext, cotangents: Cotangents) -> list[Expr | None]:
    x = ctx.inputs[0]
    with recomputing(ctx):
        w = widened(x)
        s = lookup("sigmoid")(w)
        slope = ((1.0 - s) * w + 1.0) * s
    return [cast(slope * widened(only(cotangents)), x.dtype)]


silu = register(
    Op(
        "silu",
        Kind.COMPOSITE,
        _infer,
        _silu,
        _silu_vjp,
        doc="x / (1 + e^-x)",
        promotion="float",
        cost=work(TRANSCENDENTAL + 6),
        decompose=_silu_decompose,
    )
)
