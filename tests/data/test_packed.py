"""Packing: the fields of a batch agree with each other, and the rows are few."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrograde.compiler.errors import DataError
from retrograde.runtime.data.packed import Packed, first_fit_decreasing

ALL = ("tokens", "targets", "segments", "positions", "mask", "resets")
some_lengths = st.lists(st.integers(1, 24), min_size=1, max_size=40)


def sequences(lengths: list[int]) -> list[npt.NDArray[np.int64]]:
    """Of n + 1 tokens each; token t of sequence k is 1000 k + t + 1."""
    return [1000 * k + 1 + np.arange(n + 1) for k, n in enumerate(lengths)]


@given(some_lengths, st.integers(1, 5), st.integers(24, 60), st.integers(0, 99))
def test_fields_agree(lengths: list[int], batch: int, length: int, seed: int) -> None:
    batches = Packed(sequences(lengths), batch, length, fields=ALL, pad=-7, seed=seed)
    counted = 0
    for _ in range(batches.batches_per_epoch):
        made = next(batches)
        assert made.keys() == set(ALL)
        assert all(array.shape == (len(made["mask"]), length) for array in made.values())
        tokens, targets, segments = made["tokens"], made["targets"], made["segments"]
        mask, positions, resets = made["mask"], made["positions"], made["resets"]
        assert [made[name].dtype for name in ALL[:4]] == [np.int32] * 4
        assert mask.dtype == resets.dtype == np.bool_
        np.testing.assert_array_equal(mask, segments > 0)
        # No target is that of another sequence than its token's: it is the token after it.
        np.testing.assert_array_equal(targets[mask], tokens[mask] + 1)
        # A position is where the token stands in its own sequence.
        np.testing.assert_array_equal(positions[mask], (tokens[mask] - 1) % 1000)
        np.testing.assert_array_equal(resets, (positions == 0) | ~mask)
        for field in (tokens, targets):
            assert (field[~mask] == -7).all()
        assert not positions[~mask].any()
        steps = np.diff(segments, axis=1)
        borders = steps != 0
        np.testing.assert_array_equal(borders, resets[:, 1:] & (mask[:, 1:] | mask[:, :-1]))
        assert (segments[:, 0] == 1).all()
        # Segments count up by one, then there is only padding.
        assert ((steps == 0) | (steps == 1) | (segments[:, 1:] == 0)).all()
        # A segment is one sequence, and a sequence one segment.
        owners = tokens[mask] // 1000
        rows = np.broadcast_to(np.arange(len(mask))[:, None], mask.shape)[mask]
        named = {*zip(rows.tolist(), segments[mask].tolist(), owners.tolist(), strict=True)}
        assert len(named) == len({(r, s) for r, s, _ in named}) == len({o for *_, o in named})
        counted += int(mask.sum())
    assert counted == sum(lengths)
    assert batches.efficiency == pytest.approx(sum(lengths) / (batches.rows * length))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(50, 90))
def test_first_fit_decreasing_is_what_its_name_says(sizes: list[int], capacity: int) -> None:
    falling = sorted(sizes, reverse=True)
    room: list[int] = []
    expected = []
    for size in falling:
        bin_ = next((b for b, left in enumerate(room) if left >= size), len(room))
        room[bin_:] = room[bin_:] or [capacity]
        room[bin_] -= size
        expected.append(bin_)
    assert first_fit_decreasing(np.array(falling), capacity).tolist() == expected


@given(st.lists(st.integers(1, 30), min_size=1, max_size=60), st.data())
def test_rows_are_at_most_eleven_ninths_of_the_fewest(cuts: list[int], data: Any) -> None:
    """Rows that were full before they were cut up tell how few there can be."""
    length, full = 30, data.draw(st.integers(1, 12))
    lengths: list[int] = []
    for _ in range(full):
        left = length
        for cut in data.draw(st.permutations(cuts)):
            taken = min(left, cut)
            if taken:
                lengths.append(taken)
            left -= taken
        if left:
            lengths.append(left)
    batches = Packed(sequences(lengths), 1, length)
    assert full <= batches.rows <= 11 / 9 * full + 6 / 9


def test_packing_a_hundred_thousand_is_quick() -> None:
    """Going through all bins for each would take 10^9 steps."""
    sizes = -np.sort(-np.random.default_rng(0).integers(1, 2000, 100_000))
    start = time.perf_counter()
    bins = first_fit_decreasing(sizes, 4096)
    assert time.perf_counter() - start < 20
    assert sizes.sum() / (4096 * (bins.max() + 1)) > 0.99
    assert np.bincount(bins, sizes).max() <= 4096


def test_own_fields_frames_and_masks() -> None:
    rng = np.random.default_rng(1)
    data = [
        {
            "frames": rng.normal(size=(n, 3)).astype("f4"),
            "tags": rng.integers(0, 9, n),
            "mask": rng.random(n) < 0.5,
        }
        for n in (4, 2, 5)
    ]
    batch = next(Packed(data, 9, 11, shuffle=False, pad={"tags": -1}))
    order = [2, 0, 1]  # the longest first
    assert batch.keys() == {"frames", "tags", "segments", "positions", "mask"}
    for name in ("frames", "tags", "mask"):
        np.testing.assert_array_equal(
            batch[name][0], np.concatenate([data[k][name] for k in order])
        )
    assert next(Packed(data, 1, 6, fields=["tags"]))["tags"].shape == (1, 6)


def test_examples_of_a_length_change_places() -> None:
    batches = Packed(sequences([5] * 30), 1, 10)
    neighbours = [
        {tuple(sorted(set((next(batches)["tokens"][0] // 1000).tolist()))) for _ in range(15)}
        for _ in range(2)
    ]
    assert neighbours[0] != neighbours[1]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Packed([[1, 2, 3, 4]], 1, 2), "example 0 has 3 steps, and a row takes 1 to 2"),
        (lambda: Packed([{"x": np.ones(0)}], 1, 2), "example 0 has 0 steps"),
        (lambda: Packed([{"x": np.ones(2), "label": 1}], 1, 2), "'label' has no time axis"),
        (lambda: Packed([{"segments": np.ones(2)}], 1, 2), "the packing makes 'segments'"),
        (lambda: Packed([[1, 2]], 1, 2, fields=["token"]), "there is no field 'token'"),
        (lambda: Packed([[1, 2]], 0, 2), "at least 1"),
        (lambda: Packed([[1, 2]], 2, 2, rest="drop"), "1 rows are less than one batch of 2"),
    ],
)
def test_what_cannot_be(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        make()
