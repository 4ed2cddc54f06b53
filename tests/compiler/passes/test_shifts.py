"""A softmax that is spelled out: the maximum that is subtracted gets no gradient, and no value
changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import retrograde as rg
import retrograde.numpy as rnp
from retrograde.compiler.passes.shifts import without_shift_gradients
from tests.compiler.passes.harness import names, same_numbers

ROWS = rg.spec("f64", "B", 7)


def plain(x: Any) -> Any:
    e = rnp.exp(x - rnp.max(x, axis=-1, keepdims=True))
    return e / rnp.sum(e, axis=-1, keepdims=True)


def indexed(x: Any) -> Any:
    e = rnp.exp(x - rnp.max(x, axis=1)[:, None])
    return e / rnp.sum(e, axis=1)[:, None]


def down(x: Any) -> Any:
    e = rnp.exp(x - rnp.max(x, axis=0, keepdims=True))
    return e / rnp.sum(e, axis=0, keepdims=True)


def twice(x: Any) -> Any:
    return plain(plain(x) * 3)


def read_elsewhere(x: Any) -> Any:
    e = rnp.exp(x - rnp.max(x, axis=-1, keepdims=True))
    return e / rnp.sum(e, axis=-1, keepdims=True) + e


def sum_read_elsewhere(x: Any) -> Any:
    e = rnp.exp(x - rnp.max(x, axis=-1, keepdims=True))
    s = rnp.sum(e, axis=-1, keepdims=True)
    return e / s + rnp.log(s)


def other_axis(x: Any) -> Any:
    e = rnp.exp(x - rnp.max(x, axis=0, keepdims=True))
    return e / rnp.sum(e, axis=1, keepdims=True)


def other_shift(x: Any) -> Any:
    e = rnp.exp(x - rnp.max(x * 2, axis=-1, keepdims=True))
    return e / rnp.sum(e, axis=-1, keepdims=True)


TAKEN = {"plain": (plain, 1), "indexed": (indexed, 1), "down": (down, 1), "twice": (twice, 2)}
LEFT = (read_elsewhere, sum_read_elsewhere, other_axis, other_shift)


@pytest.mark.parametrize("name", TAKEN)
def test_taken(name: str) -> None:
    f, count = TAKEN[name]
    before = rg.trace(f, ROWS)
    after = without_shift_gradients(before)
    assert names(after).count("stop_gradient") == count
    same_numbers(before, after)  # of NaN, and of rows of -inf, too


@pytest.mark.parametrize("f", LEFT)
def test_left(f: Callable[[Any], Any]) -> None:
    graph = rg.trace(f, ROWS)
    assert without_shift_gradients(graph) is graph


@pytest.mark.parametrize("f", [f for f, _ in TAKEN.values()] + list(LEFT))
def test_gradients_are_right(f: Callable[[Any], Any]) -> None:
    """Beside differences, with ties in the last row."""
    rng = np.random.default_rng(3)
    x, w = rng.normal(size=(4, 7)), rng.normal(size=(4, 7))
    if f in (plain, indexed, twice):
        x[3] = [1.0, 2.5, 2.5, 0.0, 2.5, -1.0, 2.0]

    def loss(x: Any) -> Any:
        return rnp.sum(f(x) * w)

    got, step = rg.grad(loss)(x), 1e-6
    for place in np.ndindex(*x.shape):
        moved = np.zeros_like(x)
        moved[place] = step
        slope = (float(loss(x + moved)) - float(loss(x - moved))) / (2 * step)
        assert got[place] == pytest.approx(slope, rel=1e-5, abs=1e-7), place


def test_second_derivatives() -> None:
    x, w = np.random.default_rng(4).normal(size=(2, 3, 7))

    def along(f: Callable[[Any], Any]) -> Any:
        first = rg.grad(lambda x: rnp.sum(f(x) * w))
        return rg.grad(lambda x: rnp.sum(first(x) * w))(x)

    def softmax(x: Any) -> Any:
        return rnp.softmax(x, axis=-1)

    np.testing.assert_allclose(along(plain), along(softmax), rtol=1e-9, atol=1e-12)


def test_an_empty_row_stays_nan() -> None:
    x = np.zeros((2, 7))
    x[0] = -np.inf
    with np.errstate(invalid="ignore"):
        value, slope = rg.value_and_grad(lambda x: rnp.sum(plain(x)))(x)
    assert np.isnan(value) and np.isnan(slope[0]).all() and not np.isnan(slope[1]).any()


def test_the_gradient_reads_no_mask() -> None:
    traced = rg.trace(rg.grad(lambda x: rnp.sum(plain(x) ** 2)), ROWS)
    assert "equal" not in names(traced) and names(traced).count("max") == 1
