"""Budgets on loops over time: whatever recipe a budget picks, and however it cuts the loop, losses,
gradients and state have the bits that they have without a budget, on both devices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

import retrograde as rg
import retrograde.numpy as rnp
from retrograde.compiler.plan.choice import Choice
from retrograde.runtime.executable import Executable

B, T, V = 5, 33, 11
AT = {"B": B, "T": T}
IDS = rg.spec("i32", "B", "T")
LENGTHS = np.array([33, 2, 17, 20, 8], np.int32)  # not sorted, none alike

# What `RNNLM` takes, beside a truncation and lengths.  With 11 tokens sums go by the rows of the
# table, with 97 they do not.
MODELS: dict[str, dict[str, Any]] = {
    "lstm": {"cell": "lstm"},
    "gru, many tokens": {"cell": "gru", "vocab": 97},
    "rnn": {"cell": "rnn", "tied": True},
    "two layers, dropout": {"cell": "lstm", "layers": 2, "dropout": 0.2, "vocab": 97},
    "ragged": {"cell": "lstm", "ragged": True},
    "truncated": {"cell": "gru", "truncate": 8},
    "16 bits": {"cell": "gru", "precision": "bf16"},
}


def loss(model: Any, tokens: Any, targets: Any, lengths: Any = None) -> Any:
    return rg.losses.cross_entropy(model(tokens, lengths), targets)


def step_of(name: str, backend: str, budget: int | None) -> Any:
    options = dict(MODELS[name])
    ragged, truncate = options.pop("ragged", False), options.pop("truncate", None)
    precision = options.pop("precision", None)
    model = rg.models.RNNLM(**{"vocab": V, "width": 12, "layers": 1, "seed": 1, **options})
    specs = {"tokens": IDS, "targets": IDS, **({"lengths": rg.spec("i32", "B")} if ragged else {})}
    cut: dict[str, Any] = {} if truncate is None else {"truncate": truncate}
    return rg.compile_training(
        loss, model, rg.optim.SGD(0.1), specs, at=AT, backend=backend, budget=budget,
        precision=precision, **cut,
    )  # fmt: skip


def batch_for(name: str) -> dict[str, Any]:
    rng = np.random.default_rng(5)
    tokens = {k: rng.integers(0, V, (B, T)).astype("i4") for k in ("tokens", "targets")}
    return {**tokens, **({"lengths": LENGTHS} if MODELS[name].get("ragged") else {})}


def run(step: Any, name: str, program: Any = None, start: Any = None) -> tuple[Any, Any, int]:
    """(results, state after it, bytes of the arena) of one step."""
    given = [step._key, *step._batch(batch_for(name)), *step._fixed]
    executable = Executable(program or step._run.executable.program, step._run.executable.device)
    executable.set_state(start)
    results = [float(x) for x in executable.run(given, AT)]
    return results, [np.array(x) for x in executable.state()], executable.arena_bytes


@cache
def compiled(name: str, backend: str) -> tuple[Any, Any, Any, Any]:
    """The step with a ladder, its first state, and what the step without a budget makes of that."""
    free = step_of(name, backend, None)
    start = [np.array(x) for x in free._run.executable.state()]
    most = free.plan(**AT).peak_bytes
    results, state, _ = run(free, name, start=start)
    return step_of(name, backend, 2 * most), start, results, state


CASES = [(name, backend) for backend in ("native", "numpy") for name in MODELS]
# Compiled kernels of these take long; they are run in every way below.
IN_EVERY_WAY = ("lstm", "two layers, dropout", "ragged")


@pytest.mark.parametrize(
    ("name", "backend"), [c for c in CASES if c[0] not in IN_EVERY_WAY or c[1] == "numpy"]
)
def test_random_budgets_change_no_bit(name: str, backend: str) -> None:
    step, start, results, state = compiled(name, backend)
    program = step._run.executable.program
    costs = [c for r in program.frontier(AT) for c in (r.height,)]
    least, most = min(costs), max(costs)
    budgets = np.random.default_rng(len(name)).integers(least, most + 1, 20).tolist()
    before: Choice | None = None
    seen = set()
    for budget in sorted({least, *budgets}):
        limited = replace(program, budget=budget, _chosen={})
        choice = limited.choose(AT)
        assert limited.plan(AT).peak_bytes == choice.height <= budget
        assert before is None or before.height <= choice.height
        assert before is None or before.cost >= choice.cost
        before = choice
        if (key := (choice.index, *sorted(choice.sizes.items()))) in seen:
            continue
        seen.add(key)
        found, after, arena = run(step, name, limited, start)
        assert arena == choice.height
        assert found == results
        assert all(np.array_equal(x, y) for x, y in zip(after, state, strict=True))
    assert len(seen) > 2


@pytest.mark.parametrize(("name", "backend"), [c for c in CASES if c[0] in IN_EVERY_WAY])
def test_no_recipe_and_no_cut_of_it_changes_a_bit(name: str, backend: str) -> None:
    step, start, results, state = compiled(name, backend)
    program = step._run.executable.program
    ways = list(every_way(program))
    assert len({choice.recipe.name for choice in ways}) > 1
    for choice in ways:
        found, after, _ = run(step, name, bound(program, choice), start)
        assert found == results, (choice.recipe.name, choice.sizes)
        assert all(np.array_equal(x, y) for x, y in zip(after, state, strict=True))


def every_way(program: Any) -> Iterator[Choice]:
    """Every recipe, loops in one segment and in several, with many states kept and with few."""
    for index, recipe in enumerate(program.recipes):
        if "again" in recipe.name or not recipe.serves(AT):
            continue
        turns = max((loop.turns for loop in recipe.loops), default=1)
        for segment, slots in ((T, 1), (4 * turns, 3), (turns, 2)) if recipe.loops else ((0, 0),):
            sizes = dict(AT)
            for loop in recipe.loops:
                sizes |= {loop.segment: segment, loop.slots: slots}
            yield Choice(index, recipe, sizes, recipe.layout(sizes)[2], 0.0, {})


def bound(program: Any, choice: Choice) -> Any:
    key = (-1, *(AT[s.name] for s in program.symbols))
    return replace(program, budget=None, _chosen={key: choice})


def squares(w: Any, x: Any, y: Any) -> Any:
    """A loop that is written by hand, whose losses are elements of its results."""

    def step(h: Any, x: Any) -> Any:
        h = rnp.tanh(x @ w["x"] + h @ w["h"] + w["b"])
        return h, h

    _, hs = rg.scan(step, rnp.zeros((x.shape[1], 8)), x, reverse=True)
    return rnp.mean((hs - y) ** 2)


@pytest.mark.parametrize("backend", ["numpy", "native"])
def test_a_loop_from_the_end_too(backend: str) -> None:
    rng = np.random.default_rng(3)
    shapes = {"x": (6, 8), "h": (8, 8), "b": (8,)}
    w = {n: (rng.standard_normal(s) / 3).astype("f4") for n, s in shapes.items()}
    x, y = (rng.standard_normal((90, 3, n)).astype("f4") for n in (6, 8))
    specs = {n: rg.spec("f32", *s) for n, s in shapes.items()}
    given = specs, rg.spec("f32", "T", "B", 6), rg.spec("f32", "T", "B", 8)
    at = {"T": 90, "B": 3}

    def make(budget: int | None) -> Any:
        return rg.compile(rg.value_and_grad(squares), *given, at=at, budget=budget, backend=backend)

    value, gradients = make(None)(w, x, y)
    most = make(None).plan(**at).peak_bytes
    recipes = set()
    for part in (0.9, 0.8, 0.7):
        c = make(int(part * most))
        found, others = c(w, x, y)
        recipes.add((c.plan(**at).recipe, *c.plan(**at).plan_sizes.values()))
        assert found == value
        assert all(np.array_equal(others[n], g) for n, g in gradients.items())
    assert len(recipes) > 1
