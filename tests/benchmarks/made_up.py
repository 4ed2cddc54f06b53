"""Contenders that sleep for a known time, for the tests of how they are measured."""

from __future__ import annotations

import mmap
import os
import time
from dataclasses import dataclass

from benchmarks.contender import Contender


@dataclass(frozen=True)
class Naps:
    """A problem without arithmetic, whose result is `answer`."""

    answer: float = 5.0
    flops: float = 0.0

    def tiny(self) -> Naps:
        return self


def contender(
    problem: Naps,
    threads: int,
    *,
    seconds: float = 0.002,
    off: float = 0.0,
    build: float = 0.0,
    fails: bool = False,
    dies: bool = False,
    held: int = 0,
    backend: str = "",
) -> Contender:
    """Naps for `seconds` a step, holds `held` bytes meanwhile; `build` is how long it takes to be
    ready."""
    if dies:
        os._exit(7)
    if fails:
        raise RuntimeError("no such instruction")
    time.sleep(build)

    def step() -> float:
        with mmap.mmap(-1, max(held, 1)) as memory:
            for place in range(0, held, mmap.PAGESIZE):
                memory[place] = 1
            time.sleep(seconds)
        return problem.answer + off

    return Contender(step=step, persistent_bytes=0, planned_peak_bytes=held, arena_bytes=held)
