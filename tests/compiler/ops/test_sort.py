"""Sorting against a plain Python sort: order, stability, NaN, places, gradients at ties."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from retrograde.compiler.errors import DataError, ShapeError
from retrograde.compiler.ir import dtypes
from retrograde.compiler.ir.builder import Builder
from retrograde.compiler.ir.dims import dim
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.graph import TensorType
from retrograde.compiler.ir.interpreter import evaluate
from retrograde.compiler.ir.registry import lookup
from tests.compiler.ops.harness import FLOATS, INTEGERS, gradient, numpy_dtype, run

Array = npt.NDArray[Any]


def order(row: list[float], descending: bool) -> list[int]:
    """Stable places of the elements in order; NaN is the largest."""

    def key(i: int) -> tuple[bool, float]:
        nan = math.isnan(row[i])
        return nan, 0.0 if nan else row[i]

    if descending:
        return sorted(range(len(row)), key=lambda i: (not key(i)[0], -key(i)[1]))
    return sorted(range(len(row)), key=key)


def plain(x: Array) -> Array:
    """In a type whose NaN NumPy's assertions know."""
    return x.astype(np.float64)


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS, "bool"])
def test_order_with_ties(dtype: str, descending: bool) -> None:
    x = np.random.default_rng(0).integers(0, 4, (3, 7)).astype(numpy_dtype(dtype))
    if dtype in FLOATS:
        x[1, 2] = x[1, 5] = np.nan
        x[2, 1] = -np.inf
    wanted = np.array([order([float(v) for v in row], descending) for row in x])
    places = run("argsort", x, axis=1, descending=descending)
    assert places.dtype == np.int32
    np.testing.assert_array_equal(places, wanted)
    values = run("sort", x, axis=1, descending=descending)
    assert values.dtype == x.dtype
    np.testing.assert_array_equal(plain(values), plain(np.take_along_axis(x, wanted, 1)))
    down = run("sort", x.T.copy(), axis=0, descending=descending)
    np.testing.assert_array_equal(plain(down), plain(values.T))
    if descending:
        for k in (0, 1, 7):
            top, where = run("top_k", x, k=k)
            np.testing.assert_array_equal(plain(top), plain(values[:, :k]))
            np.testing.assert_array_equal(where, places[:, :k])


def test_empty_and_scalar() -> None:
    assert run("sort", np.zeros((0, 3)), axis=0).shape == (0, 3)
    assert run("argsort", np.zeros((2, 0)), axis=1).shape == (2, 0)
    for name, attrs in (("sort", {"axis": 0}), ("top_k", {"k": 1})):
        with pytest.raises(ShapeError):
            run(name, 1.0, **attrs)


def test_more_than_there_is() -> None:
    with pytest.raises(ShapeError, match="5 largest of 3"):
        run("top_k", np.zeros((2, 3)), k=5)
    builder = Builder("f", Expr)
    with builder:
        x = builder.input(TensorType(dtypes.f32, (dim("T"),)))
        values, _ = lookup("top_k")(x, k=5)
    graph = builder.finish([values.value])
    np.testing.assert_array_equal(
        evaluate(graph, [np.arange(6, dtype=np.float32)])[0], [5, 4, 3, 2, 1]
    )
    with pytest.raises(DataError, match="5 largest of 3"):
        evaluate(graph, [np.zeros(3, np.float32)])


def test_gradients_at_ties_go_to_one_element() -> None:
    x = np.array([2.0, 5.0, 5.0, 5.0])
    np.testing.assert_array_equal(gradient("top_k", x, k=2)[0], [0, 1, 1, 0])
    np.testing.assert_array_equal(gradient("sort", x, axis=0)[0], [1, 1, 1, 1])
