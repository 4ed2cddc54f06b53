"""Checkpoints: named arrays and JSON metadata -> a directory that is whole at every moment.

Invariant: replacing `checkpoint.json` is the only act that changes what `load` returns.  Before
it, the old state file is untouched; after it, the new one is already on the disk.  Killing the
process or the machine at any point leaves the old checkpoint or the new one, never a mixture.

    path/checkpoint.json               format, version, name + size + SHA-256 of the state, metadata
    path/state-00000007.safetensors    the arrays; the number grows by one with every save
    path/.lock                         held while saving
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde.compiler.errors import CheckpointError

FORMAT = "retrograde checkpoint"
VERSION = 1
INDEX = "checkpoint.json"
METRICS = "metrics.jsonl"  # a run may keep its metrics beside its checkpoint

_STATE = re.compile(r"state-(\d{8,18})\.safetensors")
_TEMPORARY = ".tmp-"
_LOCK = ".lock"
_LOCK_SECONDS = 60.0
_CHUNK = 1 << 22
# What safetensors writes and reads back through NumPy.
_INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
_FLOATS = ("float16", "bfloat16", "float32", "float64", "complex64")
_DTYPES = frozenset(("bool", *_INTEGERS, *_FLOATS))
_RESTORE = "Restore it from a copy, or train anew into another path."


@dataclass(frozen=True)
class _Index:
    """What `checkpoint.json` says."""

    state: str
    size: int
    sha256: str
    tensors: tuple[str, ...]
    meta: dict[str, Any]


def save(
    path: str | os.PathLike[str],
    tensors: Mapping[str, npt.NDArray[Any]],
    meta: Mapping[str, Any],
) -> None:
    """Replace the checkpoint in the directory `path`, making the directory if there is none.

    `meta` is JSON: None, bool, int, float, str, lists, and dicts with string keys.  NaN and
    infinities are kept, in Python's spelling.  Raises `CheckpointError`, with the previous
    checkpoint whole, when something cannot be stored or written, or `path` is not ours to write.
    """
    directory = Path(path)
    _require_json(dict(meta), "meta")
    payload = _serialise(tensors)
    prepare(directory)
    try:
        with _locked(directory):
            _commit(directory, payload, list(tensors), dict(meta))
    except OSError as error:
        raise CheckpointError(
            f"{directory}: the checkpoint cannot be written: {error.strerror or error}. What was "
            "there before is whole. Free some space, or choose another path."
        ) from error


def load(path: str | os.PathLike[str]) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    """The arrays (fresh, writable, in the order they were saved in) and metadata of `path`."""
    directory = Path(path)
    index = _read_index(directory)
    while True:
        try:
            return _read_state(directory, index), index.meta
        except FileNotFoundError as error:
            # Another process may have saved in between, which removes the file just looked for.
            latest = _read_index(directory)
            if latest.state == index.state:
                raise CheckpointError(
                    f"{directory / index.state}: the state file that {INDEX} names is missing. "
                    + _RESTORE
                ) from error
            index = latest


def read_meta(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The metadata alone; the arrays are neither read nor verified."""
    return _read_index(Path(path)).meta


def exists(path: str | os.PathLike[str]) -> bool:
    """Whether `path` holds a checkpoint, whole or not."""
    return (Path(path) / INDEX).is_file()


def prepare(path: str | os.PathLike[str]) -> None:
    """Make the directory, or raise `CheckpointError` if a checkpoint may not be written there.

    Refused: a file; a directory that holds anything but a checkpoint (and its `metrics.jsonl`);
    a checkpoint that this version cannot read.  `save` does this too; a long run does it early.
    """
    directory = Path(path)
    try:
        _make_directory(directory)
        entries = sorted(os.listdir(directory))
    except (FileExistsError, NotADirectoryError) as error:
        raise CheckpointError(
            f"{error.filename or directory}: a checkpoint is a directory, and this is a file. "
            "Nothing was written; choose another path."
        ) from error
    except OSError as error:
        raise CheckpointError(
            f"{directory}: cannot be used for a checkpoint: {error.strerror or error}. "
            "Choose a path that you may write to."
        ) from error
    if INDEX in entries:
        _read_index(directory)
        return
    foreign = [entry for entry in entries if not _is_own(entry)]
    if foreign:
        raise CheckpointError(
            f"{directory}: the directory is not empty and holds no checkpoint (it has "
            f"{foreign[0]!r}). Nothing was written; choose a new or an empty directory."
        )


