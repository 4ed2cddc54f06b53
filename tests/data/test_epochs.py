"""Batches of examples: each one once an epoch, and the same ones wherever a run is resumed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrograde.compiler.errors import CheckpointError, DataError
from retrograde.runtime.data.batches import EpochWindows
from retrograde.runtime.data.epochs import EpochBatches, Epochs, shuffled
from retrograde.runtime.data.packed import Packed
from retrograde.runtime.data.padded import Buckets, Padded

Make = Callable[[list[Any], int, int], EpochBatches[Any]]


def examples(lengths: list[int]) -> list[dict[str, Any]]:
    """One of each length, whose frames name the example and the step."""
    return [
        {
            "frames": np.stack([np.full(n, k, np.float32), np.arange(n, dtype=np.float32)], 1),
            "number": np.full(n, k + 1, np.int64),
        }
        for k, n in enumerate(lengths)
    ]


MAKES: dict[str, Make] = {
    "padded": lambda e, b, seed: Padded(e, b, seed=seed),
    "buckets": lambda e, b, seed: Buckets(e, b, buckets=3, seed=seed),
    "tokens": lambda e, b, seed: Buckets(e, tokens=40 * b, edges=[3, 7, 40], seed=seed),
    "packed": lambda e, b, seed: Packed(e, b, 40, seed=seed),
}
kinds = st.sampled_from(sorted(MAKES))
lengths_of_some = st.lists(st.integers(1, 40), min_size=1, max_size=30)


def frames_of(batch: dict[str, Any]) -> list[tuple[int, tuple[int, ...]]]:
    """(example, its steps) of every sequence in a batch, whatever kind of batch it is."""
    found = []
    for row in range(len(batch["number"])):
        if "lengths" in batch:
            pieces = [slice(0, int(batch["lengths"][row]))]
            assert not batch["number"][row, pieces[0].stop :].any()
        else:
            segments = batch["segments"][row]
            places = [np.flatnonzero(segments == s) for s in range(1, segments.max() + 1)]
            assert all((np.diff(place) == 1).all() for place in places)
            pieces = [slice(int(place[0]), int(place[-1]) + 1) for place in places]
        for piece in pieces:
            (number,) = set(batch["number"][row, piece].tolist())
            frames = batch["frames"][row, piece]
            assert (frames[:, 0] == number - 1).all()
            found.append((number - 1, tuple(frames[:, 1].astype(int).tolist())))
    return found


@given(kinds, lengths_of_some, st.integers(1, 7), st.integers(0, 2**64 - 1))
def test_every_example_is_whole_and_once_in_every_epoch(
    kind: str, lengths: list[int], batch: int, seed: int
) -> None:
    batches = MAKES[kind](examples(lengths), batch, seed)
    for epoch in range(3):
        assert batches.epoch == epoch
        found = [s for _ in range(batches.batches_per_epoch) for s in frames_of(next(batches))]
        assert sorted(found) == [(k, tuple(range(n))) for k, n in enumerate(lengths)]


@given(kinds, lengths_of_some, st.integers(1, 5), st.integers(0, 50), st.integers(0, 12))
def test_resuming_anywhere_gives_what_the_uninterrupted_run_saw(
    kind: str, lengths: list[int], batch: int, seed: int, position: int
) -> None:
    data = examples(lengths)
    whole = MAKES[kind](data, batch, seed)
    seen = [next(whole) for _ in range(position + 4)]
    first = MAKES[kind](data, batch, seed)
    for _ in range(position):
        next(first)
    resumed = MAKES[kind](data, batch, seed)
    resumed.restore(json.loads(json.dumps(first.state())))
    for number in range(position, position + 4):
        ahead = resumed.at(number)
        assert resumed.position == number
        taken = next(resumed)
        assert taken.keys() == seen[number].keys()
        for name, array in seen[number].items():
            np.testing.assert_array_equal(taken[name], array)
            np.testing.assert_array_equal(ahead[name], array)


@pytest.mark.parametrize("kind", sorted(MAKES))
def test_epochs_and_seeds_differ(kind: str) -> None:
    data = examples([5] * 40)

    def order(seed: int, epoch: int) -> list[Any]:
        batches = MAKES[kind](data, 2, seed)
        per_epoch = batches.batches_per_epoch
        return [frames_of(batches.at(epoch * per_epoch + k)) for k in range(per_epoch)]

    orders = [str(order(*pair)) for pair in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert len(set(orders)) == 4


@pytest.mark.parametrize("kind", sorted(MAKES))
def test_a_checkpoint_of_other_data_is_refused(kind: str) -> None:
    data = examples([3, 9, 4, 40])
    state = MAKES[kind](data, 2, 0).state()
    other = examples([3, 9, 4, 40])
    other[2]["frames"][1, 1] += 0.5
    for batches in (MAKES[kind](data, 3, 0), MAKES[kind](data, 2, 1), MAKES[kind](other, 2, 0)):
        with pytest.raises(CheckpointError, match="other data or batches"):
            batches.restore(state)
        assert batches.position == 0
    for wrong in (-1, True, "3", None):
        with pytest.raises(CheckpointError, match="no position"):
            MAKES[kind](data, 2, 0).restore({**state, "position": wrong})


@given(st.integers(1, 60), st.integers(1, 9), st.integers(0, 99), st.booleans())
def test_epochs_of_numbers(count: int, batch: int, seed: int, shuffle: bool) -> None:
    epochs = Epochs(count, batch, seed=seed, shuffle=shuffle)
    for _ in range(2):
        parts = [next(epochs) for _ in range(epochs.batches_per_epoch)]
        assert [part.size for part in parts[:-1]] == [batch] * (len(parts) - 1)
        numbers = np.concatenate(parts).tolist()
        assert sorted(numbers) == list(range(count))
        assert shuffle or numbers == list(range(count))
    if count >= batch:
        dropping = Epochs(count, batch, seed=seed, shuffle=shuffle, rest="drop")
        parts = [next(dropping) for _ in range(dropping.batches_per_epoch)]
        assert {part.size for part in parts} == {batch}
        assert max(Counter(np.concatenate(parts).tolist()).values()) == 1


def test_the_orders_never_change() -> None:
    """A checkpoint of today has to resume with any later NumPy: the orders are pinned."""
    assert shuffled(8, 42, 0).tolist() == ORDERS[0]
    assert shuffled(8, 42, 1).tolist() == ORDERS[1]
    assert shuffled(8, 2**64 - 1, 7, 2).tolist() == ORDERS[2]


ORDERS: list[list[int]] = [
    [0, 2, 6, 3, 5, 4, 7, 1],
    [4, 1, 0, 5, 2, 3, 6, 7],
    [0, 7, 2, 1, 5, 4, 6, 3],
]


def test_every_order_is_about_as_frequent() -> None:
    counts = Counter(tuple(shuffled(3, 5, epoch).tolist()) for epoch in range(3000))
    assert len(counts) == 6
    assert 420 < min(counts.values()) <= max(counts.values()) < 580  # 500 each, 20 the deviation


@given(
    st.integers(2, 200), st.integers(1, 5), st.integers(1, 30), st.integers(0, 9), st.integers(0, 9)
)
def test_windows_of_an_epoch_do_not_overlap(
    size: int, batch: int, length: int, seed: int, epoch: int
) -> None:
    if size < length + 1:
        with pytest.raises(DataError, match="too short"):
            EpochWindows(np.arange(size), batch, length)
        return
    windows = EpochWindows(np.arange(size), batch, length, seed)
    per_epoch = windows.batches_per_epoch
    parts = [windows.at(epoch * per_epoch + k) for k in range(per_epoch)]
    targets = np.concatenate([part["targets"].ravel() for part in parts])
    tokens = np.concatenate([part["tokens"].ravel() for part in parts])
    np.testing.assert_array_equal(targets, tokens + 1)
    assert len(set(targets.tolist())) == targets.size
    assert size - targets.size < max(2 * length, length + 2)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Epochs(0, 1), "at least 1"),
        (lambda: Epochs(3, 4, rest="drop"), "less than one batch"),
        (lambda: Epochs(3, 1, seed=-1), "seed"),
        (lambda: Epochs(3, 1, rest="some"), "'keep' or 'drop'"),  # type: ignore[arg-type]
        (lambda: Epochs(3, 1).at(-1), "no batch -1"),
    ],
)
def test_what_cannot_be(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        make()
