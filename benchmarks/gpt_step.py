"""Sizes -> a table of one GPT training step: Retrograde beside PyTorch eager, time and memory.

    python -m benchmarks.gpt_step                      # the default recipe, NumPy device
    python -m benchmarks.gpt_step --only torch --only torch-manual
    python -m benchmarks.gpt_step --max-time 1.6 --max-memory 0.6    # exit 1 where a ratio is above

Ratios are to the first PyTorch row. benchmarks/measure.py defines every column.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

from rich.console import Console

from benchmarks.measure import Memory, Timing, measure_memory, measure_times
from benchmarks.problem import GPTProblem
from benchmarks.table import entries_of, full_table, installed, memory_ratio, time_ratio

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
    own = time_ratio("retrograde", timings, BASE)
    base = memory_ratio("retrograde", memories, BASE)
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
    names = installed(CONTENDERS, options.only or ["retrograde", BASE], console)
    entries = entries_of(CONTENDERS, names, problem, problem.tiny(), options.threads)
    memories = [measure_memory(entry) for entry in entries]
    timings = measure_times(entries, rounds=options.rounds, steps=options.steps)
    title = f"{problem}, {options.threads} threads"
    console.print(full_table(title, timings, memories, BASE))
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
