"""A recurrent model under ever smaller budgets: time, and memory planned, allocated and measured.

    python -m benchmarks.budgets                  # T=1000, B=32, width 256, both losses
    python -m benchmarks.budgets --length 200 --width 64

Activations are what the plan has on top of the inputs; a budget is given as a share of what they
are when everything is kept.  Times are ratios to that, in turns A B A B; "measured" is VmHWM of a
fresh process less what is resident without the problem, the packing buffers of BLAS included
(benchmarks/measure.py).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.measure import Entry, measure_memory, measure_times
from benchmarks.retrograde_budget import LoopProblem, activations, program

SHARES = (0.5, 0.2, 0.1, 0.08, 0.05, 0.04, 0.03)
MIB = 2**20
FACTORY = "benchmarks.retrograde_budget:contender"


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    defaults = LoopProblem()
    for name in ("width", "batch", "length"):
        parser.add_argument(f"--{name}", type=int, default=getattr(defaults, name))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7, help="turns of each budget")
    parser.add_argument("--steps", type=int, default=1, help="timed steps a turn")
    parser.add_argument("--shares", type=float, nargs="*", default=SHARES)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    given = parse_arguments(arguments)
    console = Console(width=140)
    for every_state in (False, True):
        problem = LoopProblem(given.width, given.batch, given.length, every_state)
        console.print(_table(problem, given))


def _table(problem: LoopProblem, given: argparse.Namespace) -> Table:
    inputs, whole = activations(problem)
    budgets: list[int | None] = [None, *(inputs + int(share * whole) for share in given.shares)]
    entries = [
        Entry(
            "everything" if budget is None else f"{(budget - inputs) / whole:.0%}",
            FACTORY, (problem,), (problem.tiny(),), {"budget": budget}, given.threads,
        )
        for budget in budgets
    ]  # fmt: skip
    memories = [measure_memory(entry, warmup=1, steps=3, processes=1) for entry in entries]
    timings = measure_times(entries, rounds=given.rounds, steps=given.steps, warmup=1)
    table = Table(title=f"{problem}, {given.threads} threads")
    for heading in ("budget", "activations", "share", "planned", "allocated", "measured",
                    "steps again", "segments", "states", "median ms", "ratio"):  # fmt: skip
        table.add_column(heading, justify="right")
    for budget, memory, timing in zip(budgets, memories, timings, strict=True):
        plan = program(problem, budget).plan(**problem.sizes)
        held = plan.peak_bytes - inputs
        cut = plan.plan_sizes.get("segment")
        measured = memory.high_water_bytes - memory.baseline_bytes - memory.persistent_bytes
        table.add_row(
            timing.name,
            f"{held / MIB:.2f} MiB",
            f"{held / whole:.2%}",
            f"{plan.peak_bytes / MIB:.2f}",
            f"{(memory.arena_bytes or 0) / MIB:.2f}",
            f"{measured / MIB:.2f}",
            str(plan.recomputed_steps),
            "1" if cut is None else str(-(-problem.length // cut)),
            str(plan.plan_sizes.get("slots", "")),
            f"{timing.median * 1e3:.0f}",
            f"{timing.median / timings[0].median:.3f}",
        )
    return table


if __name__ == "__main__":
    main()
