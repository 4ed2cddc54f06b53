"""Calling a function with room for the frames of what it calls.

CPython keeps the frames of a thread in chunks of 16 KiB (`push_chunk` in its Python/pystate.c).
Where a frame is the last that fits into one, each call from it maps a chunk and each return unmaps
it: some 6 us a call, by which a loop over thousands of small calls takes several times as long, at
some depths of the stack and not at others.  A frame that is larger than a chunk gets one of its
own, of twice the size: the frames of what it calls follow in there.  Invariant: the result, and
what is raised, are those of the function.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

_SLOTS = 2500  # of 8 bytes: more than a chunk, so that two follow each other and 12 KiB are left


@cache
def _wide() -> Callable[..., Any]:
    """`call(fn, args)`, whose frame has room for _SLOTS variables that are never set."""
    unset = " = ".join(f"v{k}" for k in range(_SLOTS))
    scope: dict[str, Any] = {}
    exec(f"def call(fn, args):\n if fn is None:\n  {unset} = fn\n return fn(*args)", scope)
    made: Callable[..., Any] = scope["call"]
    return made


def with_headroom(fn: Callable[..., Any], *args: Any) -> Any:
    """`fn(*args)`."""
    return _wide()(fn, args)
