"""Random numbers: distributions by fixed seeds, rows that do not depend on how a batch is cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.stats

from retrograde import random
from retrograde.compiler.errors import DTypeError, ShapeError
from retrograde.compiler.ir import dims

N = 200_000
KEY = random.key(7)


def test_keys() -> None:
    assert random.key(0).dtype == np.uint32 and random.key(0).shape == (2,)
    np.testing.assert_array_equal(random.key((3 << 32) + 5), [5, 3])
    np.testing.assert_array_equal(random.key(-1), [0xFFFFFFFF, 0xFFFFFFFF])
    np.testing.assert_array_equal(random.key(np.int64(9)), random.key(9))
    with pytest.raises(DTypeError, match="a seed is an integer"):
        random.key(1.5)
    with pytest.raises(DTypeError, match="no key"):
        random.uniform(7, (3,))
    with pytest.raises(DTypeError, match=r"not u32\[2\]"):
        random.uniform(np.zeros(3, np.uint32), (3,))


def test_derived_keys_differ_and_repeat() -> None:
    keys = [
        KEY, *random.split(KEY, 5), random.fold_in(KEY, 0), random.fold_in(KEY, 1),
        random.fold_in(KEY, -1), random.fold_in(KEY, 1 << 40), random.fold_in(KEY, "layer.0"),
        random.fold_in(KEY, "layer.1"), random.fold_in(random.fold_in(KEY, 0), 1),
    ]  # fmt: skip
    assert len({tuple(k) for k in keys}) == len(keys)
    np.testing.assert_array_equal(random.split(KEY, 2), random.split(KEY, 9)[:2])
    np.testing.assert_array_equal(random.fold_in(KEY, "layer.0"), keys[10])
    streams = np.stack([random.bits(k, (64,)) for k in keys])
    assert len(np.unique(streams)) == streams.size


def test_bits_are_the_same_on_every_machine_and_day() -> None:
    # Philox4x32-10 of counter 0, key (7, 0): the first words that any implementation gives.
    np.testing.assert_array_equal(
        random.bits(KEY, (1, 4)), [np.array(PHILOX_FIRST_BLOCK, np.uint32)]
    )


def _philox(counter: list[int], key: list[int]) -> list[int]:
    """The generator once more, from the paper, on Python integers."""
    for _ in range(10):
        a, b = counter[0] * 0xD2511F53, counter[2] * 0xCD9E8D57
        counter = [
            (b >> 32) ^ counter[1] ^ key[0], b & 0xFFFFFFFF,
            (a >> 32) ^ counter[3] ^ key[1], a & 0xFFFFFFFF,
        ]  # fmt: skip
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return counter


PHILOX_FIRST_BLOCK = _philox([0, 0, 0, 0], [7, 0])


# --- distributions

DRAWS: dict[str, tuple[Callable[..., Any], Any]] = {
    "uniform": (lambda k, s, r=0: random.uniform(k, s, row=r), scipy.stats.uniform()),
    "uniform range": (
        lambda k, s, r=0: random.uniform(k, s, -2.0, 3.0, row=r),
        scipy.stats.uniform(-2, 5),
    ),
    "uniform f64": (
        lambda k, s, r=0: random.uniform(k, s, dtype="f64", row=r),
        scipy.stats.uniform(),
    ),
    "normal": (lambda k, s, r=0: random.normal(k, s, row=r), scipy.stats.norm()),
    "normal scaled": (
        lambda k, s, r=0: random.normal(k, s, 1.5, 0.25, row=r),
        scipy.stats.norm(1.5, 0.25),
    ),
    "normal f64": (lambda k, s, r=0: random.normal(k, s, dtype="f64", row=r), scipy.stats.norm()),
    "exponential": (lambda k, s, r=0: random.exponential(k, s, row=r), scipy.stats.expon()),
    "exponential f64": (
        lambda k, s, r=0: random.exponential(k, s, dtype="f64", row=r),
        scipy.stats.expon(),
    ),
    "gumbel": (lambda k, s, r=0: random.gumbel(k, s, row=r), scipy.stats.gumbel_r()),
    "gumbel f64": (
        lambda k, s, r=0: random.gumbel(k, s, dtype="f64", row=r),
        scipy.stats.gumbel_r(),
    ),
}


@pytest.mark.parametrize("name", DRAWS)
def test_distribution(name: str) -> None:
    draw, law = DRAWS[name]
    x = draw(random.fold_in(KEY, name), (N // 4, 4))
    assert x.dtype == (np.float64 if "f64" in name else np.float32)
    flat = x.reshape(-1).astype(np.float64)
    assert np.isfinite(flat).all()
    assert scipy.stats.kstest(flat, law.cdf).pvalue > 1e-3
    error = law.std() / np.sqrt(N)
    assert abs(flat.mean() - law.mean()) < 4 * error
    assert abs(flat.var() / law.var() - 1) < 0.02
    columns = x.astype(np.float64)
    off_diagonal = np.corrcoef(columns.T) - np.eye(4)
    assert np.abs(off_diagonal).max() < 4.5 / np.sqrt(N // 4)
    assert abs(np.corrcoef(flat[:-1], flat[1:])[0, 1]) < 4.5 / np.sqrt(N)


@pytest.mark.parametrize("dtype", ["f64", "f32", "f16", "bf16"])
def test_uniform_stays_below_one_and_uses_its_type(dtype: str) -> None:
    x = random.uniform(KEY, (N,), dtype=dtype).astype(np.float64)
    digits = {"f64": 53, "f32": 24, "f16": 11, "bf16": 8}[dtype]
    assert x.min() >= 0 and x.max() < 1
    np.testing.assert_array_equal(x * 2.0**digits % 1, 0)
    assert (x * 2.0 ** (digits - 1) % 1 != 0).mean() == pytest.approx(0.5, abs=0.01)


def test_normal_tails_and_small_types() -> None:
    x = random.normal(KEY, (N * 5,))
    assert 4.4 < np.abs(x).max() < 6.8
    half = random.normal(KEY, (1000,), dtype="bf16")
    assert half.dtype.name == "bfloat16"
    np.testing.assert_array_equal(half, random.normal(KEY, (1000,)).astype(half.dtype))


def test_bernoulli() -> None:
    for chance in (0.0, 0.3, 1.0):
        x = random.bernoulli(KEY, chance, (N,))
        assert x.dtype == np.bool_
        assert x.mean() == pytest.approx(chance, abs=4 * np.sqrt(chance * (1 - chance) / N))
    per_row = random.bernoulli(KEY, np.array([[0.1], [0.9]], np.float32), (2, N))
    np.testing.assert_allclose(per_row.mean(1), [0.1, 0.9], atol=0.01)
    assert random.bernoulli(KEY, np.full((3, 4), 0.5)).shape == (3, 4)


def test_categorical() -> None:
    p = np.array([0.1, 0.2, 0.0, 0.7])
    with np.errstate(divide="ignore"):
        logits = np.log(p).astype(np.float32)
    x = random.categorical(KEY, logits, shape=(N,))
    counts = np.bincount(x, minlength=4)
    assert x.dtype == np.int32 and counts[2] == 0
    expected = N * p[[0, 1, 3]]
    assert scipy.stats.chisquare(counts[[0, 1, 3]], expected).pvalue > 1e-3
    table = np.broadcast_to(logits[:, None], (5, 4, 3))
    assert random.categorical(KEY, table, axis=1).shape == (5, 3)
    assert random.categorical(KEY, logits).shape == ()
    only = np.full((N, 2), -np.inf, np.float32)
    only[:, 1] = 0.0
    assert (random.categorical(KEY, only) == 1).all()


def test_randint_and_permutation() -> None:
    x = random.randint(KEY, (N,), -3, 7)
    assert x.dtype == np.int32 and set(np.unique(x)) == set(range(-3, 7))
    assert scipy.stats.chisquare(np.bincount(x + 3)).pvalue > 1e-3
    assert random.randint(KEY, (9,), 0, 1 << 32, "i64").max() > 1 << 31
    with pytest.raises(ShapeError, match="randint"):
        random.randint(KEY, (3,), 5, 5)
    order = random.permutation(KEY, 100)
    assert sorted(order) == list(range(100)) and list(order) != list(range(100))
    table = np.arange(12).reshape(3, 4)
    shuffled = random.permutation(KEY, table, axis=1)
    np.testing.assert_array_equal(shuffled, table[:, random.permutation(KEY, 4)])
    keys = random.split(KEY, 1200)
    firsts = np.array([tuple(random.permutation(k, 3)) for k in keys])
    codes = firsts @ [9, 3, 1]
    assert scipy.stats.chisquare(np.unique(codes, return_counts=True)[1]).pvalue > 1e-3


# --- position


@pytest.mark.parametrize("name", DRAWS)
def test_rows_do_not_depend_on_the_cut(name: str) -> None:
    draw, _ = DRAWS[name]
    whole = draw(KEY, (12, 5, 3))
    for cut in (1, 5, 11):
        parts = [draw(KEY, (cut, 5, 3)), draw(KEY, (12 - cut, 5, 3), cut)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_rows_of_masks_and_classes_do_not_depend_on_the_cut() -> None:
    logits = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    whole = random.categorical(KEY, logits)
    np.testing.assert_array_equal(random.categorical(KEY, logits[4:], row=4), whole[4:])
    mask = random.bernoulli(KEY, 0.5, (6, 40))
    np.testing.assert_array_equal(random.bernoulli(KEY, 0.5, (2, 40), row=4), mask[4:])
    np.testing.assert_array_equal(random.randint(KEY, (2, 9), 0, 99, row=4),
                                  random.randint(KEY, (6, 9), 0, 99)[4:])  # fmt: skip


def test_scalars_and_zero_sizes() -> None:
    for draw, _ in DRAWS.values():
        assert draw(KEY, ()).shape == ()
        assert draw(KEY, (0, 3)).shape == (0, 3)
        assert draw(KEY, (3, 0)).shape == (3, 0)


@pytest.mark.parametrize("name", DRAWS)
def test_a_trace_draws_what_is_drawn_outside(run: Any, name: str) -> None:
    draw, _ = DRAWS[name]
    B, T = dims.dim("B"), dims.dim("T")
    x = np.zeros((4, 6), np.float32)

    def f(key: Any, x: Any, row: Any) -> Any:
        return [draw(key, x.shape), draw(key, x.shape, row), draw(random.split(key)[1], (3,))]

    ours = run(f, KEY, x, np.int32(2), shapes=[(2,), (B, T), ()])
    np.testing.assert_array_equal(ours[0], draw(KEY, (4, 6)))
    np.testing.assert_array_equal(ours[1], draw(KEY, (6, 6))[2:])
    np.testing.assert_array_equal(ours[2], draw(random.split(KEY)[1], (3,)))


def test_keys_in_a_trace(run: Any) -> None:
    def f(seed: Any, step: Any) -> Any:
        key = random.fold_in(random.key(seed), step)
        return [
            random.key(seed),
            key,
            random.split(key, 3),
            random.key(11),
            random.permutation(key, 9),
        ]

    ours = run(f, np.int64(-5), np.int32(3))
    key = random.fold_in(random.key(-5), 3)
    want = [random.key(-5), key, random.split(key, 3), random.key(11), random.permutation(key, 9)]
    for a, b in zip(ours, want, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype
