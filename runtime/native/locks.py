"""Locks on files that die with their holder: a path -> a descriptor that holds it (flock).

`filelock` knows no shared locks, polls, and falls back to lock files that outlive who made them.
Invariant: no process holds a lock by a descriptor that it only inherited over a fork.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_held: set[int] = set()


class Busy(Exception):
    """Somebody else holds the lock."""


def acquire(path: Path, *, shared: bool, wait: bool = True) -> int | None:
    """Locks the file, which is made if it is missing; raises Busy instead of waiting for it.

    None: this file system has no locks, or cannot be written and has no such file.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    while True:
        descriptor = _open(path)
        if descriptor is None:
            return None
        try:
            fcntl.flock(descriptor, kind if wait else kind | fcntl.LOCK_NB)
            there = _same(descriptor, path)
        except BlockingIOError:
            os.close(descriptor)
            raise Busy(path) from None
        except OSError:
            os.close(descriptor)
            return None
        except BaseException:  # interrupted while it waited
            os.close(descriptor)
            raise
        if there:
            _held.add(descriptor)
            return descriptor
        os.close(descriptor)  # its holder has removed it: a lock on nothing


def release(descriptor: int | None) -> None:
    """Gives the lock back, also where a child process has inherited it."""
    if descriptor is None or descriptor not in _held:  # the second is so in a forked child
        return
    _held.discard(descriptor)
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


@contextmanager
def exclusive(path: Path) -> Iterator[bool]:
    """Holds the lock alone; False where there are no locks."""
    descriptor = acquire(path, shared=False)
    try:
        yield descriptor is not None
    finally:
        release(descriptor)


def _open(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | _FLAGS, 0o600)
    except OSError:
        pass
    try:
        return os.open(path, os.O_RDONLY | _FLAGS)  # a folder that can only be read
    except OSError:
        return None


def _same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _in_child() -> None:
    """A lock belongs to the parent alone, and is to end with it."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_in_child)