# --- writing


def _commit(directory: Path, payload: bytes, names: list[str], meta: dict[str, Any]) -> None:
    """Write state, then index, then remove what the new index does not name."""
    # Only the holder of the lock writes, so what is unfinished here belongs to a dead process.
    current = _read_index(directory).state if exists(directory) else None
    counter = 0
    for entry in os.listdir(directory):
        match = _STATE.fullmatch(entry)
        counter = max(counter, int(match[1])) if match else counter
        if entry.startswith(_TEMPORARY) or (match and entry != current):
            (directory / entry).unlink()

    # A new name each time: renaming onto the current state file would change it before the index.
    state = f"state-{counter + 1:08d}.safetensors"
    _write(directory, state, payload)
    body = {
        "format": FORMAT,
        "version": VERSION,
        "state": {
            "file": state,
            "bytes": len(payload),
            "sha256": hashlib.sha256(payload).hexdigest(),
            "tensors": names,
        },
        "meta": meta,
    }
    text = json.dumps({**body, "sha256": _digest(body)}, indent=1)
    _write(directory, INDEX, text.encode("ascii") + b"\n")
    if current is not None:
        (directory / current).unlink(missing_ok=True)


def _write(directory: Path, name: str, payload: bytes) -> None:
    """Put a whole file under `name`: temporary file, fsync, rename, fsync of the directory."""
    temporary = directory / (_TEMPORARY + name)
    try:
        with open(temporary, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, directory / name)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(directory)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_directory(directory: Path) -> None:
    if directory.is_dir():
        return
    parent = directory.parent
    if parent != directory:
        _make_directory(parent)
    try:
        os.mkdir(directory)
    except FileExistsError:
        if not directory.is_dir():
            raise
    _sync_directory(parent)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(directory / _LOCK)
    try:
        lock.acquire(timeout=_LOCK_SECONDS)
    except Timeout as error:
        raise CheckpointError(
            f"{directory}: another process has been saving here for {_LOCK_SECONDS:.0f} s. "
            "Give each run its own path."
        ) from error
    try:
        yield
    finally:
        lock.release()


def _is_own(entry: str) -> bool:
    """Whether a first save that was cut short (or its run) may have left `entry`."""
    return (
        entry in (_LOCK, METRICS)
        or _STATE.fullmatch(entry) is not None
        or (entry.startswith(_TEMPORARY) and _is_name(entry.removeprefix(_TEMPORARY)))
    )


def _is_name(entry: str) -> bool:
    return entry == INDEX or _STATE.fullmatch(entry) is not None


def _serialise(tensors: Mapping[str, npt.NDArray[Any]]) -> bytes:
    from safetensors import SafetensorError
    from safetensors.numpy import save as to_bytes

    plain: dict[str, npt.NDArray[Any]] = {}
    for name, tensor in tensors.items():
        if not isinstance(name, str) or name == "__metadata__":
            raise CheckpointError(
                f"the tensor name {name!r} cannot be stored: use a string other than '__metadata__'"
            )
        if not isinstance(tensor, np.ndarray) or tensor.dtype.name not in _DTYPES:
            kind = tensor.dtype if isinstance(tensor, np.ndarray) else type(tensor).__name__
            raise CheckpointError(
                f"tensor {name!r} is of {kind}, which a checkpoint cannot store. Convert it to an "
                f"array of one of: {', '.join(sorted(_DTYPES))}."
            )
        # safetensors takes the memory as it lies: it must be contiguous and little-endian.
        plain[name] = np.asarray(tensor, dtype=tensor.dtype.newbyteorder("<"), order="C")
    try:
        return to_bytes(plain)
    except (SafetensorError, UnicodeEncodeError) as error:
        raise CheckpointError(f"the tensors cannot be stored: {error}") from error


