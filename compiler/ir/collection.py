"""Pausing the garbage collector while many small objects are made that all stay.

Invariant: the collector is as it was afterwards, also after an error.  A graph is thousands of
objects that are alive until it is compiled; each full collection on the way would visit all of them
again, so that compiling would take more than linear time.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused_collection() -> Iterator[None]:
    """No collection of reference cycles inside; what has no references is freed as always."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
