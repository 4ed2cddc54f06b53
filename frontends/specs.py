"""What a traced function is given: dtypes and shapes with named sizes -> `Spec`, `TensorType`.

Invariant: within one trace a name is one size, whose bounds are those that all its specs share.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from retrograde.compiler.errors import ShapeError
from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.dims import Dim, Symbol
from retrograde.compiler.ir.dtypes import DType
from retrograde.compiler.ir.graph import TensorType
from retrograde.compiler.ir.location import where


@dataclass(frozen=True)
class Spec:
    """An array to come: its element type and shape."""

    dtype: DType
    shape: tuple[Dim, ...]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def type(self) -> TensorType:
        return TensorType(self.dtype, self.shape)

    def __repr__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


def spec(dtype: Any, *sizes: int | str | Dim) -> Spec:
    """An array of `dtype` ("f32", "i32", np.float32 …) to come.

    A size is a number, a name ("B", also "2*T" or "T-1"), or what `dim` returns.  Raises DTypeError
    for an unknown dtype, ShapeError for what is no size."""
    return Spec(dtypes.dtype(dtype), tuple(map(_size, sizes)))


def dim(name: str, min: int = 1, max: int | None = None) -> Dim:
    """The size `name`, at least `min` (0 allows empty arrays) and at most `max`."""
    return dims.dim(name, min, max)


def _size(size: Any) -> Dim:
    if isinstance(size, str):
        return dims.parse(size)
    if isinstance(size, dims.Poly):
        return size
    try:
        found = operator.index(size)
    except TypeError:
        raise ShapeError(
            f"{where()}{size!r} is no size: give numbers or names, rg.spec('f32', 'B', 'T', 128)"
        ) from None
    if found < 0:
        raise ShapeError(f"{where()}the size {found} is negative")
    return found


def size_of(name: str, value: Any) -> int:
    """`value` as a size; ShapeError, with its name, for what is no whole number."""
    try:
        return operator.index(value)
    except TypeError:
        raise ShapeError(f"{where()}{name} = {value!r} is no size: give a whole number") from None


def is_spec(x: Any) -> bool:
    """Whether `x` says what array is to come: a spec, a type, or an array like it."""
    return isinstance(x, (Spec, TensorType, np.ndarray))


def type_of(x: Spec | TensorType | np.ndarray[Any, Any]) -> TensorType:
    """The type that a spec or an array stands for."""
    if isinstance(x, TensorType):
        return x
    return TensorType(dtypes.dtype(x.dtype), tuple(x.shape))


def unified(types: Iterable[TensorType]) -> list[TensorType]:
    """The types with one size for each name, within the bounds of all who name it."""
    found = list(types)
    env = _sizes(s for t in found for d in t.shape for s in dims.symbols(d))
    return [TensorType(t.dtype, tuple(dims.substitute(d, env) for d in t.shape)) for t in found]


def _sizes(symbols: Iterable[Symbol]) -> dict[str, Dim]:
    bounds: dict[str, tuple[int, int | None]] = {}
    for s in symbols:
        low, high = bounds.get(s.name, (s.min, s.max))
        highs = [h for h in (high, s.max) if h is not None]
        bounds[s.name] = max(low, s.min), min(highs, default=None)
    for name, (low, high) in bounds.items():
        if high is not None and low > high:
            raise ShapeError(
                f"the size {name} must be at least {low} by one spec and at most {high} by another"
            )
    return {name: dims.dim(name, low, high) for name, (low, high) in bounds.items()}
