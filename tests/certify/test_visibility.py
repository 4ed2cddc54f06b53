"""Causality and the isolation of segments, claimed of programs: proven, or the leak is found."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import retrograde as rg
import retrograde.numpy as rnp
from retrograde import models, nn
from retrograde.certificates.visibility import visibility
from retrograde.compiler.errors import DataError, VerifyError
from retrograde.compiler.ir.interpreter import evaluate
from retrograde.compiler.passes.dependence import Dependence

TOKENS = rg.spec("i32", "B", rg.dim("T", max=24))
BOTH = ("causality", "segment isolation")
GPT = {"vocab": 11, "width": 16, "layers": 2, "heads": 4, "context": 24, "seed": 2}


class Packed(nn.Module):
    """Layers of attention within segments; faults are planted by name."""

    embedding: nn.Embedding
    layers: tuple[nn.MultiHeadAttention, ...]
    head: nn.Linear
    fault: str

    def __init__(self, fault: str = "") -> None:
        self.embedding = nn.Embedding(11, 8, seed=0)
        self.layers = tuple(
            nn.MultiHeadAttention(8, 2, causal=fault != "one layer sees all", seed=i)
            for i in range(2)
        )
        self.head = nn.Linear(8, 11, seed=3)
        self.fault = fault

    def __call__(self, tokens: Any, segments: Any) -> Any:
        x = self.embedding(tokens)
        for i, layer in enumerate(self.layers):
            apart = None if self.fault == "a layer without segments" and i == 1 else segments
            mask = None
            if self.fault == "one layer sees all":
                place = rnp.arange(x.shape[1])
                reach = 1 if i == 1 else 0
                mask = place[None, :] <= place[:, None] + reach
            x = x + layer(x, mask, segments=apart)
        if self.fault == "mean over time":
            x = x + rnp.mean(x, axis=1, keepdims=True)
        if self.fault == "moved on":
            first = rnp.zeros((x.shape[0], 1, 8), "f32")
            x = x + rnp.concatenate([first, x[:, :-1]], axis=1)
        return self.head(x)


def loss(model: Any, tokens: Any, segments: Any, targets: Any) -> Any:
    return rg.losses.cross_entropy(model(tokens, segments), targets)


FAULTS = {
    "": (),
    "a layer without segments": ("segment isolation",),
    "one layer sees all": ("causality",),
    "mean over time": BOTH,
    "moved on": ("segment isolation",),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("backend", ["numpy", "native"])
def test_planted_leaks_are_found_in_training_steps(fault: str, backend: str) -> None:
    step = rg.compile_training(
        loss, Packed(fault), rg.optim.SGD(0.1),
        {"tokens": TOKENS, "segments": TOKENS, "targets": TOKENS}, backend=backend,
    )  # fmt: skip
    found = visibility(step.ir("trace"), BOTH)
    assert tuple(f.part for f in found.faults) == FAULTS[fault]
    assert len(found.proofs) == 2 - len(found.faults) and not found.leaks
    for told in found.faults:
        assert "test_visibility.py:" in told.seen


def test_certificates_tell_what_is_proven() -> None:
    compiled = rg.compile(
        lambda m, tokens, segments: m(tokens, segments), Packed(), TOKENS,
        rg.spec("i32", "B", rg.dim("T", max=24)), backend="numpy",
    )  # fmt: skip
    certificate = compiled.certify(recipes=False, claims=BOTH, sizes=[{"B": 2, "T": 5}])
    assert certificate.ok and len(certificate.proofs) == 2
    assert "proven: causality" in str(certificate)


def test_a_claim_that_does_not_hold_is_a_fault() -> None:
    model = Packed("mean over time")
    compiled = rg.compile(
        lambda m, tokens, segments: m(tokens, segments), model, TOKENS, TOKENS, backend="numpy"
    )
    sizes = [{"B": 2, "T": 5}]
    told = compiled.certify(recipes=False, sizes=sizes)
    assert told.ok and not told.proofs and len(told.leaks) == 2  # nothing was claimed
    claimed = compiled.certify(recipes=False, sizes=sizes, claims="causality")
    assert not claimed.ok and claimed.blame == "causality" and len(claimed.leaks) == 1
    with pytest.raises(VerifyError, match=r"causality.*test_visibility.py:\d+"):
        claimed.check()


def test_claims_need_time_and_segments() -> None:
    plain = rg.compile(lambda x: rnp.tanh(x), rg.spec("f32", "B", 3), backend="numpy")
    assert visibility(plain.ir("trace")).proofs == ()
    with pytest.raises(DataError, match="no time axis"):
        plain.certify(claims="causality")
    with pytest.raises(DataError, match="there is no claim"):
        plain.certify(claims="honesty")
    gpt = rg.compile(lambda m, t: m(t), models.GPT(**GPT), TOKENS, backend="numpy")
    with pytest.raises(DataError, match="no input called segments"):
        gpt.certify(claims="segment isolation")


LIBRARY: dict[str, tuple[Any, bool]] = {
    "gpt": (lambda: models.GPT(**GPT), True),
    "sinusoidal, post-norm": (lambda: models.GPT(**GPT, positions="sinusoidal", norm="post"), True),
    "rotary, shared keys": (lambda: models.GPT(**GPT, positions="rotary", kv_heads=2), True),
    "window": (lambda: models.GPT(**GPT, window=3), True),
    "convolutions": (lambda: models.TCN(vocab=11, width=8, layers=2), True),
    "convolutions around": (lambda: models.TCN(vocab=11, width=8, layers=2, causal=False), False),
    "state space": (lambda: models.SSMLM(vocab=11, width=8, layers=2), True),
    "lstm": (lambda: models.RNNLM(vocab=11, width=16, layers=2), True),
    "gru": (lambda: models.RNNLM(vocab=11, width=16, layers=1, cell="gru"), True),
    "encoder": (lambda: models.Encoder(vocab=11, width=16, layers=1, heads=2, seed=1), False),
}


@pytest.mark.parametrize("name", LIBRARY)
def test_models_of_the_library_are_what_they_say(name: str) -> None:
    """The static answer, and perturbations beside it."""
    make, causal = LIBRARY[name]
    model = make().eval()
    graph = rg.trace(lambda m, t: m(t), model, TOKENS)
    found = Dependence.of(graph, graph.symbols()["T"])
    assert found.causal(found.graph.outputs[0]) is causal
    leaves = rg.tree.leaves(model)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 11, (2, 8)).astype(np.int32)
    (before,) = evaluate(graph, [*leaves, tokens], {"B": 2, "T": 8})
    moved = False
    for place in range(1, 8):
        other = tokens.copy()
        other[:, place] = (other[:, place] + 5) % 11
        (after,) = evaluate(graph, [*leaves, other], {"B": 2, "T": 8})
        moved |= not np.array_equal(before[:, :place], after[:, :place])
        assert not np.array_equal(before[:, place:], after[:, place:])
    assert moved is not causal


PACKED = {
    "learned": lambda: models.GPT(**GPT),
    "rotary": lambda: models.GPT(**GPT, positions="rotary"),
    "recurrent": lambda: models.RNNLM(vocab=11, width=8, layers=2, cell="gru"),
    "convolutions": lambda: models.TCN(vocab=11, width=8, layers=2),
    "state space": lambda: models.SSMLM(vocab=11, width=8, layers=2),
}


@pytest.mark.parametrize("name", PACKED)
def test_segments_of_the_library_are_apart(name: str) -> None:
    model = PACKED[name]().eval()

    def call(model: Any, tokens: Any, segments: Any) -> Any:
        return model(tokens, segments=segments)

    graph = rg.trace(call, model, TOKENS, TOKENS)
    found = visibility(graph, BOTH)
    assert len(found.proofs) == 2, found
    leaves = rg.tree.leaves(model)
    tokens = np.random.default_rng(1).integers(0, 11, (1, 9)).astype(np.int32)
    segments = np.array([[0, 0, 0, 1, 1, 1, 1, 2, 2]], np.int32)
    (before,) = evaluate(graph, [*leaves, tokens, segments], {"B": 1, "T": 9})
    other = tokens.copy()
    other[:, 3:7] = (other[:, 3:7] + 3) % 11
    (after,) = evaluate(graph, [*leaves, other, segments], {"B": 1, "T": 9})
    assert np.array_equal(before[:, :3], after[:, :3])
    assert np.array_equal(before[:, 7:], after[:, 7:])
    assert not np.array_equal(before[:, 3:7], after[:, 3:7])
