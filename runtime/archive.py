"""Files of several parts: named bytes <-> one file that is whole at every moment.

A zip archive of stored parts, which any tool opens, with an index that has the length and SHA-256
of each.  Invariant: reading allocates no more than the file is long, runs nothing, and hands out
only what is as it was written; anything else is a CheckpointError that names the file.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import stat
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from retrograde.compiler.errors import CheckpointError

INDEX = "index.json"
_MOST_INDEX = 1 << 20
_MOST_PARTS = 4096
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the same parts make the same file


def write(
    path: str | os.PathLike[str], format: str, version: int, kind: str, parts: Mapping[str, bytes]
) -> None:
    """Writes the file `path`, or replaces it; what was there stays until the new one is whole."""
    target = Path(path)
    index = {
        "format": format,
        "version": version,
        "kind": kind,
        "parts": {
            name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in parts.items()
        },
    }
    text = json.dumps({**index, "sha256": _digest(index)}, indent=1).encode("ascii")
    temporary = target.parent / f".{target.name}.{secrets.token_hex(6)}.tmp"
    try:
        if target.is_dir():
            raise CheckpointError(f"{target}: is a folder: name a file to write to")
        with open(temporary, "xb") as file:
            _write_parts(file, {INDEX: text + b"\n", **parts})
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        _sync(target.parent)
    except OSError as error:
        raise CheckpointError(
            f"{target}: cannot be written: {error.strerror or error}. What was there before is "
            "whole; name a file in a folder that exists and has room"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _write_parts(file: Any, parts: Mapping[str, bytes]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, data in parts.items():
            info = zipfile.ZipInfo(name, _EPOCH)
            info.external_attr = 0o600 << 16
            archive.writestr(info, data)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(path: str | os.PathLike[str], format: str, version: int) -> tuple[str, dict[str, bytes]]:
    """The kind of a file, and its parts, each as it was written."""
    file = Path(path)
    with _opened(file) as opened:
        try:
            length = os.fstat(opened.fileno()).st_size
            with zipfile.ZipFile(opened) as archive:
                found = _parts(file, archive, length)
            index = _index(file, found.pop(INDEX, b""), format, version)
        except CheckpointError:
            raise
        except Exception as error:  # of a dozen classes, on damaged files
            raise CheckpointError(f"{file}: damaged, or no {format} ({error})") from error
    parts = index["parts"]
    if parts.keys() != found.keys():
        odd = sorted(parts.keys() ^ found.keys())[0]
        raise CheckpointError(f"{file}: damaged, {odd!r} is not in both the file and its index")
    for name, held in found.items():
        said = parts[name]
        if not isinstance(said, dict) or said.get("bytes") != len(held):
            raise CheckpointError(f"{file}: damaged, {name} is not as long as the index says")
        if said.get("sha256") != hashlib.sha256(held).hexdigest():
            raise CheckpointError(f"{file}: damaged, the SHA-256 of {name} does not match")
    return str(index["kind"]), found


def _opened(file: Path) -> Any:
    """A plain file, opened; a pipe or device is not waited for."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{file}: cannot be read: {said}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CheckpointError(f"{file}: is no file: name one that was saved")
    return open(descriptor, "rb")


def _parts(file: Path, archive: zipfile.ZipFile, length: int) -> dict[str, bytes]:
    infos = archive.infolist()
    total = sum(info.file_size for info in infos)
    names = {info.filename for info in infos}
    stored = all(
        info.compress_type == zipfile.ZIP_STORED
        and info.compress_size == info.file_size
        and not info.flag_bits & 1
        for info in infos
    )
    if not stored or total > length or len(names) != len(infos) or len(infos) > _MOST_PARTS:
        raise CheckpointError(f"{file}: damaged, its parts are not as they are written here")
    return {info.filename: archive.read(info) for info in infos}


def _index(file: Path, text: bytes, format: str, version: int) -> dict[str, Any]:
    try:
        if len(text) > _MOST_INDEX:
            raise ValueError("too long")
        index = json.loads(text.decode("ascii"))
    except (ValueError, RecursionError):
        index = None
    if not isinstance(index, dict) or index.get("format") != format:
        raise CheckpointError(f"{file}: is no {format}: name a file that `save` wrote")
    if index.get("version") != version:
        raise CheckpointError(
            f"{file}: has format version {index.get('version')!r}, and this Retrograde reads "
            f"version {version}: save it again, or use the Retrograde that wrote it"
        )
    if index.pop("sha256", None) != _digest(index):
        raise CheckpointError(f"{file}: damaged, the checksum of its index does not match")
    if not isinstance(index.get("parts"), dict) or not isinstance(index.get("kind"), str):
        raise CheckpointError(f"{file}: damaged, its index has no parts")
    return index


def _digest(index: Mapping[str, Any]) -> str:
    canonical = json.dumps(index, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()
