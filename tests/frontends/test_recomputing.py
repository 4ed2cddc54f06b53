"""Budgets on models without loops: what is kept and what is computed again changes no bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import retrograde as rg
import retrograde.numpy as rnp
from retrograde.compiler.errors import BudgetError
from retrograde.models import GPT
from retrograde.runtime.executable import Executable

B, T, V = 5, 33, 11
IDS = rg.spec("i32", "B", "T")


def gpt(**settings):
    return GPT(vocab=V, width=24, layers=3, heads=3, context=T, seed=1, **settings)


class Mixer(rg.nn.Module):
    """Skips over several layers, as in a U-net, and one table for both ends."""

    table: rg.nn.Embedding
    down: rg.nn.Linear
    middle: rg.nn.Linear
    up: rg.nn.Linear
    norm: rg.nn.RMSNorm
    dropout: rg.nn.Dropout

    def __call__(self, tokens):
        x = self.table(tokens)
        a = rnp.tanh(self.down(x))
        b = self.dropout(rnp.exp(-(self.middle(a) ** 2)))
        c = rnp.sin(self.up(b * a)) + x
        return self.table.attend(self.norm(c))


def mixer():
    return Mixer(
        rg.nn.Embedding(V, 16, seed=1), rg.nn.Linear(16, 24, seed=2), rg.nn.Linear(24, 24, seed=3),
        rg.nn.Linear(24, 16, seed=4), rg.nn.RMSNorm(16), rg.nn.Dropout(0.3),
    )  # fmt: skip


MODELS = {
    "gpt dropout": lambda: gpt(remat=False, dropout=0.2),
    "gpt tied": lambda: gpt(remat=True, tied=True),
    "mixer": mixer,
}


def loss(model, tokens, targets):
    return rg.losses.cross_entropy(model(tokens), targets)


def trained(model, backend, budget=None):
    step = rg.compile_training(
        loss, model, rg.optim.AdamW(1e-2), {"tokens": IDS, "targets": IDS},
        at={"B": B, "T": T}, clip_norm=1.0, backend=backend, budget=budget,
    )  # fmt: skip
    rng = np.random.default_rng(5)
    metrics = []
    for _ in range(2):
        batch = {k: rng.integers(0, V, (B, T)).astype("i4") for k in ("tokens", "targets")}
        metrics.append(step(**batch))
    return step, metrics


@pytest.mark.parametrize(
    ("name", "backend"),
    [("gpt tied", "numpy"), ("gpt dropout", "native"), ("mixer", "numpy"), ("mixer", "native")],
)
def test_every_budget_gives_the_same_bits(name, backend):
    """Of programs that are compiled with that budget; those of one ladder are below."""
    make = MODELS[name]
    free, metrics = trained(make(), backend)
    most = free.plan(B=B, T=T).peak_bytes
    with pytest.raises(BudgetError) as refused:
        trained(make(), backend, 1)
    least = refused.value.minimum_bytes
    assert least <= most
    state, _ = free.state()
    peaks = []
    for budget in np.linspace(least, most, 3).astype(int).tolist():
        step, again = trained(make(), backend, budget)
        assert again == metrics
        for key, x in step.state()[0].items():
            assert np.array_equal(x, state[key]), key
        peaks.append(step.plan(B=B, T=T).peak_bytes)
        assert peaks[-1] <= budget
        assert step.peak_bytes == peaks[-1] == step.peak()(B=B, T=T)
    assert peaks == sorted(peaks)
    assert peaks[0] == least


def test_the_smallest_plan_computes_much_again():
    with pytest.raises(BudgetError) as refused:
        trained(gpt(remat=False), "native", 1)
    free, _ = trained(gpt(remat=False), "native")
    step, _ = trained(gpt(remat=False), "native", refused.value.minimum_bytes)
    again = [n for n in step.ir("order").nodes if n.origin.made_by == "remat"]
    assert not [n for n in free.ir("trace").nodes if n.origin.made_by == "remat"]
    assert any("again" in step.plan(B=B, T=T).recipe for _ in (0,)), again


@pytest.mark.parametrize("backend", ["numpy", "native"])
@pytest.mark.parametrize("name", MODELS)
def test_random_budgets_are_kept_and_monotone(name, backend):
    """One ladder serves all budgets: planned is allocated, never above the budget; less of it never
    gives a higher peak nor a cheaper step; the metrics and the state are those without any."""
    free, metrics = trained(MODELS[name](), backend)
    expected = free._run.executable.state()
    sizes = {"B": B, "T": T}
    most = free.plan(**sizes).peak_bytes
    step, _ = trained(MODELS[name](), backend, most)
    program, device = step._run.executable.program, step._run.executable.device
    least = min(recipe.layout(sizes)[2] for recipe in program.recipes)
    assert least < most or (name, backend) == ("mixer", "numpy")  # all is at its peak at once
    budgets = np.random.default_rng(len(name)).integers(least, most + 1, 20)
    start = trained_at_start(name, backend)._run.executable.state()
    results, before = {}, None
    for budget in sorted({least, most, *budgets.tolist()}):
        limited = replace(program, budget=budget, _chosen={})
        choice = limited.choose(sizes)
        assert limited.plan(sizes).peak_bytes == choice.height <= budget
        if before is not None:
            assert before.height <= choice.height and before.cost >= choice.cost
        before = choice
        if choice.index in results:
            continue
        executable = Executable(limited, device)
        executable.set_state(start)
        rng = np.random.default_rng(5)
        for _ in metrics:
            batch = {k: rng.integers(0, V, (B, T)).astype("i4") for k in ("tokens", "targets")}
            given = [step._key, *step._batch(batch), *step._fixed]
            results[choice.index] = executable.run(given, sizes)
        assert executable.arena_bytes == choice.height
        for got, want in zip(executable.state(), expected, strict=True):
            assert np.array_equal(got, want)
    assert len(results) > 1 or least == most
    values = [[float(x) for x in found] for found in results.values()]
    assert all(found == values[0] for found in values)
    assert values[0] == list(metrics[-1].values())


def trained_at_start(name, backend):
    """The step that `trained` makes, before its first batch."""
    return rg.compile_training(
        loss, MODELS[name](), rg.optim.AdamW(1e-2), {"tokens": IDS, "targets": IDS},
        at={"B": B, "T": T}, clip_norm=1.0, backend=backend,
    )  # fmt: skip


@pytest.mark.parametrize("backend", ["numpy", "native"])
def test_what_is_not_looped_runs_again_beside_loops_over_time(backend):
    def make(budget):
        model = rg.models.RNNLM(vocab=V, width=8, layers=2)
        return rg.compile_training(
            lambda m, tokens, targets: rg.losses.cross_entropy(m(tokens), targets),
            model, rg.optim.SGD(0.1), {"tokens": IDS, "targets": IDS},
            at={"B": B, "T": T}, backend=backend, budget=budget,
        )  # fmt: skip

    free = make(None)
    step = make(int(0.8 * free.plan().peak_bytes))
    rng = np.random.default_rng(6)
    batch = {k: rng.integers(0, V, (B, T)).astype("i4") for k in ("tokens", "targets")}
    assert step(**batch) == free(**batch)
    assert step.peak_bytes <= 0.8 * free.peak_bytes
