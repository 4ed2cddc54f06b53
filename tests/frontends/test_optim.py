"""Optimizers against their formulas, written out in NumPy step by step; schedules at their ends."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import retrograde as rg
import retrograde.numpy as rnp
from retrograde import optim
from retrograde.errors import DataError

RNG = np.random.default_rng(3)
STEPS = 5


def gradient(p: Any, i: int) -> Any:
    """Of sum((p - c)^4) for a `c` that moves."""
    return 4 * (p - np.sin(i + np.arange(p.size)).reshape(p.shape)) ** 3


def run(optimizer: Any, p: Any, clip: float | None = None) -> tuple[Any, list[dict[str, float]]]:
    """The parameter after some compiled steps, and their metrics."""

    def loss(m: Any, c: Any) -> Any:
        return rnp.sum((m["p"] - c) ** 4)

    c = rg.spec(str(p.dtype), *p.shape)
    step = rg.compile_training(loss, {"p": p}, optimizer, {"c": c}, clip_norm=clip)
    metrics = [
        step(c=np.sin(i + np.arange(p.size)).reshape(p.shape).astype(p.dtype)) for i in range(STEPS)
    ]
    return step.model["p"], metrics


def sgd(p: Any, rate: float, momentum: float, nesterov: bool, decay: float) -> Any:
    buffer = np.zeros_like(p)
    for i in range(STEPS):
        g = gradient(p, i) + decay * p
        buffer = momentum * buffer + g
        g = g + momentum * buffer if nesterov else buffer
        p = p - rate * g
    return p


def adam(p: Any, rate: float, betas: Any, eps: float, decay: float, decoupled: bool) -> Any:
    m, v = np.zeros_like(p), np.zeros_like(p)
    for i in range(STEPS):
        g = gradient(p, i)
        if decoupled:
            p = p - rate * decay * p
        else:
            g = g + decay * p
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        first, second = m / (1 - betas[0] ** (i + 1)), v / (1 - betas[1] ** (i + 1))
        p = p - rate * first / (np.sqrt(second) + eps)
    return p


def lion(p: Any, rate: float, betas: Any, decay: float) -> Any:
    m = np.zeros_like(p)
    for i in range(STEPS):
        g = gradient(p, i)
        p = p - rate * (np.sign(betas[0] * m + (1 - betas[0]) * g) + decay * p)
        m = betas[1] * m + (1 - betas[1]) * g
    return p


CASES: list[tuple[Any, Callable[[Any], Any]]] = [
    (optim.SGD(0.01), lambda p: sgd(p, 0.01, 0.0, False, 0.0)),
    (optim.SGD(0.01, 0.9, weight_decay=0.1), lambda p: sgd(p, 0.01, 0.9, False, 0.1)),
    (optim.SGD(0.01, momentum=0.8, nesterov=True), lambda p: sgd(p, 0.01, 0.8, True, 0.0)),
    (optim.Adam(0.02), lambda p: adam(p, 0.02, (0.9, 0.999), 1e-8, 0.0, False)),
    (
        optim.Adam(0.02, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.2),
        lambda p: adam(p, 0.02, (0.8, 0.95), 1e-3, 0.2, False),
    ),
    (optim.AdamW(), lambda p: adam(p, 1e-3, (0.9, 0.999), 1e-8, 0.01, True)),
    (
        optim.AdamW(0.05, betas=(0.7, 0.9), eps=1e-2, weight_decay=0.3),
        lambda p: adam(p, 0.05, (0.7, 0.9), 1e-2, 0.3, True),
    ),
    (optim.Lion(0.01, weight_decay=0.1), lambda p: lion(p, 0.01, (0.9, 0.99), 0.1)),
]
NAMES = [f"{type(optimizer).__name__}-{i}" for i, (optimizer, _) in enumerate(CASES)]


@pytest.mark.parametrize(("optimizer", "formula"), CASES, ids=NAMES)
def test_formula(optimizer: Any, formula: Callable[[Any], Any]) -> None:
    p = RNG.standard_normal((3, 4))
    found, _ = run(optimizer, p.copy())
    np.testing.assert_allclose(found, formula(p), rtol=1e-12)
    narrow, _ = run(optimizer, p.astype(np.float32))
    np.testing.assert_allclose(narrow, formula(p), rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize(("optimizer", "formula"), CASES, ids=NAMES)
def test_clipping_is_the_same_as_clipped_gradients(
    optimizer: Any, formula: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    p = RNG.standard_normal((3, 4))
    limit = 2.0
    plain = gradient

    def clipped(p: Any, i: int) -> Any:
        g = plain(p, i)
        return g * min(1.0, limit / (np.linalg.norm(g) + 1e-6))

    found, metrics = run(optimizer, p.copy(), clip=limit)
    monkeypatch.setitem(globals(), "gradient", clipped)
    np.testing.assert_allclose(found, formula(p), rtol=1e-11)
    first = float(np.linalg.norm(plain(p, 0)))
    assert first > limit
    assert metrics[0]["grad_norm"] == pytest.approx(first)


def test_state_of_16_bit_parameters_is_f32() -> None:
    p = RNG.standard_normal(4).astype(np.float16)
    state = optim.AdamW().init([p])
    assert state["v"][0].dtype == np.float32
    found, _ = run(optim.AdamW(0.05), p)
    assert found.dtype == np.float16
    expected = adam(p.astype(float), 0.05, (0.9, 0.999), 1e-8, 0.01, True)
    np.testing.assert_allclose(found, expected, atol=2e-2)


def test_an_optimizer_of_ones_own() -> None:
    class Own:
        def init(self, params: Any) -> Any:
            return {"count": np.zeros((), np.int32)}

        def learning_rate(self, step: Any) -> Any:
            return 0.5

        def update(self, grads: Any, state: Any, params: Any, step: Any) -> Any:
            return [p - 0.1 * g for p, g in zip(params, grads, strict=True)], {
                "count": state["count"] + 1
            }

    p = RNG.standard_normal((2, 3))
    found, metrics = run(Own(), p.copy())
    np.testing.assert_allclose(found, sgd(p, 0.1, 0.0, False, 0.0), rtol=1e-12)
    assert metrics[0]["lr"] == 0.5
    small, _ = run(Own(), p.copy(), clip=1e-3)
    assert np.linalg.norm(small - p) < STEPS * 1.1e-4

    class Wrong(Own):
        def update(self, grads: Any, state: Any, params: Any, step: Any) -> Any:
            return [p[:1] for p in params], state

    with pytest.raises(rg.errors.ShapeError, match=r"Wrong.update makes f64\[1,3\] of p"):
        run(Wrong(), p)


# --- schedules


def at(schedule: Any, step: int) -> float:
    """The rate at a step: traced, and it must agree with the plain number."""
    traced = float(rg.jit(schedule)(np.asarray(step)))
    assert traced == pytest.approx(float(schedule(step)), rel=1e-6)
    return float(schedule(step))


def test_schedules() -> None:
    assert at(optim.constant(0.5), 7) == 0.5
    line = optim.linear(1.0, 0.2, 10)
    assert [at(line, s) for s in (0, 5, 10, 99)] == pytest.approx([1.0, 0.6, 0.2, 0.2])
    half = optim.cosine(1.0, 10, end=0.2)
    assert [at(half, s) for s in (0, 5, 10, 99)] == pytest.approx([1.0, 0.6, 0.2, 0.2])
    assert at(half, 2) == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi * 0.2)) / 2)
    warm = optim.warmup_cosine(2.0, 4, 24, end=0.5)
    assert [at(warm, s) for s in (0, 1, 3, 4)] == pytest.approx([0.5, 1.0, 2.0, 2.0])
    assert [at(warm, s) for s in (14, 24, 50)] == pytest.approx([1.25, 0.5, 0.5])
    assert at(optim.warmup_cosine(2.0, 0, 10), 0) == 2.0


def test_a_schedule_drives_the_steps() -> None:
    schedule = optim.warmup_cosine(0.1, 2, STEPS)
    p = RNG.standard_normal(3)
    found, metrics = run(optim.SGD(schedule), p.copy())
    traced = rg.jit(schedule)
    for i in range(STEPS):
        p = p - float(traced(np.asarray(i))) * gradient(p, i)
    np.testing.assert_allclose(found, p, rtol=1e-12)
    assert [m["lr"] for m in metrics] == pytest.approx([float(schedule(i)) for i in range(STEPS)])


def test_settings_out_of_range() -> None:
    for make in (
        lambda: optim.SGD(-0.1),
        lambda: optim.SGD(0.1, momentum=1.0),
        lambda: optim.SGD(0.1, nesterov=True),
        lambda: optim.Adam(betas=(1.0, 0.9)),
        lambda: optim.AdamW(weight_decay=-1.0),
        lambda: optim.Lion("fast"),
        lambda: optim.linear(1.0, 0.0, 0),
        lambda: optim.warmup_cosine(1.0, 5, 5),
    ):
        with pytest.raises(DataError, match=r"test_optim\.py"):
            make()
    assert repr(optim.SGD(0.1, 0.9)).startswith("SGD(learning_rate=0.1, momentum=0.9")
