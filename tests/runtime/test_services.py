"""What a run does beside training: the best checkpoint, early ends, curves, event files."""

from __future__ import annotations

import importlib.util
import os
import random
import signal
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retrograde.compiler.errors import DataError
from retrograde.runtime.training import checkpoint, curves
from retrograde.runtime.training.loop import Watch, train

PROGRAM = Path(__file__).with_name("quadratic.py")
_spec = importlib.util.spec_from_file_location("quadratic", PROGRAM)
assert _spec is not None and _spec.loader is not None
quadratic: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(quadratic)


class Scores:
    """A validation that gives numbers from a list, by the step that it is asked at."""

    def __init__(self, step: Any, values: list[float], every: int, name: str = "loss") -> None:
        self.step, self.values, self.every, self.name = step, values, every, name

    def __call__(self) -> dict[str, float]:
        at = -(-self.step.count // self.every) - 1
        return {self.name: self.values[min(at, len(self.values) - 1)], "other": float(at)}


def run(directory: Path, steps: int, values: list[float], **options: Any) -> Any:
    step = options.pop("step", None) or quadratic.QuadraticStep()
    name = options["watch"].metric if "watch" in options else "loss"
    defaults: dict[str, Any] = {
        "validate": Scores(step, values, 4, name), "validate_every": 4, "save_every": 3,
        "checkpoint": directory, "metrics_path": directory / "metrics.jsonl", "progress": False,
    }  # fmt: skip
    return step, train(step, quadratic.make_batches(), steps=steps, **{**defaults, **options})


def test_the_best_checkpoint_is_kept(tmp_path: Path) -> None:
    _, result = run(tmp_path / "run", 24, [5.0, 3.0, 4.0, 2.5, 2.75, 9.0], keep_best=True)
    assert (result.best, result.best_step) == (2.5, 16)
    tensors, meta = checkpoint.load(tmp_path / "run" / "best")
    assert meta["training"]["step"] == 16
    short, _ = run(tmp_path / "short", 16, [1.0])
    np.testing.assert_array_equal(tensors["table"], short.table)
    assert checkpoint.read_meta(tmp_path / "run")["training"]["step"] == 24


def test_nothing_is_kept_unless_asked(tmp_path: Path) -> None:
    _, result = run(tmp_path / "run", 8, [5.0, 3.0])
    assert (result.best, result.best_step) == (3.0, 8)
    assert not (tmp_path / "run" / "best").exists()


def test_a_run_ends_when_nothing_becomes_better(tmp_path: Path) -> None:
    values = [5.0, 3.0, 4.0, float("nan"), 3.0, 1.0]
    _, result = run(tmp_path / "run", 40, values, watch=Watch(patience=3))
    assert (result.stopped, result.step, result.best_step) == ("stale", 20, 8)
    assert result.message.startswith("No better validation for a while")
    _, again = run(tmp_path / "run", 40, values, watch=Watch(patience=3), resume=True)
    assert (again.stopped, again.step) == ("stale", 20)
    _, more = run(tmp_path / "run", 40, values, watch=Watch(patience=4), resume=True)
    assert more.step == 40 and more.best == 1.0


def test_the_highest_may_be_the_best(tmp_path: Path) -> None:
    watch = Watch("accuracy", highest=True, patience=2)
    _, result = run(tmp_path / "run", 40, [0.5, 0.75, 0.7, 0.6, 0.9], watch=watch)
    assert (result.best, result.best_step, result.step) == (0.75, 8, 16)


def test_a_metric_that_the_validation_lacks(tmp_path: Path) -> None:
    step = quadratic.QuadraticStep()
    with pytest.raises(DataError, match=r"gives loss and no 'f1', which is watched"):
        train(step, quadratic.make_batches(), steps=4, validate=lambda: {"loss": 1.0},
              validate_every=2, watch=Watch("f1"), progress=False)  # fmt: skip
    with pytest.raises(DataError, match="patience is -1"):
        Watch(patience=-1)


class Interrupted(quadratic.QuadraticStep):
    """Sends the process SIGINT in its step number `at`."""

    at = 0

    def __call__(self, **batch: Any) -> dict[str, float]:
        if self.count + 1 == self.at:
            os.kill(os.getpid(), signal.SIGINT)
        return super().__call__(**batch)


def test_a_run_in_pieces_judges_as_the_whole(tmp_path: Path) -> None:
    values = [5.0, 3.0, 4.0, 2.0, 6.0, 7.0, 1.0, 8.0, 9.0, 9.0, 9.0, 9.0]
    options: dict[str, Any] = {"watch": Watch(patience=3), "keep_best": True}
    _, whole = run(tmp_path / "whole", 60, values, **options)
    cuts = sorted(random.Random(7).sample(range(1, 40), 6))
    for k, cut in enumerate([*cuts, 0]):
        step = Interrupted()
        step.at = cut
        _, result = run(tmp_path / "cut", 60, values, resume=k > 0, step=step, **options)
        assert result.interrupted == (cut > 0)
    assert (result.step, result.best, result.best_step) == (whole.step, 1.0, 28)
    for folder in ("", "best"):
        one, _ = checkpoint.load(tmp_path / "whole" / folder)
        other, _ = checkpoint.load(tmp_path / "cut" / folder)
        np.testing.assert_array_equal(one["table"], other["table"])


# --- steps that change nothing


class Skipping(quadratic.QuadraticStep):
    """A step in mixed precision: some of its steps overflow."""

    def __init__(self, skips: Any) -> None:
        super().__init__()
        self.skips, self.called = skips, 0

    def __call__(self, **batch: Any) -> dict[str, float]:
        self.called += 1
        if self.skips(self.called):
            return {"loss": float("inf"), "skipped": 1.0}
        return {**super().__call__(**batch), "skipped": 0.0}


def test_a_skipped_step_is_no_divergence_and_too_many_are() -> None:
    from retrograde.runtime.training.loop import MOST_SKIPPED, DivergenceError

    step = Skipping(lambda n: n % 3 == 0)
    result = train(step, quadratic.make_batches(), steps=9, progress=False)
    assert result.step == 9 and step.count == 6
    with pytest.raises(DivergenceError):
        train(Skipping(lambda n: n > 4), quadratic.make_batches(), steps=99, progress=False)
    step = Skipping(lambda n: n <= MOST_SKIPPED)
    assert train(step, quadratic.make_batches(), steps=40, progress=False).step == 40


# --- curves


def test_curves_show_every_metric(tmp_path: Path) -> None:
    run(tmp_path / "run", 60, [5.0, 3.0, 4.0, 2.0], curves=True)
    text = (tmp_path / "run" / "curves.svg").read_text()
    ET.fromstring(text)
    for shown in ("loss", "grad_norm", "other", "validation", "training", "step"):
        assert f">{shown}</text>" in text, shown
    found = curves.read(tmp_path / "run" / "metrics.jsonl")
    assert len(found["loss"][1]) == 60
    assert found["validation_loss"][0] == [4 * k for k in range(1, 16)]
    assert curves.svg(found) == curves.svg(found)  # no date, no chance
    assert curves.svg(found) != curves.svg({"loss": found["loss"]})


def test_there_has_to_be_something_to_draw(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no metrics of a run"):
        curves.read(tmp_path / "missing.jsonl")
    (tmp_path / "empty.jsonl").write_text('{"step": 1, "loss": "nan"}\n')
    with pytest.raises(DataError, match="no numbers"):
        curves.read(tmp_path / "empty.jsonl")
    (tmp_path / "torn.jsonl").write_text('{"step": 1, "lo')
    with pytest.raises(DataError, match="no metrics of a run"):
        curves.read(tmp_path / "torn.jsonl")


# --- event files


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard would show: of records at one step, those behind a purge count."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.record_writer import RecordWriter  # noqa: F401  # its format is read here

    found: dict[str, list[tuple[int, float]]] = {}
    for file in sorted(folder.iterdir(), key=lambda f: f.name):
        data, at = file.read_bytes(), 0
        while at < len(data):
            size = int.from_bytes(data[at : at + 8], "little")
            event = Event.FromString(data[at + 12 : at + 12 + size])
            at += 16 + size
            if event.session_log.status == SessionLog.START and event.step:
                found = {k: [x for x in v if x[0] < event.step] for k, v in found.items()}
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def test_event_files_hold_the_metrics_of_a_resumed_run(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    values = [5.0, 3.0, 4.0, 2.0]
    run(tmp_path / "run", 9, values, events=tmp_path / "events")
    found = scalars(tmp_path / "events")
    assert [s for s, _ in found["loss/training"]] == list(range(1, 10))
    assert [s for s, _ in found["loss/validation"]] == [4, 8, 9]
    run(tmp_path / "run", 14, values, events=tmp_path / "events", resume=True)
    found = scalars(tmp_path / "events")
    assert [s for s, _ in found["loss/training"]] == list(range(1, 15))
    records = [r for r in quadratic.records(tmp_path / "run") if "loss" in r]
    np.testing.assert_allclose([x for _, x in found["loss/training"]],
                               [r["loss"] for r in records], rtol=1e-6)  # fmt: skip


def test_event_files_without_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorboardX", None)
    with pytest.raises(DataError, match=r"pip install 'retrograde\[tensorboard\]'"):
        run(tmp_path / "run", 2, [1.0], events=tmp_path / "events")
