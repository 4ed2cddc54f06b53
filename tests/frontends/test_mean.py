"""Means of sums and counts: they add, scale, and are 0 where nothing is counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import retrograde as rg
import retrograde.numpy as rnp
from retrograde import tree
from retrograde.errors import DTypeError, ShapeError, UnsupportedError

RNG = np.random.default_rng(2)


def masked(x: Any, mask: Any) -> rg.Mean:
    x = rnp.where(mask, x, 0.0)  # before anything is made of what does not count
    return rg.Mean(rnp.sum(x * x), rnp.sum(mask))


@given(st.integers(0, 6), st.integers(0, 6), st.floats(-3, 3), st.floats(0.5, 3))
def test_terms_add_and_scale(n: int, m: int, a: float, b: float) -> None:
    x, y = RNG.standard_normal(6), RNG.standard_normal(6)
    p, q = np.arange(6) < n, np.arange(6) < m

    def loss(x: Any, y: Any, p: Any, q: Any) -> Any:
        return a * masked(x, p) + masked(y, q) / b - 0.25

    value, (gx, gy) = rg.value_and_grad(loss, argnums=(0, 1))(x, y, p, q)
    expected = a * (np.mean(x[p] ** 2) if n else 0) + (np.mean(y[q] ** 2) if m else 0) / b - 0.25
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    np.testing.assert_allclose(gx, a * 2 * x * p / max(n, 1), rtol=1e-12)
    np.testing.assert_allclose(gy, 2 * y * q / max(m, 1) / b, rtol=1e-12)
    np.testing.assert_allclose(float(loss(x, y, p, q)), expected, rtol=1e-12)


def test_nothing_counted_has_no_gradient_even_of_nan() -> None:
    x = np.array([np.nan, np.inf])
    mask = np.zeros(2, bool)
    value, g = rg.value_and_grad(masked)(x, mask)
    assert value == 0
    np.testing.assert_array_equal(g, [0, 0])
    assert float(rg.Mean(0.0, 0)) == 0


def test_a_mean_passes_through_compiled_functions() -> None:
    f = rg.jit(lambda x, mask: masked(x, mask) + 2 * masked(x, ~mask))
    x, mask = RNG.standard_normal(5), np.array([1, 0, 1, 1, 0], bool)
    mean = f(x, mask)
    assert isinstance(mean, rg.Mean) and len(mean.terms) == 2
    np.testing.assert_allclose(mean.value, np.mean(x[mask] ** 2) + 2 * np.mean(x[~mask] ** 2))
    one = rg.jit(masked)(x, mask)
    assert one.count == 3
    np.testing.assert_allclose(one.sum, np.sum(x[mask] ** 2))
    assert tree.paths(one) == ["weight", "sum", "count"]
    with pytest.raises(UnsupportedError, match="2 terms"):
        mean.count  # noqa: B018


def test_counts_may_be_sizes_and_weights_traced() -> None:
    c = rg.compile(
        lambda x, w: (rg.Mean(rnp.sum(x), x.size) * w).value, rg.spec("f32", "B", 3), rg.spec("f32")
    )
    x = np.ones((4, 3), np.float32)
    assert c(x, np.float32(2.5)) == 2.5
    assert c(x, np.float32(2.5)).dtype == np.float32


def test_a_count_that_depends_on_parameters_is_refused() -> None:
    def loss(w: Any, x: Any) -> Any:
        y = w * x
        confident = y > 0
        return rg.Mean(rnp.sum(y), rnp.sum(confident))

    with pytest.raises(UnsupportedError, match=r"test_mean\.py:\d+: this count.*depends") as found:
        rg.grad(loss)(np.ones(3), np.ones(3))
    line = int(str(found.value).split("test_mean.py:")[1].split(":")[0])
    assert line == loss.__code__.co_firstlineno + 3
    rg.grad(loss, argnums=1)  # never called
    with pytest.raises(UnsupportedError):
        rg.grad(lambda w: rg.Mean(rnp.sum(w), w[0]))(np.ones(3))
    # the data alone: fine
    g = rg.grad(lambda w, x: rg.Mean(rnp.sum(w * x), rnp.sum(x > 0)))(np.ones(2), np.ones(2))
    np.testing.assert_allclose(g, [0.5, 0.5])


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"test_mean\.py.*the sum of a Mean.*\[3\]"):
        rg.Mean(np.ones(3), 3)
    with pytest.raises(ShapeError, match="the count of a Mean"):
        rg.jit(lambda x: rg.Mean(rnp.sum(x), x))(np.ones(3))
    with pytest.raises(DTypeError, match=r"i64\[\]"):
        rg.grad(lambda x, n: rg.Mean(n, 3))(1.0, np.array(2))
    with pytest.raises(TypeError):
        rg.Mean(1.0, 1) * "2"


def test_mean_prints() -> None:
    assert repr(rg.Mean(3.0, 2) + rg.Mean(1.0, 4) * 0.5) == "Mean(3.0, 2) + 0.5 * Mean(1.0, 4)"
