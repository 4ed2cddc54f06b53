"""The recurrent language model: names and shapes, its carry, lengths, ties, dropout, training."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import retrograde as rg
import retrograde.numpy as rnp
from retrograde import nn, tree
from retrograde.models import RNNLM

Array = npt.NDArray[Any]
SIZES: dict[str, Any] = {"vocab": 11, "width": 8, "layers": 2}
B, T = 3, 7
IDS = rg.spec("i32", "B", "T")
CELLS = {"lstm": 4, "gru": 3, "rnn": 1}


def loss(model: Any, tokens: Any, targets: Any) -> Any:
    return rg.losses.cross_entropy(model(tokens), targets)


def widened(model: RNNLM) -> RNNLM:
    rng = np.random.default_rng(8)
    out: RNNLM = tree.map(lambda x: x + 0.3 * rng.normal(size=x.shape), model)
    return out


@pytest.fixture
def tokens() -> Array:
    return np.random.default_rng(3).integers(0, 11, (B, T)).astype(np.int32)


@pytest.fixture
def targets() -> Array:
    return np.random.default_rng(4).integers(0, 11, (B, T)).astype(np.int32)


def step_of(model: Any, **options: Any) -> Any:
    return rg.compile_training(
        loss,
        model,
        rg.optim.AdamW(3e-2),
        batch={"tokens": IDS, "targets": IDS},
        at={"B": B, "T": T},
        clip_norm=1.0,
        **options,
    )


@pytest.mark.parametrize("cell", CELLS)
def test_arrays_have_the_documented_names_and_shapes(cell: str) -> None:
    gates = CELLS[cell]
    expected: dict[str, tuple[int, ...]] = {"embedding.weight": (11, 8), "head.weight": (8, 11)}
    for i in range(2):
        expected[f"rnn.forward.{i}.cell.weight_input"] = (8, 8 * gates)
        expected[f"rnn.forward.{i}.cell.weight_recurrent"] = (8, 8 * gates)
        expected[f"rnn.forward.{i}.cell.bias"] = (8 * gates,)
        if cell == "gru":
            expected[f"rnn.forward.{i}.cell.recurrent_bias"] = (8,)
    model = RNNLM(**SIZES, cell=cell)
    assert {k: v.shape for k, v in model.parameters().items()} == expected
    tied = RNNLM(**SIZES, cell=cell, tied=True)
    assert set(tied.parameters()) == expected.keys() - {"head.weight"}


def test_first_values_and_the_first_loss(tokens: Array, targets: Array) -> None:
    model = RNNLM(vocab=300, width=128, layers=1, seed=2)
    assert model.embedding.weight.std() == pytest.approx(0.1, rel=0.02)
    assert model.head is not None
    assert model.head.weight.std() == pytest.approx(1 / math.sqrt(128), rel=0.02)
    tied = RNNLM(vocab=300, width=128, layers=1, tied=True)
    assert tied.embedding.weight.std() == pytest.approx(1 / math.sqrt(128), rel=0.02)
    a, b, c = (RNNLM(**SIZES, seed=s).parameters() for s in (1, 1, 2))
    assert all(np.array_equal(a[name], b[name]) for name in a)
    assert not np.array_equal(a["head.weight"], c["head.weight"])
    first = RNNLM(**SIZES)
    assert first(tokens).shape == (B, T, 11) and first(tokens).dtype == np.float32
    assert float(loss(first, tokens, targets)) == pytest.approx(math.log(11), rel=0.02)


@pytest.mark.parametrize("cell", CELLS)
def test_it_is_embedding_layers_and_head(cell: str, tokens: Array) -> None:
    model = widened(RNNLM(**SIZES, cell=cell))
    assert model.head is not None
    hidden, _ = model.rnn(model.embedding.weight[tokens])
    np.testing.assert_allclose(model(tokens), hidden @ model.head.weight, rtol=1e-12)
    assert type(model.rnn) is {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[cell]


@pytest.mark.parametrize("cell", CELLS)
def test_logits_depend_on_the_past_alone(cell: str, tokens: Array) -> None:
    model = widened(RNNLM(**SIZES, cell=cell))
    logits = model(tokens)
    for t in range(T):
        changed = tokens.copy()
        changed[:, t] = (changed[:, t] + 1) % 11
        other = model(changed)
        np.testing.assert_array_equal(other[:, :t], logits[:, :t])
        assert np.all(np.abs(other[:, t:] - logits[:, t:]).max(-1) > 1e-9)


@pytest.mark.parametrize("cell", CELLS)
def test_a_text_in_pieces_is_the_whole(cell: str, tokens: Array) -> None:
    model = widened(RNNLM(**SIZES, cell=cell))
    whole = model(tokens)
    compiled = rg.compile(
        lambda m, ids, carry: m.advance(ids, carry), model, IDS,
        tree.map(lambda c: rg.spec("f64", "B", c.shape[-1]), model.initial(1)),
    )  # fmt: skip
    carry, at = model.initial(B), 0
    for count in (1, 4, 2):
        logits, carry = compiled(model, tokens[:, at : at + count], carry)
        np.testing.assert_allclose(logits, whole[:, at : at + count], rtol=1e-11, atol=1e-12)
        at += count
    np.testing.assert_allclose(model.advance(tokens, None)[0], whole, rtol=1e-12)


def test_tokens_beyond_the_lengths_may_be_anything(tokens: Array) -> None:
    model = widened(RNNLM(**SIZES))
    lengths = np.array([4, 7, 0])
    past = np.arange(T) >= lengths[:, None]

    def run(model: Any, tokens: Any) -> Any:
        logits, carry = model.advance(tokens, None, lengths)
        return rnp.sum(logits * logits), (logits, carry)

    compute = rg.value_and_grad(run, has_aux=True)
    (_, (logits, carry)), grads = expected = compute(model, tokens)
    noise = np.where(past, np.int32(-7), tokens)
    for noisy in (noise, np.where(past, np.int32(99), tokens)):
        found = compute(model, noisy)
        for a, b in zip(tree.leaves(found), tree.leaves(expected), strict=True):
            assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    assert not logits[past].any()
    np.testing.assert_allclose(logits[0, :4], model(tokens[:1, :4])[0], rtol=1e-12)
    alone = model.advance(tokens[:1, :4], None)[1]
    for a, b in zip(tree.leaves(carry), tree.leaves(alone), strict=True):
        np.testing.assert_allclose(a[0], b[0], rtol=1e-12)
    assert all(np.any(g) for g in tree.leaves(grads))
    with pytest.raises(rg.errors.DataError, match="-7"):
        model(noise)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("tied", [True, False])
def test_gradients_are_slopes(cell: str, tied: bool, tokens: Array, targets: Array) -> None:
    model = widened(RNNLM(**SIZES, cell=cell, tied=tied))
    gradient = rg.grad(loss)(model, tokens, targets)
    value = rg.jit(lambda *args: loss(*args).value)
    rng = np.random.default_rng(5)
    for _ in range(3):
        direction = tree.map(lambda x: rng.normal(size=x.shape), model)
        slope = sum(
            float(np.sum(g * d))
            for g, d in zip(tree.leaves(gradient), tree.leaves(direction), strict=True)
        )
        ahead, behind = (
            value(tree.map(lambda x, d, e=e: x + e * d, model, direction), tokens, targets)
            for e in (1e-5, -1e-5)
        )
        assert slope == pytest.approx((ahead - behind) / 2e-5, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("tied", [True, False])
def test_it_learns_what_comes_next(cell: str, tied: bool) -> None:
    # The next token is the sum of the last two: one token alone does not tell.
    rng = np.random.default_rng(0)
    model = RNNLM(vocab=5, width=24, layers=1, cell=cell, tied=tied)
    step = step_of(model)
    text = np.zeros((16, 13), np.int32)
    losses = []
    for _ in range(120):
        text[:, :2] = rng.integers(0, 5, (16, 2))
        for t in range(2, 13):
            text[:, t] = (text[:, t - 1] + text[:, t - 2]) % 5
        losses.append(step(tokens=text[:, :-1], targets=text[:, 1:])["loss"])
    # The first target cannot be known: log(5) of one token in twelve.
    assert losses[0] > 1.5 and np.mean(losses[-10:]) < 0.35


@pytest.mark.parametrize("variational", [True, False])
def test_dropout_is_at_work_in_training_alone(
    variational: bool, tokens: Array, targets: Array
) -> None:
    model = RNNLM(**SIZES, dropout=0.5, variational=variational)
    plain = RNNLM(**SIZES)
    assert np.array_equal(model(tokens), plain(tokens))
    batch = {"tokens": tokens, "targets": targets}
    found = step_of(model)(**batch)
    assert found == step_of(model)(**batch)
    assert found != step_of(plain)(**batch) and found != step_of(model, seed=1)(**batch)
    assert step_of(model.eval())(**batch) == step_of(plain)(**batch)


def test_what_does_not_fit_is_refused() -> None:
    model = RNNLM(**SIZES)
    for call, error, message in (
        (lambda: model(np.zeros(3, np.int32)), rg.errors.ShapeError, r"tokens \[B, T\]"),
        (lambda: model(np.zeros((2, 3))), rg.errors.DTypeError, "integer tokens"),
        (lambda: RNNLM(**SIZES, cell="grue"), rg.errors.UnsupportedError, "lstm, gru, rnn"),
        (lambda: RNNLM(vocab=0, width=3, layers=1), rg.errors.ShapeError, "vocab"),
        (lambda: RNNLM(vocab=3, width=3, layers=0), rg.errors.ShapeError, "layers"),
    ):
        with pytest.raises(error, match=message):
            call()