def _require_json(value: Any, where: str) -> None:
    if value is None or isinstance(value, bool | int | float | str):
        return
    if isinstance(value, list):
        for position, item in enumerate(value):
            _require_json(item, f"{where}[{position}]")
        return
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise CheckpointError(f"{where} has the key {key!r}; JSON wants strings as keys")
            _require_json(item, f"{where}[{key!r}]")
        return
    raise CheckpointError(
        f"{where} is a {type(value).__name__}, which JSON cannot hold and give back. Use None, "
        "bool, int, float, str, lists and dicts; store arrays among the tensors."
    )


def _digest(body: Mapping[str, Any]) -> str:
    """SHA-256 of the index without its own digest, in a spelling that does not depend on layout."""
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


# --- reading


def _read_index(directory: Path) -> _Index:
    file = directory / INDEX
    try:
        text = file.read_bytes().decode("ascii")
    except FileNotFoundError as error:
        what = "the directory holds no checkpoint" if directory.is_dir() else "there is none"
        raise CheckpointError(
            f"{file}: {what}. Name the directory that a training run saved to."
        ) from error
    except NotADirectoryError as error:
        raise CheckpointError(
            f"{directory}: not a checkpoint, which is a directory with {INDEX} in it. "
            "Name the directory that a training run saved to."
        ) from error
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{file}: damaged, it is not text. {_RESTORE}") from error

    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{file}: damaged or cut short, it is not JSON ({error}). {_RESTORE}"
        ) from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise CheckpointError(
            f"{file}: not a checkpoint of Retrograde (its format is not {FORMAT!r}). "
            "Name the directory that a training run saved to."
        )
    if data.get("version") != VERSION:
        raise CheckpointError(
            f"{file}: has format version {data.get('version')!r}, and this Retrograde reads "
            f"version {VERSION}. Use the Retrograde that wrote it."
        )
    if data.pop("sha256", None) != _digest(data):
        raise CheckpointError(f"{file}: damaged, its checksum does not match. {_RESTORE}")
    index = _parse_index(data)
    if index is None:
        raise CheckpointError(f"{file}: damaged, entries are missing or odd. {_RESTORE}")
    return index


def _parse_index(data: dict[str, Any]) -> _Index | None:
    state, meta = data.get("state"), data.get("meta")
    if not isinstance(state, dict) or not isinstance(meta, dict):
        return None
    name, size, sha256 = state.get("file"), state.get("bytes"), state.get("sha256")
    tensors = state.get("tensors")
    # The name is matched whole, so that no index can point outside its own directory.
    if not isinstance(name, str) or not _STATE.fullmatch(name):
        return None
    if not isinstance(size, int) or not isinstance(sha256, str) or not isinstance(tensors, list):
        return None
    return _Index(name, size, sha256, tuple(map(str, tensors)), meta)


def _read_state(directory: Path, index: _Index) -> dict[str, npt.NDArray[Any]]:
    import ml_dtypes  # noqa: F401  registers bfloat16 with NumPy, which safetensors then uses
    from safetensors import SafetensorError, safe_open

    file = directory / index.state
    try:
        size = os.stat(file).st_size
        if size != index.size:
            raise CheckpointError(
                f"{file}: has {size} bytes where {INDEX} says {index.size}: it was cut short or "
                f"replaced. {_RESTORE}"
            )
        digest = hashlib.sha256()
        with open(file, "rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
        if digest.hexdigest() != index.sha256:
            raise CheckpointError(f"{file}: damaged, its SHA-256 does not match. {_RESTORE}")
        with safe_open(str(file), framework="np") as stored:
            # Copies: what safetensors hands out may be views of one shared buffer.
            return {name: np.array(stored.get_tensor(name)) for name in index.tensors}
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror or error}.") from error
    except (SafetensorError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file}: not the state that {INDEX} names: {error}.") from error
