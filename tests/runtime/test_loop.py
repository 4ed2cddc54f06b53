"""The training loop: resuming, stopping, refusing, showing."""

from __future__ import annotations

import importlib.util
import io
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retrograde.compiler.errors import CheckpointError, DataError, RetrogradeError
from retrograde.runtime.training import checkpoint, progress
from retrograde.runtime.training.loop import DivergenceError, TrainResult, train
from retrograde.runtime.training.progress import Status

PROGRAM = Path(__file__).with_name("quadratic.py")
_spec = importlib.util.spec_from_file_location("quadratic", PROGRAM)
assert _spec is not None and _spec.loader is not None
quadratic: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(quadratic)

STEPS = 40


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, TrainResult]:
    """The run that nothing interrupts."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    return (directory, *quadratic.run(directory, STEPS))


def assert_same_run(directory: Path, whole: Path) -> None:
    """Bit for bit: the checkpoint (state, data position, counters) and the metrics."""
    tensors, meta = checkpoint.load(directory)
    wanted_tensors, wanted_meta = checkpoint.load(whole)
    assert tensors.keys() == wanted_tensors.keys()
    for name in wanted_tensors:
        assert tensors[name].tobytes() == wanted_tensors[name].tobytes(), name
    for one in (meta, wanted_meta):
        del one["training"]["metrics_position"]  # the digits of a speed differ
    assert meta == wanted_meta
    assert quadratic.records(directory) == quadratic.records(whole)


def snapshot(directory: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in directory.iterdir() if f.name != ".lock"}


class Signalling(quadratic.QuadraticStep):
    """Sends the process a signal in the middle of some step."""

    def __init__(self, at: int, number: int = signal.SIGINT, times: int = 1) -> None:
        super().__init__()
        self.at, self.number, self.times = at, number, times

    def __call__(self, **batch: Any) -> dict[str, float]:
        if self.count + 1 == self.at:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)
        return super().__call__(**batch)


# --- a run as such


def test_a_run_learns_and_says_what_it_did(whole: tuple[Path, Any, TrainResult]) -> None:
    directory, step, result = whole
    assert (result.step, result.stopped, result.interrupted) == (STEPS, "steps", False)
    assert result.resumed_from is None
    assert result.checkpoint == directory
    assert result.tokens == STEPS * 3 * 7
    assert result.tokens_per_second > 0
    assert result.peak_bytes == step.peak_bytes
    assert result.message.startswith(f"Done after step {STEPS} of {STEPS}")
    found = quadratic.records(directory)
    losses = [record["loss"] for record in found if "loss" in record]
    assert len(losses) == STEPS
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    validations = {r["step"]: r["validation_loss"] for r in found if "validation_loss" in r}
    assert list(validations) == [7, 14, 21, 28, 35, 40]
    assert result.validation == {"loss": validations[40]}
    assert result.metrics["loss"] == losses[-1]
    assert found[9]["tokens"] == 9 * 21
    assert found[9]["peak_bytes"] == step.peak_bytes


def test_metadata_of_the_run_is_kept(tmp_path: Path) -> None:
    meta = {"vocabulary": {"characters": "abc"}, "width": 5}
    quadratic.run(tmp_path / "run", 2, meta=meta)
    stored = checkpoint.read_meta(tmp_path / "run")
    assert stored["run"] == meta
    assert stored["count"] == 2  # the step's own, where it put it
    assert stored["training"]["step"] == 2
    assert stored["training"]["data"]["position"] == 2
    quadratic.run(tmp_path / "run", 3, resume=True)
    assert checkpoint.read_meta(tmp_path / "run")["run"] == meta


def test_without_files_and_with_plain_batches() -> None:
    batches = iter([quadratic.make_batches().at(k) for k in range(4)])
    result = train(quadratic.QuadraticStep(), batches, steps=4, progress=False)
    assert (result.step, result.checkpoint, result.validation) == (4, None, {})


def test_a_run_of_no_steps(tmp_path: Path) -> None:
    _, result = quadratic.run(tmp_path / "run", 0)
    assert (result.step, result.metrics, result.stopped) == (0, {}, "steps")
    assert checkpoint.read_meta(tmp_path / "run")["training"]["step"] == 0


def test_time_limit(tmp_path: Path) -> None:
    _, result = quadratic.run(tmp_path / "run", 10**6, 0.01, time_limit=0.2)
    assert result.stopped == "time"
    assert 1 <= result.step <= 20
    assert checkpoint.read_meta(tmp_path / "run")["training"]["step"] == result.step
    assert result.validation  # there was time to stop, so there is time to validate
    assert "resume to continue" in result.message


def test_on_end_comes_when_all_is_saved(tmp_path: Path) -> None:
    seen: list[tuple[int, Any, Any]] = []

    def on_end(result: TrainResult) -> None:
        stored = checkpoint.read_meta(tmp_path / "run")["training"]["step"]
        seen.append((result.step, stored, signal.getsignal(signal.SIGINT)))

    before = signal.getsignal(signal.SIGINT)
    quadratic.run(tmp_path / "run", 5, on_end=on_end)
    assert seen == [(5, 5, before)]


# --- resuming


@pytest.mark.parametrize("cuts", [[1], [7], [12, 13, 39], list(range(5, STEPS, 5)), [STEPS]])
def test_resume_equals_uninterrupted(
    tmp_path: Path, whole: tuple[Path, Any, TrainResult], cuts: list[int]
) -> None:
    """Cut short by SIGINT during some steps, taken up in a new object each time."""
    directory = tmp_path / "run"
    for number, cut in enumerate(cuts):
        step = Signalling(cut, [signal.SIGINT, signal.SIGTERM][number % 2])

        def validate(step: Any = step) -> dict[str, float]:
            return {"loss": float(np.square(step.table - step.goal).mean())}

        result = train(
            step,
            quadratic.make_batches(),
            steps=STEPS,
            validate=validate,
            validate_every=7,
            checkpoint=directory,
            save_every=3,
            resume=number > 0,
            metrics_path=directory / "metrics.jsonl",
            progress=False,
        )
        assert result.step == cut
        assert result.interrupted == (cut < STEPS)
        if cuts == [7]:
            assert result.validation == {}  # due, but whoever interrupts does not want to wait
    _, result = quadratic.run(directory, STEPS, resume=True)
    assert (result.step, result.resumed_from) == (STEPS, cuts[-1])
    assert result.validation == whole[2].validation
    assert result.tokens == whole[2].tokens
    assert_same_run(directory, whole[0])


def test_resume_of_a_finished_run_changes_nothing(
    tmp_path: Path, whole: tuple[Path, Any, TrainResult]
) -> None:
    directory = tmp_path / "run"
    quadratic.run(directory, STEPS)
    before = snapshot(directory)
    _, result = quadratic.run(directory, STEPS, resume=True)
    assert result.step == STEPS
    assert snapshot(directory) == before
    assert quadratic.run(directory, 10, resume=True)[1].step == STEPS
    assert snapshot(directory) == before
    assert_same_run(directory, whole[0])


def test_steps_after_the_last_save_are_repeated(
    tmp_path: Path, whole: tuple[Path, Any, TrainResult]
) -> None:
    """A crash between two saves: their metrics go, and come again."""
    directory = tmp_path / "run"

    class Crash(Exception):
        pass

    class Crashing(quadratic.QuadraticStep):
        def __call__(self, **batch: Any) -> dict[str, float]:
            if self.count == 17:
                raise Crash
            return super().__call__(**batch)

    with pytest.raises(Crash):
        train(
            Crashing(),
            quadratic.make_batches(),
            steps=STEPS,
            checkpoint=directory,
            save_every=15,
            metrics_path=directory / "metrics.jsonl",
            progress=False,
        )
    assert checkpoint.read_meta(directory)["training"]["step"] == 15
    assert len(quadratic.records(directory)) == 17
    with (directory / "metrics.jsonl").open("a") as file:
        file.write('{"step": 18, "lo')
    step, result = quadratic.run(directory, STEPS, resume=True)
    assert result.resumed_from == 15
    assert step.table.tobytes() == whole[1].table.tobytes()
    steps = [record["step"] for record in quadratic.records(directory) if "loss" in record]
    assert steps == list(range(1, STEPS + 1))


def test_kill_at_random_moments(tmp_path: Path, whole: tuple[Path, Any, TrainResult]) -> None:
    """SIGKILL again and again until the run is through: every bit as if nothing had happened."""
    directory = tmp_path / "run"
    moments = random.Random(11)
    kills = 0
    progressed: set[int] = set()
    command = [sys.executable, str(PROGRAM), str(directory), str(STEPS), "0.01"]
    for attempt in range(40):
        resume = ["resume"] if checkpoint.exists(directory) else []
        with subprocess.Popen([*command, *resume], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            try:
                # Ever later, so that a slow machine gets through as well.
                process.wait(moments.uniform(0.02, 0.16 + 0.02 * attempt))
            except subprocess.TimeoutExpired:
                process.kill()
                kills += 1
        if process.wait() == 0:
            break
        assert process.returncode == -signal.SIGKILL
        if checkpoint.exists(directory):
            progressed.add(checkpoint.read_meta(directory)["training"]["step"])
    else:
        pytest.fail(f"the run was never through; it reached {sorted(progressed)}")
    assert kills >= 2
    assert any(0 < step < STEPS for step in progressed), "no kill fell into the training"
    assert_same_run(directory, whole[0])


# --- signals


def test_the_first_signal_saves_and_handlers_are_put_back(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    result = train(
        Signalling(5, signal.SIGTERM),
        quadratic.make_batches(),
        steps=STEPS,
        checkpoint=tmp_path / "run",
        save_every=100,
        progress=False,
    )
    assert (result.step, result.stopped, result.interrupted) == (5, "interrupted", True)
    assert checkpoint.read_meta(tmp_path / "run")["training"]["step"] == 5
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    error = capfd.readouterr().err
    assert "Finishing the current step and saving; once more to stop at once." in error
    assert f"Interrupted after step 5 of {STEPS}" in error
    assert f"Saved in {tmp_path / 'run'}; resume to continue." in error


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_the_second_signal_ends_at_once(
    tmp_path: Path, number: int, error: type[BaseException]
) -> None:
    before = signal.getsignal(number)
    step = Signalling(5, number, times=2)
    with pytest.raises(error):
        train(
            step,
            quadratic.make_batches(),
            steps=STEPS,
            checkpoint=tmp_path / "run",
            save_every=2,
            progress=False,
        )
    assert step.count == 4  # the fifth was not finished
    assert signal.getsignal(number) == before
    assert checkpoint.read_meta(tmp_path / "run")["training"]["step"] == 4
    assert quadratic.run(tmp_path / "run", 6, resume=True, metrics_path=None)[1].step == 6


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_from_outside(tmp_path: Path, number: int) -> None:
    directory = tmp_path / "run"

    def python_handles_it() -> None:
        # A test runner in the background of a shell hands down an ignored SIGINT.
        signal.signal(number, signal.SIG_DFL)

    with subprocess.Popen(
        [sys.executable, str(PROGRAM), str(directory), "100000", "0.002"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=python_handles_it,
    ) as process:
        wait_for(lambda: checkpoint.exists(directory) and saved_step(directory) > 0)
        process.send_signal(number)
        out, error = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "interrupted True" in out
    assert "Interrupted after step" in error
    assert saved_step(directory) == int(out.split()[2])


def test_a_second_sigint_during_a_long_step(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, str(PROGRAM), str(directory), "5", "600"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert [process.stdout.readline() for _ in range(2)] == [b"ready\n", b"stepping\n"]
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline() == b"\n"
        assert b"Finishing the current step" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert b"KeyboardInterrupt" in process.stderr.read()
        assert process.wait(timeout=30) != 0
    assert saved_step(directory) == 0


def test_in_another_thread_signals_are_left_alone(tmp_path: Path) -> None:
    results: list[TrainResult] = []
    thread = threading.Thread(target=lambda: results.append(quadratic.run(tmp_path / "run", 4)[1]))
    thread.start()
    thread.join()
    assert results[0].step == 4


def test_an_ignored_signal_stays_ignored(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        result = train(Signalling(2), quadratic.make_batches(), steps=4, progress=False)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert (result.step, result.interrupted) == (4, False)


def saved_step(directory: Path) -> int:
    return int(checkpoint.read_meta(directory)["training"]["step"])


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


# --- divergence


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number(tmp_path: Path, bad: float) -> None:
    directory = tmp_path / "run"

    class Diverging(quadratic.QuadraticStep):
        def __call__(self, **batch: Any) -> dict[str, float]:
            metrics: dict[str, float] = super().__call__(**batch)
            if self.count == 9:
                self.table[...] = np.nan
                metrics["loss"] = bad
            return metrics

    with pytest.raises(DivergenceError, match=rf"step 9: .*loss is {bad}") as caught:
        train(
            Diverging(),
            quadratic.make_batches(),
            steps=STEPS,
            checkpoint=directory,
            save_every=3,
            metrics_path=directory / "metrics.jsonl",
            progress=False,
        )
    assert caught.value.step == 9
    assert isinstance(caught.value, RetrogradeError)
    assert "Lower the learning rate" in str(caught.value)
    assert f"{directory} still holds step 6" in str(caught.value)
    assert "step.first_nonfinite(**batch) names the line" in str(caught.value)
    assert saved_step(directory) == 6
    assert np.isfinite(checkpoint.load(directory)[0]["table"]).all()
    assert quadratic.records(directory)[-1]["loss"] == str(bad)
    # And the last good state goes on.
    assert quadratic.run(directory, 12, resume=True)[1].step == 12


def test_a_real_divergence_is_caught() -> None:
    with pytest.raises(DivergenceError, match="Lower the learning rate"), np.errstate(all="ignore"):
        train(
            quadratic.QuadraticStep(rate=1e4), quadratic.make_batches(), steps=500, progress=False
        )


def test_an_update_that_is_no_number_is_not_saved(tmp_path: Path) -> None:
    """The loss of step 6 is fine, the parameters after it are not."""

    class Poisoned(quadratic.QuadraticStep):
        def __call__(self, **batch: Any) -> dict[str, float]:
            metrics: dict[str, float] = super().__call__(**batch)
            if self.count == 6:
                self.momentum[2, 3] = np.nan
            return metrics

    with pytest.raises(
        DivergenceError, match=r"step 6: .*'momentum' holds NaN.*still holds step 3"
    ):
        train(
            Poisoned(),
            quadratic.make_batches(),
            steps=STEPS,
            checkpoint=tmp_path / "run",
            save_every=3,
            progress=False,
        )
    assert saved_step(tmp_path / "run") == 3


def test_nan_that_was_there_from_the_start_is_no_divergence(tmp_path: Path) -> None:
    class Marked(quadratic.QuadraticStep):
        def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
            tensors, meta = super().state()
            return {**tensors, "unset": np.full(2, np.nan)}, meta

        def set_state(self, tensors: dict[str, Any], meta: dict[str, Any]) -> None:
            tensors.pop("unset")
            super().set_state(tensors, meta)

    for resume in (False, True):
        result = train(
            Marked(),
            quadratic.make_batches(),
            steps=3 + resume,
            checkpoint=tmp_path / "run",
            resume=resume,
            progress=False,
        )
    assert result.step == 4


# --- refusals


def test_an_earlier_run_is_not_overwritten(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    quadratic.run(directory, 4)
    before = snapshot(directory)
    with pytest.raises(CheckpointError, match=r"run: holds the checkpoint of an earlier run"):
        quadratic.run(directory, 9)
    with pytest.raises(DataError, match=r"metrics\.jsonl: holds the metrics of an earlier run"):
        quadratic.run(directory, 9, checkpoint=tmp_path / "other")
    assert snapshot(directory) == before
    quadratic.run(directory, 2, overwrite=True)
    assert saved_step(directory) == 2
    assert [record["step"] for record in quadratic.records(directory)] == [1, 2, 2]


def test_what_cannot_be_resumed(tmp_path: Path, whole: tuple[Path, Any, TrainResult]) -> None:
    before = snapshot(whole[0])
    with pytest.raises(CheckpointError, match="name the path"):
        train(quadratic.QuadraticStep(), quadratic.make_batches(), steps=3, resume=True)
    with pytest.raises(CheckpointError, match="there is none"):
        quadratic.run(tmp_path / "none", 3, resume=True)
    assert not (tmp_path / "none").exists()
    with pytest.raises(CheckpointError, match="other data: its seed is 4, here it is 5"):
        train(
            quadratic.QuadraticStep(),
            quadratic.make_batches(seed=5),
            steps=99,
            checkpoint=whole[0],
            resume=True,
        )
    checkpoint.save(tmp_path / "alone", {"table": np.ones(2)}, {"count": 3})
    with pytest.raises(CheckpointError, match="not one of a training run"):
        quadratic.run(tmp_path / "alone", 3, resume=True)
    assert snapshot(whole[0]) == before


def test_another_model_is_refused_and_untouched(tmp_path: Path) -> None:
    class Other(quadratic.QuadraticStep):
        def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
            return {"weights": np.ones(3)}, {}

    directory = tmp_path / "run"
    train(Other(), quadratic.make_batches(), steps=2, checkpoint=directory, progress=False)
    before = snapshot(directory)
    with pytest.raises(CheckpointError, match="another model"):
        quadratic.run(directory, 9, resume=True)
    assert snapshot(directory) == before


def test_arguments_that_make_no_sense(tmp_path: Path) -> None:
    step, batches = quadratic.QuadraticStep(), quadratic.make_batches()
    for options in ({"steps": -1}, {"steps": 3, "save_every": -2}):
        with pytest.raises(DataError, match="must not be negative"):
            train(step, batches, **options)
    with pytest.raises(DataError, match="time limit must be positive"):
        train(step, batches, steps=3, time_limit=0.0)
    with pytest.raises(DataError, match=r"list_iterator cannot say where it is.*restore"):
        train(step, iter([batches.at(0)]), steps=1, checkpoint=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert step.count == 0


def test_batches_that_end_too_early(tmp_path: Path) -> None:
    class Few(quadratic.Windows):
        def __next__(self) -> Any:
            if self.position == 4:
                raise StopIteration
            return super().__next__()

    batches = Few(np.arange(99) % 11, 3, 7)
    with pytest.raises(DataError, match="ended after step 4 of 9"):
        train(
            quadratic.QuadraticStep(),
            batches,
            steps=9,
            checkpoint=tmp_path / "run",
            progress=False,
        )
    assert saved_step(tmp_path / "run") == 4


def test_a_step_without_a_loss() -> None:
    class Silent(quadratic.QuadraticStep):
        def __call__(self, **batch: Any) -> dict[str, float]:
            return {"cost": 1.0}

    with pytest.raises(RetrogradeError, match=r"\['cost'\] and no 'loss'"):
        train(Silent(), quadratic.make_batches(), steps=3, progress=False)


def test_names_that_the_loop_needs_are_refused(tmp_path: Path) -> None:
    class Clashing(quadratic.QuadraticStep):
        def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
            return {}, {"training": 1}

    with pytest.raises(CheckpointError, match="'training' and 'run'"):
        train(Clashing(), quadratic.make_batches(), steps=3, checkpoint=tmp_path / "run")
    assert not checkpoint.exists(tmp_path / "run")


# --- what is shown


def test_plain_lines_where_there_is_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_LINE_SECONDS", 1000.0)
    quadratic.run(tmp_path / "run", 9, progress=True)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[:-1]] == [
        "step 1/9",
        "step 7/9",
        "step 7",
        "step 9/9",
        "step 9",
    ]
    for part in ("loss ", " tokens/s", "ETA ", "peak 440 B"):
        assert part in lines[0]
    assert "validation  loss " in lines[2]
    assert lines[-1].startswith("Done after step 9 of 9")


def test_nothing_is_shown_without_progress(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quadratic.run(tmp_path / "run", 9)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_a_bar_on_a_terminal() -> None:
    from rich.console import Console

    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120, color_system=None)
    display = progress.BarDisplay(50, 10, console)
    display.note("step 10  validation  loss [1.5]")
    display.update(Status(11, 50, 2.34567, 31_234.0, 40.0, 75.4, 45 << 20))
    display.close()
    shown = screen.getvalue()
    for part in ("validation  loss [1.5]", "11/50", "loss 2.3457", "31.2k tokens/s", "ETA 1m 15s"):
        assert part in shown
    assert "peak 45.0 MiB" in shown
    assert shown.rstrip("\n").endswith("\x1b[?25h")  # the cursor is back


def test_the_display_fits_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(progress.make_display(5, 0, True), progress.LineDisplay)
    assert isinstance(progress.make_display(5, 0, False), progress.SilentDisplay)
    monkeypatch.setattr(sys, "stdout", Terminal())
    bar = progress.make_display(5, 0, True)
    bar.close()
    assert isinstance(bar, progress.BarDisplay)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (progress.duration(0.4), "0s"),
        (progress.duration(59.7), "1m 00s"),
        (progress.duration(3725), "1h 02m"),
        (progress.size(1023), "1023 B"),
        (progress.size(1536), "1.5 KiB"),
        (progress.size(3 << 30), "3.00 GiB"),
        (str(Status(3, 9, 0.5, None, 0.25, None, 0)).split("loss ")[1], None),
    ],
)
def test_figures(text: str, wanted: str | None) -> None:
    assert text == (wanted or "0.5000  0.25 steps/s  ETA -  peak 0 B")


def test_nothing_heavy_is_imported_without_need() -> None:
    program = (
        "import sys, retrograde.runtime.training.loop, retrograde.runtime.data.text;"
        "print([m for m in ('rich', 'safetensors', 'filelock', 'ml_dtypes') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
