"""Ragged loops in native lists: a loop with a mask of live rows -> entries that run the live part.

A kernel counts the rows of each step from the mask; the list then runs, step by step, the turn for
so many rows (`turns` of native_lists).  All numbers of rows are bound with the sizes, beyond MOST
of them in equal strides.  Invariant: in the stacked results, what a turn left out is zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from retrograde.compiler.codegen.c import HEAD
from retrograde.compiler.codegen.kernel_file import Note
from retrograde.compiler.codegen.native_lists import Table
from retrograde.compiler.codegen.spelling import INDENT
from retrograde.compiler.ir import dims
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.plan.steps import ROWS, LoopStep
from retrograde.compiler.plan.views import Literal, Operand, View, turn_of

if TYPE_CHECKING:
    from retrograde.compiler.codegen.native import NativePrinter

MOST = 64  # numbers of rows that have turns of their own; between them, the next larger one runs

COUNT = Note("", ("count the live rows of each step of a ragged loop",))
COUNTING = f"""\
{HEAD}
  const u8 *const mask = (void *)a[0];
  const i64 down = a[1], across = a[2], steps = a[5], batch = a[6], stride = a[7];
  i64 *const cases = (void *)a[3], *const ran = (void *)a[4];
  for (i64 t = 0; t < steps; t++) {{
    i64 rows = batch;
    while (rows > 0 && !mask[t * down + (rows - 1) * across]) rows--;
    cases[t] = (rows + stride - 1) / stride;
    ran[0] += rg_min(cases[t] * stride, batch);
    ran[1] += rows > 0;
  }}
  ran[2]++;
  return RG_OK;
}}"""


def ragged_entries(printer: NativePrinter, step: LoopStep, depth: int) -> list[str]:
    """The entries of a ragged loop, its carries set."""
    mask, size = step.mask, printer.spell.size
    assert mask is not None
    pad, more = INDENT * depth, INDENT * (depth + 1)
    number, kernel = printer.ragged[id(step)], printer.kernels.number(COUNTING, COUNT)
    where = f"({printer.located(mask)}, {size(mask.strides[0])}, {size(mask.strides[1])})"
    sizes = ", ".join(map(size, mask.shape))
    given = f"{number}, {kernel}, {where}, {sizes}, {-1 if step.reverse else 1}"
    wholes = [whole for _, whole in step.stacked]
    turn = step if step.rows is None else step.rows
    left = [] if step.rows is None else [
        (_zero(whole), turn_of(_behind(whole, axis, step.rows.batch), step.turns))
        for whole, axis in zip(wholes, step.rows.axes, strict=True) if axis is not None
    ]  # fmt: skip
    none = [(_zero(v), turn_of(v, step.turns)) for v in wholes]
    with printer.within(step.turns):
        body = printer.turn_entries(turn, step.turns, depth + 2, left)
        empty = printer.together(none, depth + 2)
    cut = step.rows is not None
    return [
        f"{pad}*rt.ragged({given}, {cut}, lambda: [", *empty,
        f"{more}], lambda rows: [", *body, f"{more}]),",
    ]  # fmt: skip


def _zero(v: View) -> Operand:
    return Literal(0, v.dtype)


def _behind(whole: View, axis: int, batch: Dim) -> View:
    """What lies behind the first rows of a stacked array, whose `axis` holds all rows."""
    inner = dims.divide_exact(whole.shape[axis], batch)
    assert inner is not None
    shape = tuple(inner * (batch - ROWS) if a == axis else d for a, d in enumerate(whole.shape))
    return replace(whole, shape=shape, offset=whole.offset + inner * ROWS * whole.strides[axis])


@dataclass(frozen=True, eq=False)
class Counted:
    """What a ragged loop, the `loop`-th of a program, ran: rows, turns, and how often; then the
    case of each step of the last time."""

    loop: int
    numbers: Table
    steps: int
    batch: int

    def add_to(self, noted: dict[int, tuple[int, ...]]) -> None:
        """Adds (rows, rows of all steps, steps run, steps) to what is noted, and begins anew."""
        rows, turns, times = self.numbers[:3].tolist()
        self.numbers[:3] = 0
        if times:
            ran = (rows, times * self.steps * self.batch, turns, times * self.steps)
            before = noted.get(self.loop, (0, 0, 0, 0))
            noted[self.loop] = tuple(a + b for a, b in zip(before, ran, strict=True))


def ragged_loop(
    loop: int, kernel: int, mask: tuple[Any, int, int], steps: int, batch: int, direction: int,
    cut: bool, none: Callable[[], Sequence[Any]], turn: Callable[[int], Sequence[Any]],
) -> tuple[list[Any], Counted]:  # fmt: skip
    """The entries of a ragged loop: `turn` gives those of a step on so many rows, without `cut` on
    all of them, `none` those of a step that no row has."""
    counted = Counted(loop, np.zeros(3 + steps, np.int64), steps, batch)
    ran = counted.numbers.ctypes.data
    stride = max(-(-batch // MOST) if cut else batch, 1)
    rows = [min(n, batch) for n in range(stride, batch + stride, stride)]
    count = (kernel, 1, 1, (*mask, ran + 24, ran, steps, batch, stride))
    return [count, ("turns", ran + 24, steps, direction, [none(), *map(turn, rows)])], counted
