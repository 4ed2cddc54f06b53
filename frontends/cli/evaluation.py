"""`retrograde evaluate` and `retrograde predict`: a checkpoint -> figures and pictures, or answers.

What `evaluate` finds is printed and kept beside the checkpoint: `evaluation.json`, and pictures.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy.typing as npt

from retrograde.cli.recipe import Recipe
from retrograde.cli.recipes import RECIPES
from retrograde.cli.training import RUNS, latest_run
from retrograde.compiler.errors import CheckpointError, DataError
from retrograde.runtime.training import checkpoint as checkpoints

EVALUATION = "evaluation.json"
_SAID = {"from_checkpoint": "generate text", "evaluate": "be evaluated", "predict": "answer"}


def opened(
    checkpoint: str | None, what: str
) -> tuple[Path, Recipe, Mapping[str, npt.NDArray[Any]], Mapping[str, Any]]:
    """(path, recipe, tensors, what the run noted) of a checkpoint, by default the latest run.

    The recipe has the method `what`; a checkpoint of any other is refused."""
    path = latest_run() if checkpoint is None else Path(checkpoint)
    if path is None:
        raise CheckpointError(f"there is no run in {RUNS}/ yet: train one, or name a checkpoint")
    tensors, meta = checkpoints.load(path)
    noted = meta.get("run")
    of = noted if isinstance(noted, dict) else {}
    recipe = RECIPES.get(str(of.get("recipe")))
    if recipe is None or not hasattr(recipe, what):
        able = [name for name, r in RECIPES.items() if hasattr(r, what)]
        instead = ""
        if hasattr(recipe, "predict"):
            instead = f". `retrograde predict {path} INPUT` shows what this one says to an input"
        raise CheckpointError(
            f"{path}: this checkpoint is of {of.get('recipe', 'no recipe')!r}, and it is one of "
            f"{', '.join(able)} that can {_SAID.get(what, what)}{instead}"
        )
    return path, recipe, tensors, of


def _restored(checkpoint: str | None, what: str) -> tuple[Path, Any, Any]:
    path, recipe, tensors, of = opened(checkpoint, what)
    able: Any = recipe
    try:
        return path, able, able.restore(tensors, of)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def evaluate(checkpoint: str | None) -> None:
    """Prints the figures of a model beside those of its baselines."""
    path, recipe, saved = _restored(checkpoint, "evaluate")
    found = recipe.evaluate(saved)
    click.echo(f"{recipe.name}, {found.part}\n{found.table()}")
    if found.text:
        click.echo(f"\n{found.text}")
    kept = {"recipe": recipe.name, "part": found.part, "figures": dict(found.figures),
            "baselines": {name: dict(b) for name, b in found.baselines.items()}}  # fmt: skip
    files = {EVALUATION: json.dumps(kept, indent=2) + "\n", **found.pictures}
    try:
        for name, content in files.items():
            (path / name).write_text(content, encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be written to: {error.strerror or error}") from error
    click.echo("\n" + "\n".join(str(path / name) for name in files))


def predict(checkpoint: str | None, inputs: Sequence[str]) -> None:
    """Prints what the model says to each input, in a line or more."""
    _, recipe, saved = _restored(checkpoint, "predict")
    for line in recipe.predict(saved, list(inputs)):
        click.echo(line)
