"""GPT's options, encoders and encoder-decoders: sight, slopes, packing, noise, training."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import retrograde as rg
from retrograde.models import GPT, Encoder, RNNSeq2Seq, Seq2Seq
from tests.frontends.sequence_checks import (
    beyond,
    check_slopes,
    check_three_ways,
    check_training,
    same_bits,
    seen,
    token_loss,
    wide,
)

Array = npt.NDArray[Any]
V, W = 11, 12
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "sinusoidal": {"positions": "sinusoidal"},
    "rotary": {"positions": "rotary", "heads": 3},
    "none": {"positions": "none", "tied": True},
    "post": {"norm": "post"},
    "modern": {"positions": "rotary", "mlp": "swiglu", "kv_heads": 1, "window": 3, "tied": True},
    "again": {"positions": "rotary", "norm": "post", "mlp": "swiglu", "kv_heads": 2, "remat": True},
}


def gpt(name: str, **more: Any) -> GPT:
    sizes: dict[str, Any] = {"vocab": V, "width": W, "layers": 2, "heads": 2, "context": 9}
    return GPT(**{**sizes, **OPTIONS[name], **more})


def ids(*shape: int, seed: int = 0, most: int = V) -> Array:
    return np.random.default_rng(seed).integers(0, most, shape).astype(np.int32)


# --- GPT


@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_gpt_look_back_alone(name: str) -> None:
    run = rg.jit(wide(gpt(name)))
    window = OPTIONS[name].get("window", 99)
    found = seen(run, ids(3, 8), lambda x: (x + 1) % V)
    far = 2 * (window - 1)  # of two layers
    assert np.array_equal(found, np.tri(8, dtype=bool) & ~np.tri(8, k=-far - 1, dtype=bool))


@pytest.mark.parametrize("name", ["plain", "sinusoidal", "modern", "again"])
def test_options_of_gpt_three_ways(name: str) -> None:
    sizes = [4, 2, 6, 1]
    rows = [ids(n, seed=n) for n in sizes]
    targets = [ids(n, seed=10 + n) for n in sizes]
    check_three_ways(wide(gpt(name)), rows, targets, token_loss)


@pytest.mark.parametrize("name", ["modern", "again", "sinusoidal"])
def test_slopes_of_gpt(name: str) -> None:
    data = ids(2, 5), ids(2, 5, seed=1), np.ones((2, 5), bool)
    check_slopes(token_loss, wide(gpt(name)), *data)


def test_arrays_of_options() -> None:
    shapes = {k: v.shape for k, v in gpt("modern").parameters().items()}
    assert "position_embedding.weight" not in shapes and "head.weight" not in shapes
    assert shapes["blocks.0.qkv.weight"] == (W, 2 * W)  # one head of keys and values of 6
    assert shapes["blocks.1.mlp_gate.weight"] == shapes["blocks.1.mlp_up.weight"] == (W, 32)
    assert "blocks.0.mlp_up.bias" not in shapes
    assert "final_norm.weight" not in gpt("post").parameters()


def test_tokens_beyond_a_length_may_be_any_number() -> None:
    model, lengths = gpt("modern"), np.array([5, 2])
    tokens, targets = ids(2, 6), ids(2, 6, seed=1)
    inside = np.arange(6) < lengths[:, None]
    run = rg.jit(rg.value_and_grad(token_loss))
    plain = run(model, tokens, targets, inside, lengths=lengths)
    other = run(model, beyond(lengths, tokens, -77), targets, inside, lengths=lengths)
    assert same_bits(plain, other)


def test_given_positions_are_taken() -> None:
    model = wide(gpt("plain"))
    tokens = ids(1, 4)
    later = model(tokens, positions=np.arange(4) + 3)
    assert not np.allclose(later, model(tokens))
    places = np.array([[0, 1, 2, 3], [3, 4, 5, 6]])
    both = model(np.concatenate([tokens, tokens], 0), positions=places)
    np.testing.assert_allclose(both[0], model(tokens)[0], atol=1e-12)
    np.testing.assert_allclose(both[1], later[0], atol=1e-12)


@pytest.mark.parametrize("options", [{"precision": "bf16"}, {"budget": True}])
def test_options_train(options: dict[str, Any]) -> None:
    def loss(model: Any, tokens: Any, targets: Any, segments: Any) -> Any:
        found = model(tokens, segments=segments)
        return rg.losses.cross_entropy(found, targets, rg.numpy.greater(segments, 0))

    segments = np.array([[1, 1, 1, 2, 2, 2, 2, 0], [1] * 8], np.int32)
    batch = {"tokens": ids(2, 8), "targets": ids(2, 8, seed=1), "segments": segments}
    if options.pop("budget", False):
        specs = {k: rg.spec("i32", "B", "T") for k in batch}
        at = {"B": 2, "T": 8}
        free = rg.compile_training(loss, gpt("modern"), rg.optim.AdamW(1e-3), batch=specs, at=at)
        options = {"budget": int(free.plan(**at).peak_bytes * 0.93), "at": at}
    check_training(loss, gpt("modern"), batch, **options)


def encoder(**more: Any) -> Encoder:
    return Encoder(width=4, layers=1, heads=1, vocab=3, **more)


WRONG: dict[str, tuple[Any, Any, str]] = {
    "positions": (lambda: encoder(positions="x"), rg.errors.UnsupportedError, "rotary"),
    "norm": (lambda: encoder(norm="x"), rg.errors.UnsupportedError, "pre, post"),
    "both": (lambda: Encoder(width=4, layers=1, heads=1), rg.errors.ShapeError, "vocab="),
    "context": (
        lambda: Encoder(width=4, layers=1, heads=1, vocab=3, positions="learned"),
        rg.errors.ShapeError,
        "context=",
    ),
    "frames": (
        lambda: Encoder(width=4, layers=1, heads=1, inputs=3)(np.ones((2, 5, 2), np.float32)),
        rg.errors.ShapeError,
        r"\.\.\., 3\]",
    ),
    "gpt": (lambda: gpt("plain", mlp="x"), rg.errors.UnsupportedError, "gelu, swiglu"),
    "tokens": (lambda: gpt("plain")(np.ones((2, 3))), rg.errors.DTypeError, "GPT takes integer"),
    "floats": (
        lambda: seq2seq("lstm", source_vocab=3)(ids(2, 3, most=3), np.ones((2, 3))),
        rg.errors.DTypeError,
        "integer tokens",
    ),
    "cell": (lambda: RNNSeq2Seq(vocab=3, width=4, cell="x"), rg.errors.UnsupportedError, "lstm"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_names_the_line(name: str) -> None:
    call, error, said = WRONG[name]
    with pytest.raises(error, match=said) as caught:
        call()
    assert __file__.rsplit("/", 1)[1] in str(caught.value)


# --- the encoder


ENCODERS: dict[str, dict[str, Any]] = {
    "sinusoidal": {},
    "learned": {"positions": "learned", "context": 9, "norm": "post"},
    "rotary": {"positions": "rotary", "mlp": "swiglu", "kv_heads": 1, "window": 2},
}


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_sees_all_of_its_row(name: str) -> None:
    model = wide(Encoder(width=W, layers=2, heads=2, vocab=V, **ENCODERS[name]))
    found = seen(rg.jit(model), ids(2, 6), lambda x: (x + 1) % V)
    i, j = np.arange(6)[:, None], np.arange(6)
    assert np.array_equal(found, abs(i - j) <= (2 if name == "rotary" else 9))


def test_an_encoder_three_ways() -> None:
    def loss(model: Any, x: Any, targets: Any, mask: Any, **given: Any) -> Any:
        return rg.losses.mse(model(x, **given), targets, mask)

    for name, options in ENCODERS.items():
        model = wide(Encoder(width=W, layers=1, heads=2, inputs=3, **options))
        rows = [np.random.default_rng(n).normal(size=(n, 3)) for n in (3, 5, 1, 4)]
        targets = [np.random.default_rng(9 + n).normal(size=(n, W)) for n in (3, 5, 1, 4)]
        check_three_ways(model, rows, targets, loss)
        assert name


# --- encoder and decoder


def seq2seq(kind: str, **more: Any) -> Any:
    if kind == "attention":
        return Seq2Seq(vocab=V, width=W, layers=2, heads=2, **more)
    return RNNSeq2Seq(vocab=V, width=W, cell=kind, layers=2 if kind == "gru" else 1, **more)


KINDS = ["attention", "lstm", "gru", "rnn"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_decoder_sees_the_source_and_its_past(kind: str) -> None:
    model = wide(seq2seq(kind, source_vocab=7, tied=kind == "gru"))
    source, tokens, lengths = ids(2, 5, most=7), ids(2, 6, seed=1), np.array([5, 3])
    run = rg.jit(model)
    assert run(source, tokens, lengths).shape == (2, 6, V)
    found = seen(lambda x: run(source, x, lengths), tokens, lambda x: (x + 1) % V)
    assert np.array_equal(found, np.tri(6, dtype=bool))
    for j in range(5):
        changed = source.copy()
        changed[:, j] = (changed[:, j] + 1) % 7
        moved = np.abs(run(changed, tokens, lengths) - run(source, tokens, lengths)).max((1, 2))
        assert np.array_equal(moved > 0, j < lengths)
    memory = model.encode(source, lengths)
    apart = model.decode(tokens, memory, lengths)
    np.testing.assert_allclose(apart, run(source, tokens, lengths), atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_noise_beyond_lengths_changes_no_bit(kind: str) -> None:
    model = seq2seq(kind, source_inputs=3)
    lengths, ends = np.array([5, 2, 4]), np.array([3, 6, 1])
    source = np.random.default_rng(2).normal(size=(3, 5, 3)).astype(np.float32)
    tokens = ids(3, 6)
    inside = np.arange(6) < ends[:, None]

    def loss(model: Any, source: Any, tokens: Any, lengths: Any, ends: Any, mask: Any) -> Any:
        logits = model(source, tokens, lengths, ends)
        return rg.losses.cross_entropy(logits, tokens, mask)

    run = rg.jit(rg.value_and_grad(loss, argnums=(0, 1)))
    plain = run(model, source, tokens, lengths, ends, inside)
    for noise in (np.nan, np.inf, -np.inf):
        given = beyond(lengths, source, noise), beyond(ends, tokens, -5)
        assert same_bits(plain, run(model, *given, lengths, ends, inside))


@pytest.mark.parametrize("kind", ["attention", "lstm"])
def test_slopes_of_decoders(kind: str) -> None:
    def loss(model: Any, source: Any, tokens: Any, lengths: Any) -> Any:
        return rg.losses.cross_entropy(model(source, tokens, lengths), tokens)

    model = wide(seq2seq(kind, source_vocab=7))
    check_slopes(loss, model, ids(2, 4, most=7), ids(2, 3, seed=1), np.array([4, 2]))
