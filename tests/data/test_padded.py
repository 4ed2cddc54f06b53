"""Padding and buckets: what is beside the data, how much of it, and what is refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrograde.compiler.errors import DataError
from retrograde.runtime.data.padded import Buckets, Padded


def pairs(sizes: list[tuple[int, int]]) -> list[dict[str, Any]]:
    """A source and a target of unequal length, and a label."""
    return [
        {
            "source": np.arange(1, s + 1) * 10 + k,
            "target": np.arange(1, t + 1) * 10 + k,
            "label": k,
        }
        for k, (s, t) in enumerate(sizes)
    ]


PAIRED = {"source": "source_lengths", "target": "target_lengths"}


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 20)), min_size=1, max_size=9))
def test_two_lengths_are_padded_apart(sizes: list[tuple[int, int]]) -> None:
    batches = Padded(pairs(sizes), len(sizes), lengths=PAIRED, pad={"target": -1}, shuffle=False)
    batch = next(batches)
    assert batch.keys() == {"source", "target", "label", *PAIRED.values()}
    for column, (name, filler) in enumerate((("source", 0), ("target", -1))):
        lengths = [size[column] for size in sizes]
        assert batch[name].shape == (len(sizes), max(1, *lengths, 1))
        assert batch[name].dtype == batch[f"{name}_lengths"].dtype == np.int32
        assert batch[f"{name}_lengths"].tolist() == lengths
        for k, (row, length) in enumerate(zip(batch[name], lengths, strict=True)):
            np.testing.assert_array_equal(row[:length], np.arange(1, length + 1) * 10 + k)
            assert (row[length:] == filler).all()
    assert batch["label"].tolist() == list(range(len(sizes)))


def test_lengths_are_rounded_up_or_fixed() -> None:
    rows = [np.arange(5), np.arange(8)]
    assert next(Padded(rows, 2, multiple=4))["tokens"].shape == (2, 8)
    assert next(Padded(rows, 2, length=11))["tokens"].shape == (2, 11)
    with pytest.raises(DataError, match="example 1 has 7 steps, more than the length 6"):
        Padded(rows, 2, length=6)


def test_rows_of_tokens_are_shifted() -> None:
    batch = next(Padded([[7, 8, 9], [1, 2]], 2, shuffle=False))
    assert batch["tokens"].tolist() == [[7, 8], [1, 0]]
    assert batch["targets"].tolist() == [[8, 9], [2, 0]]
    assert batch["lengths"].tolist() == [2, 1]


def test_frames_are_padded_with_anything_even_nan() -> None:
    frames = [{"x": np.ones((n, 2), np.float32), "y": np.ones(n, np.int64)} for n in (1, 3)]
    batch = next(Padded(frames, 2, pad=np.nan, shuffle=False))
    assert np.isnan(batch["x"][0, 1:]).all()
    assert not np.isnan(batch["x"][1]).any()
    assert batch["y"].tolist() == [[1, 0, 0], [1, 1, 1]]  # a type without NaN takes 0


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=50),
    st.integers(1, 6),
    st.integers(1, 9),
    st.sampled_from(["keep", "drop"]),
)
def test_buckets_hold_what_fits(lengths: list[int], batch: int, buckets: int, rest: Any) -> None:
    rows = [{"x": np.ones(n, np.int32)} for n in lengths]
    try:
        batches = Buckets(rows, batch, buckets=buckets, rest=rest, seed=3)
    except DataError as error:
        assert rest == "drop" and "no bucket fills a batch" in str(error)
        return
    assert len(batches.edges) <= buckets
    per_epoch = [next(batches) for _ in range(batches.batches_per_epoch)]
    bounds = [0, *batches.edges]
    for made in per_epoch:
        width = made["x"].shape[1]
        assert width in batches.edges
        assert len(made["lengths"]) <= batch
        assert rest == "keep" or len(made["lengths"]) == batch
        low = bounds[bounds.index(width) - 1]
        assert made["lengths"].min() > low  # else a smaller edge would have done
    if rest == "keep":
        padded = sum(made["x"].size for made in per_epoch)
        assert batches.efficiency == pytest.approx(sum(lengths) / padded)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=50), st.integers(60, 200))
def test_buckets_of_so_many_tokens(lengths: list[int], tokens: int) -> None:
    batches = Buckets([{"x": np.ones(n)} for n in lengths], tokens=tokens, buckets=4)
    sizes = [next(batches)["x"].shape for _ in range(batches.batches_per_epoch)]
    assert all(rows * width <= tokens for rows, width in sizes)
    for width in {width for _, width in sizes}:
        rows = sorted((r for r, w in sizes if w == width), reverse=True)
        assert all(r == tokens // width for r in rows[:-1])  # all but the last are full


@given(st.lists(st.integers(1, 12), min_size=1, max_size=20), st.integers(1, 4))
def test_no_other_edges_pad_less(lengths: list[int], buckets: int) -> None:
    batches = Buckets([{"x": np.ones(n)} for n in lengths], 1, buckets=buckets)
    assert len(batches.edges) <= buckets
    distinct = sorted(set(lengths))
    least = min(
        sum(min(edge for edge in (*edges, distinct[-1]) if edge >= n) for n in lengths)
        for k in range(min(buckets, len(distinct)))
        for edges in itertools.combinations(distinct[:-1], k)
    )
    assert batches.efficiency == pytest.approx(sum(lengths) / least)


def test_buckets_save_padding() -> None:
    rng = np.random.default_rng(0)
    rows = [{"x": np.ones(n)} for n in rng.geometric(0.03, 2000)]
    padded = Padded(rows, 16)
    buckets = Buckets(rows, 16, buckets=12)
    total = sum(len(row["x"]) for row in rows)
    plain = sum(next(padded)["x"].size for _ in range(padded.batches_per_epoch))
    assert total / plain < 0.4 < 0.8 < buckets.efficiency


RAGGED = [{"x": np.ones(3), "y": np.ones(4)}]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Padded([], 1), "no example"),
        (lambda: Padded(RAGGED, 1), "say which belong together"),
        (lambda: Padded([{"x": np.ones(3)}, {"y": np.ones(3)}], 1), r"example 1 has the fields"),
        (lambda: Padded([{"x": np.ones((3, 2))}, {"x": np.ones((3, 4))}], 1), "example 1 is"),
        (lambda: Padded([{"x": np.ones(3)}, {"x": np.ones(3, int)}], 1), "example 1 is int"),
        (lambda: Padded([{"x": np.ones(3)}], 1, lengths={"z": "n"}), "names a field 'z'"),
        (lambda: Padded([{"lengths": np.ones(3)}], 1), "have a field 'lengths' already"),
        (lambda: next(Padded([{"x": np.ones(3, int)}], 1, pad={"x": 0.5})), "padded with 0.5"),
        (lambda: Padded([[5]], 1), "a sequence of 1 tokens has none to predict"),
        (lambda: Padded([[0.5, 1.5]], 1), "integers on one axis"),
        (lambda: Padded([[1, 2**40]], 1), "does not fit 32 bits"),
        (lambda: Padded([[1, 2]], 1, multiple=0), "multiple must be"),
        (lambda: Buckets([[1, 2]], 1, tokens=5), "give batch or tokens"),
        (lambda: Buckets([[1, 2]]), "give batch or tokens"),
        (lambda: Buckets([[1, 2, 3]], 1, edges=[1]), "the last edge is 1"),
        (lambda: Buckets([[1, 2, 3]], 1, edges=[3, 3]), "must be positive and rise"),
        (lambda: Buckets([[1, 2, 3, 4]], tokens=2), "no room for one sequence of 3"),
        (lambda: Buckets([[1, 2, 3]], 2, rest="drop"), "no bucket fills a batch"),
    ],
)
def test_what_cannot_be(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        make()
