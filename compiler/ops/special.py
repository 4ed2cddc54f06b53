"""Elementwise functions of machine learning and statistics: activations, erf, logaddexp.

Invariant: each is finite, with a finite derivative, wherever the function is: no form overflows
where its value does not.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde.compiler.ir.registry import lookup
from retrograde.compiler.ops.declare import TRANSCENDENTAL, binary, unary, where
from retrograde.compiler.ops.elementwise import exp


def _scipy(name: str) -> Any:
    """A function of scipy.special, imported on its first use (NumPy has none of these)."""

    def evaluate(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        import scipy.special

        out = np.empty(x.shape, x.dtype)
        getattr(scipy.special, name)(x, out=out)
        return out

    return evaluate


def _sigmoid(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    out = np.empty(x.shape, x.dtype)
    np.negative(x, out=out)
    np.exp(out, out=out)
    np.add(out, 1, out=out)
    np.reciprocal(out, out=out)
    return out


relu = unary(
    "relu", lambda x: np.maximum(x, 0), lambda x, y, g: where(y > 0.0, g, 0.0), of="number",
    numpy="{xp}.maximum({0}, 0, out={out})", c={"uint": "{0}", "": "{0} < 0 ? 0 : {0}"},
    doc="max(x, 0)", convention="the derivative at 0 is 0; NaN stays NaN",
)  # fmt: skip
sigmoid = unary(
    "sigmoid", _sigmoid, lambda x, y, g: g * y * (1.0 - y),
    numpy="{xp}.negative({0}, out={out})\n{xp}.exp({out}, out={out})\n"
    "{xp}.add({out}, 1, out={out})\n{xp}.reciprocal({out}, out={out})",
    doc="1 / (1 + e^-x)", operations=TRANSCENDENTAL + 6,
    convention="0 where e^-x overflows (below -88 in f32, -11 in f16)",
)  # fmt: skip
softplus = unary(
    "softplus", lambda x: np.logaddexp(x, 0), lambda x, y, g: g * sigmoid(x),
    numpy="{xp}.logaddexp({0}, 0, out={out})",
    doc="log(1 + e^x)", operations=2 * TRANSCENDENTAL, mixed="wide",
)  # fmt: skip


def _weight(a: Any, y: Any) -> Any:
    """e^(a - y), the share of a in y = log(e^a + e^b): 0 at a = -inf and 1 at a = inf."""
    infinite = lookup("isinf")(a)
    return exp(where(infinite, lookup("minimum")(a, 0.0), a - y))


logaddexp = binary(
    "logaddexp", np.logaddexp,
    (lambda a, b, y, g: g * _weight(a, y), lambda a, b, y, g: g * _weight(b, y)),
    of="float", doc="log(e^a + e^b)", operations=2 * TRANSCENDENTAL,
    convention="the derivative by an operand that is -inf is 0", mixed="wide",
)  # fmt: skip
erf = unary(
    "erf", _scipy("erf"), lambda x, y, g: g * (2.0 / math.sqrt(math.pi)) * exp(-(x * x)),
    numpy="{special}.erf({0}, out={out})",
    doc="the error function (scipy.special)", operations=TRANSCENDENTAL,
)  # fmt: skip
erfc = unary(
    "erfc", _scipy("erfc"), lambda x, y, g: g * (-2.0 / math.sqrt(math.pi)) * exp(-(x * x)),
    numpy="{special}.erfc({0}, out={out})",
    doc="1 - erf(x) without cancellation (scipy.special)", operations=TRANSCENDENTAL,
)  # fmt: skip
