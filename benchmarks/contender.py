"""What is measured, and what comes of it: contenders, how they are built, times and memory.

Invariant: standard library only, so that an interpreter with any one peer in it can import this.
"""

from __future__ import annotations

import importlib
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Contender:
    """A step that can be run again and again, and what it keeps for good.

    `numbers` describes what a step computes, for comparison between contenders; without it that is
    what the first steps return.  `compile_seconds` is what of the building was compilation."""

    step: Callable[[], object]
    persistent_bytes: int
    planned_peak_bytes: int | None = None
    arena_bytes: int | None = None
    numbers: Callable[[], Sequence[float]] | None = None
    compile_seconds: float = 0.0


@dataclass(frozen=True)
class Entry:
    """How to build a contender in a fresh process of the interpreter `python`."""

    name: str
    factory: str
    arguments: tuple[Any, ...]
    tiny_arguments: tuple[Any, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    threads: int = 2
    python: str = sys.executable
    environment: Mapping[str, str] = field(default_factory=dict)

    def build(self, arguments: tuple[Any, ...]) -> Contender:
        module, function = self.factory.split(":")
        make = getattr(importlib.import_module(module), function)
        contender = make(*arguments, self.threads, **self.options)
        assert isinstance(contender, Contender)
        return contender


@dataclass(frozen=True)
class Built:
    """A contender that has run: seconds of a step, of compiling until it ran, and its numbers."""

    step_seconds: float
    compile_seconds: float
    numbers: tuple[float, ...]


@dataclass(frozen=True)
class Timing:
    """Seconds of every timed step, turn after turn.

    `disturbed` is the processor time that the idle contenders took while this one was at work, as
    a share of its time."""

    name: str
    seconds: tuple[float, ...]
    per_turn: int = 1
    disturbed: float = 0.0

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def minimum(self) -> float:
        return min(self.seconds)

    @property
    def turns(self) -> list[float]:
        """The median of every turn."""
        starts = range(0, len(self.seconds), self.per_turn)
        return [statistics.median(self.seconds[i : i + self.per_turn]) for i in starts]

    def times_faster(self, than: Timing) -> float:
        """The median over the rounds of how many times longer the other one took in the same."""
        pairs = zip(than.turns, self.turns, strict=True)
        return statistics.median(theirs / own for theirs, own in pairs)


@dataclass(frozen=True)
class Memory:
    """Where the bytes of a step are; see benchmarks/measure.py for each term."""

    name: str
    high_water_bytes: int
    persistent_bytes: int
    baseline_anonymous_bytes: int
    baseline_file_bytes: int
    late_file_bytes: int  # file pages that came in after the tiny problem; part of the baseline
    resident_between_steps_bytes: int
    traced_peak_bytes: int
    planned_peak_bytes: int | None
    arena_bytes: int | None

    @property
    def baseline_bytes(self) -> int:
        return self.baseline_anonymous_bytes + self.baseline_file_bytes

    @property
    def activation_bytes(self) -> int:
        return self.high_water_bytes - self.persistent_bytes - self.baseline_bytes
