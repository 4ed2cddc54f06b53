"""Beam search beside all texts there are."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import retrograde as rg
from retrograde import models
from retrograde.generation.beam import norm

STOP = 3


def model(seed: int) -> Any:
    made = models.GPT(vocab=4, width=8, layers=1, heads=2, context=12, seed=seed)
    return made.replace({"head.weight": 40 * made.head.weight}).eval()


_KNOWN: dict[Any, np.ndarray[Any, Any]] = {}


def log_chances(model: Any, text: list[int]) -> np.ndarray[Any, Any]:
    key = (float(model.head.weight[0, 0]), *text)
    if key not in _KNOWN:
        _KNOWN[key] = _log_chances(model, text)
    return _KNOWN[key]


def _log_chances(model: Any, text: list[int]) -> np.ndarray[Any, Any]:
    logits = np.asarray(model(np.array([text], np.int32)))[0, -1].astype(np.float64)
    logits -= logits.max()
    return logits - np.log(np.exp(logits).sum())


def best(model: Any, prompt: list[int], steps: int, penalty: float) -> tuple[list[int], float]:
    """Of all texts of up to so many tokens."""
    found: tuple[list[int], float] = ([], -np.inf)
    for text in itertools.product(range(4), repeat=steps):
        ends = [i for i, t in enumerate(text) if t == STOP]
        whole = list(text[: ends[0] + 1]) if ends else list(text)
        score = sum(
            log_chances(model, prompt + whole[:i])[t] for i, t in enumerate(whole)
        ) / norm(len(whole), penalty)
        if score > found[1] + 1e-9:
            found = [t for t in whole if t != STOP], score
    return found


@pytest.mark.parametrize("penalty", [0.0, 0.6, 1.5])
@pytest.mark.parametrize("seed", [0, 1])
def test_enough_beams_find_the_likeliest_text(seed: int, penalty: float) -> None:
    each = model(seed)
    prompts = [[1, 2], [0]]
    got = rg.generate(each, prompts, 3, beams=16, stop=STOP, length_penalty=penalty)
    for prompt, text in zip(prompts, got, strict=True):
        assert text.tolist() == best(each, prompt, 3, penalty)[0]


def test_one_beam_is_greedy() -> None:
    from retrograde.generation import Decoder
    from retrograde.generation.beam import searched
    from retrograde.generation.window import Window

    each = model(2)
    prompts = [np.array([1, 2, 0]), np.array([2])]
    decoder = Decoder(each, beams=True)
    with decoder.begin(each, 2) as session:
        got = searched(Window(session), prompts, 6, 1, frozenset({STOP}))
    greedy = rg.generate(each, prompts, 6, temperature=0, stop=STOP)
    assert [g.tolist() for g in greedy] == got


def test_more_beams_are_never_less_likely() -> None:
    def score(each: Any, prompt: list[int], text: list[int]) -> float:
        whole = [*text, STOP] if len(text) < 7 else text
        return float(sum(
            log_chances(each, prompt + whole[:i])[t] for i, t in enumerate(whole)
        )) / norm(len(whole), 0.6)  # fmt: skip

    for seed in range(4):
        each = model(seed)
        greedy = rg.generate(each, [1], 7, temperature=0, stop=STOP)
        wide = rg.generate(each, [1], 7, beams=8, stop=STOP)
        assert score(each, [1], wide.tolist()) >= score(each, [1], greedy.tolist()) - 1e-6


def test_tokens_that_are_never_chosen_are_in_no_beam() -> None:
    got = rg.generate(model(0), [[1], [2, 2]], 6, beams=3, never=[0])
    assert all(len(x) == 6 and 0 not in x for x in got)
