"""Keys for dropout: the training step at work and a module's path -> a key of its own.

Invariant: a key depends on the seed, the step and the path (and on how often that path has asked),
so a mask that is computed again, in another process or on a part of the rows, is the same mask.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from retrograde import random, scopes
from retrograde.compiler.ir.location import current_scope

_key: ContextVar[Any] = ContextVar("retrograde_dropout", default=None)


@contextmanager
def dropout_keys(key: Any) -> Iterator[None]:
    """Modules called inside draw on `key`, which should differ from step to step.

    `compile_training` does this by itself."""
    token = _key.set(key)
    try:
        with scopes.counting():
            yield
    finally:
        _key.reset(token)


def dropout_key(scope: str | None = None) -> Any:
    """A key for the module at `scope` (default: the one being called), or None where dropout is
    off because no training step is at work.  A module that asks again gets another key."""
    key = _key.get()
    if key is None:
        return None
    path = current_scope() if scope is None else scope
    times = scopes.asked(path)
    name = f"{path}#{times}" if times else path
    return random.fold_in(key, zlib.crc32(name.encode()))


def at_work() -> bool:
    """Whether there are keys: whether dropout is on."""
    return _key.get() is not None
