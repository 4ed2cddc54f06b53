"""What the tests of the recipes share: an empty folder, small data sets, and `run`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from retrograde.cli.commands import cli
from retrograde.recipes import cartpole as acting
from retrograde.runtime.data.sets import (
    bible,
    brown,
    cartpole,
    cmudict,
    japanese_vowels,
    python_tokens,
    weather,
)
from tests.recipes import small

_KEPT = ("RETROGRADE_BACKEND", "RETROGRADE_CACHE_DIR", "RETROGRADE_VERIFY")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of its own as the working directory, without settings from outside."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("RETROGRADE_") and name not in _KEPT:
            monkeypatch.delenv(name)
    yield tmp_path


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where runs are kept for tests that need one, by the names of their recipes."""
    return Path(tmp_path_factory.mktemp("runs"))


@pytest.fixture(autouse=True)
def small_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data sets that need no network, and few of those that are at hand."""
    monkeypatch.setattr(japanese_vowels, "load", small.speakers)
    monkeypatch.setattr(brown, "load", small.sentences)
    monkeypatch.setattr(cmudict, "load", small.dictionary)
    monkeypatch.setattr(bible, "load", small.verses)
    monkeypatch.setattr(weather, "load", small.hours)
    logged = cartpole.load
    monkeypatch.setattr(cartpole, "load", lambda: logged(20))
    monkeypatch.setattr(acting, "EPISODES", 4)
    monkeypatch.setattr(acting, "_TARGETS", (20.0,))
    monkeypatch.setattr(python_tokens, "load", lambda files: small.python_lines())


Run = Callable[..., Result]


@pytest.fixture
def run() -> Run:
    """`run("train", "weather", …)` -> what the command did; an unforeseen error is raised."""

    def invoke(*arguments: object, code: int = 0) -> Result:
        result = CliRunner().invoke(cli, [str(a) for a in arguments], catch_exceptions=False)
        assert result.exit_code == code, result.output
        return result

    return invoke
