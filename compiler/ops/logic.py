"""Comparisons, logic, bits and selection: elementwise ops that decide.

Invariant: none of these moves a derivative but `select`, which hands each branch its own part.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from retrograde.compiler.errors import DTypeError
from retrograde.compiler.ir import dtypes
from retrograde.compiler.ir.expr import Expr, broadcast_shapes
from retrograde.compiler.ir.graph import Attrs, TensorType
from retrograde.compiler.ir.op import Op, VjpContext
from retrograde.compiler.ir.registry import Kind, register
from retrograde.compiler.ops.declare import INTEGERS, LOGIC, binary, one_dtype, unary, where

_BOOL = dtypes.bool_

# --- comparisons: NaN is unequal to everything, itself included

equal = binary("equal", np.equal, LOGIC, of="any", result=_BOOL, c="{0} == {1}", doc="a == b")
not_equal = binary(
    "not_equal", np.not_equal, LOGIC, of="any", result=_BOOL, c="{0} != {1}", doc="a != b"
)
less = binary("less", np.less, LOGIC, of="any", result=_BOOL, c="{0} < {1}", doc="a < b")
less_equal = binary(
    "less_equal", np.less_equal, LOGIC, of="any", result=_BOOL, c="{0} <= {1}", doc="a <= b"
)
isnan = unary("isnan", np.isnan, LOGIC, result=_BOOL, c="{0} != {0}", doc="whether x is NaN")
isinf = unary("isinf", np.isinf, LOGIC, result=_BOOL, doc="whether x is infinite")
isfinite = unary("isfinite", np.isfinite, LOGIC, result=_BOOL, doc="whether x is finite")

# --- logic on booleans, bits of integers

logical_not = unary("logical_not", np.logical_not, LOGIC, of="bool", c="!{0}", doc="not x")
logical_and = binary("logical_and", np.logical_and, LOGIC, of="bool", c="{0} & {1}", doc="a and b")
logical_or = binary("logical_or", np.logical_or, LOGIC, of="bool", c="{0} | {1}", doc="a or b")
logical_xor = binary(
    "logical_xor", np.logical_xor, LOGIC, of="bool", c="{0} ^ {1}", doc="either a or b"
)
bitwise_not = unary(
    "bitwise_not", np.bitwise_not, INTEGERS, of="bits", c={"bool": "!{0}", "": "~{0}"}, doc="~x"
)
bitwise_and = binary("bitwise_and", np.bitwise_and, INTEGERS, of="bits", c="{0} & {1}", doc="a & b")
bitwise_or = binary("bitwise_or", np.bitwise_or, INTEGERS, of="bits", c="{0} | {1}", doc="a | b")
bitwise_xor = binary("bitwise_xor", np.bitwise_xor, INTEGERS, of="bits", c="{0} ^ {1}", doc="a ^ b")
shift_left = binary(
    "shift_left", np.left_shift, INTEGERS, of="integer", doc="a << b",
    convention="0 where b is the width or more",
)  # fmt: skip
shift_right = binary(
    "shift_right", np.right_shift, INTEGERS, of="integer", doc="a >> b",
    convention="keeps the sign of a; 0 or -1 where b is the width or more",
)  # fmt: skip

# --- selection


def _infer_select(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    condition, *branches = types
    if condition.dtype is not _BOOL:
        raise DTypeError(f"the condition is {condition}; it takes booleans: compare first")
    return (TensorType(one_dtype(branches), broadcast_shapes(*(t.shape for t in types))),)


def _select_vjp(ctx: VjpContext, cotangents: tuple[Expr | None, ...]) -> tuple[Expr | None, ...]:
    condition, g = ctx.inputs[0], cotangents[0]
    _, left, right = ctx.needs
    return (
        None,
        where(condition, g, 0.0) if left else None,
        where(condition, 0.0, g) if right else None,
    )


def _select(attrs: Attrs, condition: Any, a: Any, b: Any) -> Any:
    return np.where(condition, a, b)


select = register(
    Op(
        "select",
        Kind.ELEMENTWISE,
        _infer_select,
        _select,
        _select_vjp,
        doc="a where the condition holds, else b",
        convention="what is not selected, NaN included, leaves no trace in the value; its "
        "derivative is multiplied by 0",
        promotion="select",
        numpy="{xp}.copyto({out}, {2})\n{xp}.copyto({out}, {1}, where={0})",
        c="{0} ? {1} : {2}",
        inplace=(2,),  # the first line may copy onto itself, but must not overwrite operand 1
    )
)
