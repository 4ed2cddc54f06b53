"""`retrograde cache`: the folder of compiled code -> what it holds, or nothing any more."""

from __future__ import annotations

import os
from collections.abc import Sequence

from retrograde.runtime.native import cache
from retrograde.runtime.native.cache import MIB, Entry


def path() -> str:
    """The folder."""
    return os.fspath(cache.folder())


def state() -> str:
    """The folder and what it holds, on one line; raises DeviceError if it cannot be trusted."""
    place = cache.folder()
    if not os.path.lexists(place):
        return f"{place} (not there yet)"
    cache.check(place)
    held = cache.entries(place)
    return f"{place} ({_count(held)}, {_size(held)} of at most {cache.limit() // MIB} MiB)"


def summary() -> str:
    """The same as a table."""
    place = cache.folder()
    there = os.path.lexists(place)
    if there:
        cache.check(place)
    held = cache.entries(place)
    return "\n".join(
        (
            f"folder   {place}{'' if there else ' (not there yet)'}",
            f"entries  {sum(e.whole for e in held)}",
            f"bytes    {_size(held)} of at most {cache.limit() // MIB} MiB",
        )
    )


def clear() -> str:
    """Removes what nobody is using just now, and tells what that was."""
    removed, kept = cache.clear()
    text = f"removed {_count(removed)}, {_size(removed)}"
    return text + (f"; {_count(kept)} in use" if kept else "")


def _count(entries: Sequence[Entry]) -> str:
    number = sum(e.whole for e in entries)
    return f"{number} {'entry' if number == 1 else 'entries'}"


def _size(entries: Sequence[Entry]) -> str:
    return f"{sum(e.bytes for e in entries) / MIB:.1f} MiB"
