"""Compiled code on disk: the name of an entry, and how to make it -> a file that can be trusted.

An entry `step-<key>` is its content (`.so`), the SHA-256 of that (`.json`), texts for reading
(`.c`) and two locks: who makes it holds `.lock`, those who are about to load it share `.use`.
Invariant: a path is handed out only of a plain file of this user that nobody else can write and
whose hash is the recorded one; files appear whole, by a rename; nothing is removed that is being
made or loaded.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from retrograde.compiler.errors import DeviceError, Notice
from retrograde.runtime.native import locks

MIB = 1 << 20
DEFAULT_MIB = 512
_ENTRY = re.compile(r"([a-z0-9_]+-[0-9a-f]{32})\.([a-z0-9.]+)")
_loading: dict[Path, list[int]] = {}
_loading_guard = threading.Lock()
_told: set[Path] = set()

Make = Callable[[Path], None]


@dataclass(frozen=True)
class Entry:
    """The files of one entry; `used` in seconds since the epoch."""

    stem: str
    files: tuple[Path, ...]
    bytes: int
    used: float

    @property
    def whole(self) -> bool:
        """Whether it has a content, and not only what is left of a failure."""
        return any(path.suffix == ".json" for path in self.files)


def folder() -> Path:
    """Where compiled code is kept: RETROGRADE_CACHE_DIR, else the user's cache folder."""
    chosen = os.environ.get("RETROGRADE_CACHE_DIR")
    return Path(os.path.abspath(chosen)) if chosen else _default_folder()


@cache
def _default_folder() -> Path:
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("retrograde"))


def limit() -> int:
    """How many bytes may be kept: RETROGRADE_CACHE_MB, else 512 MiB."""
    text = os.environ.get("RETROGRADE_CACHE_MB", "")
    if text and not (text.isascii() and text.isdigit()):
        raise DeviceError(f"RETROGRADE_CACHE_MB is {text!r}: give a whole number of MiB")
    return (int(text) if text else DEFAULT_MIB) * MIB


def fetch(stem: str, suffix: str, make: Make) -> Path:
    """The content of the entry `stem`, made by `make` where there is none that can be trusted.

    `make(scratch)` writes `<stem><suffix>` into a folder of its own, and beside it texts to be kept
    as `<stem>.…`, these also where it raises a DeviceError.  It runs once, however many processes
    ask at the same time.  Call `release` on the path when it has been read.

    Raises DeviceError for a folder that others can write, or where nothing can be written at all.
    """
    place = folder()
    limit()  # a misfit is told before anything is compiled
    try:
        _prepare(place)
        return _fetch(place, stem, suffix, make)
    except OSError as error:
        _tell_private(place, error)
    try:
        return _fetch(_private(os.getpid()), stem, suffix, make)
    except OSError as error:
        raise DeviceError(
            f"compiled code can be kept neither in {place} nor in a temporary folder ({error}): "
            "set RETROGRADE_CACHE_DIR to a folder with some MiB to spare, or use backend='numpy'"
        ) from error


def release(path: Path) -> None:
    """Ends the protection of a path that `fetch` gave: it has been read or loaded."""
    with _loading_guard:
        using = _loading.get(path)
        if using:
            locks.release(using.pop())


def entries(place: Path) -> list[Entry]:
    """What a folder holds, the least recently used first."""
    found: dict[str, list[Path]] = {}
    try:
        paths = sorted(place.iterdir())
    except OSError:
        return []
    for path in paths:
        match = _ENTRY.fullmatch(path.name)
        if match:
            found.setdefault(match[1], []).append(path)
    made = [_entry(stem, tuple(files)) for stem, files in found.items()]
    return sorted(made, key=lambda e: (e.used, e.stem))


def clear() -> tuple[list[Entry], list[Entry]]:
    """Removes all entries; returns those removed, and those that some process is using just now."""
    place = folder()
    if not os.path.lexists(place):
        return [], []
    check(place)
    removed: list[Entry] = []
    kept: list[Entry] = []
    for entry in entries(place):
        (removed if _remove(place, entry, without_locks=True) else kept).append(entry)
    return removed, kept


def check(place: Path) -> None:
    """Raises DeviceError unless `place` is a folder of this user that nobody else can write."""
    found = os.lstat(place)
    other = "set RETROGRADE_CACHE_DIR to a folder of your own"
    if stat.S_ISLNK(found.st_mode):
        raise DeviceError(
            f"{place}: the cache of compiled code is a symbolic link, which is not followed: "
            f"set RETROGRADE_CACHE_DIR to {os.path.realpath(place)}"
        )
    if not stat.S_ISDIR(found.st_mode):
        raise DeviceError(f"{place}: the cache of compiled code is no folder: move it, or {other}")
    if found.st_uid != os.geteuid():
        raise DeviceError(
            f"{place}: the cache of compiled code belongs to user {found.st_uid}, who could put "
            f"any code there, and not to you, user {os.geteuid()}: remove it, or {other}"
        )
    if found.st_mode & 0o022:
        raise DeviceError(
            f"{place}: others can write into the cache of compiled code, and so run code as you "
            f"(mode {stat.S_IMODE(found.st_mode):04o}). Empty it and `chmod 700` it, or {other}"
        )


# --- one entry


