"""Reading ahead in loops: a turn -> the entry that asks for what a later turn reads.

Turns on few rows take less time than memory, and what a turn moves on by is a page or more, where
the processor's own prefetching ends.  Invariant: no bit depends on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from retrograde.compiler.codegen.c import HEAD
from retrograde.compiler.codegen.kernel_file import Note
from retrograde.compiler.codegen.spelling import INDENT
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.plan.steps import LoopStep, Rows, inside, reads, writes
from retrograde.compiler.plan.views import Turn, View

if TYPE_CHECKING:
    from retrograde.compiler.codegen.native import NativePrinter

TURNS = 2  # how far ahead: the next turn begins before memory has answered
MOST = 32 << 10  # bytes of a turn that are asked for; more would push out what it works on

AHEAD = Note("", ("ask for what a later turn of a loop reads",))
ASKING = f"""\
{HEAD}
  for (i64 i = 0; i < a[0]; i++) rg_ahead((const void *)a[1 + 2 * i], a[2 + 2 * i]);
  return RG_OK;
}}"""

Moving = tuple[int, int, int]  # place at the first turn, stride, level


def ahead_entry(printer: NativePrinter, step: LoopStep, turn: LoopStep | Rows, depth: int) -> str:
    """The text of the entry; empty where nothing moves with the turns."""
    if any(inside(inner) for inner in turn.body):
        return ""
    found: dict[str, None] = {}
    made = {v.storage for inner in turn.body for v in writes(inner)}
    for inner in turn.body:
        for v in reads(inner):
            if isinstance(v, Turn) and v.loop is step.turns and v.storage not in made:
                where, bytes = printer.located(v), printer.spell.size(_span(v) * v.dtype.bytes)
                found[f"({where}, {bytes}), "] = None
    if not found:
        return ""
    kernel = printer.kernels.number(ASKING, AHEAD)
    pad, direction = INDENT * depth, -1 if step.reverse else 1
    return f"{pad}*rt.ahead({kernel}, {direction}, ({''.join(found).rstrip()})),"


def _span(v: View) -> Dim:
    """How many elements lie from the first to the last of a view whose strides are positive."""
    span: Dim = 1
    for d, stride in zip(v.shape, v.strides, strict=True):
        span = span + (d - 1) * stride
    return span


def ahead(
    kernel: int, direction: int, parts: Sequence[tuple[Moving, int]]
) -> list[tuple[int, int, int, tuple[int | Moving, ...]]]:
    """The launch for arrays that move, each with its bytes; parts of one array are asked for once.
    A launch has as many arguments whatever the sizes are."""
    spans: list[tuple[Moving, int]] = []
    for (place, stride, level), bytes in sorted(parts, key=lambda x: (x[0][2], x[0][1], x[0][0])):
        if spans:
            (first, same, at), before = spans[-1]
            if (same, at) == (stride, level) and place <= first + before:
                spans[-1] = (first, same, at), max(before, place + bytes - first)
                continue
        spans.append(((place, stride, level), bytes))
    if sum(bytes for _, bytes in spans) > MOST:
        return []
    given: list[int | Moving] = [len(spans)]
    for (place, stride, level), bytes in spans:
        given += [(place + TURNS * direction * stride, stride, level), bytes]
    return [(kernel, 1, 1, tuple(given))]
