"""Texts that go by what is known of every step: cached beside whole, windows, errors."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import retrograde as rg
import retrograde.numpy as rnp
from retrograde import models, nn
from retrograde.compiler.errors import DataError, ShapeError, UnsupportedError
from retrograde.generation import Decoder, generating
from retrograde.models.bodies import body_of
from retrograde.nn.initial import source

Array = npt.NDArray[Any]
V, W, F, STEPS = 11, 16, 3, 9
PROMPTS = [np.array([1, 2, 3]), np.array([4]), np.array([5, 6, 7, 8, 9])]
RNG = np.random.default_rng(4)
PLAN = RNG.normal(size=(3, 5 + STEPS, F)).astype("f4")
TIMES = np.cumsum(RNG.integers(1, 9, (3, 5 + STEPS)), 1).astype("f4")
SEGMENTS = np.repeat(np.arange(4), 4)[None, : 5 + STEPS].repeat(3, 0).astype("i4")


class Planned(nn.Module):
    """Events with time stamps and a plan of numbers, through any body; the plan is attended to,
    too."""

    events: models.EventEmbedding
    plan: nn.Linear
    body: Any
    head: nn.Linear

    def __init__(self, kind: str, **options: Any) -> None:
        numbers = source(3)
        self.events = models.EventEmbedding(V, W, scale=5.0, seed=numbers)
        self.plan = nn.Linear(F, W, seed=numbers)
        self.body = body_of(
            kind, W, 2, bidirectional=False, heads=4, dropout=0.0, numbers=numbers, options=options
        )
        self.head = nn.Linear(W, V, seed=numbers, std=2.0)

    def __call__(self, tokens: Any, plan: Any, times: Any) -> Any:
        made = self.plan(plan)
        x = self.body(self.events(tokens, times) + made)
        far = rnp.cumsum(made, 1) / (1 + rnp.arange(made.shape[1]))[:, None]
        return self.head(x + made + rnp.tanh(far))


FAMILIES: dict[str, dict[str, Any]] = {
    "attention": {"kind": "attention", "positions": "rotary", "kv_heads": 2},
    "attention, window": {"kind": "attention", "window": 3, "norm": "post"},
    "lstm": {"kind": "lstm"},
    "gru": {"kind": "gru"},
    "tcn": {"kind": "tcn"},
    "ssm": {"kind": "ssm", "state": 3},
}
KNOWN = {"plan": PLAN, "times": TIMES}


def same(a: list[Array], b: list[Array]) -> bool:
    return len(a) == len(b) and all(map(np.array_equal, a, b))


@pytest.mark.parametrize("name", FAMILIES)
def test_cached_tokens_are_those_of_whole_texts(name: str) -> None:
    model = Planned(**FAMILIES[name])
    ways: list[dict[str, Any]] = [{"seed": 4}, {"beams": 2, "stop": [2]}]
    for given in reversed(ways):
        cached = rg.generate(model, PROMPTS, STEPS, known=KNOWN, **given)
        whole = rg.generate(model, PROMPTS, STEPS, known=KNOWN, cached=False, **given)
        assert same(cached, whole)
    for other in ({"plan": PLAN[::-1], "times": TIMES}, {"plan": PLAN, "times": TIMES * 3}):
        assert not same(cached, rg.generate(model, PROMPTS, STEPS, known=other, **given))
    alone = {k: x[:1] for k, x in KNOWN.items()}
    assert np.array_equal(rg.generate(model, PROMPTS[0], STEPS, known=alone, **given), cached[0])


@pytest.mark.parametrize(("name", "backend"), [("attention", "numpy"), ("gru", "native")])
def test_logits_are_those_of_the_whole_text(name: str, backend: str) -> None:
    model = Planned(**FAMILIES[name])
    tokens = RNG.integers(0, V, (3, 14)).astype("i4")
    logits = []
    for cached in (True, False):
        decoder = Decoder(model, known=KNOWN, backend=backend, cached=cached)
        with decoder.begin(model, 3) as session:
            pieces = (4, 1, 1, 5, 3) if cached else (14,)
            ends = list(itertools.accumulate(pieces))
            parts = []
            for n, b in zip(pieces, ends, strict=True):
                now = {name: x[:, b - n : b] for name, x in KNOWN.items()}
                parts.append(session.feed(tokens[:, b - n : b], known=now))
            logits.append(np.concatenate(parts, 1))
    assert np.abs(logits[0] - logits[1]).max() <= 1e-5 * max(1, np.abs(logits[1]).max())


def test_segments_and_positions_are_known_beforehand() -> None:
    model = models.GPT(vocab=V, width=W, layers=2, heads=2, context=20, positions="rotary")
    model = model.replace({"head.weight": 30 * model.head.weight})
    known = {"segments": SEGMENTS, "positions": np.arange(5 + STEPS)[None].repeat(3, 0) % 6}
    cached, whole = (
        rg.generate(model, PROMPTS, STEPS, seed=1, known=known, cached=c) for c in (True, False)
    )
    assert same(cached, whole)
    assert not same(cached, rg.generate(model, PROMPTS, STEPS, seed=1))


def planned_gpt(model: Any, tokens: Any, plan: Any) -> Any:
    return model(tokens) + rnp.repeat(plan, 4, -1)[:, :, :V]


def test_a_window_takes_its_own_places_along() -> None:
    model = models.GPT(vocab=V, width=W, layers=1, heads=2, context=6, seed=1)
    model = model.replace({"head.weight": 20 * model.head.weight})
    given: dict[str, Any] = {"call": planned_gpt, "known": {"plan": PLAN}, "temperature": 0}
    text = [1, 2]
    plan = {"plan": PLAN[:1]}
    for token in rg.stream(model, text[:], 10, **{**given, "known": plan}):
        start = max(0, len(text) - 6)
        seen = PLAN[:1, start : len(text)]
        logits = planned_gpt(model.eval(), np.array([text[start:]], "i4"), seen)
        assert token == int(np.argmax(np.asarray(logits)[0, -1]))
        text.append(token)
    kept = rg.generate(model, PROMPTS, STEPS, keep=3, **given)
    assert same(kept, rg.generate(model, PROMPTS, STEPS, keep=3, cached=False, **given))


def test_a_stream_ends_with_what_is_known() -> None:
    model = Planned("gru")
    known = {k: x[:1, :7] for k, x in KNOWN.items()}
    told = list(rg.stream(model, [1, 2, 3], known=known, seed=2))
    assert len(told) == 5  # of the last of them nothing is known
    assert told == list(rg.generate(model, [1, 2, 3], 5, known=known, seed=2))


def test_one_program_serves_plans_of_every_length() -> None:
    generating._kept.clear()
    model = Planned("gru")
    for steps in (2, 5):
        rg.generate(model, PROMPTS, steps, known={k: x[:, : 5 + steps] for k, x in KNOWN.items()})
    assert len(generating._kept) == 1


WRONG: dict[str, tuple[Any, Any, str]] = {
    "short": ({"plan": PLAN[:, :10], "times": TIMES}, DataError, r"plan.*10 places.*13 are fed"),
    "rows": ({"plan": PLAN[:2], "times": TIMES}, ShapeError, r"plan is \[2, 14, 3\].*3 rows"),
    "flat": ({"plan": PLAN, "times": TIMES[0]}, ShapeError, r"times is \[14\]"),
    "no dict": (PLAN, DataError, "it is a dict"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_done_is_said(name: str) -> None:
    known, error, said = WRONG[name]
    for call in (rg.generate, rg.stream):
        with pytest.raises(error, match=said) as caught:
            call(Planned("gru"), PROMPTS, STEPS, known=known)
        assert "test_known_future.py" in str(caught.value)


def test_sessions_check_what_is_known() -> None:
    model = Planned("gru")
    decoder = Decoder(model, known={"plan": rg.spec("f32", "B", "T", F), "times": TIMES})
    tokens = np.zeros((2, 3), np.int32)
    with decoder.begin(model, 2) as session:
        with pytest.raises(DataError, match="2 arrays are known of every step, and 0"):
            session.feed(tokens)
        with pytest.raises(ShapeError, match=r"\[2, 3, 3\], got \[2, 4, 3\]"):
            session.feed(tokens, known={"plan": PLAN[:2, :4], "times": TIMES[:2, :3]})
        assert session.start == 0


def test_what_looks_ahead_in_the_plan_is_refused() -> None:
    def ahead(model: Any, tokens: Any, plan: Any) -> Any:
        last = rnp.zeros_like(plan[:, :1])
        return planned_gpt(model, tokens, rnp.concatenate([plan[:, 1:], last], axis=1))

    model = models.GPT(vocab=V, width=W, layers=1, heads=2, context=20, seed=1)
    with pytest.raises(UnsupportedError, match=r"later places of known.plan"):
        rg.generate(model, PROMPTS, STEPS, call=ahead, known={"plan": PLAN})
    with pytest.raises(UnsupportedError, match="known="):
        Decoder(model, {"plan": rg.spec("f32", "B", "T", F)}, call=planned_gpt)
