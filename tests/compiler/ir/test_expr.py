"""Expressions: how dtypes meet, what operators become, what cannot be asked of a traced value."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from retrograde.compiler.errors import DTypeError, ShapeError, TraceError
from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.builder import Builder
from retrograde.compiler.ir.expr import Expr, as_expr, broadcast_shapes, cast
from retrograde.compiler.ir.graph import Graph, TensorType
from retrograde.compiler.ir.interpreter import evaluate
from retrograde.compiler.ir.registry import lookup

B, T = dims.dim("B"), dims.dim("T")
NUMPY = {"f64": "f8", "f32": "f4", "f16": "f2", "i64": "i8", "i32": "i4", "i8": "i1", "u8": "u1"}


@pytest.fixture
def builder() -> Iterator[Builder]:
    with Builder("f", Expr) as b:
        yield b


def array(b: Builder, dtype: str, *shape: Any) -> Expr:
    return b.input(TensorType(dtypes.dtype(dtype), shape or (3,)))


def ran(build: Callable[..., Graph], fn: Callable[..., Any], *inputs: Any) -> Any:
    """`fn` on arrays, by way of its graph."""
    types = [TensorType(dtypes.dtype(x.dtype), x.shape) for x in inputs]
    graph = build(fn, *types)
    assert len(graph.inputs) == len(inputs)
    return evaluate(graph, inputs)[0]


# --- promotion

SCALARS = [
    ("f32", 2.5, "f32"), ("f32", 2, "f32"), ("f32", True, "f32"), ("f16", 2.5, "f16"),
    ("bf16", 0.1, "bf16"), ("f64", 2, "f64"), ("i32", 2, "i32"), ("i8", 100, "i8"),
    ("i32", 2.5, "f32"), ("i64", 2.5, "f32"), ("u8", 2, "u8"), ("i32", True, "i32"),
    ("f32", np.sqrt(64), "f32"), ("f16", np.float64(2), "f16"), ("f32", np.float32(2), "f32"),
    ("f32", np.int64(7), "f32"), ("i32", np.int64(7), "i32"), ("i8", np.float16(7), "f32"),
    ("i32", np.bool_(True), "i32"),
]  # fmt: skip


@pytest.mark.parametrize(("dtype", "scalar", "expected"), SCALARS)
def test_scalars_are_weak(builder: Builder, dtype: str, scalar: Any, expected: str) -> None:
    x = array(builder, dtype)
    assert (x + scalar).dtype.name == expected
    assert (scalar + x).dtype.name == expected
    assert (x + scalar).shape == (3,)


ARRAYS = [
    ("f32", "f64", "f64"), ("f16", "f32", "f32"), ("f16", "bf16", "f32"), ("bf16", "f32", "f32"),
    ("i32", "i64", "i64"), ("i8", "u8", "i16"), ("u16", "i8", "i32"), ("u32", "i64", "i64"),
    ("u8", "u16", "u16"), ("i64", "f32", "f32"), ("i64", "f16", "f16"), ("i32", "bool", "i32"),
]  # fmt: skip


@pytest.mark.parametrize(("a", "b", "expected"), ARRAYS)
def test_arrays_meet_in_the_wider_type(builder: Builder, a: str, b: str, expected: str) -> None:
    x, y = array(builder, a), array(builder, b)
    for z in (x * y, y * x):
        assert z.dtype.name == expected


def test_u64_and_signed_integers_do_not_meet(builder: Builder) -> None:
    with pytest.raises(DTypeError, match=r"u64 and i64 have no common integer type.*astype"):
        array(builder, "u64") + array(builder, "i64")


def test_division_and_functions_of_integers_are_floats(builder: Builder) -> None:
    x = array(builder, "i32")
    assert (x / 2).dtype is dtypes.f32
    assert (x / x).dtype is dtypes.f32
    assert (x // 2).dtype is dtypes.i32
    assert lookup("exp")(x).dtype is dtypes.f32
    assert lookup("exp")(array(builder, "f16")).dtype is dtypes.f16


def test_a_numpy_root_leaves_f32_alone(build: Callable[..., Graph]) -> None:
    x = np.array([8.0, 24.0], "f4")
    y = ran(build, lambda x: x / np.sqrt(64), x)
    assert y.dtype == np.float32
    assert y.tolist() == [1.0, 3.0]


def test_numpy_arrays_are_strong_and_become_inputs(builder: Builder) -> None:
    x = array(builder, "f32")
    constants = np.arange(3.0)
    assert (x + constants).dtype is dtypes.f64
    assert (constants + x).dtype is dtypes.f64
    assert (np.float32(2) * constants.astype("f4") * x).dtype is dtypes.f32
    assert (x + constants.astype(ml_dtypes.bfloat16)).dtype is dtypes.f32
    assert builder.captured[0] is constants
    assert len([c for c in builder.captured if c is constants]) == 1


def test_scalars_that_do_not_fit_are_refused(builder: Builder) -> None:
    with pytest.raises(DTypeError, match=r"test_expr\.py:\d+: 300 does not fit in i8"):
        array(builder, "i8") + 300
    with pytest.raises(DTypeError, match="-1 does not fit in u8"):
        array(builder, "u8") * -1
    with pytest.raises(DTypeError, match="scalars of type complex"):
        dtypes.weak_kind(1j)


# --- sizes as numbers


def test_sizes_are_weak_numbers(build: Callable[..., Graph]) -> None:
    def f(x: Any) -> Any:
        assert (x * T).dtype is dtypes.f32
        assert (T * x).dtype is dtypes.f32
        return (x * T + B) / (T / 2) - (T - 1)

    graph = build(f, TensorType(dtypes.f32, (B, T)))
    x = np.arange(6, dtype="f4").reshape(2, 3)
    (y,) = evaluate(graph, [x])
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, (x * 3 + 2) / 1.5 - 2)


def test_a_number_of_sizes_stays_weak(builder: Builder) -> None:
    x16, x32 = array(builder, "f16"), array(builder, "f32")
    scale = lookup("sqrt")(as_expr(T) / 4)
    assert scale.weak
    assert (x16 * scale).dtype is dtypes.f16
    assert (x32 / scale).dtype is dtypes.f32
    assert (array(builder, "i32") + as_expr(T)).dtype is dtypes.i32
    assert (array(builder, "i32") + scale).dtype is dtypes.f32
    assert ((x32 * scale).weak, (x32 * 2).weak) == (False, False)


def test_numbers_of_sizes_are_exact(build: Callable[..., Graph]) -> None:
    size = dims.dim("T", max=10**7)
    graph = build(
        lambda x: as_expr(size) * as_expr(size) + 1, TensorType(dtypes.bool_, (size,))
    )
    (y,) = evaluate(graph, [np.zeros(99_991, "?")])
    assert y == 99_991**2 + 1  # beyond 32 bits


def test_comparisons_with_sizes(builder: Builder) -> None:
    x = array(builder, "i32")
    for made in (x < T, T > x, x == T, T != x, x >= T - 1):  # noqa: SIM300
        assert made.dtype is dtypes.bool_
        assert made.shape == (3,)


# --- selections


def test_selecting_between_scalars_gives_the_default_types(builder: Builder) -> None:
    where = lookup("select")
    mask = array(builder, "bool", T, T)
    assert where(mask, 0.0, -np.inf).dtype is dtypes.f32
    assert where(mask, 1, 0).dtype is dtypes.i32
    assert where(mask, T, 0).dtype is dtypes.i32
    assert where(mask, True, False).dtype is dtypes.bool_
    x = array(builder, "f16", T, T)
    assert where(mask, x, -np.inf).dtype is dtypes.f16
    assert (x + where(mask, x, 0)).dtype is dtypes.f16
    assert (array(builder, "f32", T, T) + where(mask, 0.0, -np.inf)).dtype is dtypes.f32
    number = where(as_expr(T) > 3, 1.0, 0.5)  # made of sizes alone: still a number
    assert number.weak
    assert (x * number).dtype is dtypes.f16


# --- operators

a = np.array([7, -7, 5, 0, 1, 12], "i4")
b = np.array([3, 3, -2, 4, 1, 31], "i4")
x = np.array([0.5, -1.5, 2.0, 3.25, -0.0, 9.0], "f4")
y = np.array([2.0, 0.5, -4.0, 3.25, 1.0, -0.75], "f4")
p = np.array([True, True, False, False, True, False])
q = np.array([True, False, True, False, False, True])

BINARY = [
    operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod, operator.eq,
    operator.ne, operator.lt, operator.le, operator.gt, operator.ge,
]  # fmt: skip
BITS = [operator.and_, operator.or_, operator.xor]


@pytest.mark.parametrize("op", BINARY + BITS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("kind", ["int", "float", "bool"])
def test_operators_are_numpys(build: Callable[..., Graph], op: Any, kind: str) -> None:
    left, right = {"int": (a, b), "float": (x, y), "bool": (p, q)}[kind]
    if (kind == "float" and op in BITS) or (
        kind == "bool" and op in (operator.sub, operator.floordiv, operator.mod)
    ):
        with pytest.raises(DTypeError):
            ran(build, op, left, right)
        return
    expected = op(left, right)
    got = ran(build, op, left, right)
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(got, expected)
    scalar = left.dtype.type(right[0]).item()
    for fn in (lambda v: op(v, scalar), lambda v: op(scalar, v)):
        safe = left[:3]  # no division by zero when reflected
        np.testing.assert_array_equal(ran(build, fn, safe), fn(safe))


def test_division_and_powers(build: Callable[..., Graph]) -> None:
    positive = np.abs(y)
    for op, left, right in ((operator.truediv, x, y), (operator.pow, positive, x)):
        np.testing.assert_allclose(ran(build, op, left, right), op(left, right), rtol=1e-6)
        reflected = ran(build, lambda v, op=op: op(2.0, v), positive)
        np.testing.assert_allclose(reflected, op(np.float32(2), positive), rtol=1e-6)


@pytest.mark.parametrize("exponent", [0, 1, 2, 3, -1, 0.5, 1.0, 2.0, -0.5])
def test_powers_by_numbers(build: Callable[..., Graph], exponent: Any) -> None:
    positive = np.abs(y)
    got = ran(build, lambda v: v**exponent, positive)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, positive**exponent, rtol=1e-6)


@pytest.mark.parametrize("exponent", [1.0, 2.0, 0.5])
def test_integers_to_float_powers_are_floats(build: Callable[..., Graph], exponent: float) -> None:
    got = ran(build, lambda v: v**exponent, np.abs(a))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, np.abs(a) ** exponent, rtol=1e-6)


def test_integers_to_negative_powers_are_refused(builder: Builder) -> None:
    with pytest.raises(DTypeError, match=r"test_expr\.py:\d+: .*cast to a float first"):
        array(builder, "i32") ** -1


def test_unary_operators_and_shifts(build: Callable[..., Graph]) -> None:
    for op in (operator.neg, operator.pos, operator.abs, operator.invert):
        np.testing.assert_array_equal(ran(build, op, a), op(a))
    np.testing.assert_array_equal(ran(build, operator.invert, p), ~p)
    np.testing.assert_array_equal(ran(build, operator.lshift, a, np.abs(b) % 5), a << np.abs(b) % 5)
    np.testing.assert_array_equal(ran(build, lambda v: v >> 2, a), a >> 2)
    np.testing.assert_array_equal(ran(build, lambda v: 96 >> v, np.abs(b)), 96 >> np.abs(b))


MATRICES = [
    ((3,), (3,)), ((2, 3), (3,)), ((3,), (3, 4)), ((2, 3), (3, 4)), ((5, 2, 3), (3, 4)),
    ((5, 2, 3), (5, 3, 4)), ((2, 3), (5, 3, 4)), ((5, 1, 2, 3), (7, 3, 4)), ((3,), (5, 3, 4)),
    ((5, 2, 3), (3,)),
]  # fmt: skip


@pytest.mark.parametrize(("left", "right"), MATRICES, ids=str)
def test_matmul_is_numpys(build: Callable[..., Graph], left: Any, right: Any) -> None:
    rng = np.random.default_rng(0)
    m, n = (rng.standard_normal(s) for s in (left, right))
    got = ran(build, operator.matmul, m, n)
    assert got.shape == (m @ n).shape
    np.testing.assert_allclose(got, m @ n, rtol=1e-12)


def test_matmul_takes_no_scalars(builder: Builder) -> None:
    with pytest.raises(TraceError, match=r"test_expr\.py:\d+: matmul takes no scalars: use \*"):
        array(builder, "f32") @ 2.0


def test_symbols_do_not_stretch() -> None:
    assert broadcast_shapes((B, 1, 3), (T, 3)) == (B, T, 3)
    assert broadcast_shapes((), (B,)) == (B,)
    with pytest.raises(ShapeError, match=r"shapes \[B, 3\], \[T, 3\] do not .*: B against T"):
        broadcast_shapes((B, 3), (T, 3))
    with pytest.raises(ShapeError, match="3 against 4 on axis -1"):
        broadcast_shapes((B, 3), (4,))


def test_casting_to_the_same_type_is_nothing(builder: Builder) -> None:
    v = array(builder, "f32")
    assert cast(v, dtypes.f32) is v
    assert cast(v, dtypes.f64).dtype is dtypes.f64


# --- what cannot be traced


def line_of_call() -> int:
    frame = inspect.currentframe()
    assert frame is not None
    assert frame.f_back is not None
    return frame.f_back.f_lineno


ASKED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "bool": (bool, r"`if`.*write rnp\.where"),
    "and": (lambda v: v and 1, r"`if`.*& \| ~ for logic"),
    "float": (float, r"float\(\).*astype"),
    "int": (int, r"int\(\).*astype"),
    "index": (lambda v: [1, 2][v], r"a size, range\(\) or list index.*static sizes"),
    "range": (range, r"a size, range\(\) or list index"),
    "iter": (lambda v: list(v), r"iteration.*rg\.scan"),
    "in": (lambda v: 2 in v, "iteration"),
}


@pytest.mark.parametrize("what", ASKED)
def test_no_number_can_be_had(builder: Builder, what: str) -> None:
    ask, message = ASKED[what]
    v = array(builder, "f32")
    with pytest.raises(TraceError, match=message) as error:
        ask(v)
    assert "test_expr.py:" in str(error.value)
    assert "f32[3]" in str(error.value)


def test_the_users_line_is_named(builder: Builder) -> None:
    v = array(builder, "f32")
    with pytest.raises(TraceError) as error:
        _ = (line := line_of_call()) and bool(v)
    assert str(error.value).startswith(f"{__file__}:{line}: ")
    with pytest.raises(ShapeError) as misfit:
        _ = (line := line_of_call()) and v + array(builder, "f32", 4)
    assert str(misfit.value).startswith(f"{__file__}:{line}: add: shapes [3], [4]")


@pytest.mark.parametrize("foreign", [None, "text", [1.0, 2.0], (1, 2), {"a": 1}])
def test_foreign_operands_are_named(builder: Builder, foreign: Any) -> None:
    v = array(builder, "f32")
    for op in (operator.add, operator.eq, operator.matmul):
        with pytest.raises(TraceError, match=rf"cannot use a {type(foreign).__name__} as an array"):
            op(v, foreign)


def test_unknown_objects_may_bring_their_own_operator(builder: Builder) -> None:
    class Mine:
        def __radd__(self, other: Any) -> str:
            return "mine"

    assert array(builder, "f32") + Mine() == "mine"
    with pytest.raises(TypeError):
        array(builder, "f32") * object()


def test_a_value_does_not_outlive_its_function() -> None:
    with Builder("first", Expr) as first:
        kept = first.input(TensorType(dtypes.f32, (3,)))
    with pytest.raises(TraceError, match=r"test_expr\.py:\d+: a traced value is used outside"):
        kept + 1.0
    with (
        Builder("second", Expr),
        pytest.raises(TraceError, match=r"f32\[3\]\) escaped from .* \(first\): return it"),
    ):
        kept + 1.0
