"""Losses against formulas in NumPy; what is masked does not exist."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import retrograde as rg
from retrograde import losses

Array = npt.NDArray[Any]
B, T, C = 3, 4, 5


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


@pytest.fixture
def logits(rng: np.random.Generator) -> Array:
    return 2 * rng.normal(size=(B, T, C))


@pytest.fixture
def targets(rng: np.random.Generator) -> Array:
    return rng.integers(0, C, (B, T)).astype(np.int32)


def log_softmax(x: Array) -> Array:
    out: Array = x - np.log(np.exp(x).sum(-1, keepdims=True))
    return out


def picked(x: Array, targets: Array) -> Array:
    out: Array = np.take_along_axis(x, targets[..., None].astype(int), -1)[..., 0]
    return out


def compiled(loss: Callable[..., Any], *args: Any) -> tuple[float, float]:
    """Sum and count by a compiled program."""

    def parts(*args: Any) -> Any:
        mean = loss(*args)
        return mean.sum, mean.count

    total, count = rg.jit(parts)(*args)
    return float(total), float(count)


def test_cross_entropy_is_the_negative_log_likelihood(logits: Array, targets: Array) -> None:
    expected = -picked(log_softmax(logits), targets)
    total, count = compiled(losses.cross_entropy, logits, targets)
    assert total == pytest.approx(expected.sum(), rel=1e-12)
    assert count == B * T
    mean = losses.cross_entropy(logits, targets)
    assert float(mean) == pytest.approx(expected.mean(), rel=1e-12)


def test_the_count_follows_symbolic_sizes(logits: Array, targets: Array) -> None:
    step = rg.compile(
        lambda x, t: losses.cross_entropy(x, t).count,
        rg.spec("f64", "B", "T", C),
        rg.spec("i32", "B", "T"),
    )
    assert step(logits, targets) == B * T
    assert step(logits[:2, :3], targets[:2, :3]) == 6


def test_label_smoothing_mixes_with_the_uniform_distribution(logits: Array, targets: Array) -> None:
    mixed = 0.9 * np.eye(C)[targets] + 0.1 / C
    expected = -(mixed * log_softmax(logits)).sum()
    total, count = compiled(
        lambda x, t: losses.cross_entropy(x, t, label_smoothing=0.1), logits, targets
    )
    assert (total, count) == (pytest.approx(expected, rel=1e-12), B * T)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_class_weights_weigh_sum_and_count(
    smoothing: float, logits: Array, targets: Array
) -> None:
    weights = np.array([0.5, 0.0, 2.0, 1.0, 3.0])
    mixed = (1 - smoothing) * np.eye(C)[targets] + smoothing / C
    expected = -(mixed * weights * log_softmax(logits)).sum()
    total, count = compiled(
        lambda x, t, w: losses.cross_entropy(x, t, weights=w, label_smoothing=smoothing),
        logits,
        targets,
        weights,
    )
    assert total == pytest.approx(expected, rel=1e-12)
    assert count == pytest.approx(weights[targets].sum(), rel=1e-12)


@pytest.mark.parametrize("kind", ["mask", "rows", "ignored", "both"])
def test_what_is_left_out_does_not_exist(kind: str, logits: Array, targets: Array) -> None:
    keep = np.ones((B, T), bool)
    options: dict[str, Any] = {}
    if kind in ("mask", "both"):
        keep &= np.arange(B * T).reshape(B, T) % 3 > 0
        options["mask"] = keep.copy()
    if kind == "rows":
        rows = np.array([True, False, True])
        keep &= rows[:, None]
        options["mask"] = rows
    if kind in ("ignored", "both"):
        keep &= np.arange(T) != 1
        options["ignore_index"] = -100
    noisy, odd = logits.copy(), targets.copy()
    noisy[~keep] = np.resize([np.nan, np.inf, -np.inf], noisy[~keep].shape)
    odd[~keep] = -100 if "ignore_index" in options else 99

    def loss(x: Any, t: Any) -> Any:
        return losses.cross_entropy(x, t, label_smoothing=0.1, **options)

    mixed = 0.9 * np.eye(C)[targets] + 0.1 / C
    expected = -(mixed * log_softmax(logits)).sum(-1)[keep]
    total, count = compiled(loss, noisy, odd)
    assert total == pytest.approx(expected.sum(), rel=1e-12)
    assert count == keep.sum()
    gradient = rg.grad(loss)(noisy, odd)
    assert not gradient[~keep].any()
    wanted = (np.exp(log_softmax(logits)) - mixed) / keep.sum()
    np.testing.assert_allclose(gradient[keep], wanted[keep], rtol=1e-10, atol=1e-14)


def test_a_mask_of_numbers_weighs(logits: Array, targets: Array, rng: np.random.Generator) -> None:
    weights = rng.integers(0, 3, (B, T)) / 2
    nll = -picked(log_softmax(logits), targets)
    total, count = compiled(losses.cross_entropy, logits, targets, weights)
    assert total == pytest.approx((nll * weights).sum(), rel=1e-12)
    assert count == pytest.approx(weights.sum())


def test_nothing_kept_is_zero_with_zero_gradients(logits: Array, targets: Array) -> None:
    def loss(x: Any) -> Any:
        return losses.cross_entropy(x, targets, np.zeros((B, T), bool))

    value, gradient = rg.value_and_grad(loss)(logits)
    assert value == 0
    assert not gradient.any()


def test_batches_of_unequal_count_add_up(logits: Array, targets: Array) -> None:
    mask = np.arange(T) < np.array([[1], [4], [2]])
    parts = [
        compiled(losses.cross_entropy, logits[b : b + 1], targets[b : b + 1], mask[b : b + 1])
        for b in range(B)
    ]
    whole = losses.cross_entropy(logits, targets, mask)
    together = sum(s for s, _ in parts) / sum(n for _, n in parts)
    assert together == pytest.approx(float(whole), rel=1e-12)


@pytest.mark.parametrize("wrong", [C, -1])
def test_a_target_beyond_the_classes_is_an_error(
    wrong: int, logits: Array, targets: Array
) -> None:
    targets[1, 2] = wrong
    with pytest.raises(rg.errors.DataError, match=str(wrong)):
        compiled(losses.cross_entropy, logits, targets)


# --- element by element

FORMULAS: dict[str, Callable[[Array, Array], Array]] = {
    "mse": lambda p, t: (p - t) ** 2,
    "mae": lambda p, t: np.abs(p - t),
    "huber": lambda p, t: np.where(
        np.abs(p - t) <= 1, (p - t) ** 2 / 2, np.abs(p - t) - 0.5
    ),
    "bce": lambda p, t: -(t * np.log(1 / (1 + np.exp(-p))) + (1 - t) * np.log(1 / (1 + np.exp(p)))),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_elementwise_losses(name: str, rng: np.random.Generator) -> None:
    p, t = 2 * rng.normal(size=(B, T)), rng.random((B, T))
    expected = FORMULAS[name](p, t)
    loss = getattr(losses, name)
    total, count = compiled(loss, p, t)
    assert (total, count) == (pytest.approx(expected.sum(), rel=1e-12), B * T)
    assert float(loss(p, t)) == pytest.approx(expected.mean(), rel=1e-12)


@pytest.mark.parametrize("name", FORMULAS)
def test_masked_elements_add_nothing(name: str, rng: np.random.Generator) -> None:
    p, t = rng.normal(size=(B, T, 2)), rng.random((B, T, 2))
    mask = rng.random((B, T)) < 0.5
    assert 0 < mask.sum() < mask.size
    expected = FORMULAS[name](p, t)[mask].sum()
    p[~mask], t[~mask] = np.nan, np.inf
    loss = getattr(losses, name)
    total, count = compiled(loss, p, t, mask)
    assert (total, count) == (pytest.approx(expected, rel=1e-12), 2 * mask.sum())
    gradient = rg.grad(lambda p: loss(p, t, mask))(p)
    assert not gradient[~mask].any()
    assert np.isfinite(gradient).all() and gradient[mask].all()


def test_huber_turns_at_delta() -> None:
    p, t = np.array([0.0, 1.9, 2.1, -5.0]), np.zeros(4)
    total, _ = compiled(lambda p, t: losses.huber(p, t, delta=2.0), p, t)
    assert total == pytest.approx(1.9**2 / 2 + 2 * (2.1 - 1) + 2 * (5 - 1))
    gradient = rg.grad(lambda p: losses.huber(p, t, delta=2.0))(p)
    np.testing.assert_allclose(gradient, np.array([0, 1.9, 2, -2]) / 4, rtol=1e-12)


def test_bce_is_exact_far_out() -> None:
    x, t = np.array([200.0, -200.0, 200.0, 40.0]), np.array([1.0, 0.0, 0.0, 1.0])
    total, _ = compiled(losses.bce, x, t)
    assert total == pytest.approx(200 + math.exp(-40), rel=1e-12)
    alone, _ = compiled(losses.bce, x[3:], t[3:])
    assert alone == pytest.approx(math.exp(-40), rel=1e-9)


def test_integer_targets_are_numbers() -> None:
    p = np.array([0.25, 2.0], np.float32)
    value = rg.jit(lambda p, t: losses.mse(p, t).value)(p, np.array([1, 0]))
    assert value.dtype == np.float32
    assert float(value) == pytest.approx((0.75**2 + 4) / 2)


# --- errors


def test_misfits_name_the_line_and_the_shapes(logits: Array, targets: Array) -> None:
    calls: list[tuple[Callable[[], Any], type[Exception], str]] = [
        (lambda: losses.cross_entropy(logits, targets[:2]), rg.errors.ShapeError, "one more axis"),
        (lambda: losses.cross_entropy(logits, logits[..., 0]), rg.errors.DTypeError, "integers"),
        (
            lambda: losses.cross_entropy(logits, targets, np.ones((B, T + 1), bool)),
            rg.errors.ShapeError,
            "mask",
        ),
        (
            lambda: losses.cross_entropy(logits, targets, weights=np.ones(C + 1)),
            rg.errors.ShapeError,
            "one for each of 5",
        ),
        (
            lambda: losses.cross_entropy(logits, targets, label_smoothing=1.5),
            rg.errors.ShapeError,
            "0 to 1",
        ),
        (lambda: losses.mse(np.ones((3, 1)), np.ones(3)), rg.errors.ShapeError, "unequal shape"),
        (lambda: losses.huber(logits, logits, delta=0), rg.errors.ShapeError, "positive"),
    ]
    for call, error, message in calls:
        with pytest.raises(error, match=message) as caught:
            call()
        assert f"{__file__}:" in str(caught.value)