def _fetch(place: Path, stem: str, suffix: str, make: Make) -> Path:
    using = locks.acquire(place / f"{stem}.use", shared=True)
    try:
        path, made = _trusted(place, stem, suffix), False
        if path is None:
            with locks.exclusive(place / f"{stem}.lock") as alone:
                path = _trusted(place, stem, suffix)  # made by another one meanwhile
                if path is None:
                    _make(place, stem, suffix, make, alone)
                    path, made = place / f"{stem}{suffix}", True
        if made:
            _evict(place)
    except BaseException:
        locks.release(using)
        raise
    if using is not None:
        with _loading_guard:
            _loading.setdefault(path, []).append(using)
    return path


def _trusted(place: Path, stem: str, suffix: str) -> Path | None:
    """The content, if it is ours and as it was written; marks it as used."""
    record = _read(place / f"{stem}.json")
    content = None if record is None else _read(place / f"{stem}{suffix}")
    if record is None or content is None:
        return None
    try:
        wanted = json.loads(record)["sha256"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if hashlib.sha256(content).hexdigest() != wanted:
        return None
    with suppress(OSError):  # a folder that can only be read
        os.utime(place / f"{stem}.json", follow_symlinks=False)
    return place / f"{stem}{suffix}"


def _read(path: Path) -> bytes | None:
    """The bytes of a plain file of this user that nobody else can write."""
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with open(os.open(path, flags), "rb") as file:
            found = os.fstat(file.fileno())
            ours = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid()
            return file.read() if ours and not found.st_mode & 0o022 else None
    except OSError:
        return None


def _make(place: Path, stem: str, suffix: str, make: Make, alone: bool) -> None:
    if alone:  # what is left of makers that died; a compiler of theirs may still run, and fails
        for left in place.glob(f"{stem}.*.tmp"):
            shutil.rmtree(left, ignore_errors=True)
    scratch = place / f"{stem}.{secrets.token_hex(8)}.tmp"
    scratch.mkdir(mode=0o700)
    try:
        try:
            make(scratch)
        except DeviceError:
            _publish(place, stem, scratch)  # the texts, for who looks for the reason
            raise
        content = scratch / f"{stem}{suffix}"
        record = {"sha256": hashlib.sha256(content.read_bytes()).hexdigest()}
        (scratch / f"{stem}.json").write_text(json.dumps(record), encoding="utf-8")
        _publish(place, stem, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _publish(place: Path, stem: str, scratch: Path) -> None:
    """Moves the entry's files to their place, the record last."""
    mine = [p for p in scratch.iterdir() if p.name.startswith(f"{stem}.")]
    for path in sorted(mine, key=lambda p: (p.suffix == ".json", p.name)):
        os.chmod(path, 0o600)
        _sync(path)
        os.replace(path, place / path.name)
    _sync(place)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- room


def _evict(place: Path) -> None:
    """Removes entries, the least recently used first, until the rest fits."""
    kept = entries(place)
    over = sum(e.bytes for e in kept) - limit()
    for entry in kept:
        if over <= 0:
            return
        if _remove(place, entry, without_locks=False):
            over -= entry.bytes


def _remove(place: Path, entry: Entry, *, without_locks: bool) -> bool:
    """Removes what nobody makes or is about to load."""
    names = [place / f"{entry.stem}.{kind}" for kind in ("lock", "use")]
    held: list[int | None] = []
    try:
        for lock in names:
            held.append(locks.acquire(lock, shared=False, wait=False))
        if None in held and not without_locks:
            return False
        # Without its record the rest counts for nothing; the locks go when all else is gone.
        others = set(entry.files).difference(names)
        for path in [*sorted(others, key=lambda p: p.suffix != ".json"), *names]:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
    except (locks.Busy, OSError):
        return False
    finally:
        for descriptor in held:
            locks.release(descriptor)
    return True


def _entry(stem: str, files: tuple[Path, ...]) -> Entry:
    size, used = 0, 0.0
    for path in files:
        try:
            found = path.lstat()
        except OSError:  # just removed by another process
            continue
        size += found.st_size
        used = max(used, found.st_mtime)
    return Entry(stem, files, size, used)


# --- the folder


def _prepare(place: Path) -> None:
    """Makes the folder where it is missing, and checks it."""
    if not os.path.lexists(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):  # another process was first
            place.mkdir(mode=0o700)
    check(place)


@cache
def _private(process: int) -> Path:
    """A folder for this process alone, which ends with it."""
    import tempfile

    made = Path(tempfile.mkdtemp(prefix="retrograde-"))

    def remove() -> None:
        if os.getpid() == process:
            shutil.rmtree(made, ignore_errors=True)

    atexit.register(remove)
    return made


def _tell_private(place: Path, error: OSError) -> None:
    """One notice a folder."""
    if place in _told:
        return
    _told.add(place)
    warnings.warn(
        f"{place}: compiled code cannot be kept here ({error.strerror or error}), so every "
        "process compiles anew, into a temporary folder. Make room, or set RETROGRADE_CACHE_DIR "
        "to a folder that can be written.",
        Notice,
        stacklevel=4,
    )


def _in_child() -> None:
    """After a fork: the locks are the parent's, and so may be who held the guard."""
    global _loading_guard
    _loading_guard = threading.Lock()
    _loading.clear()


os.register_at_fork(after_in_child=_in_child)
