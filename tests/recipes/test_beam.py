"""Beam search and counts, beside what they mean."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from retrograde.recipes import beam, pictures


def test_a_confusion_is_counted_by_truth_and_what_is_said() -> None:
    counts = pictures.counted(np.array([0, 0, 1, 1, 1, 3]), np.array([0, 1, 1, 1, 0, 3]), 4)
    assert counts.tolist() == [[1, 1, 0, 0], [1, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]


def _chain(seed: int, tokens: int) -> np.ndarray:
    """Log probabilities of the next token by the two before."""
    logits = 2.0 * np.random.default_rng(seed).normal(size=(tokens, tokens, tokens))
    return beam.log_softmax(logits)


@pytest.mark.parametrize("seed", range(4))
def test_as_many_beams_as_sequences_find_the_likeliest(seed: int) -> None:
    tokens, most = 3, 4
    logs = [_chain(10 * seed + row, tokens) for row in range(2)]

    def following(prefixes: np.ndarray) -> np.ndarray:
        each = len(prefixes) // 2
        last = prefixes[:, -1]
        before = prefixes[:, -2] if prefixes.shape[1] > 1 else np.zeros_like(last)
        return np.stack(
            [logs[k // each][b, x] for k, (b, x) in enumerate(zip(before, last, strict=True))]
        )

    def score(row: int, sequence: tuple[int, ...], ends: bool) -> float:
        whole = (0, 0, *sequence, *([0] if ends else []))
        total = sum(logs[row][whole[k - 2], whole[k - 1], whole[k]] for k in range(2, len(whole)))
        return float(total / ((5 + len(whole) - 2) / 6) ** 0.6)

    found = beam.search(following, 2, end=0, most=most, beams=tokens**most)
    for row in range(2):
        ended = [s for n in range(most) for s in itertools.product((1, 2), repeat=n)]
        cut = list(itertools.product((1, 2), repeat=most))
        best = max(
            [(score(row, s, True), s) for s in ended] + [(score(row, s, False), s) for s in cut]
        )
        assert tuple(found[row]) == best[1]

    greedy = beam.search(following, 2, end=0, most=most, beams=1)
    for row in range(2):
        before, last = 0, 0
        for token in greedy[row]:
            assert token == np.argmax(logs[row][before, last])
            before, last = last, token
        if len(greedy[row]) < most:
            assert np.argmax(logs[row][before, last]) == 0
