"""Derivatives where a formula has a choice: kinks, ties, zeros, infinities, to second order."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from retrograde.compiler.ir import dtypes
from retrograde.compiler.ir.builder import Builder
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.graph import TensorType
from retrograde.compiler.ir.interpreter import evaluate
from retrograde.compiler.ir.registry import lookup
from retrograde.compiler.passes.backward import Backward
from tests.compiler.ops.harness import gradient, summed, without_seed

Array = npt.NDArray[Any]


def pair(name: str, a: float, b: float, **options: Any) -> list[float]:
    return [float(d) for d in gradient(name, a, b, by=(0, 1), **options)]


def test_kinks_of_unary_ops() -> None:
    x = np.array([-2.0, 0.0, 3.0])
    np.testing.assert_array_equal(gradient("relu", x)[0], [0, 0, 1])
    np.testing.assert_array_equal(gradient("abs", x)[0], [-1, 0, 1])
    for name in ("sign", "floor", "ceil", "round", "trunc"):
        np.testing.assert_array_equal(gradient(name, x + 0.5)[0], [0, 0, 0])


def test_relu_lets_no_infinity_through() -> None:
    x = np.array([-np.inf, np.inf, np.nan])
    np.testing.assert_array_equal(gradient("relu", x)[0], [0, 1, 0])


def test_ties_split_evenly() -> None:
    assert pair("maximum", 2.0, 2.0) == [0.5, 0.5]
    assert pair("minimum", 2.0, 2.0) == [0.5, 0.5]
    assert pair("maximum", 3.0, 2.0) == [1, 0]
    assert pair("minimum", 3.0, 2.0) == [0, 1]
    assert pair("maximum", -math.inf, -math.inf) == [0.5, 0.5]


def test_ties_of_extremes_split_evenly() -> None:
    x = np.array([[3.0, 1.0, 3.0, 3.0], [0.0, 5.0, 2.0, 5.0]])
    np.testing.assert_allclose(
        gradient("max", x, axes=(1,))[0], [[1 / 3, 0, 1 / 3, 1 / 3], [0, 0.5, 0, 0.5]]
    )
    np.testing.assert_allclose(gradient("min", -x, axes=(0, 1))[0], (x == 5) / 2)
    masked = np.full((2, 3), -np.inf)
    np.testing.assert_allclose(gradient("max", masked, axes=(1,))[0], np.full((2, 3), 1 / 3))


def test_ties_of_running_extremes_split_evenly() -> None:
    x = np.array([1.0, 3.0, 2.0, 3.0, 3.0, 4.0])
    # Largest so far: 1 3 3 3 3 4; the 3s are shared by one, one, two and three elements.
    thirds = [1, 1 + 1 + 1 / 2 + 1 / 3, 0, 1 / 2 + 1 / 3, 1 / 3, 1]
    np.testing.assert_allclose(gradient("cummax", x, axis=0)[0], thirds)
    np.testing.assert_allclose(gradient("cummin", -x, axis=0)[0], thirds)
    np.testing.assert_allclose(
        gradient("cummax", x[::-1].copy(), axis=0, reverse=True)[0], thirds[::-1]
    )


def test_running_extremes_against_the_definition() -> None:
    """Element k of the result is shared by the elements up to k that equal it."""
    rng = np.random.default_rng(5)
    for _ in range(20):
        x = rng.integers(0, 4, 9).astype(np.float64)
        wanted = np.zeros(9)
        for k in range(9):
            hits = np.flatnonzero(x[: k + 1] == x[: k + 1].max())
            wanted[hits] += 1 / len(hits)
        np.testing.assert_allclose(gradient("cummax", x, axis=0)[0], wanted)


def test_softened_kinks() -> None:
    assert pair("hypot", 0.0, 0.0) == [0, 0]
    assert pair("hypot", 0.0, -2.0) == [0, -1]
    assert pair("copysign", -3.0, 2.0) == [-1, 0]
    assert pair("logaddexp", -math.inf, -math.inf) == [0, 0]
    assert pair("logaddexp", -math.inf, 2.0) == [0, 1]
    assert pair("logaddexp", math.inf, 2.0) == [1, 0]
    assert pair("logaddexp", -math.inf, -math.inf, order=2) == [0, 0]
    np.testing.assert_allclose(pair("logaddexp", 700.0, 700.0), [0.5, 0.5])


def test_mod_by_the_divisor() -> None:
    assert pair("mod", 7.5, 2.0) == [1, -3]
    assert pair("mod", -7.5, 2.0) == [1, 4]


@pytest.mark.parametrize("exponent", [1.0, 2.0, 3.0])
def test_power_of_zero_by_the_base(exponent: float) -> None:
    x = np.array([0.0, -0.0, 2.0, -1.5])
    first = exponent * x ** (exponent - 1)
    np.testing.assert_allclose(gradient("pow", x, exponent)[0], first)
    second = exponent * (exponent - 1) * (x ** (exponent - 2) if exponent >= 2 else np.zeros(4))
    np.testing.assert_allclose(gradient("pow", x, exponent, order=2)[0], second)


def test_power_of_zero_with_broken_exponents() -> None:
    assert float(gradient("pow", 0.0, 1.5)[0]) == 0
    assert float(gradient("pow", 0.0, 0.5)[0]) == math.inf
    assert float(gradient("pow", 0.0, 0.0)[0]) == 0
    assert float(gradient("pow", 0.0, 0.0, order=2)[0]) == 0


def test_power_by_the_exponent() -> None:
    assert pair("pow", 0.0, 2.0) == [0, 0]
    assert pair("pow", 0.0, 0.0) == [0, 0]
    assert pair("pow", 0.0, 1.0) == [1, 0]
    assert pair("pow", 3.0, 0.0) == [0, math.log(3.0)]
    found = pair("pow", 2.0, 0.0, order=2)  # of 2^b log 2 + b 2^(b-1) as a and b vary
    np.testing.assert_allclose(found, [1 / 2, math.log(2) ** 2 + 1 / 2])
    assert math.isnan(pair("pow", -2.0, 2.0)[1])
    for b in (0.0, 1.0, 2.0, 3.0):
        assert np.isfinite(pair("pow", 0.0, b, order=2)).all()


def product_derivatives(x: Array) -> tuple[Array, Array]:
    """The derivatives of prod(x), and those of their sum, from the definition."""
    n = len(x)
    first = np.array([np.prod(np.delete(x, i)) for i in range(n)])
    pairs = [[np.prod(np.delete(x, [i, j])) if i != j else 0.0 for j in range(n)] for i in range(n)]
    return first, np.array(pairs).sum(axis=1)


@pytest.mark.parametrize("zeros", [(), (1,), (0, 4), (1, 2, 3), (0, 1, 2, 3, 4)])
def test_product_with_zeros(zeros: tuple[int, ...]) -> None:
    x = np.array([2.0, -3.0, 0.5, 4.0, 1.5])
    x[list(zeros)] = 0
    first, second = product_derivatives(x)
    np.testing.assert_allclose(gradient("prod", x, axes=(0,))[0], first)
    np.testing.assert_allclose(gradient("prod", x, axes=(0,), order=2)[0], second)
    # The running product: the sum of the products of all prefixes.
    prefixes = [product_derivatives(x[: k + 1]) for k in range(5)]
    for order in (1, 2):
        wanted = sum(np.pad(p[order - 1], (0, 4 - k)) for k, p in enumerate(prefixes))
        np.testing.assert_allclose(gradient("cumprod", x, axis=0, order=order)[0], wanted)


def test_products_of_no_elements() -> None:
    for axes in ((0,), (0, 1)):
        assert gradient("prod", np.zeros((0, 3)), axes=axes)[0].shape == (0, 3)
    assert gradient("cumprod", np.zeros((0, 3)), axis=0)[0].shape == (0, 3)


def test_selection_by_a_double_guard_is_finite() -> None:
    """where(x > 0, log(where(x > 0, x, 1)), 0): the branch not taken gives no NaN."""

    def derivative(guarded: bool) -> Array:
        where = lookup("select")
        builder = Builder("f", Expr)
        with builder:
            x = builder.input(TensorType(dtypes.f64, (3,)))
            inner = where(x > 0.0, x, 1.0) if guarded else x
            y = where(x > 0.0, lookup("log")(inner), 0.0)
        graph = without_seed(Backward((0,), (0,))(summed(builder.finish([y.value]))))
        found: Array = evaluate(graph, [np.array([2.0, 0.0, -1.0])])[0]
        return found

    np.testing.assert_array_equal(derivative(True), [0.5, 0, 0])
    # Without the inner guard the formula is followed: 0 / 0 at x = 0.
    np.testing.assert_array_equal(derivative(False), [0.5, math.nan, 0])


def test_singular_ops_are_marked() -> None:
    marked = ["log", "log2", "log1p", "sqrt", "rsqrt", "reciprocal", "div", "pow", "arcsin",
              "arccos", "arctanh", "arccosh", "arctan2"]  # fmt: skip
    assert all(lookup(name).singular for name in marked)
    assert not any(lookup(name).singular for name in ("exp", "tanh", "hypot", "relu", "logaddexp"))
