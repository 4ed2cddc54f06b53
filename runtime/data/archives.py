"""Archives as data: a wheel, sdist or npm tarball -> the bytes of the members that were asked for.

Members are read into memory; no file is ever written.  Invariant: no member is larger than the
limit, and none has a name that would lie outside of the archive.
"""

from __future__ import annotations

import gzip
import io
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from retrograde.compiler.errors import DataError

LIMIT = 64 << 20  # bytes of one member, unpacked
TOTAL = 256 << 20  # bytes of all that is asked for
ENTRIES = 20_000


def members(archive: Path, pattern: str) -> dict[str, bytes]:
    """The plain files whose whole name matches the regular expression `pattern`, by name.

    Raises `DataError` where none does, and for what is no archive, is cut off, has a matching name
    with `..` or from the root, or is larger than a data set could be.
    """
    wanted = re.compile(pattern)
    read = _zipped if archive.suffix in (".whl", ".zip") else _tarred
    found: dict[str, bytes] = {}
    total = 0
    try:
        for name, content in read(archive, wanted):
            total += len(content)
            if total > TOTAL:
                raise _refusal(archive, f"more than {TOTAL >> 20} MiB of it match {pattern!r}")
            found[name] = content
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, RuntimeError) as error:
        raise _refusal(archive, f"it is damaged: {error}") from error
    except NotImplementedError as error:
        raise _refusal(archive, f"it is packed in a way that is not read: {error}") from error
    except OSError as error:  # gzip's own errors are OSErrors too
        raise _refusal(archive, f"it cannot be read: {error}") from error
    if not found:
        raise _refusal(archive, f"it has no member {pattern!r}")
    return found


def _zipped(archive: Path, wanted: re.Pattern[str]) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(archive) as opened:
        if len(opened.infolist()) > ENTRIES:
            raise _refusal(archive, f"it has more than {ENTRIES} members")
        for info in opened.infolist():
            if info.is_dir() or not wanted.fullmatch(info.filename):
                continue
            _check(archive, info.filename, info.file_size)
            with opened.open(info) as member:
                yield info.filename, _bounded(archive, info.filename, member.read(LIMIT + 1))


def _tarred(archive: Path, wanted: re.Pattern[str]) -> Iterator[tuple[str, bytes]]:
    # The end of the gzip file, with its CRC-32, tells whether all is there; tarfile would take a
    # file that is cut off between two members for whole.
    with gzip.open(archive) as packed:
        content = packed.read(TOTAL + 1)
    if len(content) > TOTAL:
        raise _refusal(archive, f"it has more than {TOTAL >> 20} MiB")
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as opened:
        for number, info in enumerate(opened):
            if number >= ENTRIES:
                raise _refusal(archive, f"it has more than {ENTRIES} members")
            if not info.isreg() or not wanted.fullmatch(info.name):
                continue
            _check(archive, info.name, info.size)
            member = opened.extractfile(info)
            yield info.name, b"" if member is None else member.read(LIMIT + 1)


def _check(archive: Path, name: str, size: int) -> None:
    if name.startswith(("/", "\\")) or ":" in name or ".." in re.split(r"[/\\]", name):
        raise _refusal(archive, f"its member {name!r} lies outside of it")
    if size > LIMIT:
        raise _refusal(archive, f"its member {name!r} has {size} bytes, more than {LIMIT}")


def _bounded(archive: Path, name: str, content: bytes) -> bytes:
    if len(content) > LIMIT:
        raise _refusal(archive, f"its member {name!r} has more than {LIMIT} bytes")
    return content


def _refusal(archive: Path, reason: str) -> DataError:
    return DataError(
        f"{archive}: not the archive of a data set: {reason}. Remove the file; it is downloaded "
        "anew when it is asked for."
    )
