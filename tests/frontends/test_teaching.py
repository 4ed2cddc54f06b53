"""Scheduled sampling: which tokens are the model's own, and that nothing is learnt through them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import retrograde as rg
import retrograde.numpy as rnp
from retrograde.errors import DataError, DTypeError, ShapeError

VOCAB, ROWS, LENGTH = 7, 5, 9
TOKENS = np.random.default_rng(1).integers(0, VOCAB, (ROWS, LENGTH)).astype(np.int32)


def model() -> Any:
    """A model of sharp logits, so that its own tokens differ from those given."""
    made = rg.models.RNNLM(vocab=VOCAB, width=8, layers=1, seed=4)
    return made.replace({name: x * 8 for name, x in made.parameters().items()})


def mixed(rate: Any, **options: Any) -> Any:
    fn = rg.jit(
        lambda m, tokens, key: rg.scheduled_sampling(m, tokens, rate, key=key, **options)
    )
    return fn(model(), TOKENS, np.asarray(rg.random.key(3)))


def greedily(rate_rows: Any) -> Any:
    """Token by token: where `rate_rows` is true, the model's own."""
    out = TOKENS.copy()
    for t in range(1, LENGTH):
        logits = np.asarray(model()(out))
        out[:, t] = np.where(rate_rows[:, t], logits[:, t - 1].argmax(-1), out[:, t])
    return out


def test_at_rate_0_the_tokens_are_those_given() -> None:
    np.testing.assert_array_equal(mixed(0.0), TOKENS)


def test_at_rate_1_in_enough_passes_the_model_runs_freely() -> None:
    found = mixed(1.0, temperature=0.0, passes=LENGTH - 1)
    np.testing.assert_array_equal(found, greedily(np.ones((ROWS, LENGTH), bool)))
    assert (found != TOKENS).mean() > 0.3


def test_some_tokens_are_the_models_own_by_those_before() -> None:
    found = mixed(0.5, temperature=0.0, passes=LENGTH - 1)
    own = np.asarray(
        rg.random.bernoulli(rg.random.fold_in(rg.random.key(3), 0), 0.5, (ROWS, LENGTH))
    )
    np.testing.assert_array_equal(found, greedily(own))
    assert own.mean() == pytest.approx(0.5, abs=0.2)


def test_one_pass_reads_the_given_tokens() -> None:
    said = np.asarray(model()(TOKENS)).argmax(-1)
    expected = np.concatenate([TOKENS[:, :1], said[:, :-1]], 1)
    np.testing.assert_array_equal(mixed(1.0, temperature=0.0), expected)


def test_draws_have_the_chances_of_the_logits() -> None:
    logits = np.log(np.asarray([0.1, 0.2, 0.3, 0.4], np.float32))
    tokens = np.zeros((4000, 2), np.int32)

    def flat(tokens: Any) -> Any:
        return rnp.broadcast_to(logits, (*tokens.shape, 4))

    key = np.asarray(rg.random.key(8))
    fn = rg.jit(lambda tokens, key: rg.scheduled_sampling(flat, tokens, 1.0, key=key))
    counts = np.bincount(np.asarray(fn(tokens, key))[:, 1], minlength=4) / 4000
    np.testing.assert_allclose(counts, [0.1, 0.2, 0.3, 0.4], atol=0.03)


def loss(m: Any, tokens: Any, rate: Any) -> Any:
    given = rg.scheduled_sampling(m, tokens, rate, passes=2)
    return rg.losses.cross_entropy(m(given)[:, :-1], tokens[:, 1:])


def test_nothing_is_learnt_through_a_sample() -> None:
    key = np.asarray(rg.random.key(3))

    def through(m: Any, tokens: Any, key: Any) -> Any:
        given = rg.scheduled_sampling(m, tokens, 0.7, key=key)
        return rg.losses.cross_entropy(m(given), tokens), given

    both = rg.jit(rg.value_and_grad(through, has_aux=True))
    (value, given), grads = both(model(), TOKENS, key)
    plain = rg.jit(rg.value_and_grad(lambda m, g, t: rg.losses.cross_entropy(m(g), t)))
    expected, expected_grads = plain(model(), np.asarray(given), TOKENS)
    assert value == expected
    for name, g in grads.parameters().items():
        np.testing.assert_array_equal(g, expected_grads.parameters()[name], err_msg=name)


def test_in_training_the_draws_follow_seed_step_and_row() -> None:
    specs = {"tokens": rg.spec("i32", "B", LENGTH), "rate": rg.spec("f32")}

    def losses(rate: float, seed: int = 0, **options: Any) -> list[float]:
        step = rg.compile_training(
            loss, model(), rg.optim.SGD(1e-2), specs, seed=seed, backend="numpy", **options
        )
        batch = {"tokens": np.tile(TOKENS, (2, 1)), "rate": np.asarray(rate, np.float32)}
        return [step(**batch)["loss"] for _ in range(3)]

    assert losses(0.5) == losses(0.5) != losses(0.5, seed=1)
    assert losses(0.0) != losses(0.5)
    np.testing.assert_allclose(losses(0.5), losses(0.5, accumulate=5), rtol=1e-5)


def test_what_it_does_not_take() -> None:
    key = rg.random.key(0)
    with pytest.raises(DataError, match=r"test_teaching\.py.*from 0 to 1"):
        rg.scheduled_sampling(model(), TOKENS, 1.5, key=key)
    with pytest.raises(DataError, match="give it a key"):
        rg.scheduled_sampling(model(), TOKENS, 0.5)
    with pytest.raises(DataError, match="at least 1"):
        rg.scheduled_sampling(model(), TOKENS, 0.5, key=key, passes=0)
    with pytest.raises(DataError, match="temperature is -1"):
        rg.scheduled_sampling(model(), TOKENS, 0.5, key=key, temperature=-1.0)
    with pytest.raises(ShapeError, match=r"integer tokens \[B, T\]"):
        rg.scheduled_sampling(model(), TOKENS[0], 0.5, key=key)
    with pytest.raises(DTypeError, match="draws from logits"):
        rg.scheduled_sampling(lambda t: t, TOKENS, 0.5, key=key)
