"""Text from models: cached steps beside whole texts, rows of a batch, options, streams."""

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
from retrograde.generation import Decoder, Sampling, Stream, generating

Array = npt.NDArray[Any]

PROMPTS = [np.array([1, 2, 3]), np.array([4]), np.array([5, 6, 7, 8, 9])]
GPT = {"vocab": 11, "width": 16, "layers": 2, "heads": 4, "context": 24, "seed": 2}
SOURCE = {
    "source": np.random.default_rng(3).integers(0, 7, (3, 5)).astype("i4"),
    "source_lengths": np.array([5, 2, 4], "i4"),
}


def sharp(model: Any) -> Any:
    """With logits that lie far apart."""
    arrays = model.parameters()
    return model.replace({k: 30 * v if k == "head.weight" else v for k, v in arrays.items()})


class Convolved(nn.Module):
    """A model that nobody has seen before: dilated convolutions, a running mean, attention by hand
    to what was before."""

    embedding: nn.Embedding
    head: nn.Linear

    def __init__(self) -> None:
        self.embedding = nn.Embedding(11, 8, seed=1)
        self.head = nn.Linear(8, 11, seed=2)

    def __call__(self, tokens: Any) -> Any:
        x = self.embedding(tokens)
        time = x.shape[1]
        for reach in (1, 2):
            padded = rnp.pad(x, ((0, 0), (2 * reach, 0), (0, 0)))
            x = x + rnp.tanh(padded[:, :time] - padded[:, reach : reach + time])
        x = x + rnp.cumsum(x, 1) / (1 + rnp.arange(time))[:, None]
        i = rnp.arange(time)
        scores = rnp.where(i[None, :] <= i[:, None], x @ rnp.swapaxes(x, 1, 2) / 3, -np.inf)
        return 3 * self.head(x + softmax(scores) @ x)


def softmax(scores: Any) -> Any:
    weights = rnp.exp(scores - rnp.max(scores, -1, keepdims=True))
    return weights / rnp.sum(weights, -1, keepdims=True)


FAMILIES: dict[str, tuple[Any, dict[str, Any]]] = {
    "learned": (lambda: models.GPT(**GPT), {}),
    "tied, recomputed": (lambda: models.GPT(**GPT, tied=True, remat=True), {}),
    "sinusoidal, post-norm": (lambda: models.GPT(**GPT, positions="sinusoidal", norm="post"), {}),
    "rotary, shared keys": (
        lambda: models.GPT(**GPT, positions="rotary", kv_heads=2, mlp="swiglu"), {}
    ),
    "rotary, window": (lambda: models.GPT(**GPT, positions="rotary", window=4), {}),
    "window, one key head": (lambda: models.GPT(**GPT, window=3, kv_heads=1), {}),
    "lstm": (lambda: models.RNNLM(vocab=11, width=16, layers=2, seed=1), {}),
    "gru": (lambda: models.RNNLM(vocab=11, width=16, layers=2, cell="gru", seed=1), {}),
    "rnn": (lambda: models.RNNLM(vocab=11, width=16, layers=1, cell="rnn", seed=1), {}),
    "convolutions": (lambda: models.TCN(vocab=11, width=16, layers=3, seed=1), {}),
    "state space": (lambda: models.SSMLM(vocab=11, width=16, layers=2, seed=1), {}),
    "encoder and decoder": (
        lambda: models.Seq2Seq(
            vocab=11, width=16, layers=1, heads=2, source_vocab=7, seed=2, positions="rotary"
        ),
        SOURCE,
    ),
    "recurrent encoder and decoder": (
        lambda: models.RNNSeq2Seq(vocab=11, width=16, layers=1, source_vocab=7, seed=2), SOURCE
    ),
    "copying": (lambda: models.CopyingSeq2Seq(vocab=11, width=16, seed=2), SOURCE),
    "never seen before": (Convolved, {}),
}  # fmt: skip


def same(a: list[Array], b: list[Array]) -> bool:
    return len(a) == len(b) and all(map(np.array_equal, a, b))


@pytest.mark.parametrize("name", FAMILIES)
def test_cached_tokens_are_those_of_whole_texts(name: str) -> None:
    make, context = FAMILIES[name]
    model = sharp(make())
    options: list[dict[str, Any]] = [{"seed": 4}, {"beams": 3, "stop": [2]}]
    for given in options:
        cached = rg.generate(model, PROMPTS, 12, **given, **context)
        whole = rg.generate(model, PROMPTS, 12, cached=False, **given, **context)
        assert same(cached, whole)
        if "seed" in given:
            assert len({tuple(x) for x in cached}) > 1


