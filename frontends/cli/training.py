"""`retrograde train`: a recipe and its settings -> a trained model in a checkpoint.

Without a named checkpoint a run saves to the next free `runs/<recipe>-<n>`, so the same command can
be given again and again and overwrites nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from retrograde.cli.memory import Measured, measure
from retrograde.cli.recipe import Recipe, Training
from retrograde.cli.recipes import compiled_step, find, settled
from retrograde.compiler.errors import CheckpointError, DataError
from retrograde.runtime.training import checkpoint as checkpoints
from retrograde.runtime.training.loop import TrainResult, train
from retrograde.runtime.training.watch import Watch

RUNS = Path("runs")


def run(
    name: str,
    *,
    pairs: tuple[str, ...] = (),
    config: str | None = None,
    checkpoint: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    no_save: bool = False,
    progress: bool = True,
    **given: Any,
) -> bool:
    """Trains; whether a signal ended it."""
    recipe = find(name)
    _refuse_contradictions(checkpoint, resume, overwrite, no_save)
    path = None if no_save else _path(recipe, checkpoint, resume)
    stored = _stored(path, recipe) if resume and path is not None else None
    settings = settled(recipe, given, pairs, config, stored)
    if path is not None and not resume:
        _refuse_overwriting(path, overwrite)
    click.echo(f"{recipe.name}\n{settings}")

    training = recipe.build(settings)
    step = compiled_step(training, settings)
    click.echo(f"\n{step.report()}")
    first = _first_batch(training)
    if first is not None:
        click.echo(memory_lines(step, first) + "\n")
    validate = training.validate
    averaged = settings["ema"] is not None
    result = train(
        step,
        training.batches,
        steps=settings["steps"],
        validate=None
        if validate is None
        else lambda: validate(step.averaged if averaged else step.model),
        validate_every=settings["validate_every"],
        checkpoint=path,
        save_every=settings["save_every"],
        resume=resume,
        overwrite=overwrite,
        metrics_path=None if path is None else path / checkpoints.METRICS,
        meta={"recipe": recipe.name, "settings": dict(settings), **training.meta},
        time_limit=settings["time_limit"],
        progress=progress,
        watch=Watch(training.watch, training.highest, settings["patience"]),
        keep_best=validate is not None,
        curves=path is not None,
        events=settings["events"],
    )
    _conclude(training, step, result, settings)
    return result.interrupted


def _refuse_contradictions(
    checkpoint: str | None, resume: bool, overwrite: bool, no_save: bool
) -> None:
    if no_save and (checkpoint or resume or overwrite):
        raise DataError("--no-save goes with none of --checkpoint, --resume, --overwrite")
    if resume and overwrite:
        raise DataError("--resume continues a checkpoint and --overwrite replaces it: choose one")


# --- where a run is saved


def latest_run(name: str | None = None) -> Path | None:
    """The run with the highest number (of a recipe, or of any: the one saved last)."""
    runs = [path for path in _runs() if name is None or path.name.rpartition("-")[0] == name]
    runs = [path for path in runs if checkpoints.exists(path)]
    if name is None:
        return max(runs, key=lambda p: (p / checkpoints.INDEX).stat().st_mtime_ns, default=None)
    return max(runs, key=_number, default=None)


def _runs() -> list[Path]:
    if not RUNS.is_dir():
        return []
    return [path for path in RUNS.iterdir() if re.fullmatch(r".+-\d+", path.name)]


def _number(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def _path(recipe: Recipe, checkpoint: str | None, resume: bool) -> Path:
    if checkpoint is not None:
        return Path(checkpoint)
    if resume:
        found = latest_run(recipe.name)
        if found is None:
            raise CheckpointError(
                f"{RUNS}/{recipe.name}-<n>: there is no run to resume. Name one: --checkpoint DIR"
            )
        return found
    own = [p for p in _runs() if p.name.rpartition("-")[0] == recipe.name]
    return RUNS / f"{recipe.name}-{max(map(_number, own), default=0) + 1}"


def _refuse_overwriting(path: Path, overwrite: bool) -> None:
    """What the loop would refuse after compiling is refused at once."""
    if checkpoints.exists(path) and not overwrite:
        raise CheckpointError(
            f"{path}: holds the checkpoint of an earlier run. Continue it with --resume, replace "
            "it with --overwrite, or choose another path."
        )


def _stored(path: Path, recipe: Recipe) -> Mapping[str, Any]:
    """The settings of the run in `path`."""
    run = checkpoints.read_meta(path).get("run")
    if not isinstance(run, dict) or run.get("recipe") != recipe.name:
        of = run.get("recipe", "no recipe") if isinstance(run, dict) else "no recipe"
        raise CheckpointError(f"{path}: this is a checkpoint of {of}, not of {recipe.name}")
    settings = run.get("settings")
    return settings if isinstance(settings, dict) else {}


# --- what is shown


def _first_batch(training: Training) -> Mapping[str, Any] | None:
    """A batch to measure with, which the training does not miss."""
    batches: Any = training.batches
    if hasattr(batches, "first"):
        first: Mapping[str, Any] = batches.first()
        return first
    if hasattr(batches, "at"):
        return dict(batches.at(0))
    return None


def memory_lines(step: Any, batch: Mapping[str, Any]) -> str:
    """What was planned beside what is allocated and measured, for one batch."""
    measured = measure(step, batch)
    return "\n".join(
        [
            "memory of a step",
            f"  planned peak     {_mib(measured.planned)}",
            f"  allocated arena  {_mib(measured.arena)}",
            f"  measured         {_high_water(measured)}",
        ]
    )


def _high_water(measured: Measured) -> str:
    outside = f"{measured.outside / 1024:.1f} KiB beside the arena"
    if measured.high_water is None:
        return f"{outside} (this system keeps no high-water mark)"
    return f"{_mib(measured.high_water)} (this process by VmHWM; {outside})"


def _mib(count: int) -> str:
    return f"{count / 2**20:8.2f} MiB"


def _conclude(
    training: Training, step: Any, result: TrainResult, settings: Mapping[str, Any]
) -> None:
    """The end of a run: its figures, and a sample."""
    figures = [f"validation {name} {value:.4f}" for name, value in result.validation.items()]
    if result.metrics:
        figures.insert(0, f"training loss {result.metrics['loss']:.4f}")
    if figures:
        click.echo(", ".join(figures))
    if training.sample is not None and not result.interrupted:
        model = step.averaged if settings["ema"] is not None else step.model
        click.echo(f"\n{training.sample(model)}")
    if result.checkpoint is not None and training.sample is not None:
        click.echo(f"\nMore of it: retrograde generate {os.fspath(result.checkpoint)}")
