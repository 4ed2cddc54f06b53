"""The training loop: a compiled step and batches -> a trained state, metrics and checkpoints.

Invariant: a checkpoint holds all that the next step depends on (the step's state, the position in
the data, the step number), so a resumed run repeats the uninterrupted one bit for bit.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from retrograde.compiler.errors import CheckpointError, DataError, RetrogradeError
from retrograde.runtime.training import checkpoint as checkpoints
from retrograde.runtime.training.curves import write as draw_curves
from retrograde.runtime.training.events import Events
from retrograde.runtime.training.interrupts import Interrupts
from retrograde.runtime.training.metrics import Meter, MetricsWriter
from retrograde.runtime.training.progress import Display, Status, duration, make_display
from retrograde.runtime.training.saver import (
    FINDING,
    DivergenceError,
    Reached,
    Resumable,
    Saver,
    TrainStep,
)
from retrograde.runtime.training.watch import Watch

__all__ = ["DivergenceError", "Resumable", "TrainResult", "TrainStep", "Watch", "train"]

CURVES = "curves.svg"
PathLike = str | os.PathLike[str]
MOST_SKIPPED = 32  # in a row: by then the loss is no longer scaled, but itself no number
Stopped = Literal["steps", "time", "stale", "interrupted"]


@dataclass(frozen=True)
class TrainResult:
    """How a run ended."""

    step: int  # completed steps, with those before resuming
    stopped: Stopped
    metrics: dict[str, float]  # of the last step; empty if none ran
    validation: dict[str, float]  # the last one; empty if none ran
    seconds: float
    tokens: int  # seen in all, with those before resuming
    tokens_per_second: float  # at the end
    peak_bytes: int
    checkpoint: Path | None
    resumed_from: int | None
    message: str
    best: float | None = None  # of the metric that was watched
    best_step: int | None = None

    @property
    def interrupted(self) -> bool:
        """Whether SIGINT or SIGTERM ended it."""
        return self.stopped == "interrupted"


def train(
    step: TrainStep,
    batches: Iterator[Mapping[str, Any]],
    *,
    steps: int,
    tokens_per_step: int | None = None,
    validate: Callable[[], Mapping[str, float]] | None = None,
    validate_every: int = 0,
    checkpoint: PathLike | None = None,
    save_every: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    metrics_path: PathLike | None = None,
    meta: Mapping[str, Any] | None = None,
    time_limit: float | None = None,
    progress: bool = True,
    on_end: Callable[[TrainResult], None] | None = None,
    watch: Watch | None = None,
    keep_best: bool = False,
    curves: bool = False,
    events: PathLike | None = None,
) -> TrainResult:
    """Train until `steps` steps are done in all, `time_limit` seconds have passed, or a signal.

    `validate` gives metrics and changes nothing; it runs every `validate_every` steps (0: never)
    and at the end.  `checkpoint` is written at the start, every `save_every` steps (0: never), at
    the end, and after the current step when SIGINT or SIGTERM comes; `meta` goes with it under
    `"run"`.  A run starts anew only where there is no checkpoint and no metrics, or with
    `overwrite`; `resume` continues a checkpoint instead.  `tokens_per_step` is for the speed shown
    (default: the size of the batch's `tokens`).  `on_end` is called when all is saved.

    `watch` names the metric of the validation that is to become better, and for how many
    validations it may not before the run ends.  `keep_best` keeps the checkpoint of the best one in
    the folder `best` of `checkpoint`.  `curves` draws the metrics as `curves.svg` beside them after
    each validation; `events` is a folder for TensorBoard's event files.

    Raises `DivergenceError` when the loss, or a tensor about to be saved, is no number, leaving the
    last checkpoint as it is; `CheckpointError` and `DataError` for what cannot be started.
    """
    _check_numbers(steps, validate_every, save_every, time_limit)
    started = time.perf_counter()
    saver = _make_saver(checkpoint, step, batches, meta, resume)
    metrics_file = None if metrics_path is None else Path(metrics_path)
    reached = Reached()
    position: int | None = None
    if saver is not None and resume:
        reached = saver.restore()
        # A run that kept no metrics so far adds to whatever is there.
        position = sys.maxsize if reached.metrics_position is None else reached.metrics_position
    else:
        _refuse_overwriting(checkpoint, metrics_file, overwrite)
        if saver is not None:
            # At once, so that a path that cannot be written is known now, and a run that is
            # killed before its first regular save can be resumed.
            reached.metrics_position = None if metrics_file is None else 0
            saver.save(reached)

    writer = None if metrics_file is None else MetricsWriter(metrics_file, position)
    resumed_from = reached.step if resume else None
    watch = watch or Watch()
    run = _Run(
        step=step,
        batches=batches,
        steps=steps,
        tokens_per_step=tokens_per_step,
        validate=validate,
        validate_every=validate_every,
        saver=saver,
        save_every=save_every,
        deadline=math.inf if time_limit is None else started + time_limit,
        writer=writer,
        display=make_display(steps, reached.step, progress),
        meter=Meter(steps - reached.step),
        reached=reached,
        watch=watch,
        keep_best=keep_best and saver is not None,
        curves=metrics_file.with_name(CURVES) if curves and metrics_file is not None else None,
        events=None if events is None else Events(events, reached.step),
    )
    try:
        with Interrupts() as interrupts:
            stopped = run.go(interrupts)
    finally:
        run.display.close()
        if writer is not None:
            writer.close()
        if run.events is not None:
            run.events.close()

    seconds = time.perf_counter() - started
    result = TrainResult(
        step=reached.step,
        stopped=stopped,
        metrics=run.metrics,
        validation=reached.validation,
        seconds=seconds,
        tokens=reached.tokens,
        tokens_per_second=run.meter.tokens_per_second,
        peak_bytes=step.peak_bytes,
        checkpoint=None if saver is None else saver.path,
        resumed_from=resumed_from,
        message=_message(stopped, reached.step, steps, saver, seconds),
        best=reached.best,
        best_step=reached.best_step,
    )
    if progress:
        print(result.message, flush=True)
    elif result.interrupted:
        print(result.message, file=sys.stderr, flush=True)
    if on_end is not None:
        on_end(result)
    return result


@dataclass
class _Run:
    """The loop itself, with all it works on."""

    step: TrainStep
    batches: Iterator[Mapping[str, Any]]
    steps: int
    tokens_per_step: int | None
    validate: Callable[[], Mapping[str, float]] | None
    validate_every: int
    saver: Saver | None
    save_every: int
    deadline: float
    writer: MetricsWriter | None
    display: Display
    meter: Meter
    reached: Reached
    watch: Watch
    keep_best: bool
    curves: Path | None
    events: Events | None
    metrics: dict[str, float] = field(default_factory=dict)
    skipped: int = 0  # the last steps in a row that changed nothing

    def go(self, interrupts: Interrupts) -> Stopped:
        """Step until there is a reason to stop, then save."""
        self.meter.resume()
        while True:
            # What is due after a step comes first in the turn, not last: a run that was
            # interrupted before a due validation makes up for it when it resumes.
            if interrupts.caught is None and self.is_due(self.validate_every):
                self.run_validation()
            if self.is_due(self.save_every):
                self.save()
            if self.reached.step >= self.steps:
                stopped: Stopped = "steps"
                break
            if interrupts.caught is not None:
                stopped = "interrupted"
                break
            if self.watch.is_over(self.reached):
                stopped = "stale"
                break
            if time.perf_counter() >= self.deadline:
                stopped = "time"
                break
            self.advance()
        # What was trained is kept before a last validation can fail.
        self.save()
        if interrupts.caught is None and self.run_validation():
            self.save(anew=True)
        return stopped

    def advance(self) -> None:
        """One step."""
        batch = next(self.batches, None)
        if batch is None:
            self.save()
            raise DataError(
                f"the batches ended after step {self.reached.step} of {self.steps}. Give as many "
                "as there are steps, or an endless iterator."
            )
        self.metrics = {name: float(value) for name, value in self.step(**batch).items()}
        tokens = self.tokens_per_step
        if tokens is None:
            tokens = int(np.size(batch["tokens"])) if "tokens" in batch else 0
        self.reached.step += 1
        self.reached.tokens += tokens
        self.meter.step(tokens)
        self.record(self.metrics)
        loss = self.loss()
        self.display.update(
            Status(
                step=self.reached.step,
                steps=self.steps,
                loss=loss,
                tokens_per_second=self.meter.tokens_per_second if tokens else None,
                steps_per_second=self.meter.steps_per_second,
                seconds_left=self.meter.seconds_left,
                peak_bytes=self.step.peak_bytes,
            )
        )

    def loss(self) -> float:
        """The loss of the last step, which must be a number."""
        if "loss" not in self.metrics:
            raise RetrogradeError(
                f"the step returned {sorted(self.metrics)} and no 'loss'; it must be among them"
            )
        loss = self.metrics["loss"]
        # A step in f16 that overflowed has changed nothing, and lowers the scale of the next one.
        self.skipped = self.skipped + 1 if self.metrics.get("skipped") else 0
        if 0 < self.skipped <= MOST_SKIPPED:
            return loss
        if self.skipped or not math.isfinite(loss):
            way_out = self.saver.way_out if self.saver else f"Lower the learning rate. {FINDING}"
            raise DivergenceError(
                f"step {self.reached.step}: the training diverged, the loss is {loss}. {way_out}",
                step=self.reached.step,
            )
        return loss

    def run_validation(self) -> bool:
        """Validate, unless it has been done at this step; whether it was done now."""
        if self.validate is None or self.reached.validated_step == self.reached.step:
            return False
        self.meter.pause()
        values = {name: float(value) for name, value in self.validate().items()}
        self.reached.validation = values
        self.reached.validated_step = self.reached.step
        self.record({f"validation_{name}": value for name, value in values.items()})
        if self.watch.is_better(values, self.reached) and self.keep_best and self.saver is not None:
            self.saver.save_best(self.reached)
        if self.curves is not None and self.writer is not None:
            self.writer.sync()
            draw_curves(self.writer.path, self.curves)
        figures = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        self.display.note(f"step {self.reached.step}  validation  {figures}")
        self.meter.resume()
        return True

    def record(self, values: Mapping[str, float]) -> None:
        """Write `values` to the metrics."""
        if self.events is not None:
            self.events.write(self.reached.step, values)
        if self.writer is None:
            return
        own = {
            "step": self.reached.step,
            "tokens": self.reached.tokens,
            "tokens_per_second": round(self.meter.tokens_per_second, 1),
            "peak_bytes": self.step.peak_bytes,
        }
        self.writer.write({**own, **values})

    def save(self, anew: bool = False) -> None:
        """Save, unless this step has been; `anew` saves it in any case."""
        if self.saver is None or (self.saver.saved_step == self.reached.step and not anew):
            return
        self.meter.pause()
        self.reached.metrics_position = None
        if self.writer is not None:
            self.writer.sync()
            self.reached.metrics_position = self.writer.position
        self.saver.save(self.reached)
        self.meter.resume()

    def is_due(self, every: int) -> bool:
        """Whether what happens `every` steps (0: never) happens after the present one."""
        return every > 0 and self.reached.step > 0 and self.reached.step % every == 0


def _check_numbers(
    steps: int, validate_every: int, save_every: int, time_limit: float | None
) -> None:
    if steps < 0 or validate_every < 0 or save_every < 0:
        raise DataError(
            f"steps, validate_every and save_every must not be negative: {steps}, "
            f"{validate_every}, {save_every}"
        )
    if time_limit is not None and not time_limit > 0:
        raise DataError(f"the time limit must be positive, not {time_limit} s")


def _make_saver(
    path: PathLike | None,
    step: TrainStep,
    batches: object,
    meta: Mapping[str, Any] | None,
    resume: bool,
) -> Saver | None:
    if path is None:
        if resume:
            raise CheckpointError("there is nothing to resume: name the path of the checkpoint")
        return None
    if not isinstance(batches, Resumable):
        raise DataError(
            f"{type(batches).__name__} cannot say where it is in the data, so a checkpoint could "
            "not be resumed. Give batches with `state()` and `restore(state)`, as `Windows` has."
        )
    return Saver(path, step, batches, meta or {})


def _refuse_overwriting(
    checkpoint: PathLike | None, metrics_file: Path | None, overwrite: bool
) -> None:
    if checkpoint is not None:
        checkpoints.prepare(checkpoint)
        if checkpoints.exists(checkpoint) and not overwrite:
            raise CheckpointError(
                f"{checkpoint}: holds the checkpoint of an earlier run. Resume it, choose another "
                "path, or ask for it to be overwritten."
            )
    if metrics_file is None or overwrite or not metrics_file.is_file():
        return
    if metrics_file.stat().st_size > 0:
        raise DataError(
            f"{metrics_file}: holds the metrics of an earlier run. Choose another path, or ask "
            "for it to be overwritten."
        )


def _message(stopped: Stopped, step: int, steps: int, saver: Saver | None, seconds: float) -> str:
    reason = {
        "steps": "Done", "time": "Time is up", "interrupted": "Interrupted",
        "stale": "No better validation for a while: ended",
    }[stopped]  # fmt: skip
    text = f"{reason} after step {step} of {steps}, in {duration(seconds)}."
    if saver is None:
        return text + (" Nothing was saved: no checkpoint path was given." if step < steps else "")
    return f"{text} Saved in {saver.path}" + ("; resume to continue." if step < steps else ".")
