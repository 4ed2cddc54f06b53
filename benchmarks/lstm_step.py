"""Sizes -> tables of one LSTM training step: Retrograde beside PyTorch and JAX.

    python -m benchmarks.lstm_step                       # the three sizes of the default list
    python -m benchmarks.lstm_step --size 128,32,256     # T, B, width; repeatable
    python -m benchmarks.lstm_step --max-time 0.55       # exit 1 where the ratio is above

The cell is the user's own: a plain function under `rg.scan` and `lax.scan`, a Python loop in
PyTorch, and for comparison the cell that `torch.nn.LSTM` has built in. A step is forward, backward,
clipping by the global norm and AdamW. Ratios are to the Python loop of PyTorch.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from benchmarks.measure import Timing, measure_memory, measure_times
from benchmarks.problem import LSTMProblem
from benchmarks.table import (
    Contenders,
    entries_of,
    full_table,
    installed,
    time_ratio,
    time_table,
)

TORCH = "benchmarks.peers.torch_lstm:contender"
CONTENDERS: Contenders = {
    "retrograde": ("retrograde", "benchmarks.retrograde_lstm:contender", {"backend": "numpy"}),
    "torch-cell": ("torch", TORCH, {"cell": "loop"}),
    "torch-nn.LSTM": ("torch", TORCH, {"cell": "library"}),
    "jax-scan": ("jax", "benchmarks.peers.jax_lstm:contender", {}),
}
BASE = "torch-cell"
SIZES = ((128, 32, 256), (128, 32, 128), (512, 8, 64))


def size(text: str) -> tuple[int, int, int]:
    """ "128,32,256" as steps, rows and width."""
    steps, rows, width = (int(part) for part in text.split(","))
    return steps, rows, width


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", action="append", type=size, help="T,B,width; repeatable")
    parser.add_argument("--vocab", type=int, default=LSTMProblem.vocab)
    parser.add_argument("--only", action="append", choices=list(CONTENDERS), help="repeatable")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=12, help="turns of each contender")
    parser.add_argument("--steps", type=int, default=4, help="timed steps a turn")
    parser.add_argument("--warmup", type=int, default=4, help="steps before the first turn")
    parser.add_argument("--memory", action="store_true", help="measure memory too")
    parser.add_argument("--max-time", type=float, help="highest ratio of medians that passes")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    return parser.parse_args(arguments)


def failures(problem: LSTMProblem, limit: float | None, timings: Sequence[Timing]) -> list[str]:
    """The limit that Retrograde misses, or could not be held against."""
    if limit is None:
        return []
    names = {timing.name for timing in timings}
    if not {"retrograde", BASE} <= names:
        return [f"a limit needs both retrograde and {BASE} in the run"]
    own, base = time_ratio("retrograde", timings, BASE)
    assert base is not None
    return (
        [f"{problem}: time ratio {own / base:.3f} is above {limit}"] if own > limit * base else []
    )


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    console = Console(width=None if sys.stdout.isatty() else 160)
    names = installed(CONTENDERS, options.only or list(CONTENDERS), console)
    missed: list[str] = []
    records = []
    for steps, rows, width in options.size or SIZES:
        problem = LSTMProblem(length=steps, batch=rows, width=width, vocab=options.vocab)
        title = f"{problem}, {options.threads} threads"
        entries = entries_of(CONTENDERS, names, problem, problem.tiny(), options.threads)
        memories = [measure_memory(entry) for entry in entries] if options.memory else []
        timings = measure_times(
            entries, rounds=options.rounds, steps=options.steps, warmup=options.warmup
        )
        if options.memory:
            console.print(full_table(title, timings, memories, BASE))
        else:
            console.print(time_table(title, timings, BASE))
        missed += failures(problem, options.max_time, timings)
        records.append(
            {
                "problem": asdict(problem),
                "timings": [asdict(timing) for timing in timings],
                "memories": [asdict(memory) for memory in memories],
            }
        )
    if options.json is not None:
        options.json.write_text(json.dumps(records, indent=1))
    for line in missed:
        console.print(line)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
