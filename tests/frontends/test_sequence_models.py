"""Classifiers, taggers, forecasters, trajectories, embeddings: sight, noise, slopes, training."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import retrograde as rg
from retrograde import models
from retrograde.models.pooling import last, masked_mean
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
V, W, B, T = 7, 8, 3, 6
LENGTHS = np.array([6, 2, 4])
BODIES: dict[str, dict[str, Any]] = {
    "attention": {"body": "attention", "heads": 2, "positions": "rotary", "mlp": "swiglu"},
    "lstm": {"body": "lstm", "layers": 2},
    "gru": {"body": "gru"},
    "rnn": {"body": "rnn"},
    "tcn": {"body": "tcn", "layers": 2, "size": 3},
    "ssm": {"body": "ssm", "bidirectional": False, "state": 3},
}


def drawn(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape)


def ids(*shape: int, seed: int = 0, most: int = V) -> Array:
    return np.random.default_rng(seed).integers(0, most, shape).astype(np.int32)


# --- taggers and language models


@pytest.mark.parametrize("name", ["attention", "lstm", "tcn", "ssm"])
def test_taggers_three_ways(name: str) -> None:
    sizes = [4, 2, 5, 1]
    rows, targets = [ids(n, seed=n) for n in sizes], [ids(n, seed=9 + n, most=3) for n in sizes]
    model = wide(models.Tagger(tags=3, width=W, vocab=V, **BODIES[name]))
    check_three_ways(model, rows, targets, token_loss)


@pytest.mark.parametrize("name", BODIES)
def test_taggers_see_what_they_say(name: str) -> None:
    for both in (True, False):
        if both and name == "ssm":
            continue
        options = {**BODIES[name], "bidirectional": both}
        model = wide(models.Tagger(tags=3, width=W, vocab=V, **options))
        found = seen(rg.jit(model), ids(2, T), lambda x: (x + 1) % V)
        assert np.array_equal(found, np.ones((T, T), bool) if both else np.tri(T, dtype=bool))


def test_language_models_look_back() -> None:
    ssm = models.SSMLM(vocab=V, width=W, layers=2, state=3, tied=True)
    tcn = models.TCN(vocab=V, width=W, layers=2, size=2)
    assert (ssm.vocab, tcn.body.reach) == (V, 7)
    for model, reach in ((ssm, 99), (tcn, 7)):
        x = ids(2, 9)
        found = seen(rg.jit(wide(model)), x, lambda x: (x + 1) % V)
        i, j = np.arange(9)[:, None], np.arange(9)
        assert np.array_equal(found, (j <= i) & (i - j < reach))
        assert model(x).shape == (2, 9, V)
        sizes = [4, 2, 6, 1]
        rows, targets = [ids(n, seed=n) for n in sizes], [ids(n, seed=9 + n) for n in sizes]
        check_three_ways(wide(model), rows, targets, token_loss)


# --- classifiers


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("pooling", ["mean", "last", "attention"])
def test_noise_changes_no_bit_of_a_classifier(name: str, pooling: str) -> None:
    model = models.Classifier(classes=3, width=W, inputs=4, pooling=pooling, **BODIES[name])
    x, y = drawn(B, T, 4).astype(np.float32), np.array([0, 2, 1])

    def loss(model: Any, x: Any, y: Any, lengths: Any) -> Any:
        return rg.losses.cross_entropy(model(x, lengths), y)

    run = rg.jit(rg.value_and_grad(loss, argnums=(0, 1)))
    plain = run(model, x, y, LENGTHS)
    assert same_bits(plain, run(model, beyond(LENGTHS, x, np.nan), y, LENGTHS))
    assert same_bits(plain, run(model, beyond(LENGTHS, x, -np.inf), y, LENGTHS))
    big = wide(model)
    rows = [big(x[i : i + 1, :n].astype(np.float64)) for i, n in enumerate(LENGTHS)]
    together = big(x.astype(np.float64), LENGTHS)
    np.testing.assert_allclose(together, np.concatenate(rows), atol=1e-12)


@pytest.mark.parametrize("pooling", ["last", "attention"])
def test_slopes_of_a_classifier(pooling: str) -> None:
    def loss(model: Any, x: Any, y: Any, lengths: Any) -> Any:
        return rg.losses.cross_entropy(model(x, lengths), y)

    model = wide(models.Classifier(classes=3, width=W, inputs=4, pooling=pooling))
    check_slopes(loss, model, drawn(B, T, 4), np.array([0, 2, 1]), LENGTHS)


def test_pooling_by_hand() -> None:
    x = drawn(B, T, 2)
    for b, n in enumerate(LENGTHS):
        np.testing.assert_allclose(masked_mean(x, LENGTHS)[b], x[b, :n].mean(0))
        np.testing.assert_allclose(last(x, LENGTHS)[b], x[b, n - 1])
    nothing = np.zeros(B, int)
    assert not masked_mean(x, nothing).any() and not last(x, nothing).any()


# --- embeddings


def test_patches_lie_side_by_side() -> None:
    layer = wide(models.PatchEmbedding(2, W, 3))
    x = drawn(B, T, 2)
    flat = np.array([[np.concatenate([*row[0:3]]), np.concatenate([*row[3:6]])] for row in x])
    expected = flat @ layer.projection.weight + layer.projection.bias
    np.testing.assert_allclose(layer(x), expected, atol=1e-12)
    assert layer.lengths_after(LENGTHS).tolist() == [2, 1, 2]
    compiled = rg.compile(lambda m, x: m(x), layer, rg.spec("f64", "B", "3*P", 2))
    np.testing.assert_allclose(compiled(layer, x), expected, atol=1e-12)
    noisy = layer(beyond(LENGTHS, x, np.nan), LENGTHS)
    assert np.array_equal(noisy, layer(beyond(LENGTHS, x, 0.0)))
    with pytest.raises(rg.errors.ShapeError, match="multiple of 3"):
        layer(x[:, :5])


def test_events_are_kinds_times_gaps_and_values() -> None:
    layer = wide(models.EventEmbedding(5, W, inputs=2, scale=10.0))
    kinds, times, values = ids(B, T, most=5), np.cumsum(abs(drawn(B, T)), 1) * 40, drawn(B, T, 2)
    t = times / 10
    gap = np.diff(t, axis=1, prepend=t[:, :1])
    angles = t[..., None] * 10000.0 ** (-2 * np.arange(W // 2) / W)
    waves = np.concatenate([np.sin(angles), np.cos(angles)], -1)
    expected = (
        np.sqrt(W) * layer.kinds.table.weight[kinds]
        + waves @ layer.waves.weight + layer.waves.bias
        + np.log1p(gap)[..., None] * layer.gap
        + values @ layer.values.weight + layer.values.bias
    )  # fmt: skip
    np.testing.assert_allclose(layer(kinds, times, values), expected, atol=1e-4)
    ids_ = np.array([[1, 1, 2, 2, 2, 2]] * B)
    apart = layer(kinds, times, values, segments=ids_)
    moved = np.abs(apart - layer(kinds, times, values)).max((0, 2)) > 0
    assert moved.tolist() == [False, False, True, False, False, False]
    noisy = [beyond(LENGTHS, x, n) for x, n in ((kinds, -9), (times, np.inf), (values, np.nan))]
    clean = [beyond(LENGTHS, x, 0) for x in (kinds, times, values)]
    got, plain = layer(*noisy, LENGTHS), layer(*clean, LENGTHS)
    assert np.array_equal(got, plain) and np.all(np.isfinite(got))


# --- forecasters


FORECASTERS: dict[str, dict[str, Any]] = {
    "attention": {"heads": 2},
    "rotary": {"heads": 2, "positions": "rotary", "targets": 2},
    "lstm": {"body": "lstm", "layers": 2},
    "gru": {"body": "gru", "quantiles": None},
}


def forecaster(name: str) -> models.Forecaster:
    return models.Forecaster(inputs=3, known=2, static=4, width=W, **FORECASTERS[name])


@pytest.mark.parametrize("name", FORECASTERS)
def test_a_forecaster_is_the_same_for_a_padded_past(name: str) -> None:
    model = forecaster(name)
    past, future, static = drawn(B, T, 3), drawn(B, 5, 2, seed=1), drawn(B, 4, seed=2)
    shape = {"rotary": (B, 5, 2, 3), "gru": (B, 5)}.get(name, (B, 5, 3))
    big = wide(model)
    together = big(past, future, static, LENGTHS)
    assert together.shape == shape
    for b, n in enumerate(LENGTHS):
        alone = big(past[b : b + 1, :n], future[b : b + 1], static[b : b + 1])
        np.testing.assert_allclose(together[b], alone[0], atol=1e-12)
    for given in ((past * 2, future, static), (past, future * 2, static), (past, future, -static)):
        assert not np.allclose(big(*given, LENGTHS), together)

    def loss(model: Any, past: Any, future: Any, static: Any, lengths: Any) -> Any:
        out = model(past, future, static, lengths)
        return rg.losses.mse(out, out * 0.5 + 1.0)

    run = rg.jit(rg.value_and_grad(loss, argnums=(0, 1)))
    small = [x.astype(np.float32) for x in (past, future, static)]
    plain = run(model, *small, LENGTHS)
    for noise in (np.nan, np.inf):
        noisy = beyond(LENGTHS, small[0], noise)
        assert same_bits(plain, run(model, noisy, *small[1:], LENGTHS))
    check_slopes(loss, big, past, future, static, LENGTHS, directions=1)


def test_a_forecaster_without_covariates() -> None:
    model = models.Forecaster(inputs=1, width=W, heads=2)
    out = model(drawn(2, 4, 1).astype(np.float32), np.zeros((2, 3, 0), np.float32))
    assert out.shape == (2, 3, 3) and len({x.tobytes() for x in out[0]}) == 3


def test_a_forecaster_learns_quantiles() -> None:
    def loss(model: Any, past: Any, future: Any, targets: Any) -> Any:
        return rg.losses.pinball(model(past, future), targets, (0.1, 0.5, 0.9))

    model = models.Forecaster(inputs=1, known=1, width=W, body="gru")
    batch = {k: drawn(8, n, 1, seed=n).astype(np.float32) for k, n in (("past", 6), ("future", 4))}
    specs = {"past": rg.spec("f32", "B", "T", 1), "future": rg.spec("f32", "B", "H", 1),
             "targets": rg.spec("f32", "B", "H")}  # fmt: skip
    step = rg.compile_training(loss, model, rg.optim.AdamW(1e-2), batch=specs)
    targets = batch["future"][..., 0] * 2
    losses = [float(step(**batch, targets=targets)["loss"]) for _ in range(20)]
    assert losses[-1] < 0.8 * losses[0]


# --- trajectories


@pytest.mark.parametrize("continuous", [False, True])
def test_an_action_sees_what_was_before_it(continuous: bool) -> None:
    model = wide(models.TrajectoryTransformer(
        states=3, actions=2, width=W, layers=1, heads=2, continuous=continuous, scale=10.0
    ))  # fmt: skip
    returns, states = drawn(2, T) * 10, drawn(2, T, 3, seed=1)
    actions = drawn(2, T, 2, seed=2) if continuous else ids(2, T, most=2)
    run = rg.jit(model)
    assert run(returns, states, actions).shape == (2, T, 2)
    other = (lambda x: x + 1) if continuous else (lambda x: 1 - x)
    past = np.tri(T, dtype=bool)
    assert np.array_equal(seen(lambda x: run(returns, x, actions), states, lambda x: x + 1), past)
    assert np.array_equal(seen(lambda x: run(x, states, actions), returns, lambda x: x + 9), past)
    before = np.tri(T, k=-1, dtype=bool)
    assert np.array_equal(seen(lambda x: run(returns, states, x), actions, other), before)
    # Padded, packed and alone.
    lengths, segments = np.array([4, 6]), np.array([[1, 1, 1, 2, 2, 2]] * 2)
    padded = run(returns, states, actions, lengths=lengths)
    packed = run(returns, states, actions, segments=segments)
    parts = [x[:, 3:] for x in (returns, states, actions)]
    np.testing.assert_allclose(packed[:, 3:], run(*parts), atol=1e-12)
    short = [x[:1, :4] for x in (returns, states, actions)]
    np.testing.assert_allclose(padded[:1, :4], run(*short), atol=1e-12)
    odd = np.nan if continuous else -7
    pairs = ((returns, np.nan), (states, np.inf), (actions, odd))
    noisy = run(*(beyond(lengths, x, noise) for x, noise in pairs), lengths=lengths)
    assert np.array_equal(noisy[:1, :4], padded[:1, :4]) and np.all(np.isfinite(noisy))


# --- training


PRECISIONS: list[dict[str, Any]] = [{"precision": "bf16"}, {"precision": "f16"}]


@pytest.mark.parametrize("options", PRECISIONS, ids=str)
@pytest.mark.parametrize("name", ["attention", "lstm", "tcn", "ssm"])
def test_taggers_train_in_half_precision(name: str, options: dict[str, Any]) -> None:
    def loss(model: Any, tokens: Any, targets: Any, segments: Any) -> Any:
        return rg.losses.cross_entropy(
            model(tokens, segments=segments), targets, rg.numpy.greater(segments, 0)
        )

    model = models.Tagger(tags=3, width=W, vocab=V, **BODIES[name])
    segments = np.array([[1, 1, 1, 2, 2, 0], [1] * 6], np.int32)
    batch = {"tokens": ids(2, T), "targets": ids(2, T, seed=1, most=3), "segments": segments}
    check_training(loss, model, batch, **options)


WRONG: dict[str, tuple[Any, Any, str]] = {
    "body": (
        lambda: models.Tagger(tags=3, width=4, vocab=3, body="x"),
        rg.errors.UnsupportedError,
        "attention, lstm",
    ),
    "option": (
        lambda: models.Tagger(tags=3, width=4, vocab=3, body="tcn", sise=3),
        rg.errors.UnsupportedError,
        "sise",
    ),
    "ssm": (
        lambda: models.Classifier(classes=3, width=4, vocab=3, body="ssm"),
        rg.errors.UnsupportedError,
        "bidirectional=False",
    ),
    "pooling": (
        lambda: models.Classifier(classes=3, width=4, vocab=3, pooling="x"),
        rg.errors.UnsupportedError,
        "mean, last",
    ),
    "static": (
        lambda: forecaster("gru")(drawn(2, 3, 3), drawn(2, 3, 2)),
        rg.errors.ShapeError,
        "static",
    ),
    "returns": (
        lambda: models.TrajectoryTransformer(states=1, actions=2, width=4, layers=1, heads=1)(
            drawn(2, 3), drawn(2, 4, 1), ids(2, 4)
        ),
        rg.errors.ShapeError,
        "the returns are",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_names_the_line(name: str) -> None:
    call, error, said = WRONG[name]
    with pytest.raises(error, match=said) as caught:
        call()
    assert __file__.rsplit("/", 1)[1] in str(caught.value)
