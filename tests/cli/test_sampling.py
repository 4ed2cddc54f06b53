"""How the next token is chosen."""

from __future__ import annotations

import numpy as np
import pytest

from retrograde.cli import sampling
from retrograde.cli.sampling import Sampling
from retrograde.compiler.errors import DataError
from retrograde.models import GPT
from retrograde.runtime.data.text import Vocabulary

LOGITS = np.log(np.array([0.1, 0.4, 0.2, 0.05, 0.25], np.float32))


def test_temperature_sharpens_or_flattens() -> None:
    np.testing.assert_allclose(Sampling().probabilities(LOGITS), np.exp(LOGITS), rtol=1e-6)
    cold = Sampling(0.5).probabilities(LOGITS)
    expected = np.exp(2 * LOGITS) / np.exp(2 * LOGITS).sum()
    np.testing.assert_allclose(cold, expected, rtol=1e-6)
    assert Sampling(0.0).probabilities(LOGITS).tolist() == [0, 1, 0, 0, 0]
    tiny = Sampling(1e-30).probabilities(LOGITS)
    assert np.isfinite(tiny).all() and tiny[1] == 1


def test_top_k_keeps_the_likeliest() -> None:
    got = Sampling(top_k=2).probabilities(LOGITS)
    np.testing.assert_allclose(got, [0, 0.4 / 0.65, 0, 0, 0.25 / 0.65], rtol=1e-6)
    np.testing.assert_allclose(Sampling(top_k=9).probabilities(LOGITS), np.exp(LOGITS), rtol=1e-6)


@pytest.mark.parametrize(
    ("p", "kept"), [(0.39, [1]), (0.41, [1, 4]), (0.66, [1, 2, 4]), (1.0, [0, 1, 2, 3, 4])]
)
def test_top_p_keeps_the_fewest_that_reach_p(p: float, kept: list[int]) -> None:
    got = Sampling(top_p=p).probabilities(LOGITS)
    assert np.flatnonzero(got).tolist() == kept
    assert got.sum() == pytest.approx(1)
    np.testing.assert_allclose(got[kept], np.exp(LOGITS)[kept] / np.exp(LOGITS)[kept].sum(), 1e-6)


def test_no_number_is_an_error() -> None:
    with pytest.raises(DataError, match="no number"):
        Sampling().probabilities(np.array([np.nan, 1.0], np.float32))


@pytest.fixture
def model() -> GPT:
    return GPT(vocab=6, width=8, layers=1, heads=2, context=4, seed=3)


def test_draws_follow_the_probabilities() -> None:
    # With a context of one token the text is a Markov chain, whose transitions can be counted.
    model = GPT(vocab=4, width=8, layers=0, heads=2, context=1, seed=3)
    model = model.replace({"head.weight": 20 * model.head.weight})
    counts = np.zeros((4, 4))
    last = 1
    following = sampling.next_tokens(model, np.array([last]), Sampling(seed=5), never=(0,))
    for _ in range(2000):
        token = next(following)
        counts[last, token] += 1
        last = token
    assert not counts[:, 0].any()
    for token in (1, 2, 3):
        logits = model(np.array([[token]], np.int32))[0, 0].astype(np.float64)
        chances = np.exp(logits) * (np.arange(4) > 0)
        chances /= chances.sum()
        total = counts[token].sum()
        assert total > 100 and chances[1:].max() > 1.3 * chances[1:].min()
        spread = np.sqrt(total * chances * (1 - chances))
        assert np.all(np.abs(counts[token] - total * chances) <= 4 * spread)


def test_each_token_sees_the_last_of_the_context(model: GPT) -> None:
    greedy = Sampling(temperature=0)
    tokens = [1, 2]
    following = sampling.next_tokens(model, np.array(tokens), greedy)
    for _ in range(7):
        window = np.array([tokens[-4:]], np.int32)
        expected = int(np.argmax(model(window)[0, -1]))
        assert next(following) == expected
        tokens.append(expected)


def test_text_is_made_of_known_characters(model: GPT) -> None:
    vocabulary = Vocabulary("abcde")
    made = "".join(sampling.text(model, vocabulary, "", 50, Sampling()))
    assert len(made) == 50 and set(made) <= set("abcde")
