"""Budgets on models without loops: what is kept and what is computed again changes no bit."""

from __future__ import annotations

import numpy as np
import pytest

import retrograde as rg
import retrograde.numpy as rnp
from retrograde.compiler.errors import BudgetError
from retrograde.models import GPT

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
    "gpt": lambda: gpt(remat=False),
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


@pytest.mark.parametrize("backend", ["numpy", "native"])
@pytest.mark.parametrize("name", MODELS)
def test_every_budget_gives_the_same_bits(name, backend):
    make = MODELS[name]
    free, metrics = trained(make(), backend)
    most = free.plan(B=B, T=T).peak_bytes
    with pytest.raises(BudgetError) as refused:
        trained(make(), backend, 1)
    least = refused.value.minimum_bytes
    assert least <= most
    state, _ = free.state()
    peaks = []
    for budget in np.linspace(least, most, 5).astype(int).tolist():
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
    assert abs(step(**batch)["loss"] - free(**batch)["loss"]) < 1e-6
    assert step.peak_bytes <= 0.8 * free.peak_bytes
