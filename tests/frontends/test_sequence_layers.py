"""Resets at segment borders, convolutions and state spaces: formulas, packing, slopes, noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import retrograde as rg
import retrograde.numpy as rnp
from retrograde import nn, tree
from tests.frontends.sequence_checks import (
    beyond,
    check_slopes,
    check_three_ways,
    same_bits,
    seen,
    wide,
)

Array = npt.NDArray[Any]
W = 4


def drawn(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape)


LAYERS: dict[str, Any] = {
    "lstm": lambda: nn.LSTM(3, W, 2, peephole=True, seed=1),
    "gru": lambda: nn.GRU(3, W, 1, layer_norm=True, seed=1),
    "both ways": lambda: nn.LSTM(3, W, 2, bidirectional=True, seed=1),
    "conv": lambda: nn.Conv1d(3, W, 3, dilation=2, seed=1),
    "conv around": lambda: nn.Conv1d(3, W, 5, causal=False, seed=1),
    "ssm": lambda: nn.DiagonalSSM(3, 5, seed=1, dt=(0.1, 1.0)),
}


def run(layer: Any, x: Any, **given: Any) -> Any:
    y = layer(x, **given)
    return y[0] if isinstance(y, tuple) else y


def loss(layer: Any, x: Any, targets: Any, mask: Any, **given: Any) -> Any:
    y = run(layer, x, **given)
    return rg.losses.mse(rnp.sum(y**2, axis=-1) + y[..., 0], targets, mask)


@pytest.mark.parametrize("name", LAYERS)
def test_three_ways(name: str) -> None:
    rows = [drawn(n, 3, seed=n) for n in (4, 2, 7, 1)]
    targets = [drawn(n, seed=20 + n) for n in (4, 2, 7, 1)]
    check_three_ways(wide(LAYERS[name]()), rows, targets, loss)


@pytest.mark.parametrize("name", LAYERS)
def test_slopes(name: str) -> None:
    segments = np.array([[1, 1, 2, 2, 2, 3], [1, 1, 1, 1, 2, 2]])

    def with_segments(layer: Any, x: Any, targets: Any) -> Any:
        return loss(layer, x, targets, None, segments=segments)

    check_slopes(with_segments, wide(LAYERS[name]()), drawn(2, 6, 3), drawn(2, 6))


@pytest.mark.parametrize("name", LAYERS)
def test_noise_beyond_a_length_changes_no_bit(name: str) -> None:
    layer, lengths = LAYERS[name](), np.array([5, 2, 0])
    x, targets = drawn(3, 5, 3).astype(np.float32), drawn(3, 5).astype(np.float32)
    inside = np.arange(5) < lengths[:, None]
    both = rg.jit(rg.value_and_grad(loss, argnums=(0, 1)))
    plain = both(layer, x, targets, inside, lengths=lengths)
    for noise in (np.nan, np.inf, -np.inf):
        other = both(layer, beyond(lengths, x, noise), targets, inside, lengths=lengths)
        assert same_bits(plain, other)


@pytest.mark.parametrize("name", LAYERS)
def test_sight_in_segments(name: str) -> None:
    ids = np.array([[1, 1, 2, 2, 2, 1]])
    layer = wide(LAYERS[name]())
    found = seen(rg.jit(lambda x: run(layer, x, segments=ids)), drawn(1, 6, 3), lambda x: x + 1)
    runs = np.array([0, 0, 1, 1, 1, 2])
    i, j = np.arange(6)[:, None], np.arange(6)
    expected = runs[i] == runs[j]
    if name == "conv":  # numbers tell segments apart, so the 1 at the end meets the first ones
        expected = (ids[0][i] == ids[0][j]) & np.isin(i - j, (0, 2, 4))
    elif name == "conv around":
        expected = (ids[0][i] == ids[0][j]) & (abs(i - j) <= 2)
    elif name != "both ways":
        expected &= j <= i
    assert np.array_equal(found, expected)


def test_a_given_carry_is_that_of_the_first_segment() -> None:
    layer = wide(nn.GRU(3, W, 1, seed=1))
    x, carry = drawn(2, 5, 3), (drawn(2, W, seed=1),)
    ids = np.array([[1, 1, 2, 2, 2], [1, 1, 1, 1, 1]])
    y, after = layer(x, carry, segments=ids)
    first, _ = layer(x[:, :2], carry)
    second, last = layer(x[:1, 2:])
    np.testing.assert_allclose(y[:, :2], first, atol=1e-14)
    np.testing.assert_allclose(y[:1, 2:], second, atol=1e-14)
    np.testing.assert_allclose(after[0][:1], last[0], atol=1e-14)
    np.testing.assert_allclose(after[0][1:], layer(x[1:], (carry[0][1:],))[1][0], atol=1e-14)


# --- convolution


CONVOLUTIONS = [(True, 3, 2), (True, 2, 1), (False, 5, 3)]


@pytest.mark.parametrize(("causal", "size", "dilation"), CONVOLUTIONS)
def test_a_convolution_is_its_sum(causal: bool, size: int, dilation: int) -> None:
    layer = wide(nn.Conv1d(3, W, size, causal=causal, dilation=dilation, seed=1))
    x = drawn(2, 6, 3)
    expected = np.zeros((2, 6, W)) + layer.bias
    middle = size - 1 if causal else size // 2
    for t in range(6):
        for k in range(size):
            s = t + (k - middle) * dilation
            if 0 <= s < 6:
                expected[:, t] += x[:, s] @ layer.weight[k]
    np.testing.assert_allclose(layer(x), expected, atol=1e-12)
    np.testing.assert_allclose(rg.jit(layer)(x), expected, atol=1e-12)


# --- state space


def test_a_state_space_is_its_recurrence() -> None:
    layer = wide(nn.DiagonalSSM(3, 5, seed=1, dt=(0.1, 1.0)))
    x = drawn(2, 6, 3)
    dt = np.exp(layer.log_dt)[:, None]
    a = -np.exp(layer.log_decay) + 1j * layer.frequency
    c = layer.out[0] + 1j * layer.out[1]
    h, expected = np.zeros((2, 3, 5), complex), []
    for t in range(6):
        h = np.exp(dt * a) * h + (np.exp(dt * a) - 1) / a * x[:, t, :, None]
        expected.append(2 * (c * h).real.sum(-1) + layer.skip * x[:, t])
    y, carry = layer(x)
    np.testing.assert_allclose(y, np.stack(expected, 1), atol=1e-12)
    first, carry = layer(x[:, :4])
    rest, _ = layer(x[:, 4:], carry)
    np.testing.assert_allclose(np.concatenate([first, rest], 1), y, atol=1e-12)


def test_a_state_space_begins_as_s4d_lin() -> None:
    layer = nn.DiagonalSSM(200, 4, seed=1)
    assert np.allclose(np.exp(layer.log_decay), 0.5)
    assert np.allclose(layer.frequency[7], np.pi * np.arange(4))
    dt = np.exp(layer.log_dt)
    assert 0.001 <= dt.min() < 0.0013 and 0.08 < dt.max() <= 0.1


FOUR = np.ones((2, 4), int)
WRONG: dict[str, tuple[Any, str]] = {
    "even": (lambda: nn.Conv1d(3, 4, 2, causal=False), "odd"),
    "rank": (lambda: nn.Conv1d(3, 4, 2)(drawn(5, 3)), "takes \\[B, T, 3\\]"),
    "segments": (lambda: nn.Conv1d(3, 4, 2)(drawn(2, 5, 3), segments=FOUR), "the segments"),
    "resets": (lambda: nn.LSTM(3, 4)(drawn(2, 5, 3), segments=FOUR), "the segments"),
    "dt": (lambda: nn.DiagonalSSM(3, dt=(0.1, 0.01)), "dt is"),
    "ssm": (lambda: nn.DiagonalSSM(3)(drawn(5, 3)), "takes \\[B, T, width\\]"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_names_the_line(name: str) -> None:
    call, said = WRONG[name]
    with pytest.raises(rg.errors.ShapeError, match=said) as caught:
        call()
    assert __file__.rsplit("/", 1)[1] in str(caught.value)


def test_layers_serve_every_size() -> None:
    for name, make in LAYERS.items():
        layer = make()
        compiled = rg.compile(lambda m, x: run(m, x), layer, rg.spec("f32", "B", "T", 3))
        for shape in ((2, 1, 3), (1, 6, 3)):
            x = drawn(*shape).astype(np.float32)
            np.testing.assert_allclose(compiled(layer, x), run(layer, x), atol=1e-5, err_msg=name)
        assert tree.leaves(layer)
