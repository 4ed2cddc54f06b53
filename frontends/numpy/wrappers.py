"""Functions that are one elementwise op: the op's name -> a public, documented function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from retrograde.compiler.ir.registry import lookup
from retrograde.numpy import primitives as p
from retrograde.numpy.dispatch import function
from retrograde.numpy.primitives import Array, ArrayLike

Function = Callable[..., Array]


def unary(op_name: str, name: str | None = None) -> Function:
    """The function of an op of one operand."""
    op = lookup(op_name)

    def call(x: ArrayLike, /) -> Array:
        return op(p.operand(x))

    return named(call, name or op_name, op.doc)


def binary(op_name: str, name: str | None = None) -> Function:
    """The function of an op of two operands."""
    op = lookup(op_name)

    def call(a: ArrayLike, b: ArrayLike, /) -> Array:
        return op(p.operand(a), p.operand(b))

    return named(call, name or op_name, op.doc)


def named(call: Any, name: str, doc: str) -> Function:
    """`call` under a public name, for traced values and for arrays."""
    call.__name__ = call.__qualname__ = name
    call.__doc__ = f"{doc[:1].upper()}{doc[1:]}."
    public: Function = function(call)
    return public
