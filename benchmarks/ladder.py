"""Whether what takes less memory takes the time that is planned for it: recipes under ever smaller
budgets, of the program that keeps everything to the least there is.

    python -m benchmarks.ladder                       # every recipe, its own sizes and data
    python -m benchmarks.ladder char-gpt weather --rungs 6

All programs of a recipe take turns, step by step; *time* is the median over the turns of the ratio
to the first, *planned* what the compiler says of the same.  A row is out of order where an earlier
one, planned to be cheaper, takes more time by more than 3%.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from retrograde.cli.recipes import RECIPES, compiled_step
from retrograde.cli.settings import resolve
from retrograde.runtime.executable import Executable

MB = 10**6
SAME = 1.03  # runs of one program differ by as much


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help="all of them unless named")
    parser.add_argument("--rungs", type=int, default=5, help="budgets, evenly spaced")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.2, help="least time of a turn")
    return parser.parse_args(arguments)


@dataclass
class Rung:
    """A program of the recipe, ready to run."""

    executable: Executable
    peak: int
    cost: float
    name: str
    times: list[float]

    def turn(self, given: Sequence[Any], sizes: dict[str, int], count: int) -> None:
        begin = time.perf_counter()
        for _ in range(count):
            self.executable.run(given, sizes)
        self.times.append((time.perf_counter() - begin) / count)


def rungs(name: str, asked: int) -> tuple[list[Rung], list[Any], dict[str, int]]:
    """The programs of a recipe for evenly spaced budgets, one batch, and its sizes."""
    values = resolve(RECIPES[name].settings, name, {}, [], environment={})
    training = RECIPES[name].build(values)
    free = compiled_step(training, values)
    step: Any = compiled_step(training, values, str(free.peak_bytes))
    batch = step._batch(next(training.batches))
    program, device = step._run.executable.program, step._run.executable.device
    sizes = step._sizes_of(batch)
    start = step._run.executable.state()
    heights = [way.height for way in program.frontier(sizes)]
    found: list[Rung] = []
    for budget in np.linspace(max(heights), min(heights), asked).astype(int).tolist():
        limited = replace(program, budget=budget, _chosen={})
        choice = limited.choose(sizes)
        if found and choice.height == found[-1].peak:
            continue
        executable = Executable(limited, device)
        executable.set_state(start)
        found.append(Rung(executable, choice.height, choice.cost, choice.recipe.name, []))
    return found, [step._key, *batch, *step._fixed, *step._now()], sizes


def measured(name: str, options: argparse.Namespace) -> Table:
    found, given, sizes = rungs(name, options.rungs)
    for rung in found:
        rung.turn(given, sizes, 2)
    count = max(1, round(options.seconds / found[0].times[0]))
    for rung in found:
        rung.times.clear()
    for _ in range(options.turns):
        for rung in found:
            rung.turn(given, sizes, count)
    table = Table(title=f"{name}, {', '.join(f'{k}={v}' for k, v in sizes.items())}")
    table.add_column("recipe")
    for heading in ("peak MB", "planned", "time", "best", "ms", "order"):
        table.add_column(heading, justify="right")
    first, slowest = found[0], 0.0
    for rung in found:
        pairs = zip(rung.times, first.times, strict=True)
        ratio = statistics.median(own / base for own, base in pairs)
        table.add_row(
            rung.name,
            f"{rung.peak / MB:.1f}",
            f"{rung.cost / first.cost:.3f}",
            f"{ratio:.3f}",
            f"{min(rung.times) / min(first.times):.3f}",
            f"{statistics.median(rung.times) * 1e3:.1f}",
            "kept" if ratio * SAME >= slowest else "NOT KEPT",
        )
        slowest = max(slowest, ratio)
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    console = Console(width=140)
    for name in options.recipes or RECIPES:
        console.print(measured(name, options))


if __name__ == "__main__":
    main()
