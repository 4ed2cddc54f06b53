"""Archives are read as data: bounded, in memory, and refused where they are damaged."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from retrograde.compiler.errors import DataError
from retrograde.runtime.data import archives

Make = Callable[[Path, dict[str, bytes]], Path]
CONTENTS = {"a/one.txt": b"1" * 1000, "a/two.csv": b"2", "b/three.txt": b""}


def wheel(folder: Path, contents: dict[str, bytes]) -> Path:
    path = folder / "made_up.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return path


def sdist(folder: Path, contents: dict[str, bytes]) -> Path:
    path = folder / "made_up.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        link = tarfile.TarInfo("a/link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


both = pytest.mark.parametrize("make", [wheel, sdist])


@both
def test_members_by_their_names(make: Make, tmp_path: Path) -> None:
    path = make(tmp_path, CONTENTS)
    assert archives.members(path, r".*\.txt") == {
        "a/one.txt": b"1" * 1000,
        "b/three.txt": b"",
    }
    assert archives.members(path, r"a/two\.csv") == {"a/two.csv": b"2"}
    with pytest.raises(DataError, match="it has no member"):
        archives.members(path, "two.csv")  # the whole name is meant
    assert sorted(tmp_path.iterdir()) == [path]  # nothing was extracted


@both
@pytest.mark.parametrize("name", ["../one.txt", "/one.txt", "a/../../one.txt", "a\\..\\one.txt"])
def test_names_that_lie_outside_are_refused(make: Make, tmp_path: Path, name: str) -> None:
    path = make(tmp_path, {**CONTENTS, name: b"3"})
    with pytest.raises(DataError, match=r"lies outside of it|it has no member"):
        archives.members(path, r".*one\.txt")
    assert archives.members(path, r"a/two\.csv") == {"a/two.csv": b"2"}  # not asked for


@both
def test_cut_off_anywhere(make: Make, tmp_path: Path) -> None:
    path = make(tmp_path, {**CONTENTS, "c/noise": bytes(range(256)) * 9})
    whole = path.read_bytes()
    for end in range(0, len(whole) - 30, 13):
        path.write_bytes(whole[:end])
        with pytest.raises(DataError, match="not the archive of a data set"):
            archives.members(path, r".*")


@both
def test_every_flipped_byte_is_refused_or_harmless(make: Make, tmp_path: Path) -> None:
    path = make(tmp_path, CONTENTS)
    whole = path.read_bytes()
    for at in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[at] ^= 0xFF
        path.write_bytes(damaged)
        try:
            found = archives.members(path, r".*(txt|csv)")
        except DataError:
            continue
        assert all(len(content) <= 1000 for content in found.values())


@both
def test_what_is_too_large_is_not_read(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(tmp_path, CONTENTS)
    monkeypatch.setattr(archives, "LIMIT", 999)
    with pytest.raises(DataError, match="has 1000 bytes, more than 999"):
        archives.members(path, r".*\.txt")
    monkeypatch.setattr(archives, "LIMIT", 1000)
    monkeypatch.setattr(archives, "TOTAL", 1000)
    with pytest.raises(DataError, match=r"of it match|more than 0 MiB"):
        archives.members(path, r".*")
    monkeypatch.setattr(archives, "TOTAL", 1 << 20)
    monkeypatch.setattr(archives, "ENTRIES", 2)
    with pytest.raises(DataError, match="more than 2 members"):
        archives.members(path, r".*")


def test_a_wheel_that_tells_a_smaller_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = wheel(tmp_path, {"a": b"x" * 5000})
    content = path.read_bytes().replace((5000).to_bytes(4, "little"), (50).to_bytes(4, "little"))
    path.write_bytes(content)
    monkeypatch.setattr(archives, "LIMIT", 100)
    with pytest.raises(DataError, match=r"damaged|more than 100"):
        archives.members(path, "a")


@pytest.mark.parametrize("name", ["x.whl", "x.tgz"])
def test_no_archive_at_all(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        archives.members(tmp_path / name, ".*")
    (tmp_path / name).write_bytes(b"no archive" * 100)
    with pytest.raises(DataError, match="not the archive of a data set"):
        archives.members(tmp_path / name, ".*")
