"""The commands and their options: arguments -> work done elsewhere, text on standard output.

Invariant: every error that Retrograde raises on purpose ends as one message on standard error and
exit status 2, and then nothing that was there before has changed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar

import click

from retrograde.compiler.errors import RetrogradeError
from retrograde.compiler.ir.location import skip_frames_under

skip_frames_under(os.path.dirname(click.__file__))

F = TypeVar("F", bound=Callable[..., Any])


class Failure(click.ClickException):
    """An error as the command line shows it."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        click.echo(f"retrograde: {self.format_message()}", err=True)


class Commands(click.Group):
    """A group whose commands end on a `RetrogradeError` with its message."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except RetrogradeError as error:
            raise Failure(str(error)) from error
        except BrokenPipeError:  # `retrograde … | head` has read enough
            ctx.exit(0)


def _version() -> str:
    try:
        return version("retrograde")
    except PackageNotFoundError:
        return "unknown: not installed"


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(_version(), prog_name="retrograde")
def cli() -> None:
    """Compile and train sequence models, with the memory known before the first step.

    A RECIPE is `char-gpt`, `char-lstm`, or a Python file with a model, a loss and batches.
    Settings come from the command line, else from variables RETROGRADE_<NAME>, else from
    retrograde.toml, else from the recipe.
    """


def settings_options(command: F) -> F:
    """The options by which any recipe's settings are given."""
    for option in (
        click.option("--config", metavar="FILE", help="The TOML file (default: retrograde.toml)."),
        click.option(
            "--set", "pairs", multiple=True, metavar="NAME=VALUE", help="Any setting of the recipe."
        ),
        click.option("--data", metavar="FILE", help="The text to train on."),
    ):
        command = option(command)
    return command


@cli.command()
@click.argument("recipe")
@settings_options
@click.option("--steps", type=int, help="Steps in all, with those before resuming.")
@click.option("--seed", type=int, help="Of weights, batches and dropout.")
@click.option("--budget", metavar="BYTES", help="The most memory of a step: 1GiB, 300MiB.")
@click.option("--time-limit", type=float, metavar="SECONDS", help="End the training after this.")
@click.option(
    "--checkpoint", metavar="DIR", help="Where to save (default: the next free runs/RECIPE-<n>)."
)
@click.option("--resume", is_flag=True, help="Continue the checkpoint (default: the latest run).")
@click.option("--overwrite", is_flag=True, help="Replace what is in the checkpoint.")
@click.option("--no-save", is_flag=True, help="Save nothing.")
@click.option("--progress/--no-progress", default=True, help="Show a line or bar while training.")
def train(recipe: str, **options: Any) -> None:
    """Train the model of RECIPE."""
    from retrograde.cli.training import run

    interrupted = run(recipe, **options)
    if interrupted:
        raise SystemExit(130)  # as a shell reports a program that SIGINT ended


@cli.command()
@click.argument("checkpoint", required=False)
@click.option("--prompt", default="", help="The text to go on from.")
@click.option("--tokens", default=400, show_default=True, help="Characters or byte pairs to make.")
@click.option("--temperature", default=0.8, show_default=True, help="0: always the likeliest.")
@click.option("--top-k", type=int, help="Choose among the k likeliest.")
@click.option("--top-p", type=float, help="Choose among the likeliest that make up p.")
@click.option("--seed", default=0, show_default=True, help="Of the choices.")
def generate(checkpoint: str | None, **options: Any) -> None:
    """Write text by the model in CHECKPOINT (default: the latest run)."""
    from retrograde.cli.generation import run

    run(checkpoint, **options)


@cli.command()
@click.argument("checkpoint", required=False)
def evaluate(checkpoint: str | None) -> None:
    """Show how good the model in CHECKPOINT is on held-out data, beside what learns nothing.

    The default is the latest run.  Figures and pictures are kept beside the checkpoint.
    """
    from retrograde.cli.evaluation import evaluate as run

    run(checkpoint)


@cli.command()
@click.argument("checkpoint")
@click.argument("inputs", metavar="INPUT…", nargs=-1, required=True)
def predict(checkpoint: str, inputs: tuple[str, ...]) -> None:
    """Show what the model in CHECKPOINT says to each INPUT (CHECKPOINT `-`: the latest run).

    An input is a sentence, a word, a file, a moment: what the recipe takes, see docs/recipes.md.
    """
    from retrograde.cli.evaluation import predict as run

    run(None if checkpoint == "-" else checkpoint, inputs)


