"""The `retrograde` command line."""

from __future__ import annotations


def main() -> None:
    """Runs the command that the arguments of the process name."""
    from retrograde.cli.commands import cli

    cli()
