"""How many threads the process's BLAS uses while programs run.

Invariant: the setting from before the first of the runs that overlap is back after the last of
them, whichever of their Python threads ends first.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

_lock = threading.Lock()
_runs: list[Any] = []  # what puts the setting back, once for each run under way


@contextmanager
def limited(threads: int) -> Iterator[None]:
    """Runs the body with `threads` threads in BLAS; of bodies that overlap, the last to begin says
    how many."""
    with _lock:
        made = _controller().limit(limits=threads, user_api="blas")
        _runs.append(_runs[0] if _runs else made)
    try:
        yield
    finally:
        with _lock:
            before = _runs.pop()
            if not _runs:
                before.restore_original_limits()


@cache
def _controller() -> Any:
    from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

    return ThreadpoolController()
