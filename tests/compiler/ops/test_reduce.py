"""Reductions against NumPy, with their result types, axes, empty and non-finite operands."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from retrograde.compiler.errors import DataError, DTypeError, ShapeError
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
    INTEGERS,
    epsilon,
    gradient,
    numpy_dtype,
    run,
    summed,
    without_seed,
)

NUMPY = {"sum": np.sum, "prod": np.prod, "max": np.max, "min": np.min}
AXES = [(), (0,), (1,), (2,), (0, 2), (1, 2), (0, 1, 2)]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", NUMPY)
def test_floats(name: str, dtype: str) -> None:
    x = np.random.default_rng(0).uniform(0.5, 1.5, (3, 4, 2)).astype(numpy_dtype(dtype))
    for axes in AXES:
        for keepdims in (False, True):
            y = run(name, x, axes=axes, keepdims=keepdims)
            wanted = NUMPY[name](x.astype(np.float64), axis=axes, keepdims=keepdims)
            assert y.dtype == x.dtype
            assert y.shape == wanted.shape
            # 24 factors: as many roundings, or one where f16 and bf16 are carried in f32.
            roundings = 24 if dtype in ("f64", "f32") else 1
            np.testing.assert_allclose(
                y.astype(np.float64), wanted, rtol=roundings * epsilon(dtype)
            )


@pytest.mark.parametrize("dtype", [*INTEGERS, "bool"])
def test_integers_and_booleans_keep_32_bits_or_more(dtype: str) -> None:
    kind = numpy_dtype(dtype)
    x = np.random.default_rng(1).integers(0, 2 if dtype == "bool" else 5, (3, 4)).astype(kind)
    total = {"i8": "i32", "i16": "i32", "bool": "i32", "u8": "u32", "u16": "u32"}.get(dtype, dtype)
    for name in ("sum", "prod"):
        y = run(name, x, axes=(1,))
        assert y.dtype == numpy_dtype(total)
        np.testing.assert_array_equal(y, NUMPY[name](x.astype(np.int64), axis=1))
    for name in ("max", "min"):
        y = run(name, x, axes=(0,))
        assert y.dtype == kind
        np.testing.assert_array_equal(y, NUMPY[name](x, axis=0))


def test_small_integers_do_not_wrap() -> None:
    x = np.full((300,), 100, np.int8)
    assert int(run("sum", x, axes=(0,))) == 30000
    assert int(run("sum", x > 0, axes=(0,))) == 300


def test_half_precision_is_summed_in_single() -> None:
    x = np.full((5000, 2), 1.0, np.float16)
    np.testing.assert_array_equal(run("sum", x, axes=(0,)), [5000, 5000])
    for dtype in ("f16", "bf16"):  # rounded after each step it would stop at 2048, or at 256
        y = run("sum", x.astype(numpy_dtype(dtype)), axes=(0,)).astype(np.float64)
        np.testing.assert_allclose(y, 5000, rtol=epsilon(dtype))


def test_scalars() -> None:
    for name in NUMPY:
        assert float(run(name, 2.5, axes=())) == 2.5


def test_no_elements() -> None:
    x = np.zeros((0, 3))
    np.testing.assert_array_equal(run("sum", x, axes=(0,)), [0, 0, 0])
    np.testing.assert_array_equal(run("prod", x, axes=(0,)), [1, 1, 1])
    np.testing.assert_array_equal(run("any", x > 0, axes=(0,)), [False] * 3)
    np.testing.assert_array_equal(run("all", x > 0, axes=(0,)), [True] * 3)
    assert run("max", x, axes=(1,)).shape == (0,)
    assert gradient("sum", x, axes=(0,))[0].shape == (0, 3)


@pytest.mark.parametrize("name", ["max", "min", "argmax", "argmin"])
def test_no_extreme_of_no_elements(name: str) -> None:
    attrs: dict[str, Any] = {"axis": 0} if name.startswith("arg") else {"axes": (0,)}
    with pytest.raises(ShapeError, match="size 0"):
        run(name, np.zeros((0, 3)), **attrs)
    builder = Builder("f", Expr)
    with builder:
        x = builder.input(TensorType(dtypes.f64, (dim("T", min=0), 3)))
        y = lookup(name)(x, **attrs)
    graph = builder.finish([y.value])
    assert evaluate(graph, [np.ones((2, 3))])[0].shape == (3,)
    with pytest.raises(DataError, match="size 0"):
        evaluate(graph, [np.zeros((0, 3))])


def test_infinities_and_nan() -> None:
    inf, nan = math.inf, math.nan
    x = np.array([[1.0, -inf, 2.0], [inf, -inf, 0.0], [nan, 5.0, -inf], [-inf, -inf, -inf]])
    with np.errstate(invalid="ignore"):
        for name, fn in NUMPY.items():
            np.testing.assert_array_equal(run(name, x, axes=(1,)), fn(x, axis=1))


@pytest.mark.parametrize("name", ["argmax", "argmin"])
def test_arg_reductions(name: str) -> None:
    rng = np.random.default_rng(2)
    x = rng.integers(0, 3, (4, 5, 6)).astype(np.float32)  # many ties
    x[1, 2, 3] = np.nan
    for axis in range(3):
        for keepdims in (False, True):
            y = run(name, x, axis=axis, keepdims=keepdims)
            assert y.dtype == np.int32
            np.testing.assert_array_equal(y, getattr(np, name)(x, axis=axis, keepdims=keepdims))


def test_any_and_all() -> None:
    x = np.array([[[True, False, False, True]], [[True, True, False, True]]])
    for axes in AXES:
        np.testing.assert_array_equal(run("any", x, axes=axes), x.any(axis=axes))
        np.testing.assert_array_equal(run("all", x, axes=axes), x.all(axis=axes))


@pytest.mark.parametrize("axes", [(-1,), (2,), (1, 0), (0, 0)])
def test_axes_are_checked(axes: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="not rising axes"):
        run("sum", np.zeros((2, 3)), axes=axes)


def test_logic_takes_booleans() -> None:
    with pytest.raises(DTypeError, match="compare first"):
        lookup("any").infer((TensorType(dtypes.f32, (3,)),), {"axes": (0,), "keepdims": False})


@pytest.mark.parametrize("name", ["sum", "prod", "max"])
def test_symbolic_sizes(name: str) -> None:
    """Value and gradient of one graph at several sizes."""
    builder = Builder("f", Expr)
    with builder:
        x = builder.input(TensorType(dtypes.f64, (dim("B"), dim("T"), 2)))
        y = lookup(name)(x, axes=(0, 1))
    graph = builder.finish([y.value])
    pulled = without_seed(Backward((0,), (0,))(summed(graph)))
    for shape in ((1, 1, 2), (3, 5, 2), (4, 1, 2)):
        value = np.random.default_rng(3).uniform(0.5, 1.5, shape)
        np.testing.assert_allclose(evaluate(graph, [value])[0], NUMPY[name](value, axis=(0, 1)))
        np.testing.assert_allclose(
            evaluate(pulled, [value])[0], gradient(name, value, axes=(0, 1))[0]
        )
