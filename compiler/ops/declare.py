"""Helpers that declare elementwise ops: one call an op -> one registered `Op`.

A gradient rule returns a cotangent of the op's result shape; the backward pass sums it down to a
broadcast operand's shape.  Invariant: the device statement writes the reference's bits, also when
`{out}` is the buffer of an operand named in `inplace`: no line after the first reads such an
operand.  f16 and bf16 are computed in their own type, as NumPy does (each result is rounded).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from retrograde.compiler.errors import DTypeError
from retrograde.compiler.ir import dtypes
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.dtypes import DType
from retrograde.compiler.ir.expr import Expr, broadcast_shapes
from retrograde.compiler.ir.graph import Attrs, TensorType
from retrograde.compiler.ir.op import Cost, Infer, Op, Vjp, VjpContext, elements_cost
from retrograde.compiler.ir.registry import Kind, NotDifferentiable, lookup, register

STEP = NotDifferentiable("piecewise constant: the derivative is zero almost everywhere")
LOGIC = NotDifferentiable("the result is boolean")
INTEGERS = NotDifferentiable("the result is an integer")

TRANSCENDENTAL = 8  # operations that an exp, log, sine … counts as

UnaryGrad = Callable[[Any, Any, Any], Any]  # (x, y, g) -> cotangent of x
BinaryGrad = Callable[[Any, Any, Any, Any], Any]  # (a, b, y, g) -> cotangent of one operand
Grads = tuple[BinaryGrad | None, BinaryGrad | None]

_ACCEPTS: dict[str, tuple[str, ...]] = {
    "any": ("bool", "uint", "int", "float"),
    "number": ("uint", "int", "float"),
    "float": ("float",),
    "integer": ("uint", "int"),
    "bits": ("bool", "uint", "int"),
    "bool": ("bool",),
}
_ADVICE = {"float": "floats: cast it, x.astype('f32')", "bool": "booleans: compare first, x != 0"}
_PROMOTION = {"float": "float", "bool": "bool"}


def require(type: TensorType, of: str) -> None:
    """DTypeError unless the element type is one of `of` (a key of `_ACCEPTS`)."""
    if type.dtype.kind not in _ACCEPTS[of]:
        raise DTypeError(f"an operand is {type}; it takes {_ADVICE.get(of, f'{of} types')}")


def one_dtype(types: Sequence[TensorType]) -> DType:
    """The dtype that all operands have; DTypeError where they differ."""
    first = types[0].dtype
    if any(t.dtype is not first for t in types):
        raise DTypeError(f"operands of unequal dtypes: {', '.join(map(str, types))}")
    return first


def total_dtype(dtype: DType) -> DType:
    """The type of a sum or product: booleans and integers below 32 bits become i32 or u32."""
    if dtype.is_float or dtype.bytes >= 4:
        return dtype
    return dtypes.u32 if dtype.kind == "uint" else dtypes.i32


def wide(dtype: DType) -> DType:
    """The type in which sums and products of `dtype` are carried: f32 for f16 and bf16."""
    return dtypes.f32 if dtype.is_float and dtype.bytes == 2 else dtype


def _infer(of: str, result: DType | None) -> Infer:
    def infer(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
        first = one_dtype(types)
        require(types[0], of)
        return (TensorType(result or first, broadcast_shapes(*(t.shape for t in types))),)

    return infer


def work(operations: int) -> Cost:
    """So many operations per element."""

    def cost(inputs: Sequence[TensorType], outputs: Sequence[TensorType], attrs: Attrs) -> Dim:
        return elements_cost(inputs, outputs, attrs) * operations

    return elements_cost if operations == 1 else cost


def statement(fn: Any, arity: int) -> str:
    """The device statement of a ufunc: `{xp}.name(operands, out={out})`."""
    if not isinstance(fn, np.ufunc):
        raise DTypeError(f"{fn} is no ufunc: give the device statement")
    operands = ", ".join(f"{{{i}}}" for i in range(arity))
    return f"{{xp}}.{fn.__name__}({operands}, out={{out}})"


def call(name: str, arity: int) -> str:
    """The C expression that calls the function of csource/math.h for an op and a type."""
    return f"rg_{name}_{{t}}({', '.join(f'{{{i}}}' for i in range(arity))})"


def unary(
    name: str,
    fn: Any,
    grad: UnaryGrad | NotDifferentiable,
    *,
    doc: str,
    of: str = "float",
    convention: str = "",
    result: DType | None = None,
    numpy: str | None = None,
    c: str | Mapping[str, str] | None = None,
    singular: bool = False,
    operations: int = 1,
    mixed: str = "",
) -> Op:
    """Declares an op of one operand: `grad(x, y, g)` is the cotangent of x given y = op(x).

    `numpy` and `c` are the device's statement and expression where they are not those of a
    function called `name`."""

    def vjp(ctx: VjpContext, cotangents: tuple[Expr | None, ...]) -> Any:
        assert not isinstance(grad, NotDifferentiable)
        return (grad(ctx.inputs[0], ctx.outputs[0], cotangents[0]),)

    rule: Vjp | NotDifferentiable = grad if isinstance(grad, NotDifferentiable) else vjp
    return register(
        Op(
            name,
            Kind.ELEMENTWISE,
            _infer(of, result),
            lambda attrs, x: fn(x),
            rule,
            doc=doc,
            convention=convention,
            promotion=_PROMOTION.get(of, "common"),
            cost=work(operations),
            numpy=numpy or statement(fn, 1),
            c=c or call(name, 1),
            inplace=() if result else (0,),
            singular=singular,
            mixed=mixed,
        )
    )


def binary(
    name: str,
    fn: Any,
    grads: Grads | NotDifferentiable,
    *,
    doc: str,
    of: str = "number",
    convention: str = "",
    result: DType | None = None,
    c: str | Mapping[str, str] | None = None,
    singular: bool = False,
    operations: int = 1,
    mixed: str = "",
) -> Op:
    """Declares an op of two operands: `grads[i](a, b, y, g)` is the cotangent of operand i."""

    def vjp(ctx: VjpContext, cotangents: tuple[Expr | None, ...]) -> Any:
        assert not isinstance(grads, NotDifferentiable)
        a, b = ctx.inputs
        return tuple(
            rule(a, b, ctx.outputs[0], cotangents[0]) if rule and need else None
            for rule, need in zip(grads, ctx.needs, strict=True)
        )

    rule: Vjp | NotDifferentiable = grads if isinstance(grads, NotDifferentiable) else vjp
    return register(
        Op(
            name,
            Kind.ELEMENTWISE,
            _infer(of, result),
            lambda attrs, a, b: fn(a, b),
            rule,
            doc=doc,
            convention=convention,
            promotion=_PROMOTION.get(of, "common"),
            cost=work(operations),
            numpy=statement(fn, 2),
            c=c or call(name, 2),
            inplace=() if result else (0, 1),
            singular=singular,
            mixed=mixed,
        )
    )


def where(condition: Any, a: Any, b: Any) -> Any:
    """`select` as gradient rules write it."""
    return lookup("select")(condition, a, b)
