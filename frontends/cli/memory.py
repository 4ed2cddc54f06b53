"""The memory of a step as the operating system counts it: a step -> bytes.

A clone of the compiled step runs once and is dropped; how far the high-water mark of this process
lay above what is resident then is what it took.  Invariant: neither the step's own state nor its
arena is touched, and nothing of the plan goes into what is measured.
"""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Measured:
    """Bytes; None where the operating system does not tell."""

    planned: int  # the peak of the plan at the sizes of the batch
    arena: int  # what is allocated for it
    high_water: int | None  # growth of the resident memory up to its highest, the arena included
    outside: int  # what Python and NumPy allocated beside the arena, at most at once


def measure(step: Any, batch: Mapping[str, Any]) -> Measured:
    """What one step of `step` on `batch` takes."""
    # A first clone pays for what happens once in a process: the buffers of the BLAS library, the
    # compiled Python of the schedule.
    for_once = step.clone()
    for_once(**batch)
    outside = _outside(for_once, batch)
    del for_once
    gc.collect()
    clone = step.clone()
    can_reset = _can_reset()
    clone(**batch)
    highest = _resident("VmHWM") if can_reset else None
    planned, arena = clone.peak_bytes, clone._runnable().executable.arena_bytes
    del clone
    gc.collect()
    if highest is None:
        return Measured(planned, arena, None, outside)
    # Compared with what is resident once the memory is given back, and not with what was before,
    # which lacks the Python objects of a bound program.
    return Measured(planned, arena, highest - _resident("VmRSS"), outside)


def _outside(step: Any, batch: Mapping[str, Any]) -> int:
    tracemalloc.start()
    try:
        step(**batch)
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        step(**batch)
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def _can_reset() -> bool:
    """Sets the high-water mark of this process to what is resident now, on Linux."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return _STATUS.is_file()


def _resident(name: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"the kernel tells no {name}")