@cli.command("compile")
@click.argument("recipe")
@settings_options
@click.option("--size", "sizes", multiple=True, metavar="NAME=N", help="Report at this size: B=32.")
@click.option(
    "-o", "--output", metavar="DIR", help="Save the compiled step there, for rg.load(DIR)."
)
def compile_(recipe: str, **options: Any) -> None:
    """Compile the training step of RECIPE and report on it."""
    from retrograde.cli.explanation import show_report

    show_report(recipe, **options)


@cli.command()
@click.argument("recipe")
@settings_options
@click.option("-B", "batch_sizes", metavar="N,N…", help="Batch sizes, the rows: 1,8,32.")
@click.option("-T", "lengths", metavar="N,N…", help="Lengths, the columns: 64,256.")
@click.option("--size", "sizes", multiple=True, metavar="NAME=N", help="Any other size.")
@click.option("--budget", metavar="BYTES", help="Compile for at most this: 1GiB, 300MiB.")
@click.option("--at", metavar="NAME=N,…", help="The sizes to plan for: B=8,T=256.")
@click.option("-o", "--output", metavar="FILE.svg", help="Draw the arena over the steps there.")
def plan(recipe: str, **options: Any) -> None:
    """Show the peak memory of RECIPE's training step over sizes.

    With a budget also what can be traded for it: the frontier of peak against work, the recipe at
    every size, the largest length for each batch size.
    """
    from retrograde.cli.explanation import show_plan

    show_plan(recipe, **options)


@cli.command()
@click.argument("recipe")
@settings_options
@click.option("--size", "sizes", multiple=True, metavar="NAME=N", help="Certify at this size: B=2.")
@click.option("--directions", default=2, show_default=True, help="For gradients, at random.")
@click.option("--seed", "draws", default=0, show_default=True, help="Of numbers and directions.")
@click.option(
    "--claims",
    multiple=True,
    metavar="NAME,…",
    help="What has to hold of the model: causality, segment isolation.",
)
def certify(recipe: str, **options: Any) -> None:
    """Compare the training step of RECIPE with what was traced.

    The exit status is 1 where something is at fault, a claim that does not hold included.
    """
    from retrograde.cli.explanation import show_certificate

    if not show_certificate(recipe, **options):
        raise SystemExit(1)


@cli.command()
@click.argument("recipe")
@click.argument("output")
@settings_options
@click.option("--stage", default="trace", show_default=True, help="trace, or after one pass.")
def inspect(recipe: str, output: str, **options: Any) -> None:
    """Draw the training step of RECIPE into OUTPUT, an .svg or .dot file."""
    from retrograde.cli.explanation import draw

    draw(recipe, output, **options)


@cli.group(invoke_without_command=True)
@click.pass_context
def cache(context: click.Context) -> None:
    """Show the folder of compiled code, and what it holds."""
    if context.invoked_subcommand is None:
        from retrograde.cli.cache import summary

        click.echo(summary())


@cache.command("path")
def cache_path() -> None:
    """Print the folder, which may not be there yet."""
    from retrograde.cli.cache import path

    click.echo(path())


@cache.command("clear")
def cache_clear() -> None:
    """Remove all compiled code but what some process is making or loading just now."""
    from retrograde.cli.cache import clear

    click.echo(clear())


@cli.group()
def data() -> None:
    """Fetch and list the data sets that recipes are trained on."""


@data.command("list")
def data_list() -> None:
    """Show every data set, and whether it is on this machine."""
    from retrograde.cli.data import listing

    click.echo(listing())


@data.command("fetch")
@click.argument("names", metavar="NAME…", nargs=-1, required=True)
def data_fetch(names: tuple[str, ...]) -> None:
    """Download data sets into the cache folder (`all`: every one)."""
    from retrograde.cli.data import fetch

    for line in fetch(names):
        click.echo(line)


@cli.command()
def doctor() -> None:
    """Show what Retrograde finds on this machine."""
    from retrograde.cli.doctor import findings

    click.echo(findings())
