"""Sizes -> a table of one GPT training step: Retrograde beside PyTorch eager, time and memory.

    python -m benchmarks.gpt_step                      # the default recipe, NumPy device
    python -m benchmarks.gpt_step --only torch --only torch-manual
    python -m benchmarks.gpt_step --max-time 1.6 --max-memory 0.6    # exit 1 where a ratio is above

Ratios are to the first PyTorch row. benchmarks/measure.py defines every column.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.measure import Entry, Memory, Timing, measure_memory, measure_times
from benchmarks.problem import GPTProblem

TORCH = "benchmarks.peers.torch_gpt:contender"
RETROGRADE = "benchmarks.retrograde_gpt:contender"
CONTENDERS: dict[str, tuple[str, str, dict[str, str]]] = {
    "retrograde": ("retrograde", RETROGRADE, {"backend": "numpy"}),
    "torch": ("torch", TORCH, {}),
    "torch-foreach": ("torch", TORCH, {"optimizer": "foreach"}),
    "torch-loop": ("torch", TORCH, {"optimizer": "loop"}),
    "torch-manual": ("torch", TORCH, {"attention": "manual"}),
}
BASE = "torch"
MIB = 2**20


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    defaults = GPTProblem()
    for name in ("vocab", "width", "layers", "heads", "batch", "length"):
        parser.add_argument(f"--{name}", type=int, default=getattr(defaults, name))
    parser.add_argument("--only", action="append", choices=list(CONTENDERS), help="repeatable")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=12, help="turns of each contender")
    parser.add_argument("--steps", type=int, default=8, help="timed steps a turn")
    parser.add_argument("--max-time", type=float, help="highest ratio of medians that passes")
    parser.add_argument("--max-memory", type=float, help="highest ratio of activation memory")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    return parser.parse_args(arguments)


def entries_for(names: Sequence[str], problem: GPTProblem, threads: int) -> list[Entry]:
    """How to build each named contender for the problem."""
    entries = []
    for name in names:
        _, factory, options = CONTENDERS[name]
        entries.append(Entry(name, factory, (problem,), (problem.tiny(),), options, threads))
    return entries


def installed(names: Sequence[str], console: Console) -> list[str]:
    """The names whose library is there; the others are named aloud."""
    missing = [name for name in names if importlib.util.find_spec(CONTENDERS[name][0]) is None]
    for name in missing:
        console.print(f"{name}: {CONTENDERS[name][0]} is not installed, left out")
    return [name for name in names if name not in missing]


def table_of(title: str, timings: Sequence[Timing], memories: Sequence[Memory]) -> Table:
    table = Table(title=title)
    for heading in (
        "step",
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
    ):
        table.add_column(heading, justify="left" if heading == "step" else "right")
    for timing, memory in zip(timings, memories, strict=True):
        planned = memory.planned_peak_bytes
        table.add_row(
            timing.name,
            f"{timing.median * 1e3:.2f}",
            f"{timing.minimum * 1e3:.2f}",
            _ratio(*time_ratio(timing.name, timings)),
            f"{memory.activation_bytes / MIB:.2f}",
            _ratio(*memory_ratio(memory.name, memories)),
            f"{memory.persistent_bytes / MIB:.2f}",
            f"{memory.baseline_bytes / MIB:.1f}",
            f"{memory.high_water_bytes / MIB:.1f}",
            f"{memory.traced_peak_bytes / MIB:.3f}",
            "-" if planned is None else f"{planned / MIB:.2f}",
        )
    return table


def _ratio(own: float, base: float | None) -> str:
    return "-" if base is None else f"{own / base:.3f}"


def time_ratio(name: str, timings: Sequence[Timing]) -> tuple[float, float | None]:
    medians = {timing.name: timing.median for timing in timings}
    return medians[name], medians.get(BASE)


def memory_ratio(name: str, memories: Sequence[Memory]) -> tuple[float, float | None]:
    activations = {memory.name: float(memory.activation_bytes) for memory in memories}
    return activations[name], activations.get(BASE)


def failures(
    arguments: argparse.Namespace, timings: Sequence[Timing], memories: Sequence[Memory]
) -> list[str]:
    """The limits that Retrograde misses, or could not be held against."""
    wanted = (("time", arguments.max_time), ("memory", arguments.max_memory))
    limits = {what: limit for what, limit in wanted if limit is not None}
    if not limits:
        return []
    names = {timing.name for timing in timings}
    if not {"retrograde", BASE} <= names:
        return [f"a limit needs both retrograde and {BASE} in the run"]
    own, base = time_ratio("retrograde", timings), memory_ratio("retrograde", memories)
    found = {what: pair[0] / pair[1] for what, pair in (("time", own), ("memory", base)) if pair[1]}
    return [
        f"{what} ratio {found[what]:.3f} is above {limit}"
        for what, limit in limits.items()
        if found[what] > limit
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    sizes = {f.name: getattr(options, f.name) for f in fields(GPTProblem) if f.name in options}
    problem = GPTProblem(**sizes)
    console = Console(width=None if sys.stdout.isatty() else 160)
    names = installed(options.only or ["retrograde", BASE], console)
    entries = entries_for(names, problem, options.threads)
    memories = [measure_memory(entry) for entry in entries]
    timings = measure_times(entries, rounds=options.rounds, steps=options.steps)
    console.print(table_of(f"{problem}, {options.threads} threads", timings, memories))
    if options.json is not None:
        record = {
            "problem": asdict(problem),
            "timings": [asdict(timing) for timing in timings],
            "memories": [asdict(memory) for memory in memories],
        }
        options.json.write_text(json.dumps(record, indent=1))
    missed = failures(options, timings, memories)
    for line in missed:
        console.print(line)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
