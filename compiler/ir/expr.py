"""The expression type that gradients and tracers write in: operators in, nodes out.

An `Expr` is a value of a graph under construction.  Operators promote dtypes, turn Python and
NumPy scalars into constants of the array's type (they are weak), and append nodes to the current
builder.  Invariant: an expression never has a concrete number; asking for one is a TraceError.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from retrograde.compiler.errors import DTypeError, ShapeError, TraceError
from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.builder import Builder, required
from retrograde.compiler.ir.dims import Dim, Poly
from retrograde.compiler.ir.dtypes import DType
from retrograde.compiler.ir.graph import TensorType, Value
from retrograde.compiler.ir.location import where
from retrograde.compiler.ir.mixed import computed_in
from retrograde.compiler.ir.registry import lookup

if TYPE_CHECKING:
    from retrograde.compiler.ir.op import Op

SCALARS = (bool, int, float, np.bool_, np.integer, np.floating)


class Expr:
    """A tensor expression: a value of the graph that `builder` is making.

    `weak` marks 0-d results of scalars and sizes only: like Python scalars they take the dtype of
    the array they meet."""

    __slots__ = ("builder", "value", "weak")
    __array_ufunc__: Any = None  # NumPy operators hand over to the reflected methods below

    def __init__(self, value: Value, builder: Builder, weak: bool = False) -> None:
        self.value = value
        self.builder = builder
        self.weak = weak

    @property
    def type(self) -> TensorType:
        return self.value.type

    @property
    def shape(self) -> tuple[Dim, ...]:
        return self.value.type.shape

    @property
    def dtype(self) -> DType:
        return self.value.type.dtype

    @property
    def ndim(self) -> int:
        return len(self.value.type.shape)

    @property
    def size(self) -> Dim:
        return self.value.type.size

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.type})"

    def __hash__(self) -> int:
        return id(self)

    def __neg__(self) -> Any:
        return apply(lookup("neg"), (self,))

    def __pos__(self) -> Any:
        return self

    def __abs__(self) -> Any:
        return apply(lookup("abs"), (self,))

    def __invert__(self) -> Any:
        name = "logical_not" if self.dtype is dtypes.bool_ else "bitwise_not"
        return apply(lookup(name), (self,))

    def __add__(self, other: Any) -> Any:
        return binary("add", self, other)

    def __radd__(self, other: Any) -> Any:
        return binary("add", other, self)

    def __sub__(self, other: Any) -> Any:
        return binary("sub", self, other)

    def __rsub__(self, other: Any) -> Any:
        return binary("sub", other, self)

    def __mul__(self, other: Any) -> Any:
        return binary("mul", self, other)

    def __rmul__(self, other: Any) -> Any:
        return binary("mul", other, self)

    def __truediv__(self, other: Any) -> Any:
        return binary("div", self, other)

    def __rtruediv__(self, other: Any) -> Any:
        return binary("div", other, self)

    def __floordiv__(self, other: Any) -> Any:
        return binary("floor_div", self, other)

    def __rfloordiv__(self, other: Any) -> Any:
        return binary("floor_div", other, self)

    def __mod__(self, other: Any) -> Any:
        return binary("mod", self, other)

    def __rmod__(self, other: Any) -> Any:
        return binary("mod", other, self)

    def __pow__(self, other: Any) -> Any:
        return power(self, other)

    def __rpow__(self, other: Any) -> Any:
        return binary("pow", other, self)

    def __matmul__(self, other: Any) -> Any:
        return matmul(self, other)

    def __rmatmul__(self, other: Any) -> Any:
        return matmul(other, self)

    def __and__(self, other: Any) -> Any:
        return _logic("and", self, other)

    def __rand__(self, other: Any) -> Any:
        return _logic("and", other, self)

    def __or__(self, other: Any) -> Any:
        return _logic("or", self, other)

    def __ror__(self, other: Any) -> Any:
        return _logic("or", other, self)

    def __xor__(self, other: Any) -> Any:
        return _logic("xor", self, other)

    def __rxor__(self, other: Any) -> Any:
        return _logic("xor", other, self)

    def __lshift__(self, other: Any) -> Any:
        return binary("shift_left", self, other)

    def __rlshift__(self, other: Any) -> Any:
        return binary("shift_left", other, self)

    def __rshift__(self, other: Any) -> Any:
        return binary("shift_right", self, other)

    def __rrshift__(self, other: Any) -> Any:
        return binary("shift_right", other, self)

    def __eq__(self, other: object) -> Any:
        return binary("equal", self, other)

    def __ne__(self, other: object) -> Any:
        return binary("not_equal", self, other)

    def __lt__(self, other: Any) -> Any:
        return binary("less", self, other)

    def __le__(self, other: Any) -> Any:
        return binary("less_equal", self, other)

    def __gt__(self, other: Any) -> Any:
        return binary("less", other, self)

    def __ge__(self, other: Any) -> Any:
        return binary("less_equal", other, self)

    def _concrete(self, what: str, instead: str) -> TraceError:
        return TraceError(
            f"{where()}{what} needs the numbers of a traced value ({self.type}), which exist only "
            f"when the compiled program runs: {instead}"
        )

    def __bool__(self) -> bool:
        raise self._concrete(
            "`if`, `while`, `and`, `or`, `not` or bool()",
            "write rnp.where(condition, a, b), & | ~ for logic, or test a static size",
        )

    def __float__(self) -> float:
        raise self._concrete("float()", "keep it as an array, x.astype('f32') for a dtype")

    def __int__(self) -> int:
        raise self._concrete("int()", "keep it as an array, x.astype('i32') for a dtype")

    def __index__(self) -> int:
        raise self._concrete("a size, range() or list index", "use static sizes or rnp.take")

    def __iter__(self) -> Any:
        raise self._concrete("iteration", "index it, or loop with rg.scan")


def is_operand(x: Any) -> bool:
    """Whether `x` may be an operand of an op."""
    return isinstance(x, (Expr, np.ndarray, Poly, *SCALARS))


def as_expr(x: Any, like: DType | None = None) -> Expr:
    """`x` (expression, array, scalar or size) as an expression of the current builder."""
    builder = required()
    if isinstance(x, Expr):
        return builder.lift(x)
    if isinstance(x, np.ndarray):
        return builder.lift_array(x)
    if isinstance(x, Poly):
        return dim_number(x)
    if isinstance(x, SCALARS):
        kind = dtypes.weak_kind(x)
        dtype = like or {"bool": dtypes.bool_, "int": dtypes.i32, "float": dtypes.f32}[kind]
        return builder.constant(_python_scalar(x, dtype), dtype)
    raise TraceError(
        f"{where()}cannot use a {type(x).__name__} as an array: give arrays, scalars or traced "
        "values (lists: rnp.stack or rnp.asarray first)"
    )


def dim_number(size: Dim) -> Expr:
    """A symbolic size as a weak 0-d number."""
    builder = required()
    if isinstance(size, int):
        out = builder.constant(size, dtypes.i64).value
    else:
        (out,) = builder.emit(lookup("dim_value"), (), {"size": size, "dtype": dtypes.i64})
    wrapped = builder.wrap(out, builder)
    wrapped.weak = True
    return wrapped


def _python_scalar(x: Any, dtype: DType) -> bool | int | float:
    if dtype.is_float:
        return float(x)
    if dtype is dtypes.bool_:
        return bool(x)
    value = int(x)
    info = np.iinfo(dtype.numpy)
    if not info.min <= value <= info.max:
        raise DTypeError(f"{where()}{value} does not fit in {dtype}: cast the array first")
    return value


def cast(x: Expr, dtype: DType) -> Expr:
    """`x` as `dtype`; itself when it already is."""
    if x.dtype is dtype:
        return x
    builder = required()
    (out,) = builder.emit(lookup("cast"), (builder.lift(x).value,), {"dtype": dtype})
    return builder.wrap(out, builder)


def zeros(type: TensorType) -> Expr:
    """Zeros of `type`: a broadcast constant, which no buffer needs to hold."""
    zero = lookup("constant")(value=0.0, dtype=type.dtype)
    out: Expr = lookup("broadcast_to")(zero, shape=type.shape) if type.shape else zero
    return out


def apply(op: Op, operands: Sequence[Any], attrs: dict[str, Any] | None = None) -> Any:
    """Appends `op` to the current graph; operands are promoted as the op says.

    Returns one expression, or a tuple for ops of several results."""
    builder = required()
    operands = in_mixed_precision(op, operands)
    if op.promotion == "none":
        exprs, weak = [as_expr(x) for x in operands], False
    else:
        exprs, weak = _promoted(op, operands)
    outputs = builder.emit(op, [e.value for e in exprs], attrs or {})
    if len(outputs) != 1:
        return tuple(builder.wrap(v, builder) for v in outputs)
    out = builder.wrap(outputs[0], builder)
    out.weak = weak
    return out


def in_mixed_precision(op: Op, operands: Sequence[Any]) -> Sequence[Any]:
    """The operands in what the op computes in where precision is mixed; as they are elsewhere."""
    half = required().half
    if half is None:
        return operands
    found = [as_expr(x) if isinstance(x, np.ndarray) else x for x in operands]
    types = [x.type if isinstance(x, Expr) and not x.weak else None for x in found]
    dtypes_ = computed_in(op, types, half)
    return [x if d is None else cast(x, d) for x, d in zip(found, dtypes_, strict=True)]


def narrowed(x: Expr) -> Expr:
    """`x` as activations are kept: an f32 in 16 bits where precision is mixed."""
    half = required().half
    return x if half is None or x.dtype is not dtypes.f32 else cast(x, half)


def _promoted(op: Op, operands: Sequence[Any]) -> tuple[list[Expr], bool]:
    """The operands as expressions of one dtype, and whether all of them were weak."""
    if op.promotion == "bool":
        return [cast(as_expr(x), dtypes.bool_) for x in operands], False
    if op.promotion == "select":
        condition = as_expr(operands[0])
        # An array picks between numbers: the result is an array, of the default type.
        exact = condition.weak or not isinstance(operands[0], (Expr, np.ndarray))
        rest, weak = _common(operands[1:], False, exact)
        return [cast(condition, dtypes.bool_), *rest], weak and exact
    return _common(operands, op.promotion == "float")


def _common(
    operands: Sequence[Any], to_float: bool, exact: bool = True
) -> tuple[list[Expr], bool]:
    """The operands in one dtype, and whether all were weak; those keep 64 bits where `exact`."""
    builder = required()
    strong: list[DType] = []
    weak: list[str] = []
    items: list[Any] = []
    for x in operands:
        if isinstance(x, (Poly, np.ndarray)):
            x = as_expr(x)
        items.append(x)
        if isinstance(x, Expr):
            (weak.append(_kind(x.dtype)) if x.weak else strong.append(x.dtype))
        elif isinstance(x, SCALARS):
            weak.append(dtypes.weak_kind(x))
        else:
            as_expr(x)  # raises, naming the type
    if strong or not exact:
        target = dtypes.result_type(strong, weak)
    else:  # numbers and sizes only: keep them exact until an array sets the type
        target = {"bool": dtypes.bool_, "i32": dtypes.i64, "f32": dtypes.f64}[
            dtypes.result_type([], weak).name
        ]
    if to_float and not target.is_float:
        target = dtypes.f32 if strong else dtypes.f64
    out = []
    for x in items:
        if isinstance(x, Expr):
            x = builder.lift(x)
            out.append(x if x.dtype is target else cast(x, target))
        else:
            out.append(builder.constant(_python_scalar(x, target), target))
    return out, not strong


def _kind(dtype: DType) -> str:
    return "int" if dtype.is_integer else dtype.kind


def binary(name: str, a: Any, b: Any) -> Any:
    """An elementwise op of two operands; NotImplemented for operands of a foreign type."""
    if not (is_operand(a) and is_operand(b)):
        foreign = b if isinstance(a, Expr) else a
        if isinstance(foreign, complex):
            raise DTypeError(f"{where()}{name} of {foreign}: complex numbers are not supported")
        if foreign is None or isinstance(foreign, (str, list, tuple, dict, set)):
            as_expr(foreign)  # raises, naming the type
        return NotImplemented
    return apply(lookup(name), (a, b))


def power(a: Any, b: Any) -> Any:
    """`a ** b`; small whole exponents become products."""
    if isinstance(b, (int, float)) and not isinstance(b, bool) and isinstance(a, Expr):
        keeps_type = isinstance(b, int) or a.dtype.is_float
        if b == 2 and keeps_type:
            return binary("mul", a, a)
        if b == 1 and keeps_type:
            return a
        if b == 0.5 and a.dtype.is_float:
            return apply(lookup("sqrt"), (a,))
        if isinstance(b, int) and b < 0 and a.dtype.is_integer:
            raise DTypeError(f"{where()}integers to negative powers: cast to a float first")
    return binary("pow", a, b)


def _logic(name: str, a: Any, b: Any) -> Any:
    def boolean(x: Any) -> bool:
        return isinstance(x, (bool, np.bool_)) or (
            isinstance(x, (Expr, np.ndarray)) and dtypes.dtype(x.dtype) is dtypes.bool_
        )

    kind = "logical" if boolean(a) and boolean(b) else "bitwise"
    return binary(f"{kind}_{name}", a, b)


def matmul(a: Any, b: Any) -> Any:
    """NumPy's matmul: 1-d operands are vectors, leading axes are broadcast batches."""
    (a, b), _ = _common(in_mixed_precision(lookup("dot_general"), (a, b)), False)
    if a.ndim == 0 or b.ndim == 0:
        raise TraceError(f"{where()}matmul takes no scalars: use * ({a.type} @ {b.type})")
    if a.ndim == 1:
        return _vector_matmul(a, b)
    if b.ndim <= 2:
        return _dot(a, b, ((a.ndim - 1,), (0,)), ((), ()))
    return _batched_matmul(a, b)


