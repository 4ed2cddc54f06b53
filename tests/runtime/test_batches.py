"""Batches: the k-th one depends on the seed and k alone; evaluation sees every window once."""

from __future__ import annotations

import hashlib
import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrograde.compiler.errors import CheckpointError, DataError
from retrograde.runtime.data.batches import Windows, evaluation_batches

TOKENS = np.random.default_rng(0).integers(0, 97, 1009).astype(np.int32)


def digest(windows: Windows, count: int) -> str:
    content = b"".join(
        batch["tokens"].tobytes() + batch["targets"].tobytes()
        for batch in itertools.islice(windows, count)
    )
    return hashlib.sha256(content).hexdigest()


def test_shape_dtype_and_shift() -> None:
    batch = next(Windows(TOKENS, 3, 7, seed=5))
    assert batch.keys() == {"tokens", "targets"}
    for array in batch.values():
        assert array.dtype == np.int32
        assert array.shape == (3, 7)
        assert array.flags.c_contiguous
        assert array.flags.owndata
    np.testing.assert_array_equal(batch["tokens"][:, 1:], batch["targets"][:, :-1])


@given(st.integers(1, 5), st.integers(1, 30), st.integers(0, 2**64 - 1), st.integers(0, 10**9))
def test_every_row_is_a_window_of_the_text(
    rows: int, length: int, seed: int, position: int
) -> None:
    tokens = np.arange(31, dtype=np.int32)  # each token is its own place
    batch = Windows(tokens, rows, length, seed).at(position)
    starts = batch["tokens"][:, :1]
    np.testing.assert_array_equal(batch["tokens"], starts + np.arange(length))
    np.testing.assert_array_equal(batch["targets"], batch["tokens"] + 1)


def test_every_start_is_drawn_about_as_often() -> None:
    windows = Windows(np.arange(20, dtype=np.int32), 500, 9, seed=3)
    starts = np.concatenate([next(windows)["tokens"][:, 0] for _ in range(44)])
    counts = np.bincount(starts)
    assert counts.size == 11  # the last window ends at the last token
    assert counts.min() > 1800  # 2000 each, 43 the deviation
    assert counts.max() < 2200


def test_batches_depend_on_seed_and_position_alone() -> None:
    windows = Windows(TOKENS, 4, 6, seed=1)
    firsts = [next(windows) for _ in range(5)]
    for position in (3, 0, 4):
        np.testing.assert_array_equal(
            Windows(TOKENS, 4, 6, seed=1).at(position)["tokens"], firsts[position]["tokens"]
        )
    assert windows.position == 5
    assert len({batch["tokens"].tobytes() for batch in firsts}) == 5
    assert digest(Windows(TOKENS, 4, 6, seed=1), 9) != digest(Windows(TOKENS, 4, 6, seed=2), 9)


def test_the_stream_never_changes() -> None:
    """A checkpoint of today has to resume with any later NumPy: the starts are pinned."""
    tokens = np.arange(1000, dtype=np.int32)
    windows = Windows(tokens, 3, 8, seed=42)
    assert next(windows)["tokens"][:, 0].tolist() == [942, 30, 803]
    assert next(windows)["tokens"][:, 0].tolist() == [969, 107, 66]


@given(st.integers(0, 12))
def test_resume_gives_the_same_batches(position: int) -> None:
    windows = Windows(TOKENS, 2, 5, seed=8)
    for _ in range(position):
        next(windows)
    state = json.loads(json.dumps(windows.state()))
    resumed = Windows(TOKENS.astype(np.int64), 2, 5, seed=8)
    resumed.restore(state)
    assert digest(resumed, 6) == digest(windows, 6)


def test_resume_with_other_data_is_refused() -> None:
    state = Windows(TOKENS, 2, 5, seed=8).state()
    changed = TOKENS.copy()
    changed[500] += 1
    for other, name in [
        (Windows(TOKENS, 3, 5, seed=8), "batch"),
        (Windows(TOKENS, 2, 6, seed=8), "length"),
        (Windows(TOKENS, 2, 5, seed=9), "seed"),
        (Windows(TOKENS[:-1], 2, 5, seed=8), "tokens"),
        (Windows(changed, 2, 5, seed=8), "crc32"),
    ]:
        next(other)
        with pytest.raises(CheckpointError, match=f"other data: its {name} is"):
            other.restore(state)
        assert other.position == 1
    for position in (-1, None, "3"):
        with pytest.raises(CheckpointError, match="no position"):
            Windows(TOKENS, 2, 5, seed=8).restore({**state, "position": position})


# --- evaluation


@given(st.integers(2, 80), st.integers(1, 4), st.integers(1, 9))
def test_evaluation_covers_in_order_without_overlap(size: int, rows: int, length: int) -> None:
    tokens = np.arange(size, dtype=np.int32)
    if size < length + 1:
        with pytest.raises(DataError):
            evaluation_batches(tokens, rows, length)
        return
    batches = list(evaluation_batches(tokens, rows, length))
    seen = np.concatenate([batch["tokens"].ravel() for batch in batches])
    targets = np.concatenate([batch["targets"].ravel() for batch in batches])
    np.testing.assert_array_equal(seen, np.arange((size - 1) // length * length))
    np.testing.assert_array_equal(targets, seen + 1)
    assert [len(batch["tokens"]) for batch in batches[:-1]] == [rows] * (len(batches) - 1)
    assert 1 <= len(batches[-1]["tokens"]) <= rows


def test_evaluation_limit_spreads_over_the_text() -> None:
    tokens = np.arange(1201, dtype=np.int32)
    batches = list(evaluation_batches(tokens, 5, 8, limit=4))
    assert [batch["tokens"].shape for batch in batches] == [(5, 8)] * 4
    starts = np.concatenate([batch["tokens"][:, 0] for batch in batches])
    assert (starts % 8 == 0).all()
    assert (np.diff(starts) >= 8).all()
    assert np.ptp(np.diff(starts)) <= 8
    assert starts[-1] > 1100
    # More than there is: all of it, once.
    assert sum(len(b["tokens"]) for b in evaluation_batches(tokens, 7, 8, limit=999)) == 150


# --- refusals


def test_bad_sizes_are_refused_at_once() -> None:
    for make in (Windows, evaluation_batches):
        with pytest.raises(DataError, match="at least 1, not 0 and 4"):
            make(TOKENS, 0, 4)
        with pytest.raises(DataError, match="at least 1, not 2 and -3"):
            make(TOKENS, 2, -3)
        with pytest.raises(DataError, match=r"too short.*1010 tokens, and there are 1009"):
            make(TOKENS, 2, 1009)
        with pytest.raises(DataError, match="integers on one axis"):
            make(TOKENS.reshape(1, -1), 2, 3)
        with pytest.raises(DataError, match="integers on one axis"):
            make(TOKENS.astype(np.float32), 2, 3)
        with pytest.raises(DataError, match="does not fit 32 bits"):
            make(np.array([1, 2, 2**31]), 1, 2)
    for seed in (-1, 2**64):
        with pytest.raises(DataError, match="seed must be"):
            Windows(TOKENS, 2, 3, seed=seed)
    with pytest.raises(DataError, match="evaluation batches must be at least 1"):
        evaluation_batches(TOKENS, 2, 3, limit=0)
    assert next(Windows(TOKENS, 1, 1008))["tokens"].shape == (1, 1008)
