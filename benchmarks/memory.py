"""A training step under ever smaller budgets beside its peers: memory that it takes, and its time.

    python -m benchmarks.memory                       # GPT T256 B8 d384 h6 L6
    python -m benchmarks.memory --only retrograde           # without its peers
    python -m benchmarks.memory --layers 24 --length 1024 --beyond 1073 --only retrograde

Bytes are beyond parameters and optimizer state, gradients included, in MB (a million).  *Planned*
is what the compiler promises (of JAX its own memory_analysis), *measured* the high-water mark of a
step after the warm-up, for everyone in the same way (benchmarks/measure.py).  Time ratios are to
our own program that keeps everything, medians over rounds in which all take turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.contender import Entry, Memory, Timing
from benchmarks.measure import Failed, measure_memory, measure_times
from benchmarks.problem import GPTProblem
from benchmarks.run import importable

MB = 10**6
BEYOND = (260, 152, 130, 105, 95)  # what Python holds comes on top
COMPILED = (0.8, 0.5)  # activation_memory_budget of torch.compile: about 45 s each to compile
BASE = "retrograde, everything kept"
OWN = "benchmarks.retrograde_gpt:contender"
TORCH = "benchmarks.peers.torch_gpt:contender"
JAX = "benchmarks.peers.jax_gpt:contender"
# MB beyond parameters and optimizer state, and the most that the time may grow by: 3% is what runs
# of the same program differ by.
TARGETS = {260: 1.03, 165: 1.15, 125: 1.40, 1073: 1.35}


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, value in (("length", 256), ("batch", 8), ("width", 384), ("heads", 6), ("layers", 6)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--beyond", type=int, action="append", help="a budget in MB; repeatable")
    parser.add_argument(
        "--compiled", type=float, action="append", metavar="BUDGET",
        help="torch.compile with this activation_memory_budget; repeatable",
    )  # fmt: skip
    parser.add_argument("--only", action="append", help="how names begin; repeatable")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7, help="turns of each contender")
    parser.add_argument("--steps", type=int, default=1, help="timed steps a turn")
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--processes", type=int, default=1, help="odd; for memory")
    parser.add_argument("--backend", default="native", help="of Retrograde")
    parser.add_argument("--jax-python", default=sys.executable, metavar="PATH")
    parser.add_argument("--json", type=Path, help="also write everything there")
    return parser.parse_args(arguments)


def entries(options: argparse.Namespace) -> list[Entry]:
    """Everyone who is asked for and installed."""
    problem = GPTProblem(
        length=options.length, batch=options.batch, width=options.width, heads=options.heads,
        layers=options.layers,
    )  # fmt: skip
    own = {"backend": options.backend}
    found: list[tuple[str, str, str, dict[str, Any]]] = [
        (BASE, "retrograde", OWN, {**own, "everything": True}),
        ("retrograde", "retrograde", OWN, own),
        *(
            (f"retrograde, {n} MB", "retrograde", OWN, {**own, "beyond": n * MB})
            for n in options.beyond or BEYOND
        ),
        ("torch", "torch", TORCH, {}),
        ("torch, blocks again", "torch", TORCH, {"checkpointed": True}),
        *(
            (f"torch.compile, budget {b:g}", "torch", TORCH, {"compiled": True, "budget": b})
            for b in options.compiled or COMPILED
        ),
        ("jax", "jax", JAX, {"analysed": True}),
        ("jax, blocks again", "jax", JAX, {"analysed": True, "checkpoint": True}),
    ]
    chosen = []
    for name, library, factory, more in found:
        if options.only and not any(name.startswith(wanted) for wanted in options.only):
            continue
        python = options.jax_python if library == "jax" else sys.executable
        if importable(library, python):
            chosen.append(
                Entry(name, factory, (problem,), (problem.tiny(),), more, options.threads, python)
            )
    return chosen


def _measured(
    asked: Sequence[Entry], options: argparse.Namespace, console: Console
) -> tuple[list[Memory], list[Timing]]:
    """Memory one after the other, then times in turns; who fails is named and left out."""
    memories, ready = [], []
    for entry in asked:
        try:
            memories.append(
                measure_memory(entry, warmup=options.warmup, steps=3, processes=options.processes)
            )
            ready.append(entry)
        except Failed as reason:
            console.print(f"left out: {reason}")
    timings = measure_times(
        ready, rounds=options.rounds, steps=options.steps, warmup=options.warmup
    )
    return memories, timings


def table(title: str, memories: Sequence[Memory], timings: Sequence[Timing]) -> Table:
    made = Table(title=title)
    made.add_column("step")
    for heading in ("planned MB", "allocated MB", "measured MB", "median ms", "best ms", "ratio"):
        made.add_column(heading, justify="right")
    for memory, timing in zip(memories, timings, strict=True):
        made.add_row(
            timing.name,
            _beyond(memory.planned_peak_bytes, memory),
            _beyond(memory.arena_bytes, memory),
            f"{memory.activation_bytes / MB:.1f}",
            f"{timing.median * 1e3:.0f}",
            f"{timing.minimum * 1e3:.0f}",
            f"{_ratio(timing, timings):.3f}",
        )
    return made


def _beyond(bytes: int | None, memory: Memory) -> str:
    return "" if bytes is None else f"{(bytes - memory.persistent_bytes) / MB:.1f}"


def _ratio(timing: Timing, timings: Sequence[Timing]) -> float:
    """The median over the rounds of its time as a share of the first one's."""
    pairs = zip(timing.turns, timings[0].turns, strict=True)
    return statistics.median(own / base for own, base in pairs)


