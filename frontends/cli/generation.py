"""`retrograde generate`: a checkpoint and a prompt -> text."""

from __future__ import annotations

import click

from retrograde.cli import sampling
from retrograde.cli.char_text import CharText
from retrograde.cli.evaluation import opened
from retrograde.compiler.errors import CheckpointError, DataError
from retrograde.runtime.data.text import Vocabulary


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
    path, recipe, tensors, of = opened(checkpoint, "from_checkpoint")
    assert isinstance(recipe, CharText)
    try:
        model, vocabulary = recipe.from_checkpoint(tensors, of)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    known = vocabulary.characters if isinstance(vocabulary, Vocabulary) else prompt
    unknown = sorted(set(prompt) - set(known))
    if unknown:
        click.echo(
            f"retrograde: the model does not know {' '.join(map(repr, unknown))}", err=True
        )
    click.echo(prompt, nl=False)
    for piece in sampling.text(model, vocabulary, prompt, tokens, options):
        click.echo(piece, nl=False)
    click.echo()
