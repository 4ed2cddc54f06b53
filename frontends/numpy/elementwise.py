"""Functions applied element by element: arrays -> an array of their common shape.

Invariant: each name is the op of that meaning; what NumPy spells twice is one function here.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from retrograde.compiler.ir import dtypes
from retrograde.compiler.ir import expr as ir
from retrograde.compiler.ir.expr import Expr, cast
from retrograde.compiler.ir.registry import lookup
from retrograde.numpy import primitives as p
from retrograde.numpy.dispatch import function
from retrograde.numpy.logic import isnan, where
from retrograde.numpy.primitives import Array, ArrayLike
from retrograde.numpy.wrappers import Function, binary, named, unary

__all__ = [
    "abs",
    "absolute",
    "acos",
    "acosh",
    "add",
    "arccos",
    "arccosh",
    "arcsin",
    "arcsinh",
    "arctan",
    "arctan2",
    "arctanh",
    "around",
    "asin",
    "asinh",
    "atan",
    "atan2",
    "atanh",
    "ceil",
    "clip",
    "copysign",
    "cos",
    "cosh",
    "deg2rad",
    "degrees",
    "divide",
    "divmod",
    "exp",
    "exp2",
    "expm1",
    "fabs",
    "fix",
    "float_power",
    "floor",
    "floor_divide",
    "fmax",
    "fmin",
    "hypot",
    "log",
    "log1p",
    "log2",
    "log10",
    "logaddexp",
    "maximum",
    "minimum",
    "mod",
    "multiply",
    "nan_to_num",
    "negative",
    "positive",
    "pow",
    "power",
    "rad2deg",
    "radians",
    "reciprocal",
    "remainder",
    "rint",
    "round",
    "rsqrt",
    "sign",
    "sin",
    "sinh",
    "sqrt",
    "square",
    "subtract",
    "tan",
    "tanh",
    "true_divide",
    "trunc",
]

# --- arithmetic

add = binary("add")
subtract = binary("sub", "subtract")
multiply = binary("mul", "multiply")
divide = true_divide = binary("div", "divide")
floor_divide = binary("floor_div", "floor_divide")
remainder = mod = binary("mod", "remainder")
maximum = binary("maximum")
minimum = binary("minimum")
negative = unary("neg", "negative")
reciprocal = unary("reciprocal")
sign = unary("sign")


@function
def power(a: ArrayLike, b: ArrayLike, /) -> Array:
    """`a` to the power `b`; whole and half exponents that are numbers become products and roots."""
    return ir.power(p.operand(a), p.operand(b))


pow = float_power = power


@function
def positive(x: ArrayLike, /) -> Array:
    """`x` itself."""
    return p.array(x)


@function
def square(x: ArrayLike, /) -> Array:
    """`x * x`."""
    return lookup("mul")(p.operand(x), p.operand(x))


@function
def abs(x: ArrayLike, /) -> Array:
    """The magnitude; its derivative at 0 is 0."""
    x = p.operand(x)
    return x if isinstance(x, Expr) and x.dtype is dtypes.bool_ else lookup("abs")(x)


absolute = fabs = abs


@function
def divmod(a: ArrayLike, b: ArrayLike, /) -> tuple[Array, Array]:
    """`a // b` and `a % b`."""
    return floor_divide(a, b), remainder(a, b)


@function
def clip(
    x: ArrayLike,
    min: ArrayLike | None = None,
    max: ArrayLike | None = None,
    *,
    a_min: ArrayLike | None = None,
    a_max: ArrayLike | None = None,
) -> Array:
    """`x` with what is below `min` or above `max` replaced by these; None leaves a side open."""
    low, high = (a_min if min is None else min), (a_max if max is None else max)
    out: Any = p.array(x)
    if low is not None:
        out = maximum(out, low)
    return out if high is None else minimum(out, high)


@function
def fmax(a: ArrayLike, b: ArrayLike, /) -> Array:
    """The larger of `a` and `b`; the other one where one is NaN."""
    a, b = p.common([a, b])
    return where(isnan(a), b, where(isnan(b), a, maximum(a, b)))


@function
def fmin(a: ArrayLike, b: ArrayLike, /) -> Array:
    """The smaller of `a` and `b`; the other one where one is NaN."""
    a, b = p.common([a, b])
    return where(isnan(a), b, where(isnan(b), a, minimum(a, b)))


@function
def nan_to_num(
    x: ArrayLike, nan: float = 0.0, posinf: float | None = None, neginf: float | None = None
) -> Array:
    """`x` with NaN and the infinities replaced (by 0 and the largest finite numbers)."""
    x = p.array(x)
    if not x.dtype.is_float:
        return x
    # Half of (1 + 2^-digits) would overflow: the largest number comes from the type itself.
    largest = _largest(x)
    out = where(isnan(x), nan, x)
    out = where(x == math.inf, largest if posinf is None else posinf, out)
    return where(x == -math.inf, -largest if neginf is None else neginf, out)


def _largest(x: Expr) -> float:
    if x.dtype is dtypes.bf16:
        return float((2 - 2.0**-7) * 2.0**127)
    return float(np.finfo(x.dtype.numpy).max)


# --- rounding: integers are whole already


def _rounding(op_name: str, name: str | None = None) -> Function:
    op = lookup(op_name)

    def call(x: ArrayLike, /) -> Array:
        x = p.array(x) if not isinstance(x, Expr) else x
        return op(x) if x.dtype.is_float else x

    return named(call, name or op_name, op.doc)


floor = _rounding("floor")
ceil = _rounding("ceil")
trunc = fix = _rounding("trunc")
rint = _rounding("round", "rint")


@function
def round(x: ArrayLike, decimals: int = 0) -> Array:
    """The nearest number of so many decimals, halves to even."""
    if decimals == 0:
        return rint(x)
    x = p.array(x)
    scale = 10.0 ** math.fabs(decimals)
    if not x.dtype.is_float:
        return x if decimals > 0 else cast(rint(x / scale) * scale, x.dtype)
    return rint(x * scale) / scale if decimals > 0 else rint(x / scale) * scale


around = round

# --- exponentials, powers, logarithms

exp = unary("exp")
exp2 = unary("exp2")
expm1 = unary("expm1")
log = unary("log")
log2 = unary("log2")
log1p = unary("log1p")
sqrt = unary("sqrt")
rsqrt = unary("rsqrt")
logaddexp = binary("logaddexp")


@function
def log10(x: ArrayLike, /) -> Array:
    """The decimal logarithm."""
    return log2(x) * math.log10(2.0)


# --- trigonometric and hyperbolic functions

sin = unary("sin")
cos = unary("cos")
tan = unary("tan")
arcsin = asin = unary("arcsin")
arccos = acos = unary("arccos")
arctan = atan = unary("arctan")
sinh = unary("sinh")
cosh = unary("cosh")
tanh = unary("tanh")
arcsinh = asinh = unary("arcsinh")
arccosh = acosh = unary("arccosh")
arctanh = atanh = unary("arctanh")
arctan2 = atan2 = binary("arctan2")
hypot = binary("hypot")
copysign = binary("copysign")


@function
def deg2rad(x: ArrayLike, /) -> Array:
    """Degrees as radians."""
    return lookup("mul")(p.operand(x), math.pi / 180.0)


@function
def rad2deg(x: ArrayLike, /) -> Array:
    """Radians as degrees."""
    return lookup("mul")(p.operand(x), 180.0 / math.pi)


radians, degrees = deg2rad, rad2deg
