"""What the tests of the command line share: an empty folder to work in, a text, and `run`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from retrograde.cli.commands import cli

TINY = ("batch=3", "length=8", "width=8", "layers=1", "heads=2", "validation_batches=2", "warmup=2")
TINY_OPTIONS = [part for pair in TINY for part in ("--set", pair)]
SENTENCE = "the quick brown fox jumps over a lazy dog; pack my box with five dozen jugs\n"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of its own as the working directory, without settings from outside."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("RETROGRADE_"):
            monkeypatch.delenv(name)
    yield tmp_path


@pytest.fixture
def text(here: Path) -> Path:
    """A text of some 6000 characters."""
    file = here / "text.txt"
    file.write_text(" ".join(np.random.default_rng(0).choice(SENTENCE.split(" "), 1200)))
    return file


Run = Callable[..., Result]


@pytest.fixture
def run() -> Run:
    """`run("train", "char-gpt", …)` -> what the command did; an unforeseen error is raised."""

    def invoke(*arguments: object, code: int = 0) -> Result:
        result = CliRunner().invoke(cli, [str(a) for a in arguments], catch_exceptions=False)
        assert result.exit_code == code, result.output
        return result

    return invoke


@pytest.fixture
def train(run: Run, text: Path) -> Run:
    """`train(…)`: the recipe char-gpt on the text, as small as can be."""

    def invoke(*arguments: object, code: int = 0) -> Result:
        return run(
            "train", "char-gpt", "--data", text, "--no-progress", *TINY_OPTIONS, *arguments,
            code=code,
        )  # fmt: skip

    return invoke
