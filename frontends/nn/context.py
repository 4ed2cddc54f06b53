"""Keys for dropout: the training step at work and a module's path -> a key of its own.

Invariant: a key depends on the seed, the step and the path (and on how often that path has asked),
so a mask that is computed again, in another process or on a part of the rows, is the same mask.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from retrograde import random
from retrograde.compiler.ir.location import current_scope


@dataclass
class _Source:
    key: Any
    asked: dict[str, int] = field(default_factory=dict)


_source: ContextVar[_Source | None] = ContextVar("retrograde_dropout", default=None)


@contextmanager
def dropout_keys(key: Any) -> Iterator[None]:
    """Modules called inside draw on `key`, which should differ from step to step.

    `compile_training` does this by itself."""
    token = _source.set(_Source(key))
    try:
        yield
    finally:
        _source.reset(token)


def dropout_key(scope: str | None = None) -> Any:
    """A key for the module at `scope` (default: the one being called), or None where dropout is
    off because no training step is at work.  A module that asks again gets another key."""
    source = _source.get()
    if source is None:
        return None
    path = current_scope() if scope is None else scope
    times = source.asked.get(path, 0)
    source.asked[path] = times + 1
    name = f"{path}#{times}" if times else path
    return random.fold_in(source.key, zlib.crc32(name.encode()))


def at_work() -> bool:
    """Whether there are keys: whether dropout is on."""
    return _source.get() is not None


def repeated() -> Callable[[], AbstractContextManager[None]]:
    """For the body of a loop: each time that it is entered, modules draw on the same keys.

    So a body that is traced once and one that runs step by step drop the same numbers."""
    outer = _source.get()
    before = {} if outer is None else dict(outer.asked)

    @contextmanager
    def body() -> Iterator[None]:
        if outer is None:
            yield
            return
        inner = _Source(outer.key, dict(before))
        token = _source.set(inner)
        try:
            yield
        finally:
            _source.reset(token)
            outer.asked.update(inner.asked)

    return body
