"""`retrograde generate`: a checkpoint and a prompt -> text."""

from __future__ import annotations

from pathlib import Path

import click

from retrograde.cli import sampling
from retrograde.cli.char_text import CharText
from retrograde.cli.recipes import RECIPES
from retrograde.cli.training import RUNS, latest_run
from retrograde.compiler.errors import CheckpointError, DataError
from retrograde.runtime.training import checkpoint as checkpoints


def run(
    checkpoint: str | None,
    *,
    prompt: str,
    tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int,
) -> None:
    """Prints the prompt and what the model makes of it."""
    if tokens < 0:
        raise DataError(f"--tokens is {tokens}: it is not negative")
    options = sampling.Sampling(temperature, top_k, top_p, seed)
    path = latest_run() if checkpoint is None else Path(checkpoint)
    if path is None:
        raise CheckpointError(f"there is no run in {RUNS}/ yet: train one, or name a checkpoint")
    tensors, meta = checkpoints.load(path)
    run_meta = meta.get("run")
    of = run_meta if isinstance(run_meta, dict) else {}
    recipe = RECIPES.get(str(of.get("recipe")))
    if not isinstance(recipe, CharText):
        able = [name for name, r in RECIPES.items() if isinstance(r, CharText)]
        raise CheckpointError(
            f"{path}: this checkpoint is of {of.get('recipe', 'no recipe')!r}, and text can be "
            f"generated from one of {' or '.join(able)}"
        )
    try:
        model, vocabulary = recipe.from_checkpoint(tensors, of)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    unknown = sorted(set(prompt) - set(vocabulary.characters))
    if unknown:
        click.echo(
            f"retrograde: the model does not know {' '.join(map(repr, unknown))}", err=True
        )
    click.echo(prompt, nl=False)
    for piece in sampling.text(model, vocabulary, prompt, tokens, options):
        click.echo(piece, nl=False)
    click.echo()
