"""Streams: every example once an epoch, little held at a time, and resumed from within."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrograde.compiler.errors import CheckpointError, DataError
from retrograde.runtime.data.streaming import Lines, Streaming


class Counted:
    """`count` examples, and how many were ever asked for."""

    def __init__(self, count: int) -> None:
        self.count, self.asked = count, 0

    def __call__(self, start: int) -> Iterator[dict[str, Any]]:
        for number in range(start, self.count):
            self.asked += 1
            yield {"x": np.full(1 + number % 4, number)}

    def describe(self) -> dict[str, Any]:
        return {"count": self.count}


def numbers(batch: dict[str, Any]) -> list[int]:
    found: list[int] = batch["x"][:, 0].tolist()
    return found


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 50), st.integers(0, 9), st.booleans())
def test_every_example_once_an_epoch(
    count: int, batch: int, buffer: int, seed: int, shuffle: bool
) -> None:
    stream = Streaming(Counted(count), batch, buffer=buffer, seed=seed, shuffle=shuffle, epochs=3)
    seen: dict[int, list[int]] = {1: [], 2: [], 3: []}
    for made in stream:
        seen[stream.epoch + (stream.state()["taken"] > 0)].extend(numbers(made))
        assert made["lengths"].tolist() == [1 + n % 4 for n in numbers(made)]
    for order in seen.values():
        assert sorted(order) == list(range(count))
        assert shuffle or order == list(range(count))
        for place, number in enumerate(order):
            assert place // buffer == number // buffer  # no further than its block


@given(st.integers(1, 30), st.integers(1, 7), st.integers(1, 12), st.integers(0, 20), st.booleans())
def test_resuming_anywhere(count: int, batch: int, buffer: int, position: int, drop: bool) -> None:
    settings: Any = {"buffer": buffer, "seed": 5, "rest": "drop" if drop else "keep"}
    if drop and count < batch:
        with pytest.raises(DataError, match="too few examples for a batch"):
            next(Streaming(Counted(count), batch, **settings))
        return
    whole = Streaming(Counted(count), batch, **settings)
    seen = [numbers(next(whole)) for _ in range(position + 5)]
    first = Streaming(Counted(count), batch, **settings)
    for _ in range(position):
        next(first)
    resumed = Streaming(Counted(count), batch, **settings)
    resumed.restore(json.loads(json.dumps(first.state())))
    for number in range(position, position + 5):
        assert numbers(resumed.at(number)) == seen[number]
        assert numbers(resumed.at(0)) == seen[0]
        assert numbers(next(resumed)) == seen[number]


def test_only_the_buffer_is_read_ahead_and_resuming_reads_no_more() -> None:
    source = Counted(10**9)
    stream = Streaming(source, 4, buffer=64)
    for _ in range(40):
        next(stream)
    assert source.asked <= 160 + 64
    state = stream.state()
    again = Counted(10**9)
    resumed = Streaming(again, 4, buffer=64)
    resumed.restore(state)
    assert numbers(next(resumed)) == numbers(next(stream))
    assert again.asked == 64


def test_other_sources_are_not_resumed_with() -> None:
    state = Streaming(Counted(9), 2).state()
    for other in (
        Streaming(Counted(8), 2),
        Streaming(Counted(9), 3),
        Streaming(Counted(9), 2, seed=1),
    ):
        with pytest.raises(CheckpointError, match="other data or batches"):
            other.restore(state)
    with pytest.raises(CheckpointError, match="no taken"):
        Streaming(Counted(9), 2).restore({**state, "taken": None})


def test_lines_of_a_file_from_anywhere(tmp_path: Path) -> None:
    lines = [f"line {k} \u00e9{'x' * (k % 17)}" for k in range(5000)]
    path = tmp_path / "text"
    path.write_text("\n\n".join(lines), encoding="utf-8")  # blank lines do not count
    source = Lines(path)
    assert list(source(0)) == lines
    for start in (0, 1, 1023, 1024, 1025, 4999, 5000, 6000):
        assert list(source(start)) == lines[start:]
        assert list(Lines(path)(start)) == lines[start:]
    stream = Streaming(
        Lines(path, lambda line: {"bytes": list(line.encode())}), 100, buffer=500, epochs=1
    )
    back = [
        bytes(row[:length].tolist()).decode()
        for batch in stream
        for row, length in zip(batch["bytes"], batch["lengths"], strict=True)
    ]
    assert sorted(back) == sorted(lines)
    assert back != lines


def test_what_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        Lines(tmp_path / "nowhere")
    (tmp_path / "latin").write_bytes(b"ok\n\xe9\n")
    with pytest.raises(DataError, match="not UTF-8 at byte 3"):
        list(Lines(tmp_path / "latin")(0))
    exhausted = iter([{"x": np.ones(1)}])
    once = Streaming(lambda start: exhausted, 1)
    next(once)
    with pytest.raises(DataError, match="must start anew at each call"):
        next(once)
    for wrong in ({"batch": 0}, {"batch": 1, "buffer": 0}, {"batch": 1, "epochs": 0}):
        with pytest.raises(DataError, match="at least 1"):
            Streaming(Counted(3), **wrong)
    with pytest.raises(DataError, match="no batch 9"):
        Streaming(Counted(3), 1, epochs=1).at(9)
