"""Comparisons, logic, bits and choices: arrays -> an array of their common shape."""

from __future__ import annotations

from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.registry import lookup
from retrograde.numpy import primitives as p
from retrograde.numpy.dispatch import function
from retrograde.numpy.primitives import Array, ArrayLike
from retrograde.numpy.searching import data_dependent
from retrograde.numpy.wrappers import Function, binary, named, unary

__all__ = [
    "bitwise_and",
    "bitwise_invert",
    "bitwise_left_shift",
    "bitwise_not",
    "bitwise_or",
    "bitwise_right_shift",
    "bitwise_xor",
    "equal",
    "greater",
    "greater_equal",
    "invert",
    "isclose",
    "isfinite",
    "isinf",
    "isnan",
    "left_shift",
    "less",
    "less_equal",
    "logical_and",
    "logical_not",
    "logical_or",
    "logical_xor",
    "not_equal",
    "right_shift",
    "where",
]

equal = binary("equal")
not_equal = binary("not_equal")
less = binary("less")
less_equal = binary("less_equal")
logical_not = unary("logical_not")
logical_and = binary("logical_and")
logical_or = binary("logical_or")
logical_xor = binary("logical_xor")
bitwise_not = bitwise_invert = invert = unary("bitwise_not", "bitwise_not")
bitwise_and = binary("bitwise_and")
bitwise_or = binary("bitwise_or")
bitwise_xor = binary("bitwise_xor")
left_shift = bitwise_left_shift = binary("shift_left", "left_shift")
right_shift = bitwise_right_shift = binary("shift_right", "right_shift")


@function
def greater(a: ArrayLike, b: ArrayLike, /) -> Array:
    """a > b."""
    return less(b, a)


@function
def greater_equal(a: ArrayLike, b: ArrayLike, /) -> Array:
    """a >= b."""
    return less_equal(b, a)


def _float_test(op_name: str, of_others: bool) -> Function:
    op = lookup(op_name)

    def call(x: ArrayLike, /) -> Array:
        x = p.array(x) if not isinstance(x, Expr) else x
        if x.dtype.is_float:
            return op(x)
        return x == x if of_others else x != x

    return named(call, op_name, op.doc)


isnan = _float_test("isnan", False)
isinf = _float_test("isinf", False)
isfinite = _float_test("isfinite", True)


@function
def isclose(
    a: ArrayLike, b: ArrayLike, rtol: float = 1e-05, atol: float = 1e-08, equal_nan: bool = False
) -> Array:
    """Whether |a - b| <= atol + rtol |b|, or both are the same infinity."""
    a, b = (p.floating(x) for x in p.common([a, b]))
    magnitude = lookup("abs")
    near = magnitude(a - b) <= atol + rtol * magnitude(b)
    out = where(isfinite(a) & isfinite(b), near, a == b)
    return out | (isnan(a) & isnan(b)) if equal_nan else out


@function
def where(condition: ArrayLike, x: ArrayLike = None, y: ArrayLike = None, /) -> Array:
    """`x` where the condition holds, else `y`; both are computed, and numbers are weak."""
    if x is None or y is None:
        raise data_dependent("where(condition)", "give both branches, rnp.where(condition, a, b)")
    return p.select(p.operand(condition), *p.common([x, y], "select"))
