"""What NumPy has elsewhere or not: softmax, activations, top_k, ufunc methods, half precision."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import scipy.special

import retrograde.numpy as rnp


def data(shape: Any, seed: int = 0, low: float = 0.1, high: float = 0.9) -> Any:
    return np.random.default_rng(seed).uniform(low, high, shape)


def close(ours: Any, theirs: Any, rtol: float = 1e-12) -> None:
    if isinstance(theirs, tuple):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            close(a, b, rtol)
        return
    assert np.shape(ours) == np.shape(theirs)
    np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=1e-12)


def test_softmax_family(run: Any) -> None:
    x = data((2, 3, 5), 4, -3.0, 3.0)
    for way in (lambda f: f(x), lambda f: run(f, x)):
        close(way(lambda x: rnp.softmax(x, axis=1)), scipy.special.softmax(x, axis=1))
        close(way(lambda x: rnp.log_softmax(x)), scipy.special.log_softmax(x, axis=-1))
        close(way(lambda x: rnp.logsumexp(x, axis=(0, 2))), scipy.special.logsumexp(x, axis=(0, 2)))
        close(way(lambda x: rnp.logsumexp(x)), scipy.special.logsumexp(x))
    close(run(lambda x: np.logaddexp.reduce(x, axis=1), x), np.logaddexp.reduce(x, axis=1))


def test_activations(run: Any) -> None:
    x = data((4, 5), 4, -3.0, 3.0)
    phi = 0.5 * (1 + scipy.special.erf(x / math.sqrt(2)))
    tanh = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    for way in (lambda f: f(x), lambda f: run(f, x)):
        close(way(lambda x: rnp.gelu(x, approximate=False)), x * phi)
        close(way(lambda x: rnp.gelu(x)), tanh)
        close(way(rnp.silu), x / (1 + np.exp(-x)))
        close(way(rnp.sigmoid), scipy.special.expit(x))
        close(way(rnp.softplus), np.logaddexp(x, 0))
        close(way(rnp.relu), np.maximum(x, 0))
        close(way(rnp.erf), scipy.special.erf(x))
    close(
        run(lambda x: scipy.special.expit(scipy.special.erf(x)), x),
        scipy.special.expit(2 * phi_of(x) - 1),
    )


def phi_of(x: Any) -> Any:
    return 0.5 * (1 + scipy.special.erf(x))


def test_top_k_and_running_extremes(run: Any) -> None:
    x = data((3, 6, 4), 5)
    order = np.argsort(-x, axis=1)[:, :2]
    for values, places in (rnp.top_k(x, 2, axis=1), run(lambda x: rnp.top_k(x, 2, axis=1), x)):
        np.testing.assert_array_equal(values, np.take_along_axis(x, order, 1))
        np.testing.assert_array_equal(places, order)
    close(rnp.cummax(x, axis=1), np.maximum.accumulate(x, axis=1))
    close(run(lambda x: np.minimum.accumulate(x, axis=2), x), np.minimum.accumulate(x, axis=2))
    close(rnp.sort(x, axis=2, descending=True), -np.sort(-x, axis=2))


def test_ufunc_methods(run: Any) -> None:
    x = data((3, 4), 6)
    calls = [
        lambda x: np.add.reduce(x),
        lambda x: np.add.reduce(x, axis=None),
        lambda x: np.multiply.reduce(x, axis=1, keepdims=True),
        lambda x: np.maximum.reduce(x, axis=(0, 1)),
        lambda x: np.minimum.reduce(x, 1),
        lambda x: np.logical_and.reduce(x > 0.2),
        lambda x: np.logical_or.reduce(x > 0.8, axis=1),
        lambda x: np.add.accumulate(x),
        lambda x: np.multiply.accumulate(x, axis=1),
        lambda x: np.subtract.outer(x, x[0]),
        lambda x: np.add(x, 1, dtype=np.float32),
        lambda x: np.divmod(x, 0.25),
    ]
    for call in calls:
        close(run(call, x), call(x), rtol=1e-6)


def test_roll_by_a_traced_shift(run: Any) -> None:
    x = data((3, 5), 7)
    for shift in (-7, 0, 2):
        close(run(lambda x, s: rnp.roll(x, s, axis=1), x, np.int32(shift)), np.roll(x, shift, 1))


def test_means_of_halves_do_not_overflow(run: Any) -> None:
    x = np.full((300, 400), 3.0, np.float16)
    for name in ("mean", "var", "std"):
        ours = run(lambda x, name=name: getattr(rnp, name)(x), x)
        assert ours.dtype == np.float16
        assert ours == getattr(np, name)(x.astype(np.float32))


def test_means_of_integers_are_f32_and_sums_stay_integers(run: Any) -> None:
    x = np.arange(12, dtype=np.int32).reshape(3, 4)
    mean, total, of_bool = run(lambda x: [x.mean(0), x.sum(1), (x > 4).sum()], x)
    assert (mean.dtype, total.dtype, of_bool.dtype) == (np.float32, np.int32, np.int32)
    np.testing.assert_array_equal(mean, x.mean(0))
    assert of_bool == 7
