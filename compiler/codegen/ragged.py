"""Ragged loops in print: a loop with a mask of live rows -> statements that run the live part.

Where the plan has a turn on the first rows alone (`Rows`), the turn is a function that is made once
for each number of rows, with views of its own.  Invariant: in the stacked results, what a turn left
out is zero; steps without a live row do not run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from retrograde.compiler.codegen.spelling import INDENT
from retrograde.compiler.plan.liveness import walk
from retrograde.compiler.plan.steps import LoopStep, Schedule

if TYPE_CHECKING:
    from retrograde.compiler.codegen.numpy import Printer


@dataclass
class Local:
    """What is bound for one number of rows: all that names `rows`, or something that does."""

    names: dict[str, str] = field(default_factory=dict)
    bindings: list[str] = field(default_factory=list)
    words: set[str] = field(default_factory=lambda: {"rows"})

    def holds(self, expression: str) -> bool:
        return not self.words.isdisjoint(re.findall(r"\w+", expression))

    def bind(self, prefix: str, expression: str, fresh: Callable[[str], str]) -> str:
        """The name of `expression`; `fresh` makes one."""
        found = self.names.get(expression)
        if found is None:
            found = self.names[expression] = fresh(prefix)
            self.words.add(found)
            self.bindings.append(f"{found} = {expression}")
        return found


def times_on_rows(
    schedule: Schedule, times: Mapping[int, tuple[int, int]]
) -> dict[int, tuple[int, int]]:
    """The times of the steps of turns on fewer rows: those of the steps that they stand for."""
    found: dict[int, tuple[int, int]] = {}
    for _, loop, _ in walk(schedule.steps):
        if isinstance(loop, LoopStep) and loop.rows is not None:
            pairs = zip(walk(loop.body), walk(loop.rows.body), strict=True)
            found.update((id(part), times[id(step)]) for (_, step, _), (_, part, _) in pairs)
    return found


def ragged_loop(printer: Printer, step: LoopStep, depth: int, number: int) -> list[str]:
    """The lines of the `number`-th ragged loop."""
    assert step.mask is not None
    indent, turn, live = INDENT * depth, f"i{depth}", f"live{number}"
    lines = [*printer.copies(step.carries, indent), *live_lines(printer, step, number, indent)]
    lines.append(f"{indent}for {turn} in {live}.turns({step.reverse}):")
    if step.rows is None:
        lines.extend(printer.turn(step, turn, depth + 1) or [f"{indent}{INDENT}pass"])
    else:
        made = _turns(printer, step, number)
        lines.append(f"{indent}{INDENT}{made}({live}.rows[{turn}])({turn})")
    return lines


def live_lines(printer: Printer, step: LoopStep, number: int, indent: str) -> list[str]:
    """The lines that count the live rows, and clear what no turn will write."""
    assert step.mask is not None
    mask, live = printer.name(step.mask), f"live{number}"
    lines = [f"{indent}{live} = rt.live_rows({mask}, {number}, {step.rows is not None})"]
    for i, (_, place) in enumerate(step.stacked):
        axis = None if step.rows is None else step.rows.axes[i]
        lines.append(f"{indent}{live}.clear({printer.name(place)}, {axis})")
    return lines


def _turns(printer: Printer, step: LoopStep, number: int) -> str:
    """The name of a function that makes, of a number of rows, the turn on so many."""
    assert step.rows is not None
    name = f"turns{number}"
    printer.local = local = Local()
    body = printer.turn(step.rows, "i1", 2) or [f"{INDENT * 2}pass"]
    printer.local = None
    printer.bindings += [
        "@rt.for_each_count",
        f"def {name}(rows):",
        *(INDENT + line for line in local.bindings),
        f"{INDENT}def turn(i1):",
        *body,
        f"{INDENT}return turn",
    ]
    return name
