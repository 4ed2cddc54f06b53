"""What Python and NumPy ask of a symbolic size beyond integer arithmetic.

Input: a size, used where a value is needed; output: a number of the program being traced, made by
the hook that the expression type registers, or `TraceError`.  Invariant: a symbolic size never
becomes a concrete number without a word.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NoReturn, TypeAlias

import numpy as np

from retrograde.compiler.errors import TraceError
from retrograde.compiler.ir.location import where

NumberHook: TypeAlias = Callable[[Any], Any]
# Operands that have no place in a size: with them the size becomes a number of the program.
NUMBERS = (float, complex, np.generic, np.ndarray)
_hook: NumberHook | None = None


class SymbolicNumber:
    """Base of `Poly`: the conversions, and the operators that leave the integers."""

    __slots__ = ()

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)

    def __truediv__(self, other: Any) -> Any:
        return operate(operator.truediv, self, other)

    def __rtruediv__(self, other: Any) -> Any:
        return operate(operator.truediv, other, self)

    def __rpow__(self, base: Any) -> Any:
        return operate(operator.pow, base, self)

    # TraceError is no TypeError on purpose: NumPy would swallow that and make an object array.
    def __index__(self) -> int:
        no_value(self, "an integer")

    def __int__(self) -> int:
        no_value(self, "an integer")

    def __float__(self) -> float:
        no_value(self, "a float")

    def __array__(self, *_args: Any, **_options: Any) -> NoReturn:
        no_value(self, "an array")

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        """NumPy arrays and functions hand over to our operators, or to those of the number."""
        if method != "__call__" or options:
            no_value(self, f"an operand of numpy.{ufunc.__name__}")
        act = OPERATORS.get(ufunc.__name__)
        if ufunc.__name__ in COMPARISONS:
            # NumPy compares its scalars as arrays of no dimension.
            inputs = tuple(x[()] if isinstance(x, np.ndarray) else x for x in inputs)
        if act is not None and all(map(is_size, inputs)):
            return act(*(x if isinstance(x, SymbolicNumber) else int(x) for x in inputs))
        return (act or ufunc)(*map(_as_number, inputs))


# The operators behind NumPy's functions; any other function is applied to the number itself.
OPERATORS: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "floor_divide": operator.floordiv,
    "remainder": operator.mod,
    "divide": operator.truediv,
    "power": operator.pow,
    "negative": operator.neg,
}
COMPARISONS: dict[str, Callable[..., Any]] = {
    "less": operator.lt,
    "less_equal": operator.le,
    "greater": operator.gt,
    "greater_equal": operator.ge,
    "equal": operator.eq,
    "not_equal": operator.ne,
}
OPERATORS |= COMPARISONS


def set_number_hook(hook: NumberHook | None) -> None:
    """`hook(size)` makes a number of the program of a symbolic size: true division, floats and
    arrays compute with that.  Without a hook they raise `TraceError`."""
    global _hook
    _hook = hook


def is_size(x: object) -> bool:
    """Booleans and NumPy's integers count as integers."""
    return isinstance(x, (int, SymbolicNumber, np.integer))


def operate(op: Callable[[Any, Any], Any], a: Any, b: Any) -> Any:
    """`op` on numbers of the program; NotImplemented for operands that have their own operators."""
    if not all(isinstance(x, (int, SymbolicNumber, *NUMBERS)) for x in (a, b)):
        return NotImplemented
    return op(_as_number(a), _as_number(b))


def _as_number(x: Any) -> Any:
    if not isinstance(x, SymbolicNumber):
        return x
    if _hook is None:
        no_value(x, "a number")
    return _hook(x)


def no_value(size: SymbolicNumber, wanted: str) -> NoReturn:
    raise TraceError(
        f"{where()}the size {size} is symbolic and cannot become {wanted} while tracing: use "
        "retrograde.numpy (rnp.ones, rnp.zeros, rnp.arange, ...) to make arrays of this size, "
        "and rg.scan for a loop of this length"
    )