def verdicts(memories: Sequence[Memory], timings: Sequence[Timing]) -> list[str]:
    """For each limit on measured memory our fastest step that keeps to it."""
    own = [
        (_ratio(timing, timings), memory)
        for memory, timing in zip(memories, timings, strict=True)
        if memory.name.startswith("retrograde")
    ]
    lines = []
    for limit, most in TARGETS.items():
        fitting = [found for found in own if found[1].activation_bytes <= limit * MB]
        if not fitting:
            continue
        ratio, memory = min(fitting, key=lambda found: found[0])
        met = "met" if ratio <= most else "NOT MET"
        lines.append(
            f"within {limit} MB: {memory.name}, {memory.activation_bytes / MB:.1f} MB at "
            f"{ratio:.3f} of the time, at most {most:.2f}: {met}"
        )
    return lines


def beaten(memories: Sequence[Memory], timings: Sequence[Timing]) -> list[str]:
    """For each peer the step of ours that takes the least memory in no more time."""
    rows = list(zip(memories, timings, strict=True))
    lines = []
    for memory, timing in rows:
        if memory.name.startswith("retrograde"):
            continue
        own = [
            (found, 1 / its.times_faster(timing))
            for found, its in rows
            if found.name.startswith("retrograde") and its.times_faster(timing) >= 1
        ]
        lines.append(f"{memory.name}, {memory.activation_bytes / MB:.1f} MB: ")
        if not own:
            lines[-1] += "none of ours is as fast"
            continue
        least, share = min(own, key=lambda row: row[0].activation_bytes)
        less = least.activation_bytes < memory.activation_bytes
        lines[-1] += (
            f"{least.name} takes {least.activation_bytes / MB:.1f} MB and {share:.2f} of its time: "
            f"{'beaten' if less else 'NOT BEATEN'}"
        )
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    figures = measure(options, Console(width=None if sys.stdout.isatty() else 140))
    if options.json is not None:
        options.json.write_text(json.dumps(figures))
    return 0


def measure(options: argparse.Namespace, console: Console) -> dict[str, list[dict[str, Any]]]:
    """Prints the table and what comes of it; all figures."""
    asked = entries(options)
    memories, timings = _measured(asked, options, console)
    title = f"{asked[0].arguments[0]}, {options.threads} threads"
    console.print(table(title, memories, timings))
    for line in (*verdicts(memories, timings), *beaten(memories, timings)):
        console.print(line)
    return {"memories": [asdict(m) for m in memories], "timings": [asdict(t) for t in timings]}


if __name__ == "__main__":
    sys.exit(main())
