"""Running ops against NumPy; the linear recurrence against its definition."""

from __future__ import annotations

import numpy as np
import pytest

from retrograde.compiler.errors import ShapeError
from retrograde.compiler.ir import dtypes
from retrograde.compiler.ir.builder import Builder
from retrograde.compiler.ir.dims import dim
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.graph import TensorType
from retrograde.compiler.ir.interpreter import evaluate
from retrograde.compiler.ir.registry import lookup
from retrograde.compiler.passes.backward import Backward
from tests.compiler.ops.harness import (
    FLOATS,
    epsilon,
    gradient,
    numpy_dtype,
    run,
    summed,
    without_seed,
)

NUMPY = {
    "cumsum": np.add,
    "cumprod": np.multiply,
    "cummax": np.maximum,
    "cummin": np.minimum,
}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", NUMPY)
def test_floats(name: str, dtype: str) -> None:
    x = np.random.default_rng(0).uniform(0.5, 1.5, (3, 4, 5)).astype(numpy_dtype(dtype))
    for axis in range(3):
        wanted = NUMPY[name].accumulate(x.astype(np.float64), axis=axis)
        y = run(name, x, axis=axis)
        assert y.dtype == x.dtype
        np.testing.assert_allclose(y.astype(np.float64), wanted, rtol=epsilon(dtype))
        back = run(name, np.flip(x, axis), axis=axis, reverse=True)
        np.testing.assert_array_equal(back, np.flip(y, axis))


def test_integers_and_booleans() -> None:
    x = np.full((200,), 3, np.int8)
    y = run("cumsum", x, axis=0)
    assert y.dtype == np.int32
    np.testing.assert_array_equal(y, 3 * np.arange(1, 201))
    np.testing.assert_array_equal(run("cumsum", x > 0, axis=0), np.arange(1, 201))
    assert run("cumprod", x[:4].astype(np.uint16), axis=0).dtype == np.uint32
    assert run("cummax", x, axis=0).dtype == np.int8


def test_half_precision_is_carried_in_single() -> None:
    x = np.full((600,), 1.0).astype(numpy_dtype("bf16"))
    y = run("cumsum", x, axis=0).astype(np.float64)
    np.testing.assert_allclose(y, np.arange(1, 601), rtol=epsilon("bf16"))


def test_nan_stays_from_where_it_comes() -> None:
    x = np.array([1.0, np.nan, 3.0])
    for name in NUMPY:
        np.testing.assert_array_equal(np.isnan(run(name, x, axis=0)), [False, True, True])
    np.testing.assert_array_equal(run("cummax", np.array([-np.inf, 2.0]), axis=0), [-np.inf, 2])


def test_no_elements_and_axes() -> None:
    for name in NUMPY:
        assert run(name, np.zeros((0, 3)), axis=0).shape == (0, 3)
        assert gradient(name, np.zeros((0, 3)), axis=0)[0].shape == (0, 3)
        for axis in (-1, 2):
            with pytest.raises(ShapeError, match="axis"):
                run(name, np.zeros((2, 3)), axis=axis)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("reverse", [False, True])
def test_linear_recurrence(dtype: str, reverse: bool) -> None:
    rng = np.random.default_rng(1)
    a, b = (rng.uniform(-1, 1, (3, 6, 2)).astype(numpy_dtype(dtype)) for _ in range(2))
    y = run("linear_recurrence", a, b, axis=1, reverse=reverse).astype(np.float64)
    h = np.zeros((3, 2))
    for t in reversed(range(6)) if reverse else range(6):
        h = a[:, t].astype(np.float64) * h + b[:, t].astype(np.float64)
        np.testing.assert_allclose(y[:, t], h, rtol=epsilon(dtype), atol=epsilon(dtype))


def test_the_first_factor_of_a_recurrence_is_not_read() -> None:
    a = np.array([np.nan, 2.0, np.inf])
    np.testing.assert_array_equal(
        run("linear_recurrence", a, np.array([1.0, 1.0, 0.0]), axis=0), [1, 3, np.inf]
    )
    with pytest.raises(ShapeError, match="unequal shapes"):
        run("linear_recurrence", a, np.ones((2, 3)), axis=0)


@pytest.mark.parametrize("name", NUMPY)
def test_symbolic_length(name: str) -> None:
    """One differentiated graph serves every length, none and one included."""
    builder = Builder("f", Expr)
    with builder:
        x = builder.input(TensorType(dtypes.f64, (2, dim("T", min=0))))
        y = lookup(name)(x, axis=1)
    graph = without_seed(Backward((0,), (0,))(summed(builder.finish([y.value]))))
    for length in (0, 1, 2, 7):
        value = np.random.default_rng(length).uniform(0.5, 1.5, (2, length))
        np.testing.assert_allclose(evaluate(graph, [value])[0], gradient(name, value, axis=1)[0])
