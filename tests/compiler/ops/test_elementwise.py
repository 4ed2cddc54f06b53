"""Elementwise ops against independent formulas, in every dtype, with broadcasting and specials;
and their device statements against their references, bit for bit."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.special

from retrograde.compiler.errors import DTypeError, ShapeError
from retrograde.compiler.ir import dtypes
from retrograde.compiler.ir.builder import Builder
from retrograde.compiler.ir.dims import dim
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.graph import TensorType
from retrograde.compiler.ir.registry import Kind, NotDifferentiable, all_ops, lookup
from tests.compiler.ops.formulas import BINARY, INTEGER, TRUTH, UNARY
from tests.compiler.ops.harness import FLOATS, INTEGERS, epsilon, numpy_dtype, run
from tests.compiler.ops.samples import SAMPLES

Array = npt.NDArray[Any]

SPECIAL = [0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan, 1e-30, -1e30, 3e4]

ELEMENTWISE = [op for op in all_ops() if op.kind is Kind.ELEMENTWISE]
OTHERS = {"logical_not", "bitwise_not", "select", "cast", "stop_gradient"}


def test_every_elementwise_op_is_checked_here() -> None:
    known = {*UNARY, *BINARY, *INTEGER, *TRUTH, *OTHERS}
    assert {op.name for op in ELEMENTWISE} == known


def numbers(dtype: str, low: float, high: float, *shape: int, seed: int = 0) -> Array:
    x = np.random.default_rng(seed).uniform(low, high, shape)
    return np.asarray(x).astype(numpy_dtype(dtype))


def close(found: Array, wanted: Array, dtype: str) -> None:
    if found.dtype == bool:
        np.testing.assert_array_equal(found, wanted)
        return
    tolerance = 6 * epsilon(dtype)
    np.testing.assert_allclose(
        found.astype(np.float64), np.asarray(wanted, np.float64), rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", UNARY)
def test_unary(name: str, dtype: str) -> None:
    formula, low, high = UNARY[name]
    for shape in ((3, 5), (), (0, 4), (2, 1, 3)):
        x = numbers(dtype, low, high, *shape)
        y = run(name, x)
        assert y.shape == shape
        close(y, formula(x.astype(np.float64)), dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", BINARY)
def test_binary(name: str, dtype: str) -> None:
    formula, low, high = BINARY[name]
    pairs = [((3, 5), (3, 5)), ((3, 1), (5,)), ((), (4,)), ((0, 4), (1, 4)), ((), ())]
    for left, right in pairs:
        a, b = numbers(dtype, low, high, *left), numbers(dtype, low, high, *right, seed=1)
        y = run(name, a, b)
        assert y.shape == np.broadcast_shapes(left, right)
        if name in ("floor_div", "mod"):  # an exact quotient rounds apart by one whole step
            wanted = {"floor_div": np.floor_divide, "mod": np.remainder}[name](a, b)
            np.testing.assert_array_equal(y, wanted)
            if dtype != "f64":
                continue
        close(y, formula(a.astype(np.float64), b.astype(np.float64)), dtype)


@pytest.mark.parametrize("dtype", ["f64", "f32"])
def test_special_values_of_unary_ops(dtype: str) -> None:
    x = np.array(SPECIAL, numpy_dtype(dtype))
    expected = {
        "exp": [1, 1, math.e, 1 / math.e, math.inf, 0, math.nan, 1, 0, math.inf],
        "log": [-math.inf, -math.inf, 0, math.nan, math.inf, math.nan, math.nan,
                math.log(1e-30), math.nan, math.log(3e4)],
        "sqrt": [0, 0, 1, math.nan, math.inf, math.nan, math.nan, 1e-15, math.nan, 3e4**0.5],
        "rsqrt": [math.inf, -math.inf, 1, math.nan, 0, math.nan, math.nan, 1e15, math.nan,
                  3e4**-0.5],
        "reciprocal": [math.inf, -math.inf, 1, -1, 0, 0, math.nan, 1e30, -1e-30, 1 / 3e4],
        "tanh": [0, 0, math.tanh(1), -math.tanh(1), 1, -1, math.nan, 1e-30, -1, 1],
        "sigmoid": [0.5, 0.5, 1 / (1 + 1 / math.e), 1 / (1 + math.e), 1, 0, math.nan, 0.5, 0, 1],
        "softplus": [math.log(2), math.log(2), math.log(1 + math.e), math.log(1 + 1 / math.e),
                     math.inf, 0, math.nan, math.log(2), 0, 3e4],
        "relu": [0, 0, 1, 0, math.inf, 0, math.nan, 1e-30, 0, 3e4],
        "sign": [0, 0, 1, -1, 1, -1, math.nan, 1, -1, 1],
        "abs": [0, 0, 1, 1, math.inf, math.inf, math.nan, 1e-30, 1e30, 3e4],
        "erf": [0, 0, math.erf(1), -math.erf(1), 1, -1, math.nan, 2e-30 / math.pi**0.5, -1, 1],
        "isnan": [0, 0, 0, 0, 0, 0, 1, 0, 0, 0],
        "isinf": [0, 0, 0, 0, 1, 1, 0, 0, 0, 0],
        "isfinite": [1, 1, 1, 1, 0, 0, 0, 1, 1, 1],
    }  # fmt: skip
    for name, values in expected.items():
        y = run(name, x).astype(np.float64)
        np.testing.assert_allclose(y, values, rtol=4 * epsilon(dtype), err_msg=name)


def test_special_values_of_binary_ops() -> None:
    inf, nan = math.inf, math.nan
    cases = [
        ("maximum", nan, 1.0, nan), ("maximum", 1.0, nan, nan), ("minimum", -inf, nan, nan),
        ("maximum", -inf, 2.0, 2.0), ("logaddexp", -inf, -inf, -inf), ("logaddexp", -inf, 2.0, 2.0),
        ("logaddexp", inf, 1.0, inf), ("logaddexp", 1e5, 1e5, 1e5 + math.log(2)),
        ("pow", 0.0, 0.0, 1.0), ("pow", 0.0, -1.0, inf), ("pow", -8.0, 1 / 3, nan),
        ("pow", -2.0, 3.0, -8.0), ("div", 1.0, 0.0, inf), ("div", 0.0, 0.0, nan),
        ("mod", -7.0, 3.0, 2.0), ("mod", 7.0, -3.0, -2.0), ("floor_div", -7.0, 3.0, -3.0),
        ("mod", 5.0, 0.0, nan), ("arctan2", 0.0, -1.0, math.pi), ("arctan2", -0.0, -1.0, -math.pi),
        ("hypot", 1e200, 1e200, math.sqrt(2) * 1e200), ("hypot", inf, nan, inf),
        ("copysign", 3.0, -0.0, -3.0), ("equal", nan, nan, 0), ("not_equal", nan, nan, 1),
        ("less", nan, 1.0, 0), ("less_equal", -inf, -inf, 1), ("mul", 0.0, inf, nan),
        ("sub", -inf, -inf, nan), ("add", -inf, 5.0, -inf),
    ]  # fmt: skip
    for name, a, b, wanted in cases:
        np.testing.assert_allclose(float(run(name, a, b)), wanted, rtol=1e-15, err_msg=name)


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("name", INTEGER)
def test_integers(name: str, dtype: str) -> None:
    rng = np.random.default_rng(3)
    kind = numpy_dtype(dtype)
    low = 0 if kind.kind == "u" else -5
    small = name in ("pow", "shift_left", "shift_right")
    a = rng.integers(low, 6, (4, 5)).astype(kind)
    b = rng.integers(0 if small else 1, 3 if small else 6, (5,)).astype(kind)
    y = run(name, a, b)
    exact = [[INTEGER[name](int(p), int(q)) for p, q in zip(row, b, strict=True)] for row in a]
    wanted = np.array(exact)
    if wanted.dtype != bool:
        assert y.dtype == kind
        wanted = wanted.astype(kind)  # wraps, as the op does
    np.testing.assert_array_equal(y, wanted)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integer_unary_ops(dtype: str) -> None:
    signed = not dtype.startswith("u")
    x = np.array([[-3, 0, 7], [5, -1, 2]] if signed else [[3, 0, 7], [5, 1, 2]], numpy_dtype(dtype))
    for name, formula in {
        "abs": lambda v: abs(v),
        "sign": lambda v: (v > 0) - (v < 0),
        "relu": lambda v: max(v, 0),
        "bitwise_not": lambda v: ~v,
        "neg": lambda v: -v,
    }.items():
        wanted = np.array([[formula(int(v)) for v in row] for row in x]).astype(x.dtype)
        y = run(name, x)
        assert y.dtype == x.dtype
        np.testing.assert_array_equal(y, wanted, err_msg=name)


def test_integers_by_zero_and_wide_shifts() -> None:
    a, zero = np.array([7, -7], np.int32), np.array([0, 0], np.int32)
    np.testing.assert_array_equal(run("floor_div", a, zero), [0, 0])
    np.testing.assert_array_equal(run("mod", a, zero), [0, 0])
    wide = np.array([32, 40], np.int32)
    np.testing.assert_array_equal(run("shift_left", a, wide), [0, 0])
    np.testing.assert_array_equal(run("shift_right", a, wide), [0, -1])


@pytest.mark.parametrize("name", TRUTH)
def test_booleans(name: str) -> None:
    a, b = np.array([[False], [True]]), np.array([False, True])
    wanted = [[TRUTH[name](p, q) for q in (False, True)] for p in (False, True)]
    y = run(name, a, b)
    assert y.dtype == bool
    np.testing.assert_array_equal(y, wanted)


def test_negation_of_booleans() -> None:
    for name in ("logical_not", "bitwise_not"):
        np.testing.assert_array_equal(run(name, np.array([True, False])), [False, True])


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS, "bool"])
def test_select(dtype: str) -> None:
    kind = numpy_dtype(dtype)
    condition = np.array([[True], [False], [True]])
    a, b = np.array([1, 0, 1, 0]).astype(kind), np.asarray(1).astype(kind)
    y = run("select", condition, a, b)
    assert y.dtype == kind
    np.testing.assert_array_equal(y, [[1, 0, 1, 0], [1, 1, 1, 1], [1, 0, 1, 0]])


def test_select_leaves_no_trace_of_the_other_branch() -> None:
    y = run("select", np.array([True, False]), np.array([1.0, np.nan]), np.array([np.inf, 2.0]))
    np.testing.assert_array_equal(y, [1.0, 2.0])


def test_half_precision_rounds_each_result() -> None:
    x = np.array([1.0 + 2**-10], np.float16)
    np.testing.assert_array_equal(run("mul", x, x), np.array([(1 + 2**-10) ** 2], np.float16))


# --- device statements


def statement_operands(name: str, dtype: str, shape: tuple[int, ...]) -> list[Array]:
    op = lookup(name)
    low, high = (UNARY.get(name) or BINARY.get(name) or (None, 0, 2))[1:]
    arity = 1 if "{1}" not in str(op.numpy) else 3 if "{2}" in str(op.numpy) else 2
    arrays = [numbers(dtype, low, high, *shape, seed=i) for i in range(arity)]
    if name == "select":
        arrays[0] = arrays[0] > 1
    return arrays


def accepted(name: str) -> list[str]:
    found = []
    for dtype in (*FLOATS, "i32", "u8", "bool"):
        types = [TensorType(dtypes.dtype(x.dtype), x.shape) for x in
                 statement_operands(name, dtype, (2,))]  # fmt: skip
        try:
            lookup(name).infer(tuple(types), {})
        except DTypeError:
            continue
        found.append(dtype)
    return found


STATEMENTS = [
    (op.name, dtype) for op in ELEMENTWISE if op.name != "cast" for dtype in accepted(op.name)
]


def execute(statement: str, operands: list[Array], out: Array) -> None:
    names = [f"x{i}" for i in range(len(operands))]
    source = statement.format(*names, xp="np", special="special", out="out")
    bound = {"np": np, "special": scipy.special, "out": out}
    with np.errstate(all="ignore"):
        exec(source, bound | dict(zip(names, operands, strict=True)))


@pytest.mark.parametrize(("name", "dtype"), STATEMENTS)
def test_device_statement_gives_the_reference(name: str, dtype: str) -> None:
    op = lookup(name)
    assert op.numpy is not None
    for shape in ((3, 5), (), (0, 4)):
        operands = statement_operands(name, dtype, shape)
        if dtype in FLOATS and name != "select" and shape == (3, 5):
            operands[0][0] = np.array(SPECIAL[2:7])
        wanted = run(name, *operands)
        out = np.empty(shape, wanted.dtype)
        execute(op.numpy, operands, out)
        assert out.tobytes() == wanted.tobytes()
        for i in op.inplace:
            taken = [x.copy() for x in operands]
            execute(op.numpy, taken, taken[i])
            assert taken[i].tobytes() == wanted.tobytes(), f"in place of operand {i}"


@pytest.mark.parametrize("name", [op.name for op in ELEMENTWISE if op.name != "cast"])
def test_device_statement_allocates_nothing_of_the_operands_size(name: str) -> None:
    op = lookup(name)
    dtype = accepted(name)[0]
    if "f32" in accepted(name):
        dtype = "f32"
    operands = statement_operands(name, dtype, (1 << 18,))
    out = np.empty((1 << 18,), run(name, *operands).dtype)
    execute(str(op.numpy), operands, out)  # imports and caches first
    tracemalloc.start()
    execute(str(op.numpy), operands, out)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 17


# --- declarations


def test_every_op_says_whether_it_has_a_gradient() -> None:
    for op in all_ops():
        assert op.doc, op.name
        if isinstance(op.vjp, NotDifferentiable):
            assert op.vjp.reason, op.name
        elif op.vjp is None:
            assert op.decompose is not None, op.name
        if op.kind is Kind.ELEMENTWISE:
            assert op.numpy, op.name


def apply(name: str, *types: TensorType) -> Expr:
    builder = Builder("f", Expr)
    with builder:
        out: Expr = lookup(name)(*(builder.input(t) for t in types))
    return out


F32, I32, BOOL = (TensorType(dtypes.dtype(t), (3,)) for t in ("f32", "i32", "bool"))


def test_promotion() -> None:
    i64 = TensorType(dtypes.i64, (3,))
    assert apply("exp", I32).dtype is dtypes.f32
    assert apply("div", I32, i64).dtype is dtypes.f32
    assert apply("add", I32, i64).dtype is dtypes.i64
    assert apply("mul", I32, F32).dtype is dtypes.f32
    assert apply("logical_and", I32, F32).dtype is dtypes.bool_
    assert apply("select", I32, BOOL, F32).dtype is dtypes.f32
    assert apply("less", I32, F32).dtype is dtypes.bool_


@pytest.mark.parametrize(
    ("name", "types"),
    [
        ("neg", (BOOL,)), ("sub", (BOOL, BOOL)), ("bitwise_and", (F32, F32)),
        ("shift_left", (BOOL, BOOL)), ("pow", (BOOL, BOOL)), ("relu", (BOOL,)),
    ],
)  # fmt: skip
def test_unfit_dtypes_are_refused_with_a_way_out(name: str, types: tuple[TensorType, ...]) -> None:
    with pytest.raises(DTypeError, match="it takes"):
        apply(name, *types)


def test_types_are_checked_without_promotion() -> None:
    """What a verifier replays: the shape rule itself refuses what the front end would cast."""
    with pytest.raises(DTypeError, match="cast it"):
        lookup("exp").infer((I32,), {})
    with pytest.raises(DTypeError, match="unequal"):
        lookup("add").infer((I32, F32), {})
    with pytest.raises(DTypeError, match="boolean"):
        lookup("select").infer((I32, F32, F32), {})


def test_a_symbol_broadcasts_only_against_itself_and_one() -> None:
    t, u = dim("T"), dim("U")
    row, column = TensorType(dtypes.f32, (t,)), TensorType(dtypes.f32, (u, 1))
    assert apply("add", row, column).shape == (u, t)
    with pytest.raises(ShapeError, match="do not broadcast"):
        apply("add", row, TensorType(dtypes.f32, (u,)))


def test_samples_name_known_ops() -> None:
    assert {op.name for op in all_ops()} >= set(SAMPLES)
