"""Budgets on models with loops over time: what is planned is what is allocated, at every budget and
size; a smaller budget never takes more; the gradient stays what it was."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import numpy as np
import pytest

import retrograde as rg
import retrograde.numpy as rnp
from retrograde.errors import BudgetError, DataError, UnsupportedError

D, E = 16, 5
AT = {"B": 3, "T": 200}


def last_state(w: Any, x: Any, y: Any) -> Any:
    """The loss of the last state alone."""
    h, _ = run(w, x)
    return rnp.mean((h - y[0]) ** 2)


def every_state(w: Any, x: Any, y: Any) -> Any:
    """A loss of every state, computed outside of the loop."""
    _, hs = run(w, x)
    return rnp.mean((hs - y) ** 2)


def run(w: Any, x: Any) -> tuple[Any, Any]:
    def step(carry: Any, x: Any) -> Any:
        h, c = carry
        i, f, g, o = rnp.split(x @ w["x"] + h @ w["h"] + w["b"], 4, axis=-1)
        c = rnp.sigmoid(f) * c + rnp.sigmoid(i) * rnp.tanh(g)
        h = rnp.sigmoid(o) * rnp.tanh(c)
        return (h, c), h

    zero = rnp.zeros((x.shape[1], D))
    (h, _), hs = rg.scan(step, (zero, zero), x)
    return h, hs


def weights() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    shapes = {"x": (E, 4 * D), "h": (D, 4 * D), "b": (4 * D,)}
    return {n: (rng.standard_normal(s) / 4).astype(np.float32) for n, s in shapes.items()}


SPECS = (
    {name: rg.spec("f32", *x.shape) for name, x in weights().items()},
    rg.spec("f32", "T", "B", E), rg.spec("f32", "T", "B", D),
)  # fmt: skip


@cache
def compiled(loss: Any, budget: int | None = None) -> Any:
    return rg.compile(rg.value_and_grad(loss), *SPECS, at=AT, budget=budget)


def data(steps: int, batch: int = 3) -> tuple[Any, Any]:
    rng = np.random.default_rng(steps)
    x = rng.standard_normal((steps, batch, E)).astype(np.float32)
    return x, rng.standard_normal((steps, batch, D)).astype(np.float32)


@cache
def limits(loss: Any) -> tuple[int, int, int]:
    """(bytes of inputs, the smallest peak, the peak of keeping everything) at AT."""
    plan = compiled(loss).plan(**AT)
    inputs = sum(b.bytes for b in plan.buffers if b.kind == "input")
    with pytest.raises(BudgetError) as refused:
        compiled(loss, 1)
    assert refused.value.minimum_bytes is not None
    return inputs, refused.value.minimum_bytes, plan.peak_bytes


def budgets(loss: Any, count: int) -> list[int]:
    _, low, high = limits(loss)
    return sorted({int(b) for b in np.geomspace(low, high + 999, count)}, reverse=True)


def arena(c: Any) -> int:
    return int(c._runnable().executable.arena_bytes)


@pytest.mark.parametrize("loss", [last_state, every_state])
def test_planned_is_allocated_and_never_above_the_budget(loss: Any) -> None:
    w, (x, y) = weights(), data(AT["T"])
    expected, gradients = compiled(loss)(w, x, y)
    before = None
    recipes = set()
    for budget in budgets(loss, 12):
        c = compiled(loss, budget)
        value, found = c(w, x, y)
        plan = c.plan(**AT)
        assert plan.peak_bytes == arena(c) == c.peak()(**AT) <= budget
        assert before is None or plan.peak_bytes <= before  # a smaller budget never takes more
        before = plan.peak_bytes
        recipes.add(plan.recipe)
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        for name, g in gradients.items():
            np.testing.assert_allclose(found[name], g, rtol=1e-4, atol=1e-6 * np.abs(g).max())
    assert len(recipes) > 1


@pytest.mark.numpy_schedule
@pytest.mark.parametrize("loss", [last_state, every_state])
def test_a_twentieth_of_the_activations_is_enough(loss: Any) -> None:
    """At this width weights count for more than at the widths of the benchmark."""
    inputs, low, high = limits(loss)
    assert low - inputs < 0.07 * (high - inputs)


def test_a_smaller_budget_runs_no_fewer_steps_again() -> None:
    steps = [compiled(last_state, b).plan(**AT).recomputed_steps for b in budgets(last_state, 12)]
    assert steps[0] == 0
    assert steps == sorted(steps)


def test_one_program_keeps_the_budget_at_every_size() -> None:
    _, _, high = limits(every_state)
    c = compiled(every_state, high // 3)
    whole = compiled(every_state)
    w = weights()
    for steps in (1, 2, 7, 37, 120, 260):
        x, y = data(steps)
        value, found = c(w, x, y)
        expected, gradients = whole(w, x, y)
        assert c.plan(B=3, T=steps).peak_bytes <= high // 3
        assert arena(c) <= high // 3
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        np.testing.assert_allclose(
            found["h"], gradients["h"], rtol=1e-4, atol=1e-6 * np.abs(gradients["h"]).max()
        )
    x, y = data(4000)
    with pytest.raises(BudgetError, match="T=4000"):
        c(w, x, y)
    x, y = data(7)
    c(w, x, y)  # and goes on


def test_the_longest_that_fits() -> None:
    _, _, high = limits(every_state)
    budget = high // 2
    c = compiled(every_state, budget)
    longest = c.largest("T", budget=budget, B=3)
    assert c.plan(B=3, T=longest).peak_bytes <= budget
    with pytest.raises(BudgetError):
        c.plan(B=3, T=longest + 1)
    assert longest > compiled(every_state).largest("T", budget=budget, B=3)


def test_a_budget_that_cannot_be_met_says_what_could() -> None:
    _, low, _ = limits(last_state)
    with pytest.raises(BudgetError) as refused:
        compiled(last_state, low - 1)
    error = refused.value
    assert error.minimum_bytes == low
    assert error.lower_bound_bytes is not None and error.lower_bound_bytes <= low
    assert error.operation
    for part in ("test_budget.py", f"{low} bytes", "B=3, T=200", error.operation):
        assert part in str(error)
    assert compiled(last_state, low).plan(**AT).peak_bytes == low


@pytest.mark.numpy_schedule
def test_the_report_tells_what_the_budget_made_of_the_loop() -> None:
    _, low, high = limits(last_state)
    c = compiled(last_state, (low + high) // 6)
    plan, text = c.plan(**AT), c.report()
    cut = plan.plan_sizes
    count = -(-200 // cut["segment"])
    assert f"in {count} segments of {cut['segment']} steps, {cut['slots']} of the states" in text
    assert f"{plan.recomputed_steps} steps run forward again" in text
    assert plan.recipe in text
    share = re.search(r"(\d+)% in matrix products", text)
    assert share is not None and 40 < int(share[1]) < 100  # those in loops are counted
    assert "budget" in text
    assert "segment" in str(c.peak())


def test_training_with_a_budget_is_the_same_training() -> None:
    def make(budget: str | int | None) -> Any:
        model = rg.models.RNNLM(vocab=13, width=8, layers=2, cell="gru", seed=1)

        def loss(model: Any, tokens: Any, targets: Any) -> Any:
            return rg.losses.cross_entropy(model(tokens), targets)

        batch = {"tokens": rg.spec("i32", "B", "T"), "targets": rg.spec("i32", "B", "T")}
        return rg.compile_training(
            loss, model, rg.optim.AdamW(0.01), batch=batch, budget=budget, at=AT, clip_norm=1.0
        )

    whole = make(None)
    with pytest.raises(BudgetError) as refused:
        make(1)
    assert refused.value.minimum_bytes is not None
    tight = make(int(refused.value.minimum_bytes * 1.3))
    assert tight.plan(**AT).peak_bytes < 0.5 * whole.plan(**AT).peak_bytes
    for seed in range(4):
        ids = np.random.default_rng(seed).integers(0, 13, (3, 201)).astype(np.int32)
        batch = {"tokens": ids[:, :-1], "targets": ids[:, 1:]}
        a, b = whole(**batch), tight(**batch)
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)


def test_budgets_are_bytes_and_need_sizes() -> None:
    fn = rg.grad(last_state)
    with pytest.raises(DataError, match=r"test_budget\.py.*give at=.*'T'"):
        rg.compile(fn, *SPECS, budget="1GiB", at={"B": 3})
    with pytest.raises(UnsupportedError, match="no number of bytes"):
        rg.compile(fn, *SPECS, budget="much", at=AT)
    small = rg.compile(lambda x: x + 1, rg.spec("f32", 8), budget="1KiB")
    np.testing.assert_array_equal(small(np.zeros(8, np.float32)), np.ones(8))
    with pytest.raises(BudgetError, match="smallest peak"):
        rg.compile(lambda x: x + 1, rg.spec("f32", 8), budget=16)
