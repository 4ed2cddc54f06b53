"""Truncated backpropagation through time: the gradient of a reference that detaches, exactly the
full one where no border lies within the steps, the memory of one run, and state that resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import retrograde as rg
import retrograde.numpy as rnp
from retrograde.errors import DataError

D, E, B = 4, 3, 2
STEPS = (1, 2, 3, 5, 7)
RUNS = (1, 2, 3, 5, 6, 7, 20)


def weights(seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    shapes = {"x": (E, 4 * D), "h": (D, 4 * D), "b": (4 * D,), "out": (D, E)}
    return {name: rng.standard_normal(shape) for name, shape in shapes.items()}


def cell(w: Any, carry: Any, x: Any) -> tuple[Any, Any]:
    h, c = carry
    i, f, g, o = rnp.split(x @ w["x"] + h @ w["h"] + w["b"], 4, axis=-1)
    c = rnp.sigmoid(f) * c + rnp.sigmoid(i) * rnp.tanh(g)
    h = rnp.sigmoid(o) * rnp.tanh(c)
    return (h, c), h


def inside(w: Any, x: Any, y: Any, h: Any, **how: Any) -> Any:
    """The loss of a step is computed in the step."""

    def step(carry: Any, given: Any) -> Any:
        x, y = given
        carry, h = cell(w, carry, x)
        return carry, rnp.sum((h @ w["out"] - y) ** 2)

    _, losses = rg.scan(step, (h, rnp.zeros_like(h)), (x, y), **how)
    return rnp.sum(losses)


def outside(w: Any, x: Any, y: Any, h: Any, **how: Any) -> Any:
    """The losses are computed from all states at once."""
    _, hs = rg.scan(lambda carry, x: cell(w, carry, x), (h, rnp.zeros_like(h)), x, **how)
    return rnp.sum((hs @ w["out"] - y) ** 2)


def at_the_end(w: Any, x: Any, y: Any, h: Any, **how: Any) -> Any:
    """Only the last state counts, and how far it is from the target of every step."""
    (h, c), _ = rg.scan(lambda carry, x: cell(w, carry, x), (h, rnp.zeros_like(h)), x, **how)
    return rnp.sum((h @ w["out"] - y) ** 2) + rnp.sum(c**3)


def detaching(kind: Any, w: Any, x: Any, y: Any, h: Any, steps: int, reverse: bool) -> Any:
    """The same losses by a loop in Python that stops the gradient at every border."""
    carry = h, rnp.zeros_like(h)
    total: Any = 0.0
    order = range(len(x))[::-1] if reverse else range(len(x))
    for done, t in enumerate(order):
        if done and done % steps == 0:
            carry = rg.stop_gradient(carry)
        carry, out = cell(w, carry, x[t])
        if kind is not at_the_end:
            total = total + rnp.sum((out @ w["out"] - y[t]) ** 2)
    if kind is at_the_end:
        return rnp.sum((carry[0] @ w["out"] - y) ** 2) + rnp.sum(carry[1] ** 3)
    return total


def data(steps: int) -> tuple[Any, ...]:
    rng = np.random.default_rng(steps)
    return (
        rng.standard_normal((steps, B, E)),
        rng.standard_normal((steps, B, E)),
        rng.standard_normal((B, D)),
    )


SPECS = (
    {name: rg.spec("f64", *x.shape) for name, x in weights().items()},
    rg.spec("f64", "T", B, E), rg.spec("f64", "T", B, E), rg.spec("f64", B, D),
)  # fmt: skip


@pytest.mark.parametrize("kind", [inside, outside, at_the_end])
@pytest.mark.parametrize("reverse", [False, True])
def test_the_gradient_is_that_of_a_loop_that_detaches(kind: Any, reverse: bool) -> None:
    w = weights()
    for run in RUNS:

        def loss(w: Any, x: Any, y: Any, h: Any, run: int = run) -> Any:
            return kind(w, x, y, h, truncate=run, reverse=reverse)

        compiled = rg.compile(rg.value_and_grad(loss, argnums=(0, 1, 3)), *SPECS)
        for steps in STEPS:
            x, y, h = data(steps)
            value, found = compiled(w, x, y, h)
            expected, wanted = rg.value_and_grad(
                lambda w, x, h, y=y, run=run: detaching(kind, w, x, y, h, run, reverse),
                argnums=(0, 1, 2),
            )(w, x, h)
            np.testing.assert_allclose(value, expected, rtol=1e-12)
            for a, b in zip(rg.tree.leaves(found), rg.tree.leaves(wanted), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12, err_msg=f"{steps} {run}")


def test_eager_loops_cut_the_same_gradient() -> None:
    w, (x, y, h) = weights(), data(7)
    loss = lambda w: inside(w, x, y, h, truncate=3)  # noqa: E731
    compiled = rg.grad(loss)(w)
    with rg.eager():
        eager = rg.grad(loss)(w)
    for name in w:
        np.testing.assert_allclose(np.asarray(eager[name]), compiled[name], rtol=1e-12)


def test_a_loop_in_a_loop_is_not_cut_by_what_is_set_around() -> None:
    """Its steps are not those of time."""

    def loss(w: Any, x: Any, run: int | None) -> Any:
        def outer(h: Any, x: Any) -> Any:
            h, _ = rg.scan(lambda h, _: (rnp.tanh(h * w + x), None), h, length=4)
            return h, rnp.sum(h)

        return rnp.sum(rg.scan(outer, rnp.zeros_like(x[0]), x, truncate=run)[1])

    rng = np.random.default_rng(0)
    w, x = rng.standard_normal(D), rng.standard_normal((6, D))
    whole = rg.grad(lambda w: loss(w, x, None))(w)
    np.testing.assert_array_equal(rg.grad(lambda w: loss(w, x, 6))(w), whole)
    by_hand = rg.grad(
        lambda w: sum(_one(w, x, t) for t in range(6))  # every step from the state it starts with
    )(w)
    np.testing.assert_allclose(rg.grad(lambda w: loss(w, x, 1))(w), by_hand, rtol=1e-12)


def _one(w: Any, x: Any, step: int) -> Any:
    h = rnp.zeros_like(x[0])
    for t in range(step + 1):
        h = rg.stop_gradient(h)
        for _ in range(4):
            h = rnp.tanh(h * w + x[t])
    return rnp.sum(h)


# --- training


def make(truncate: int | None, **options: Any) -> Any:
    model = rg.models.RNNLM(vocab=11, width=6, layers=2, cell="lstm", seed=3)

    def loss(model: Any, tokens: Any, targets: Any) -> Any:
        return rg.losses.cross_entropy(model(tokens), targets)

    batch = {"tokens": rg.spec("i32", "B", "T"), "targets": rg.spec("i32", "B", "T")}
    return rg.compile_training(
        loss, model, rg.optim.AdamW(0.01), batch=batch, truncate=truncate, clip_norm=1.0, **options
    )


def tokens(steps: int, seed: int) -> dict[str, Any]:
    ids = np.random.default_rng(seed).integers(0, 11, (3, steps + 1)).astype(np.int32)
    return {"tokens": ids[:, :-1], "targets": ids[:, 1:]}


def bits(step: Any) -> list[bytes]:
    return [x.tobytes() for x in rg.tree.leaves(step.model)]


def test_runs_that_hold_all_steps_train_bit_for_bit_like_no_truncation() -> None:
    cut, whole, different = make(12), make(None), make(5)
    for seed, steps in enumerate((12, 5, 1, 12)):
        batch = tokens(steps, seed)
        assert cut(**batch) == whole(**batch)
        different(**batch)
    assert bits(cut) == bits(whole)
    assert bits(different) != bits(whole)


def test_resuming_is_exact(tmp_path: Path) -> None:
    step = make(4)
    for seed in range(3):
        step(**tokens(10, seed))
    step.save(tmp_path / "run")
    other = make(4)
    other.restore(tmp_path / "run")
    for seed in range(3, 6):
        assert step(**tokens(11, seed)) == other(**tokens(11, seed))
    assert bits(step) == bits(other)


def test_what_is_kept_for_the_gradient_is_that_of_one_run() -> None:
    """Beside inputs, what grows with the steps is a small part of what it is without a cut."""
    fn = rg.grad(lambda w, x, y, h: inside(w, x, y, h, truncate=8))
    cut = rg.compile(fn, *SPECS)
    whole = rg.compile(rg.grad(lambda w, x, y, h: inside(w, x, y, h)), *SPECS)
    inputs = 2 * 8 * B * E  # x and y, bytes a step

    def growth(c: Any) -> float:
        return (c.plan(T=1600).peak_bytes - c.plan(T=800).peak_bytes) / 800 - inputs

    assert cut.plan(T=800).recipe == "run by run"
    assert growth(cut) < 0.05 * growth(whole)


@pytest.mark.parametrize("steps", [0, -3, 2.5, "8", True])
def test_runs_have_at_least_one_step(steps: Any) -> None:
    with pytest.raises(DataError, match=r"test_truncation\.py.*truncate"):
        make(steps)
    with pytest.raises(DataError, match=r"test_truncation\.py.*truncate"):
        rg.jit(lambda x: rg.scan(lambda c, x: (c, x), x[0], x, truncate=steps))(np.ones((3, 2)))
