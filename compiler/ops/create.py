"""Ops that make tensors from no operand: attributes -> a constant, a range, the number of a size.

Invariant: the only constants of a graph are 0-d; larger arrays are inputs or computed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde.compiler.errors import DTypeError, ShapeError
from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.graph import Attrs, TensorType
from retrograde.compiler.ir.op import Op, no_cost
from retrograde.compiler.ir.registry import Kind, NotDifferentiable, register

NO_OPERAND = NotDifferentiable("it has no operand")


def _constant_infer(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    value = attrs["value"]
    if not isinstance(value, (bool, int, float)):
        raise DTypeError(f"a constant is a number, not {value!r}")
    return (TensorType(attrs["dtype"]),)


def _constant(attrs: Attrs) -> npt.NDArray[Any]:
    return np.asarray(attrs["value"]).astype(attrs["dtype"].numpy)


constant = register(
    Op(
        "constant",
        Kind.CREATE,
        _constant_infer,
        _constant,
        NO_OPERAND,
        doc="the number `value` as a 0-d tensor",
        cost=no_cost,
    )
)


def _iota_infer(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    if attrs["dtype"] is dtypes.bool_:
        raise DTypeError("a range of booleans: give an integer or float dtype")
    if dims.decide_le(0, attrs["size"]) is False:
        raise ShapeError(f"a range of {attrs['size']} elements: the size is negative")
    return (TensorType(attrs["dtype"], (attrs["size"],)),)


def _iota(attrs: Attrs) -> npt.NDArray[Any]:
    return np.arange(attrs["size"]).astype(attrs["dtype"].numpy)


iota = register(
    Op(
        "iota",
        Kind.CREATE,
        _iota_infer,
        _iota,
        NO_OPERAND,
        doc="0, 1, 2 … up to `size` - 1",
    )
)


def _dim_value_infer(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    return (TensorType(attrs["dtype"]),)


def _dim_value(attrs: Attrs) -> npt.NDArray[Any]:
    return np.asarray(attrs["size"]).astype(attrs["dtype"].numpy)


dim_value = register(
    Op(
        "dim_value",
        Kind.CREATE,
        _dim_value_infer,
        _dim_value,
        NO_OPERAND,
        doc="the size `size` as a 0-d number",
        cost=no_cost,
    )
)
