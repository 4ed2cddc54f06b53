"""Memory that the host process holds beside its arenas.

Compiling the source of a large schedule takes some ten MiB for a moment; the C library keeps those
pages for later.  Invariant: giving them back changes nothing but the size of the process.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any


@cache
def _malloc_trim() -> Any:
    """glibc's malloc_trim, or None where the C library has none."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):
        return None


def give_back() -> None:
    """Returns the pages of freed memory to the operating system, where that can be asked for."""
    trim = _malloc_trim()
    if trim is not None:
        trim(0)
