"""Independent formulas of the elementwise ops, in float64, Python integers and truth values."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.special

Array = npt.NDArray[Any]

# name -> (formula in float64, low, high)
UNARY: dict[str, tuple[Callable[[Array], Any], float, float]] = {
    "neg": (lambda x: 0.0 - x, -3, 3),
    "abs": (lambda x: np.where(x < 0, -x, x), -3, 3),
    "sign": (lambda x: (x > 0) * 1.0 - (x < 0), -3, 3),
    "reciprocal": (lambda x: 1.0 / x, 0.5, 3),
    "floor": (lambda x: np.array([math.floor(v) for v in x.flat]).reshape(x.shape), -3, 3),
    "ceil": (lambda x: np.array([math.ceil(v) for v in x.flat]).reshape(x.shape), -3, 3),
    "trunc": (lambda x: np.array([math.trunc(v) for v in x.flat]).reshape(x.shape), -3, 3),
    "round": (lambda x: np.array([round(v) for v in x.flat]).reshape(x.shape), -3, 3),
    "exp": (lambda x: math.e**x, -3, 3),
    "exp2": (lambda x: 2.0**x, -3, 3),
    "expm1": (lambda x: 2.0 * np.exp(x / 2) * np.sinh(x / 2), -3, 3),
    "log": (lambda x: np.log2(x) * math.log(2), 0.1, 9),
    "log2": (lambda x: np.log(x) / math.log(2), 0.1, 9),
    "log1p": (lambda x: np.log(1 + x), -0.5, 9),
    "sqrt": (lambda x: x**0.5, 0.1, 9),
    "rsqrt": (lambda x: x**-0.5, 0.1, 9),
    "sin": (lambda x: np.exp(1j * x).imag, -3, 3),
    "cos": (lambda x: np.exp(1j * x).real, -3, 3),
    "tan": (lambda x: np.sin(x) / np.cos(x), -1, 1),
    "arcsin": (lambda x: np.arctan2(x, np.sqrt(1 - x * x)), -0.9, 0.9),
    "arccos": (lambda x: np.arctan2(np.sqrt(1 - x * x), x), -0.9, 0.9),
    "arctan": (lambda x: np.arctan2(x, 1.0), -3, 3),
    "sinh": (lambda x: (np.exp(x) - np.exp(-x)) / 2, -3, 3),
    "cosh": (lambda x: (np.exp(x) + np.exp(-x)) / 2, -3, 3),
    "tanh": (lambda x: np.sinh(x) / np.cosh(x), -3, 3),
    "arcsinh": (lambda x: np.sign(x) * np.log(np.abs(x) + np.sqrt(x * x + 1)), -3, 3),
    "arccosh": (lambda x: np.log(x + np.sqrt(x * x - 1)), 1.5, 9),
    "arctanh": (lambda x: np.log((1 + x) / (1 - x)) / 2, -0.9, 0.9),
    "relu": (lambda x: np.where(x > 0, x, 0.0), -3, 3),
    "sigmoid": (scipy.special.expit, -6, 6),
    "softplus": (lambda x: np.log1p(np.exp(x)), -6, 6),
    "erf": (lambda x: np.array([math.erf(v) for v in x.flat]).reshape(x.shape), -3, 3),
    "erfc": (lambda x: np.array([math.erfc(v) for v in x.flat]).reshape(x.shape), -2, 2),
    "isnan": (lambda x: x != x, -3, 3),
    "isinf": (lambda x: np.abs(x) == math.inf, -3, 3),
    "isfinite": (lambda x: np.abs(x) < math.inf, -3, 3),
}
BINARY: dict[str, tuple[Callable[[Array, Array], Any], float, float]] = {
    "add": (lambda a, b: a - (-b), -3, 3),
    "sub": (lambda a, b: a + (-b), -3, 3),
    "mul": (lambda a, b: a / (1.0 / b), 0.5, 3),
    "div": (lambda a, b: a * (1.0 / b), 0.5, 3),
    "floor_div": (lambda a, b: np.floor(a / b), 0.5, 9),
    "mod": (lambda a, b: a - b * np.floor(a / b), 0.5, 9),
    "pow": (lambda a, b: np.exp(b * np.log(a)), 0.5, 3),
    "maximum": (lambda a, b: np.where(a > b, a, b), -3, 3),
    "minimum": (lambda a, b: np.where(a < b, a, b), -3, 3),
    "arctan2": (lambda a, b: np.angle(b + 1j * a), -3, 3),
    "logaddexp": (lambda a, b: np.log(np.exp(a) + np.exp(b)), 0.5, 3),
    "hypot": (lambda a, b: np.abs(a + 1j * b), -3, 3),
    "copysign": (lambda a, b: np.abs(a) * np.sign(b), -3, 3),
    "equal": (lambda a, b: ~((a < b) | (a > b)), -3, 3),
    "not_equal": (lambda a, b: (a < b) | (a > b), -3, 3),
    "less": (lambda a, b: b - a > 0, -3, 3),
    "less_equal": (lambda a, b: b - a >= 0, -3, 3),
}
INTEGER = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "floor_div": lambda a, b: a // b,
    "mod": lambda a, b: a % b,
    "pow": lambda a, b: a**b,
    "maximum": max,
    "minimum": min,
    "equal": lambda a, b: a == b,
    "not_equal": lambda a, b: a != b,
    "less": lambda a, b: a < b,
    "less_equal": lambda a, b: a <= b,
    "bitwise_and": lambda a, b: a & b,
    "bitwise_or": lambda a, b: a | b,
    "bitwise_xor": lambda a, b: a ^ b,
    "shift_left": lambda a, b: a << b,
    "shift_right": lambda a, b: a >> b,
}
TRUTH = {
    "logical_and": lambda a, b: a and b,
    "logical_or": lambda a, b: a or b,
    "logical_xor": lambda a, b: a != b,
    "bitwise_and": lambda a, b: a and b,
    "bitwise_or": lambda a, b: a or b,
    "bitwise_xor": lambda a, b: a != b,
    "add": lambda a, b: a or b,
    "mul": lambda a, b: a and b,
    "maximum": lambda a, b: a or b,
    "minimum": lambda a, b: a and b,
    "equal": lambda a, b: a == b,
    "less": lambda a, b: a < b,
}
