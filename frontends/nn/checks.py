"""What layers demand of their arguments: argument -> itself, or an error with the user's line."""

from __future__ import annotations

import os
from typing import Any

from retrograde.compiler.errors import DTypeError, ShapeError
from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.location import skip_frames_under, where

skip_frames_under(os.path.abspath(__file__))


def shown(x: Any) -> str:
    """`f32[B,T,128]`."""
    return f"{dtypes.dtype(x.dtype)}[{','.join(map(str, x.shape))}]"


def last_axis(x: Any, width: int, layer: str) -> None:
    """`x` has floats along a last axis of `width`."""
    if not hasattr(x, "shape"):
        raise DTypeError(f"{where()}{layer} takes an array, got a {type(x).__name__}")
    if not dtypes.dtype(x.dtype).is_float:
        raise DTypeError(
            f"{where()}{layer} takes floats, got {shown(x)}: cast it (x.astype('f32')); "
            "tokens go through nn.Embedding first"
        )
    if len(x.shape) == 0 or not dims.same(x.shape[-1], width):
        raise ShapeError(f"{where()}{layer} takes [..., {width}], got {shown(x)}")


def positive(value: Any, what: str) -> int:
    """A whole number of at least 1."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ShapeError(f"{where()}{what} is {value!r}: it is a whole number")
    if (number := value.__index__()) < 1:
        raise ShapeError(f"{where()}{what} is {number}: it is at least 1")
    return int(number)


def rate(value: float, what: str) -> float:
    """A probability below 1."""
    if not 0.0 <= value < 1.0:
        raise ShapeError(f"{where()}{what} is {value}: it lies from 0 up to, but below, 1")
    return float(value)