@pytest.mark.parametrize("backend", ["numpy", "native"])
@pytest.mark.parametrize("name", ["rotary, shared keys", "lstm", "encoder and decoder"])
def test_logits_are_those_of_the_whole_text(name: str, backend: str) -> None:
    make, context = FAMILIES[name]
    model = make()
    tokens = np.random.default_rng(0).integers(0, 11, (3, 15)).astype(np.int32)
    logits = []
    for cached in (True, False):
        decoder = Decoder(model, context, rows=3, backend=backend, cached=cached)
        with decoder.begin(model, 3, context) as session:
            pieces = (4, 1, 1, 5, 4) if cached else (15,)
            ends = list(itertools.accumulate(pieces))
            logits.append(np.concatenate(
                [session.feed(tokens[:, b - n : b]) for n, b in zip(pieces, ends, strict=True)], 1
            ))  # fmt: skip
    assert np.abs(logits[0] - logits[1]).max() <= 1e-5


def test_a_row_does_not_depend_on_the_others() -> None:
    model = sharp(models.GPT(**GPT))
    for given in ({"seed": 7}, {"seed": 7, "top_k": 4}, {"temperature": 0.0}, {"beams": 2}):
        together = rg.generate(model, PROMPTS, 9, **given)
        others = rg.generate(model, [PROMPTS[0], np.array([9, 9])], 9, **given)
        alone = rg.generate(model, PROMPTS[0], 9, **given)
        assert np.array_equal(together[0], alone) and np.array_equal(others[0], alone)


def test_rows_have_streams_of_their_own() -> None:
    model = models.GPT(**GPT)  # nearly even chances
    first, second = rg.generate(model, [PROMPTS[0], PROMPTS[0]], 20, seed=1)
    assert not np.array_equal(first, second)
    chances = np.log(np.full(16, 1 / 16))
    one, other = Stream(Sampling(seed=3), 0), Stream(Sampling(seed=3), 1)
    drawn = [[s.choose(chances) for _ in range(64)] for s in (one, other)]
    assert drawn[0] != drawn[1] and len(set(drawn[0])) > 8


def test_prompts_come_as_lists_or_arrays_with_lengths() -> None:
    model = sharp(models.GPT(**GPT))
    block = np.zeros((3, 5), np.int64)
    for row, prompt in zip(block, PROMPTS, strict=True):
        row[: len(prompt)] = prompt
    lengths = np.array([3, 1, 5])
    expected = rg.generate(model, PROMPTS, 6, seed=2)
    assert same(rg.generate(model, block, 6, lengths=lengths, seed=2), expected)
    assert same(rg.generate(model, [list(map(int, p)) for p in PROMPTS], 6, seed=2), expected)
    assert np.array_equal(rg.generate(model, [1, 2, 3], 6, seed=2), expected[0])


def test_a_text_longer_than_the_context_is_seen_through_a_window() -> None:
    model = sharp(models.GPT(vocab=11, width=16, layers=1, heads=2, context=6, seed=1))
    text = [1, 2]
    for token in rg.stream(model, text[:], 15, temperature=0):
        logits = np.asarray(model.eval()(np.array([text[-6:]], np.int32)))[0, -1]
        assert token == int(np.argmax(logits))
        text.append(token)
    kept = rg.generate(model, PROMPTS, 20, seed=3, keep=3)
    assert same(kept, rg.generate(model, PROMPTS, 20, seed=3, keep=3, cached=False))
    assert np.array_equal(kept[0], rg.generate(model, PROMPTS[0], 20, seed=3, keep=3))
    long = np.arange(1, 11)
    assert np.array_equal(
        rg.generate(model, long, 5, temperature=0), rg.generate(model, long[-6:], 5, temperature=0)
    )


def test_caches_grow_with_the_text() -> None:
    model = sharp(models.RNNLM(vocab=11, width=16, layers=1))
    free = sharp(models.GPT(**{**GPT, "context": 256}, positions="rotary"))
    for each in (model, free):
        cached, whole = (rg.generate(each, [1, 2], 70, seed=5, cached=c) for c in (True, False))
        assert np.array_equal(cached, whole)


def test_stop_tokens_end_a_row_and_are_left_out() -> None:
    model = sharp(models.GPT(**GPT))
    free = rg.generate(model, PROMPTS, 12, seed=4)
    stop = int(free[0][5])
    stopped = rg.generate(model, PROMPTS, 12, seed=4, stop=stop)
    for whole, got in zip(free, stopped, strict=True):
        ends = np.flatnonzero(whole == stop)
        assert np.array_equal(got, whole[: ends[0]] if ends.size else whole)
    assert len(stopped[0]) <= 5
    never = rg.generate(model, PROMPTS, 12, seed=4, never=[stop])
    assert not any((x == stop).any() for x in never)