def _dot(a: Expr, b: Expr, contract: Any, batch: Any) -> Expr:
    out: Expr = apply(lookup("dot_general"), (a, b), {"contract": contract, "batch": batch})
    return out


def _vector_matmul(a: Expr, b: Expr) -> Expr:
    if b.ndim == 1:
        return _dot(a, b, ((0,), (0,)), ((), ()))
    return _dot(b, a, ((b.ndim - 2,), (0,)), ((), ()))


def _batched_matmul(a: Expr, b: Expr) -> Expr:
    try:
        lead = broadcast_shapes(a.shape[:-2], b.shape[:-2])
    except ShapeError as error:
        raise ShapeError(f"{where()}matmul of {a.type} and {b.type}: {error}") from None
    n = len(lead)
    axes = tuple(range(n))
    a, b = (_with_lead(x, lead) for x in (a, b))
    return _dot(a, b, ((n + 1,), (n,)), (axes, axes))


def _with_lead(x: Expr, lead: tuple[Dim, ...]) -> Expr:
    shape = (*lead, *x.shape[-2:])
    if len(shape) == x.ndim and all(map(dims.same, shape, x.shape)):
        return x
    out: Expr = apply(lookup("broadcast_to"), (x,), {"shape": shape})
    return out


def broadcast_shapes(*shapes: Sequence[Dim]) -> tuple[Dim, ...]:
    """NumPy's broadcasting over dimensions; a symbol stretches only from a static 1.

    Raises ShapeError where sizes differ or cannot be decided to agree."""
    rank = max((len(s) for s in shapes), default=0)
    out: list[Dim] = []
    for k in range(rank):
        size: Dim = 1
        for s in shapes:
            i = k - rank + len(s)
            if i < 0 or (isinstance(s[i], int) and s[i] == 1):
                continue
            if isinstance(size, int) and size == 1:
                size = s[i]
            elif not dims.same(size, s[i]):
                listed = ", ".join(f"[{', '.join(map(str, t))}]" for t in shapes)
                raise ShapeError(
                    f"shapes {listed} do not broadcast: {size} against {s[i]} on axis {k - rank} "
                    "(only a size that is statically 1 stretches; reshape or index with None)"
                )
        out.append(size)
    return tuple(out)


dims.set_number_hook(dim_number)
