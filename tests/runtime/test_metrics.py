"""Metrics: whole lines whatever happened before, and speeds by an invented clock."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retrograde.compiler.errors import CheckpointError, DataError
from retrograde.runtime.training import metrics
from retrograde.runtime.training.metrics import Meter, MetricsWriter


def records(file: Path) -> list[dict[str, object]]:
    content = file.read_text()
    assert content == "" or content.endswith("\n")
    return [json.loads(line) for line in content.splitlines()]


def test_each_record_is_on_the_disk_at_once(tmp_path: Path) -> None:
    file = tmp_path / "runs" / "m.jsonl"
    with MetricsWriter(file) as writer:
        for step in range(3):
            writer.write({"step": step, "loss": 0.1 * step})
            assert len(records(file)) == step + 1
            assert writer.position == file.stat().st_size
    assert records(file)[2] == {"step": 2, "loss": 0.2}


def test_numbers_that_json_lacks(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path / "m") as writer:
        writer.write({"a": math.inf, "b": math.nan, "c": -math.inf})
    assert records(tmp_path / "m") == [{"a": "inf", "b": "nan", "c": "-inf"}]


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    before=st.integers(0, 6),
    after=st.integers(0, 6),
    cut=st.integers(0, 400),
    block=st.integers(1, 9),
)
def test_continue_after_a_crash(
    tmp_path: Path, before: int, after: int, cut: int, block: int
) -> None:
    """Records past the position go, and a file that lost its end keeps its whole lines."""
    file = tmp_path / "m.jsonl"
    with MetricsWriter(file) as writer:
        for step in range(before):
            writer.write({"step": step})
        position = writer.position
        for step in range(after):
            writer.write({"step": before + step, "later": True})
    content = file.read_bytes()[:cut]
    file.write_bytes(content)
    whole = content[:position].count(b"\n")
    saved, metrics._BLOCK = metrics._BLOCK, block
    try:
        with MetricsWriter(file, position) as writer:
            writer.write({"step": "new"})
    finally:
        metrics._BLOCK = saved
    assert records(file) == [*({"step": step} for step in range(whole)), {"step": "new"}]


def test_a_position_beyond_any_end_only_appends(tmp_path: Path) -> None:
    file = tmp_path / "m.jsonl"
    file.write_text('{"step": 1}\n{"step": 2}\n{"st')
    with MetricsWriter(file, sys.maxsize) as writer:
        writer.write({"step": 3})
    assert [record["step"] for record in records(file)] == [1, 2, 3]
    with MetricsWriter(tmp_path / "new.jsonl", 1000) as writer:
        writer.write({"step": 1})
    assert len(records(tmp_path / "new.jsonl")) == 1


@pytest.mark.parametrize(
    ("content", "position"), [('{"step": 1}\n', 5), ("my notes\n", 9), ("my notes\n", 0)]
)
def test_a_file_that_is_not_of_this_run_is_kept(
    tmp_path: Path, content: str, position: int
) -> None:
    file = tmp_path / "m.jsonl"
    file.write_text(content)
    with pytest.raises(CheckpointError, match=r"m\.jsonl: not the metrics.*Nothing was changed"):
        MetricsWriter(file, position)
    assert file.read_text() == content


def test_a_path_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path, tmp_path / "file" / "m.jsonl"):
        with pytest.raises(DataError, match="cannot be written"):
            MetricsWriter(path)


# --- speed


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_meter_before_the_first_step() -> None:
    meter = Meter(5, clock=Clock())
    assert meter.tokens_per_second == 0
    assert meter.steps_per_second == 0
    assert meter.seconds_left is None


def test_meter_counts_the_window_alone() -> None:
    clock = Clock()
    meter = Meter(100, window=10.0, clock=clock)
    for _ in range(20):
        clock.now += 2.0
        meter.step(30)
    assert meter.tokens_per_second == pytest.approx(15)
    assert meter.steps_per_second == pytest.approx(0.5)
    assert meter.seconds_left == pytest.approx(160)
    for _ in range(10):  # twice as fast: ten seconds later nothing of the past is left
        clock.now += 1.0
        meter.step(30)
    assert meter.tokens_per_second == pytest.approx(30)
    assert meter.seconds_left == pytest.approx(70)


def test_meter_with_steps_longer_than_the_window() -> None:
    clock = Clock()
    meter = Meter(3, window=1.0, clock=clock)
    for seconds, speed in [(5.0, 2.0), (20.0, 0.5)]:
        clock.now += seconds
        meter.step(10)
        assert meter.tokens_per_second == pytest.approx(speed)
    clock.now += 4
    meter.step(10)
    meter.step(10)  # one more than was announced
    assert meter.seconds_left == 0


def test_meter_leaves_out_pauses() -> None:
    clock = Clock()
    meter = Meter(10, clock=clock)
    for _ in range(3):
        clock.now += 1.0
        meter.step(8)
        clock.now += 0.5  # still stepping
        meter.pause()
        clock.now += 50.0
        meter.resume()
        clock.now += 0.5
    clock.now += 0.5
    meter.step(8)
    assert meter.tokens_per_second == pytest.approx(32 / (3 * 1.0 + 3 * 1.0 + 0.5))
