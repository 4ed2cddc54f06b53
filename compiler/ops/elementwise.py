"""Elementwise arithmetic and the standard functions: operands -> one result element an index.

Each op is one declaration: reference, gradient, device statement side by side.  Invariant: the
derivative at a kink is the one stated in `convention`.  Derivatives: Abramowitz & Stegun,
Handbook of Mathematical Functions, ch. 4.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from retrograde.compiler.ir.op import Op
from retrograde.compiler.ir.registry import lookup
from retrograde.compiler.ops.declare import STEP, TRANSCENDENTAL, binary, call, unary, where

# --- arithmetic

add = binary(
    "add", np.add, (lambda a, b, y, g: g, lambda a, b, y, g: g), of="any", doc="a + b",
    c={"bool": "{0} | {1}", "": "{0} + {1}"}, convention="of booleans: logical or",
)  # fmt: skip
sub = binary(
    "sub", np.subtract, (lambda a, b, y, g: g, lambda a, b, y, g: -g), doc="a - b", c="{0} - {1}"
)
mul = binary(
    "mul", np.multiply, (lambda a, b, y, g: g * b, lambda a, b, y, g: g * a), of="any", doc="a * b",
    c={"bool": "{0} & {1}", "": "{0} * {1}"}, convention="of booleans: logical and",
)  # fmt: skip
div = binary(
    "div", np.divide, (lambda a, b, y, g: g / b, lambda a, b, y, g: -g * y / b), of="float",
    doc="a / b", c="{0} / {1}", convention="integers become floats", singular=True, operations=4,
)  # fmt: skip
floor_div = binary(
    "floor_div", np.floor_divide, STEP, doc="the largest whole number below a / b", operations=4,
    convention="rounds towards minus infinity; an integer divided by zero gives 0",
)  # fmt: skip
mod = binary(
    "mod", np.remainder, (lambda a, b, y, g: g, lambda a, b, y, g: -g * (a // b)), doc="a modulo b",
    convention="the sign of b; an integer modulo zero gives 0", operations=8,
)  # fmt: skip


def _power_base(a: Any, b: Any, y: Any, g: Any) -> Any:
    # b a^(b-1), where 0 * 0^-1 would be NaN at a = b = 0 (also as the derivative of a^1).
    both = lookup("logical_and")(a == 0.0, b == 0.0)
    return g * b * a ** where(both, 0.0, b - 1.0)


def _power_exponent(a: Any, b: Any, y: Any, g: Any) -> Any:
    return g * where(a == 0.0, 0.0, y) * log(where(a == 0.0, 1.0, a))


pow_ = binary(
    "pow", np.power, (_power_base, _power_exponent), doc="a to the power b", singular=True,
    operations=2 * TRANSCENDENTAL,
    convention="0^0 = 1; by the exponent the derivative is 0 where a = 0, NaN where a < 0",
    mixed="wide",
)  # fmt: skip
maximum = binary(
    "maximum", np.maximum,
    (
        lambda a, b, y, g: where(a == b, 0.5 * g, where(b < a, g, 0.0)),
        lambda a, b, y, g: where(a == b, 0.5 * g, where(a < b, g, 0.0)),
    ),
    doc="the larger of a and b", of="any",
    c={"float": call("maximum", 2), "": "{0} > {1} ? {0} : {1}"},
    convention="NaN where either is; the derivative splits evenly at ties",
)  # fmt: skip
minimum = binary(
    "minimum", np.minimum,
    (
        lambda a, b, y, g: where(a == b, 0.5 * g, where(a < b, g, 0.0)),
        lambda a, b, y, g: where(a == b, 0.5 * g, where(b < a, g, 0.0)),
    ),
    doc="the smaller of a and b", of="any",
    c={"float": call("minimum", 2), "": "{0} < {1} ? {0} : {1}"},
    convention="NaN where either is; the derivative splits evenly at ties",
)  # fmt: skip
neg = unary("neg", np.negative, lambda x, y, g: -g, of="number", doc="-x", c="-{0}")
abs_ = unary(
    "abs", np.absolute, lambda x, y, g: g * sign(x), of="number", doc="|x|",
    c={"float": call("abs", 1), "uint": "{0}", "": "{0} < 0 ? -{0} : {0}"},
    convention="the derivative at 0 is 0",
)  # fmt: skip
sign: Op = unary(
    "sign", np.sign, STEP, of="number", doc="-1, 0 or 1; NaN of NaN",
    c={"float": call("sign", 1), "": "({0} > 0) - ({0} < 0)"},
)  # fmt: skip
reciprocal = unary(
    "reciprocal", np.reciprocal, lambda x, y, g: -g * y * y, doc="1 / x", singular=True,
    c="1 / {0}", operations=4, mixed="wide",
)  # fmt: skip

# --- rounding (integers are whole already: front ends return them as they are)

floor = unary("floor", np.floor, STEP, doc="the largest whole number up to x")
ceil = unary("ceil", np.ceil, STEP, doc="the smallest whole number from x")
trunc = unary("trunc", np.trunc, STEP, doc="x without its fraction")
round_ = unary("round", np.rint, STEP, doc="the nearest whole number", convention="halves to even")

# --- exponentials and logarithms

exp = unary(
    "exp", np.exp, lambda x, y, g: g * y, doc="e^x", operations=TRANSCENDENTAL, mixed="wide"
)
exp2 = unary(
    "exp2", np.exp2, lambda x, y, g: g * y * math.log(2.0), doc="2^x", operations=TRANSCENDENTAL,
    mixed="wide",
)
expm1 = unary(
    "expm1", np.expm1, lambda x, y, g: g * (y + 1.0), doc="e^x - 1", operations=TRANSCENDENTAL,
    mixed="wide",
)
log = unary(
    "log", np.log, lambda x, y, g: g / x, doc="the natural logarithm", singular=True,
    operations=TRANSCENDENTAL, mixed="wide",
)  # fmt: skip
log2 = unary(
    "log2", np.log2, lambda x, y, g: g / (x * math.log(2.0)), doc="the binary logarithm",
    singular=True, operations=TRANSCENDENTAL, mixed="wide",
)  # fmt: skip
log1p = unary(
    "log1p", np.log1p, lambda x, y, g: g / (1.0 + x), doc="log(1 + x)", singular=True,
    operations=TRANSCENDENTAL, mixed="wide",
)  # fmt: skip
sqrt = unary(
    "sqrt", np.sqrt, lambda x, y, g: 0.5 * g / y, doc="the square root", singular=True,
    operations=4,
)  # fmt: skip
rsqrt = unary(
    "rsqrt", lambda x: np.reciprocal(np.sqrt(x)), lambda x, y, g: -0.5 * g * y * y * y,
    numpy="{xp}.sqrt({0}, out={out})\n{xp}.reciprocal({out}, out={out})",
    doc="1 / sqrt(x)", singular=True, operations=8, mixed="wide",
)  # fmt: skip

# --- trigonometric and hyperbolic functions

sin = unary("sin", np.sin, lambda x, y, g: g * cos(x), doc="sine", operations=TRANSCENDENTAL)
cos: Op = unary("cos", np.cos, lambda x, y, g: -g * sin(x), doc="cosine", operations=TRANSCENDENTAL)
tan = unary(
    "tan", np.tan, lambda x, y, g: g * (1.0 + y * y), doc="tangent", operations=TRANSCENDENTAL,
    mixed="wide",
)
arcsin = unary(
    "arcsin", np.arcsin, lambda x, y, g: g / sqrt((1.0 - x) * (1.0 + x)), doc="inverse sine",
    singular=True, operations=TRANSCENDENTAL, mixed="wide",
)  # fmt: skip
arccos = unary(
    "arccos", np.arccos, lambda x, y, g: -g / sqrt((1.0 - x) * (1.0 + x)), doc="inverse cosine",
    singular=True, operations=TRANSCENDENTAL, mixed="wide",
)  # fmt: skip
arctan = unary(
    "arctan", np.arctan, lambda x, y, g: g / (1.0 + x * x), doc="inverse tangent",
    operations=TRANSCENDENTAL,
)  # fmt: skip
sinh = unary(
    "sinh", np.sinh, lambda x, y, g: g * cosh(x), doc="hyperbolic sine", operations=TRANSCENDENTAL,
    mixed="wide",
)
cosh: Op = unary(
    "cosh", np.cosh, lambda x, y, g: g * sinh(x), doc="hyperbolic cosine",
    operations=TRANSCENDENTAL, mixed="wide",
)
tanh = unary(
    "tanh", np.tanh, lambda x, y, g: g * (1.0 - y * y), doc="hyperbolic tangent",
    operations=TRANSCENDENTAL,
)  # fmt: skip
arcsinh = unary(  # hypot: x * x overflows long before the derivative vanishes
    "arcsinh", np.arcsinh, lambda x, y, g: g / hypot(x, 1.0), doc="inverse hyperbolic sine",
    operations=TRANSCENDENTAL,
)  # fmt: skip
arccosh = unary(
    "arccosh", np.arccosh, lambda x, y, g: g / (sqrt(x - 1.0) * sqrt(x + 1.0)),
    doc="inverse hyperbolic cosine", singular=True, operations=TRANSCENDENTAL,
)  # fmt: skip
arctanh = unary(
    "arctanh", np.arctanh, lambda x, y, g: g / ((1.0 - x) * (1.0 + x)),
    doc="inverse hyperbolic tangent", singular=True, operations=TRANSCENDENTAL,
)  # fmt: skip
arctan2 = binary(
    "arctan2", np.arctan2,
    (lambda a, b, y, g: g * (b / (a * a + b * b)), lambda a, b, y, g: -g * (a / (a * a + b * b))),
    of="float", doc="the angle of the point (b, a)", singular=True, operations=TRANSCENDENTAL,
)  # fmt: skip
hypot: Op = binary(
    "hypot", np.hypot,
    (
        lambda a, b, y, g: g * (a / where(y == 0.0, 1.0, y)),
        lambda a, b, y, g: g * (b / where(y == 0.0, 1.0, y)),
    ),
    of="float", doc="sqrt(a^2 + b^2) without overflow", operations=TRANSCENDENTAL,
    convention="the derivative at (0, 0) is 0",
)  # fmt: skip
copysign: Op = binary(
    "copysign", np.copysign, (lambda a, b, y, g: g * sign(a) * copysign(1.0, b), None), of="float",
    doc="|a| with the sign of b", convention="the derivative by a at 0 is 0; by b it is 0",
)  # fmt: skip
