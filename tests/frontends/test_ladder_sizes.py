"""A ladder of recipes at many sizes: one program, the budget kept, the peak told beforehand."""

from __future__ import annotations

import time
from functools import cache
from typing import Any

import numpy as np
import pytest

import retrograde as rg
from retrograde.compiler import pipeline
from retrograde.errors import BudgetError

AT = {"B": 5, "T": 48}
LONGEST = 96


@cache
def step(budget: int | None, backend: str = "numpy") -> Any:
    model = rg.models.GPT(vocab=19, width=24, layers=2, heads=2, context=LONGEST)

    def loss(model: Any, tokens: Any, targets: Any) -> Any:
        return rg.losses.cross_entropy(model(tokens), targets)

    ids = rg.spec("i32", "B", "T")
    return rg.compile_training(
        loss, model, rg.optim.AdamW(1e-3), {"tokens": ids, "targets": ids}, at=AT,
        backend=backend, budget=budget, clip_norm=1.0,
    )  # fmt: skip


@cache
def budget(backend: str) -> int:
    """Halfway between the smallest peak and that of keeping everything, at AT."""
    with pytest.raises(BudgetError) as refused:
        step(1, backend)
    assert refused.value.minimum_bytes is not None
    return (refused.value.minimum_bytes + step(None, backend).plan(**AT).peak_bytes) // 2


def some_sizes(count: int) -> list[dict[str, int]]:
    rng = np.random.default_rng(7)
    return [
        {"B": int(b), "T": int(t)}
        for b, t in zip(rng.integers(1, 25, count), rng.integers(1, LONGEST + 1, count),
                        strict=True)
    ]  # fmt: skip


@pytest.mark.parametrize(("backend", "count"), [("numpy", 100), ("native", 1000)])
def test_a_thousand_sizes(backend: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = budget(backend)
    c = step(limit, backend)
    peak = c.peak()
    recipes = c._program.recipes
    compiled: list[Any] = []
    monkeypatch.setattr(pipeline, "_compile", lambda *a: compiled.append(a))
    used, refused, times = set(), 0, []
    for sizes in some_sizes(count):
        start = time.process_time()
        try:
            plan = c.plan(**sizes)
        except BudgetError as error:
            refused += 1
            # Refused means that no recipe fits, and the smallest of all peaks is named.
            least = min(r.layout(sizes)[2] for r in recipes)
            assert error.minimum_bytes == least > limit
            assert error.lower_bound_bytes is not None
            assert error.lower_bound_bytes <= least
            continue
        times.append(time.process_time() - start)
        assert plan.peak_bytes == peak(**sizes) <= limit
        at = [r.name for r in recipes].index(plan.recipe)
        form = peak.forms[at]
        assert form.exact and form.at(sizes) == plan.peak_bytes
        assert plan.order_lower_bound_bytes <= plan.lower_bound_bytes <= plan.peak_bytes
        used.add(plan.recipe)
        # The cheapest that fits: the first wherever it does.
        if recipes[0].layout(sizes)[2] <= limit:
            assert at == 0
    assert not compiled
    assert len(used) > 2 and 0 < refused < 0.9 * count
    assert np.median(times) < 0.02


def test_a_few_of_them_run() -> None:
    limit = budget("numpy")
    c = step(limit)
    free = step(None)
    ran = 0
    for sizes in some_sizes(60):
        try:
            plan = c.plan(**sizes)
        except BudgetError:
            continue
        if ran == 6:
            break
        ran += 1
        rng = np.random.default_rng(ran)
        shape = sizes["B"], sizes["T"]
        batch = {k: rng.integers(0, 19, shape).astype("i4") for k in ("tokens", "targets")}
        assert c(**batch) == free(**batch)
        # The arena is that of the largest so far.
        assert plan.peak_bytes <= c._runnable().executable.arena_bytes <= limit


def test_the_text_names_the_recipes() -> None:
    c = step(budget("numpy"))
    text = str(c.peak())
    for recipe, form in zip(c._program.recipes, c.peak().forms, strict=True):
        assert f"{recipe.name}: {form}" in text


def test_the_longest_takes_the_ladder_into_account() -> None:
    limit = budget("numpy")
    c = step(limit)
    for b in (3, 9, 17):
        longest = c.largest("T", budget=limit, B=b)
        assert c.plan(B=b, T=longest).peak_bytes <= limit
        if longest < LONGEST:
            with pytest.raises(BudgetError):
                c.plan(B=b, T=longest + 1)
        lowest = [min(r.layout({"B": b, "T": t})[2] for r in c._program.recipes)
                  for t in range(1, LONGEST + 1)]  # fmt: skip
        assert longest == sum(height <= limit for height in lowest)
