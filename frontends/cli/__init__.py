"""The `retrograde` command line."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command that the arguments of the process name."""
    from retrograde.cli.commands import cli
    from retrograde.compiler.ir.location import skip_frames_under

    # The script that called this is not the user's line.
    skip_frames_under(sys.argv[0])
    cli()
