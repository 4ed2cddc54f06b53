"""Timings and memories -> tables with ratios to one of the rows; and which contenders there are."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.measure import Entry, Memory, Timing

MIB = 2**20
Contenders = Mapping[str, tuple[str, str, Mapping[str, str]]]  # name -> library, factory, options


def installed(contenders: Contenders, names: Sequence[str], console: Console) -> list[str]:
    """The names whose library is there; the others are named aloud."""
    missing = [name for name in names if importlib.util.find_spec(contenders[name][0]) is None]
    for name in missing:
        console.print(f"{name}: {contenders[name][0]} is not installed, left out")
    return [name for name in names if name not in missing]


def entries_of(
    contenders: Contenders, names: Sequence[str], problem: object, tiny: object, threads: int
) -> list[Entry]:
    """How to build each named contender for the problem."""
    return [
        Entry(name, contenders[name][1], (problem,), (tiny,), contenders[name][2], threads)
        for name in names
    ]


def time_table(title: str, timings: Sequence[Timing], base: str) -> Table:
    table = _with_columns(title, "median ms", "best ms", "time ratio")
    for timing in timings:
        table.add_row(timing.name, *_times(timing, timings, base))
    return table


def full_table(
    title: str, timings: Sequence[Timing], memories: Sequence[Memory], base: str
) -> Table:
    table = _with_columns(
        title,
        "median ms",
        "best ms",
        "time ratio",
        "activation MiB",
        "memory ratio",
        "persistent MiB",
        "baseline MiB",
        "high water MiB",
        "outside MiB",
        "planned MiB",
    )
    for timing, memory in zip(timings, memories, strict=True):
        planned = memory.planned_peak_bytes
        table.add_row(
            timing.name,
            *_times(timing, timings, base),
            f"{memory.activation_bytes / MIB:.2f}",
            _ratio(*memory_ratio(memory.name, memories, base)),
            f"{memory.persistent_bytes / MIB:.2f}",
            f"{memory.baseline_bytes / MIB:.1f}",
            f"{memory.high_water_bytes / MIB:.1f}",
            f"{memory.traced_peak_bytes / MIB:.3f}",
            "-" if planned is None else f"{planned / MIB:.2f}",
        )
    return table


def _with_columns(title: str, *headings: str) -> Table:
    table = Table(title=title)
    table.add_column("step", justify="left")
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


def _times(timing: Timing, timings: Sequence[Timing], base: str) -> tuple[str, str, str]:
    return (
        f"{timing.median * 1e3:.2f}",
        f"{timing.minimum * 1e3:.2f}",
        _ratio(*time_ratio(timing.name, timings, base)),
    )


def _ratio(own: float, base: float | None) -> str:
    return "-" if base is None else f"{own / base:.3f}"


def time_ratio(name: str, timings: Sequence[Timing], base: str) -> tuple[float, float | None]:
    """The medians of `name` and of `base`, None where `base` did not run."""
    medians = {timing.name: timing.median for timing in timings}
    return medians[name], medians.get(base)


def memory_ratio(name: str, memories: Sequence[Memory], base: str) -> tuple[float, float | None]:
    """The activation bytes of `name` and of `base`, None where `base` did not run."""
    activations = {memory.name: float(memory.activation_bytes) for memory in memories}
    return activations[name], activations.get(base)