def test_streams_tell_tokens_as_they_come() -> None:
    model = sharp(models.GPT(**GPT))
    whole = rg.generate(model, PROMPTS, 7, seed=9)
    assert list(rg.stream(model, PROMPTS[2], 7, seed=9)) == list(
        rg.generate(model, PROMPTS[2], 7, seed=9)
    )
    rows: list[list[int]] = [[], [], []]
    for told in rg.stream(model, PROMPTS, 7, seed=9):
        for row, token in zip(rows, told, strict=True):
            if token is not None:
                row.append(token)
    assert same([np.array(r) for r in rows], whole)
    endless = rg.stream(model, [1], seed=2)
    assert len(list(itertools.islice(endless, 40))) == 40
    endless.close()


def test_weights_are_read_at_every_call() -> None:
    generating._kept.clear()
    model = models.GPT(**GPT)
    for scale in (10.0, 50.0):
        other = model.replace({"head.weight": scale * model.head.weight[:, ::-1].copy()})
        got = rg.generate(other, [3, 1], 8, temperature=0)
        assert np.array_equal(got, rg.generate(other, [3, 1], 8, temperature=0, cached=False))
    assert len(generating._kept) == 2  # one with a cache, one without: nothing was compiled twice


def test_functions_and_what_they_go_by() -> None:
    table = np.random.default_rng(0).normal(size=(11, 11)).astype("f4")

    def chain(table: Any, tokens: Any, *, bias: Any) -> Any:
        return 9 * rnp.take(table, tokens, axis=0) + bias[:, None]

    bias = np.zeros((2, 11), np.float32)
    bias[1, 4] = 1e6
    first, second = rg.generate(table, [[1], [2, 3]], 4, call=chain, bias=bias, temperature=0)
    expected, last = [], 1
    for _ in range(4):
        last = int(np.argmax(table[last]))
        expected.append(last)
    assert first.tolist() == expected and second.tolist() == [4] * 4


def test_half_precision_takes_the_same_way() -> None:
    model = sharp(models.GPT(**GPT))
    got = rg.generate(model, PROMPTS, 6, temperature=0, precision="bf16")
    assert [len(x) for x in got] == [6, 6, 6]


def test_models_that_look_ahead_are_refused_with_their_line() -> None:
    class Mean(nn.Module):
        embedding: nn.Embedding

        def __init__(self) -> None:
            self.embedding = nn.Embedding(11, 11, seed=1)

        def __call__(self, tokens: Any) -> Any:
            x = self.embedding(tokens)
            return x + rnp.mean(x, axis=1, keepdims=True)

    with pytest.raises(UnsupportedError, match=r"test_generation.py:\d+.*later places"):
        rg.generate(Mean(), [1, 2], 3)
    assert len(rg.generate(Mean(), [1, 2], 3, cached=False)) == 3


@pytest.mark.parametrize(
    ("prompts", "options", "why"),
    [
        ([], {}, "no prompts|empty"),
        ([[1], []], {}, "prompt is empty"),
        ([[1.5]], {}, "whole numbers"),
        ([[1], [2]], {"lengths": [1]}, "1 lengths for 2"),
        ([[1], [2]], {"lengths": [1, 2]}, "do not fit"),
        ([1], {"temperature": -1.0}, "temperature"),
        ([1], {"top_k": 0}, "top-k"),
        ([1], {"beams": 0}, "beams"),
        ([1], {"keep": 24}, "keep"),
        ([11], {}, "out of range"),
    ],
)
def test_what_cannot_be_done_is_said(prompts: Any, options: dict[str, Any], why: str) -> None:
    with pytest.raises(DataError, match=why):
        rg.generate(models.GPT(**GPT), prompts, 3, **options)


def test_sessions_check_what_they_are_fed() -> None:
    model = models.GPT(**GPT)
    decoder = Decoder(model)
    with decoder.begin(model, 2) as session:
        with pytest.raises(ShapeError, match="2 rows"):
            session.feed(np.zeros((3, 1), np.int32))
        with pytest.raises(DataError, match="24 at most"):
            session.feed(np.zeros((2, 25), np.int32))
    with pytest.raises(DataError, match="closed"):
        session.feed(np.zeros((2, 1), np.int32))


def test_two_texts_at_a_time_do_not_meet() -> None:
    model = models.GPT(**GPT)
    decoder = Decoder(model)
    tokens = np.arange(8).reshape(2, 4).astype(np.int32)
    with decoder.begin(model, 1) as one, decoder.begin(model, 1) as other:
        for t in range(4):
            a, b = one.feed(tokens[:1, t : t + 1]), other.feed(tokens[1:, t : t + 1])
    with decoder.begin(model, 2) as both:
        expected = both.feed(tokens)[:, -1]
    np.testing.assert_allclose(np.concatenate([a, b])[:, -1], expected, atol=1e-6)
