"""What optimizers are made of: numbers of the step in the dtypes of parameters, checks, state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

import retrograde.numpy as rnp
from retrograde.compiler.errors import DataError
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.location import where

Arrays = list[Any]


def number(step: Any) -> Any:
    """A step in f64."""
    return rnp.astype(step, "f64")


class Numbers:
    """Numbers that depend on the step, in the dtype of each parameter, made once for each."""

    def __init__(self) -> None:
        self._made: dict[tuple[Any, str], tuple[Any, Any]] = {}

    def of(self, number: Any, like: Any) -> Any:
        """`number` to be combined with `like`; plain numbers take its dtype anyway."""
        if not isinstance(number, (Expr, np.ndarray)):
            return number
        key = (id(number), str(like.dtype))
        if key not in self._made:
            self._made[key] = (rnp.astype(number, like.dtype), number)  # alive: no id comes twice
        return self._made[key][0]


def scaled(x: Any, factor: Any) -> Any:
    """`x` times a factor."""
    return x if isinstance(factor, float) and factor == 1.0 else x * factor


def widened(x: Any) -> Any:
    """`x` as the update is computed: 16-bit floats as f32."""
    return rnp.astype(x, "f32") if is_narrow(x) else x


def like(x: Any, p: Any) -> Any:
    """`x` in the dtype of the parameter."""
    return rnp.astype(x, p.dtype) if is_narrow(p) else x


def is_narrow(x: Any) -> bool:
    """Whether it is in 16 bits."""
    return str(x.dtype) in ("f16", "bf16", "float16", "bfloat16")


def zeros(params: Sequence[Any]) -> Arrays:
    """State of zeros for each parameter."""
    return [np.zeros(p.shape, np.float32 if is_narrow(p) else p.dtype) for p in params]


def fraction(x: float, name: str) -> float:
    """`x`, from 0 to below 1."""
    if not 0.0 <= x < 1.0:
        raise DataError(f"{where()}{name} is {x!r}: it lies from 0 to below 1")
    return x


def nonnegative(x: float, name: str) -> float:
    """`x`, not below 0."""
    if not isinstance(x, (int, float)) or not x >= 0.0:
        raise DataError(f"{where()}{name} is {x!r}: it is a number, not below 0")
    return x


def positive(x: int, name: str) -> int:
    """`x`, at least 1."""
    if x < 1:
        raise DataError(f"{where()}{name} is {x!r}: give at least 1")
    return x
