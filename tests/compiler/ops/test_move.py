"""Creation, moves and windows against NumPy, with zero sizes, 0-d tensors and symbolic sizes."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrograde.compiler.errors import DTypeError, ShapeError
from retrograde.compiler.ir import dtypes
from retrograde.compiler.ir.builder import Builder
from retrograde.compiler.ir.dims import dim
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.graph import TensorType
from retrograde.compiler.ir.interpreter import evaluate
from retrograde.compiler.ir.registry import lookup
from retrograde.compiler.passes.backward import Backward
from tests.compiler.ops.harness import FLOATS, INTEGERS, gradient, numpy_dtype, run

Array = npt.NDArray[Any]
B, T = dim("B"), dim("T")


def numbers(*shape: int, dtype: str = "f64") -> Array:
    """Distinct numbers that no two rows share."""
    return np.arange(int(np.prod(shape))).reshape(shape).astype(numpy_dtype(dtype))


def shape_of(name: str, *types: TensorType, **attrs: Any) -> tuple[Any, ...]:
    op = lookup(name)
    return op.infer(types, {**op.defaults, **attrs})[0].shape


def f32(*shape: Any) -> TensorType:
    return TensorType(dtypes.f32, shape)


# --- creation


def created(name: str, **attrs: Any) -> Array:
    builder = Builder("create", Expr)
    with builder:
        out = lookup(name)(**attrs)
    return evaluate(builder.finish([out.value]), [])[0]


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS])
def test_constant_iota_and_dim_value_have_the_dtype_asked_for(dtype: str) -> None:
    made = dtypes.dtype(dtype)
    assert created("constant", value=3, dtype=made) == numpy_dtype(dtype).type(3)
    assert created("dim_value", size=5, dtype=made) == numpy_dtype(dtype).type(5)
    np.testing.assert_array_equal(created("iota", size=4, dtype=made), numbers(4, dtype=dtype))


def test_special_constants() -> None:
    assert np.isneginf(created("constant", value=float("-inf"), dtype=dtypes.f32))
    assert np.isnan(created("constant", value=float("nan"), dtype=dtypes.f16))
    assert created("constant", value=True, dtype=dtypes.bool_) == np.True_


def test_iota_of_nothing_and_of_booleans() -> None:
    assert created("iota", size=0, dtype=dtypes.i32).shape == (0,)
    with pytest.raises(DTypeError, match="range of booleans"):
        created("iota", size=2, dtype=dtypes.bool_)
    with pytest.raises(ShapeError, match="negative"):
        created("iota", size=-1, dtype=dtypes.i32)


def test_sizes_become_numbers_of_the_run() -> None:
    builder = Builder("sizes", Expr)
    with builder:
        builder.input(f32(B, T))
        total = lookup("dim_value")(size=B * T + 1, dtype=dtypes.i64)
        places = lookup("iota")(size=T - 1, dtype=dtypes.i32)
    graph = builder.finish([total.value, places.value])
    number, row = evaluate(graph, [np.zeros((3, 5), np.float32)])
    assert number == 16
    np.testing.assert_array_equal(row, np.arange(4, dtype=np.int32))


# --- cast


@pytest.mark.parametrize("target", [*FLOATS, *INTEGERS, "bool"])
@pytest.mark.parametrize("source", [*FLOATS, *INTEGERS, "bool"])
def test_cast_agrees_with_numpy_on_what_fits(source: str, target: str) -> None:
    x = np.array([0, 1, 2, 100]).astype(numpy_dtype(source))
    out = run("cast", x, dtype=dtypes.dtype(target))
    assert out.dtype == numpy_dtype(target)
    np.testing.assert_array_equal(out, x.astype(numpy_dtype(target)))


def test_cast_truncates_and_counts_nan_as_true() -> None:
    x = np.array([-1.7, -0.2, 0.9, 2.5])
    np.testing.assert_array_equal(run("cast", x, dtype=dtypes.i32), [-1, 0, 0, 2])
    flags = run("cast", np.array([0.0, -0.0, 0.5, np.nan]), dtype=dtypes.bool_)
    np.testing.assert_array_equal(flags, [False, False, True, True])


def test_the_cast_statement_is_the_reference() -> None:
    statement = lookup("cast").numpy
    assert statement is not None
    for source, target in itertools.product(["f64", "i32", "bool"], ["f32", "i8", "bool"]):
        x = np.array([0, 1, 1, 3]).astype(numpy_dtype(source))
        out = np.full(4, 7).astype(numpy_dtype(target))
        text = statement.replace("{xp}", "np").replace("{out}", "out").replace("{0}", "x")
        exec(text, {"np": np, "out": out, "x": x})
        np.testing.assert_array_equal(out, run("cast", x, dtype=dtypes.dtype(target)))


def test_a_cotangent_is_cast_back() -> None:
    (g,) = gradient("cast", np.array([1.5, 2.5], np.float32), dtype=dtypes.f64)
    assert g.dtype == np.float32
    np.testing.assert_array_equal(g, [1.0, 1.0])


# --- reshape, transpose, broadcast_to, flip, concatenate


def test_reshape() -> None:
    x = numbers(2, 6)
    np.testing.assert_array_equal(run("reshape", x.T, shape=(4, 3)), x.T.reshape(4, 3))
    assert run("reshape", numbers(1, 1), shape=()).shape == ()
    assert run("reshape", numbers(0, 3), shape=(7, 0)).shape == (7, 0)
    assert shape_of("reshape", f32(B, T, 128), shape=(B * T, 4, 32)) == (B * T, 4, 32)
    with pytest.raises(ShapeError, match=r"12 against 10"):
        run("reshape", x, shape=(2, 5))
    with pytest.raises(ShapeError, match="provably"):
        shape_of("reshape", f32(B, T), shape=(T, T))


def test_transpose() -> None:
    x = numbers(2, 3, 4)
    for perm in itertools.permutations(range(3)):
        np.testing.assert_array_equal(run("transpose", x, perm=perm), np.transpose(x, perm))
    assert run("transpose", numbers(), perm=()).shape == ()
    assert shape_of("transpose", f32(B, T, 8), perm=(2, 0, 1)) == (8, B, T)
    for perm in [(0, 1), (0, 1, 1), (0, 1, 3)]:
        with pytest.raises(ShapeError, match="does not order"):
            run("transpose", x, perm=perm)


def test_broadcast_to() -> None:
    x = numbers(3, 1)
    out = run("broadcast_to", x, shape=(2, 3, 4))
    np.testing.assert_array_equal(out, np.broadcast_to(x, (2, 3, 4)))
    assert run("broadcast_to", numbers(1), shape=(0,)).shape == (0,)
    assert shape_of("broadcast_to", f32(1, 8), shape=(B, T, 8)) == (B, T, 8)
    for operand, shape in [(f32(3), (4,)), (f32(2, 3), (3,)), (f32(T), (B,)), (f32(3), (1,))]:
        with pytest.raises(ShapeError):
            shape_of("broadcast_to", operand, shape=shape)


def test_flip() -> None:
    x = numbers(2, 3, 4)
    np.testing.assert_array_equal(run("flip", x, axes=(2, 0)), x[::-1, :, ::-1])
    np.testing.assert_array_equal(run("flip", x, axes=()), x)
    for axes in [(3,), (1, 1), (-1,)]:
        with pytest.raises(ShapeError, match="distinct axes"):
            run("flip", x, axes=axes)


def test_concatenate() -> None:
    parts = [numbers(2, 3), 10 + numbers(0, 3), 20 + numbers(4, 3)]
    np.testing.assert_array_equal(run("concatenate", *parts, axis=0), np.concatenate(parts))
    mixed = run("concatenate", numbers(2, dtype="i32"), numbers(3, dtype="f32"), axis=0)
    assert mixed.dtype == np.float32
    assert shape_of("concatenate", f32(B, T), f32(B, 3), axis=1) == (B, T + 3)
    with pytest.raises(ShapeError, match="agree in all axes but 1"):
        shape_of("concatenate", f32(B, T), f32(T, T), axis=1)
    with pytest.raises(ShapeError, match="agree in all axes but 0"):
        run("concatenate", numbers(2, 3), numbers(2), axis=0)
    for types, axis in [((), 0), ((f32(),), 0), ((f32(2),), 1), ((f32(2),), -1)]:
        with pytest.raises(ShapeError):
            shape_of("concatenate", *types, axis=axis)


# --- windows


@st.composite
def windows(draw: Any) -> tuple[tuple[int, ...], tuple[tuple[int, int, int], ...]]:
    """A shape and a (start, stop, step) for each axis."""
    shape = tuple(draw(st.lists(st.integers(0, 6), min_size=0, max_size=3)))
    window = []
    for size in shape:
        start = draw(st.integers(0, size))
        window.append((start, draw(st.integers(start, size)), draw(st.integers(1, 4))))
    return shape, tuple(window)


def columns(window: Any) -> dict[str, Any]:
    start, stop, step = zip(*window, strict=True) if window else ((), (), ())
    return {"start": start, "stop": stop, "step": step}


@given(windows())
def test_slice_agrees_with_numpy_and_pad_is_its_adjoint(case: Any) -> None:
    shape, window = case
    x = numbers(*shape) + 1.0
    key = tuple(slice(*w) for w in window)
    np.testing.assert_array_equal(run("slice", x, **columns(window)), x[key])
    (g,) = gradient("slice", x, **columns(window))
    expected = np.zeros(shape)
    expected[key] = 1.0
    np.testing.assert_array_equal(g, expected)


@given(windows())
def test_set_slice_agrees_with_numpy(case: Any) -> None:
    shape, window = case
    x = numbers(*shape)
    key = tuple(slice(*w) for w in window)
    y = -1.0 - numbers(*x[key].shape)
    start, step = columns(window)["start"], columns(window)["step"]
    expected = x.copy()
    expected[key] = y
    np.testing.assert_array_equal(run("set_slice", x, y, start=start, step=step), expected)
    np.testing.assert_array_equal(x, numbers(*shape))
    gx, gy = gradient("set_slice", x, y, by=(0, 1), start=start, step=step)
    kept = np.ones(shape)
    kept[key] = 0.0
    np.testing.assert_array_equal(gx, kept)
    np.testing.assert_array_equal(gy, np.ones(y.shape))


@given(st.lists(st.tuples(*[st.integers(0, 3)] * 4), max_size=3))
def test_pad_places_its_operand_and_slice_takes_it_back(axes: list[Any]) -> None:
    sizes, low, high, interior = zip(*axes, strict=True) if axes else ((), (), (), ())
    x = numbers(*sizes)
    out = run("pad", x, low=low, high=high, interior=interior, value=-7.0)
    inner = [n + max(n - 1, 0) * gap for n, gap in zip(sizes, interior, strict=True)]
    total = tuple(a + n + b for a, n, b in zip(low, inner, high, strict=True))
    expected = np.full(total, -7.0)
    places = [a + np.arange(n) * (g + 1) for a, n, g in zip(low, sizes, interior, strict=True)]
    expected[np.ix_(*places)] = x
    np.testing.assert_array_equal(out, expected)
    (g,) = gradient("pad", x, low=low, high=high, interior=interior, value=-7.0)
    np.testing.assert_array_equal(g, np.ones(sizes))


def test_pad_of_other_types() -> None:
    mask = run("pad", np.array([True]), low=(1,), high=(0,), interior=(0,))
    np.testing.assert_array_equal(mask, [False, True])
    codes = run("pad", np.array([3], np.int8), low=(0,), high=(2,), interior=(0,), value=9.0)
    np.testing.assert_array_equal(codes, np.array([3, 9, 9], np.int8))


def test_window_shapes_in_symbols() -> None:
    x = f32(B, T, 128)
    window = {"start": (0, 1, 0), "stop": (B, T, 64), "step": (1, 1, 1)}
    assert shape_of("slice", x, **window) == (B, T - 1, 64)
    halves = {"start": (0, 0, 0), "stop": (B, 2 * T, 128), "step": (1, 2, 1)}
    assert shape_of("slice", f32(B, 2 * T, 128), **halves) == (B, T, 128)
    padded = {"low": (0, 1, 0), "high": (0, 0, 0), "interior": (0, 0, 0)}
    assert shape_of("pad", x, **padded) == (B, T + 1, 128)
    dilated = {"low": (0, 0, 0), "high": (0, 1, 0), "interior": (0, 1, 0)}
    assert shape_of("pad", x, **dilated) == (B, 2 * T, 128)
    start = {"start": (0, 1, 0), "step": (1, 2, 1)}
    assert shape_of("set_slice", f32(B, 2 * T, 128), x, **start) == (B, 2 * T, 128)


def test_gradients_of_windows_in_symbols_at_several_sizes() -> None:
    builder = Builder("windows", Expr)
    with builder:
        x = builder.input(TensorType(dtypes.f64, (B, T)))
        every = lookup("slice")(x, start=(0, 1), stop=(B, T), step=(1, 3))
        spread = lookup("pad")(x, low=(0, 2), high=(1, 0), interior=(0, 1))
        total = [lookup("sum")(y * y, axes=(0, 1), keepdims=False) for y in (every, spread)]
        out = total[0] + 3.0 * total[1]
    graph = Backward((0,), (0,))(builder.finish([out.value]))
    for sizes in [(1, 1), (2, 3), (3, 8), (2, 4)]:
        data = numbers(*sizes) + 1.0
        _, g = evaluate(graph, [data, np.array(1.0)])
        expected = 6.0 * data
        expected[:, 1::3] += 2.0 * data[:, 1::3]
        np.testing.assert_array_equal(g, expected)


@pytest.mark.parametrize(
    ("name", "types", "attrs", "says"),
    [
        ("slice", [f32(3)], {"start": (1,), "stop": (4,), "step": (1,)}, "1:4 leaves axis 0"),
        ("slice", [f32(3)], {"start": (2,), "stop": (1,), "step": (1,)}, "2:1 leaves axis 0"),
        ("slice", [f32(T)], {"start": (0,), "stop": (T + 1,), "step": (1,)}, "leaves axis 0"),
        ("slice", [f32(3)], {"start": (0,), "stop": (3,), "step": (0,)}, "at least 1"),
        ("slice", [f32(3)], {"start": (0,), "stop": (3,), "step": (T,)}, "plain integers"),
        ("slice", [f32(3)], {"start": (0, 0), "stop": (3,), "step": (1,)}, "an entry for each"),
        ("pad", [f32(3)], {"low": (-1,), "high": (0,), "interior": (0,)}, "cannot be negative"),
        ("pad", [f32(3)], {"low": (0,), "high": (0,), "interior": (-1,)}, "at least 0"),
        ("set_slice", [f32(3), f32(2)], {"start": (2,), "step": (1,)}, "leaves axis 0"),
        ("set_slice", [f32(5), f32(3)], {"start": (1,), "step": (2,)}, "leaves axis 0"),
        ("set_slice", [f32(5), f32(1, 3)], {"start": (1,), "step": (1,)}, "ranks differ"),
    ],
)
def test_windows_that_do_not_fit(name: str, types: Any, attrs: Any, says: str) -> None:
    with pytest.raises(ShapeError, match=says):
        shape_of(name, *types, **attrs)


def test_a_window_that_only_a_run_can_judge_is_judged_there() -> None:
    builder = Builder("late", Expr)
    with builder:
        x = builder.input(f32(T))
        out = lookup("slice")(x, start=(0,), stop=(4,), step=(1,))
    graph = builder.finish([out.value])
    row = np.arange(6, dtype=np.float32)
    np.testing.assert_array_equal(evaluate(graph, [row])[0], row[:4])
    with pytest.raises(ShapeError, match="0:4 leaves axis 0 of size 3"):
        evaluate(graph, [row[:3]])
