"""Names of dtypes and questions about them: NumPy's scalar types, so plain NumPy takes them too."""

from __future__ import annotations

from typing import Any

import numpy as np

from retrograde.compiler.errors import DTypeError
from retrograde.compiler.ir import dtypes
from retrograde.compiler.ir.dims import Poly
from retrograde.compiler.ir.dtypes import DType
from retrograde.compiler.ir.expr import SCALARS, Expr
from retrograde.numpy import primitives as p

__all__ = [
    "bool",
    "bool_",
    "can_cast",
    "finfo",
    "float16",
    "float32",
    "float64",
    "iinfo",
    "int8",
    "int16",
    "int32",
    "int64",
    "isdtype",
    "isscalar",
    "issubdtype",
    "result_type",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
]

float64, float32, float16 = np.float64, np.float32, np.float16
int64, int32, int16, int8 = np.int64, np.int32, np.int16, np.int8
uint64, uint32, uint16, uint8 = np.uint64, np.uint32, np.uint16, np.uint8
bool = bool_ = np.bool_

_KINDS = {
    "bool": ("bool",),
    "signed integer": ("int",),
    "unsigned integer": ("uint",),
    "integral": ("int", "uint"),
    "real floating": ("float",),
    "numeric": ("int", "uint", "float"),
}


def result_type(*operands: Any) -> DType:
    """The dtype in which arrays, dtypes and (weak) numbers meet."""
    strong: list[DType] = []
    weak: list[str] = []
    for x in operands:
        if isinstance(x, Poly) or (isinstance(x, Expr) and x.weak):
            weak.append(p.kind_of(x))
        elif isinstance(x, SCALARS):
            weak.append(dtypes.weak_kind(x))
        else:
            strong.append(_dtype(x))
    return dtypes.result_type(strong, weak)


def _dtype(x: Any) -> DType:
    return dtypes.dtype(x.dtype if isinstance(x, (Expr, np.ndarray)) else x)


def isdtype(dtype: Any, kind: Any) -> Any:
    """Whether a dtype is of a kind: a dtype, a name such as "real floating", or several."""
    if isinstance(kind, tuple):
        return any(isdtype(dtype, k) for k in kind)
    found = _dtype(dtype)
    if isinstance(kind, str) and kind in _KINDS:
        return found.kind in _KINDS[kind]
    return found is dtypes.dtype(kind)


def issubdtype(dtype: Any, kind: Any) -> Any:
    """As numpy.issubdtype, also of traced values' dtypes."""
    given = dtypes.named(str(dtype)) if isinstance(dtype, DType) else None
    if given is dtypes.bf16:  # to NumPy it is no float
        return kind in (np.floating, np.inexact, np.number, np.generic)
    return np.issubdtype(given.numpy if given else dtype, kind)


def can_cast(dtype: Any, to: Any) -> Any:
    """Whether promotion with `to` gives `to`."""
    try:
        return dtypes.promote(_dtype(dtype), _dtype(to)) is _dtype(to)
    except DTypeError:
        return False


def finfo(dtype: Any) -> Any:
    """The limits of a float dtype, as numpy.finfo gives them."""
    found = _dtype(dtype)
    if found is dtypes.bf16:
        import ml_dtypes

        return ml_dtypes.finfo(ml_dtypes.bfloat16)  # type: ignore[no-untyped-call]
    return np.finfo(found.numpy)


def iinfo(dtype: Any) -> Any:
    """The limits of an integer dtype, as numpy.iinfo gives them."""
    return np.iinfo(_dtype(dtype).numpy)


def isscalar(x: Any) -> Any:
    """Whether `x` is a number; a traced value never is."""
    return isinstance(x, SCALARS)
