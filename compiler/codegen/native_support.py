"""What generated native schedules call: lists of launches -> the numbers that threads walk through.

An entry is (kernel, items, grain, arguments[, what its faults are about]) for a launch, or (turns,
direction, entries) for a loop over time.  An argument is a number, or (number, stride, level) for
what moves with the turns of a loop: level 0 is the outermost loop of the list, -1 the first turn
that the list is run with.  Invariant: the numbers of a list depend on sizes and places alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from retrograde.compiler.codegen.numpy_support import Memory, Support
from retrograde.compiler.errors import DataError

Table = npt.NDArray[np.int64]

LAUNCH, LOOP, END = 0, 1, 2  # as runtime/native/pool.c has them
ROWS = 64  # of a block of a product: its part of the left operand stays in cache
_FILL = -1  # the kernel that poisons


class NativeMemory(Memory, Protocol):
    """An arena that compiled kernels work on."""

    address: int
    threads: int
    panels: dict[str, int]  # the columns of a panel, by dtype

    def sequence(self, code: Table, arguments: Table, movers: Table) -> Sequence_:
        """What runs a list; raises `fault` errors through its own."""
        ...

    def fault(self, error: Exception) -> tuple[int, int] | None:
        """The instruction that failed and what its kernel returned; None for other errors."""
        ...


class Sequence_(Protocol):
    """A list, bound."""

    def __call__(self) -> None: ...

    def move(self, argument: int, value: int) -> None:
        """Sets an argument for the runs to come."""
        ...


@dataclass
class _List:
    """A list of launches as numbers."""

    code: list[list[int]] = field(default_factory=list)
    arguments: list[int] = field(default_factory=list)
    movers: list[tuple[int, int]] = field(default_factory=list)
    turns: list[tuple[int, int, int, int]] = field(default_factory=list)  # turn, place, at, stride
    notes: dict[int, Any] = field(default_factory=dict)  # by instruction

    def add(self, entries: Sequence[Any], level: int = 0) -> list[list[tuple[int, int]]]:
        """Adds entries; returns the movers of the loops around, by level."""
        moving: list[list[tuple[int, int]]] = [[] for _ in range(level)]
        for entry in entries:
            if isinstance(entry[2], list):
                found = self._loop(*entry, level=level)
            else:
                found = self._launch(*entry)
            for own, more in zip(moving, found, strict=False):
                own.extend(more)
        return moving

    def _loop(self, count: int, direction: int, body: list[Any], *, level: int) -> Any:
        at = len(self.code)
        self.code.append([LOOP, count, direction, 0, 0, 0, 0, 0])
        found = self.add(body, level + 1)
        own = found.pop()
        self.code[at][3:6] = [len(self.movers), len(own), len(self.code)]
        self.movers.extend(own)
        self.code.append([END, at, 0, 0, 0, 0, 0, 0])
        return found

    def _launch(
        self, kernel: int, items: int, grain: int, arguments: Sequence[Any], note: Any = None
    ) -> Any:
        if items <= 0:
            return []
        first = len(self.arguments)
        found: list[list[tuple[int, int]]] = []
        for x in arguments:
            if isinstance(x, tuple):
                base, stride, level = x
                if level < 0:
                    self.turns.append((-1 - level, len(self.arguments), base, stride))
                else:
                    while len(found) <= level:
                        found.append([])
                    found[level].append((len(self.arguments), stride))
                x = base
            self.arguments.append(x)
        if note is not None:
            self.notes[len(self.code)] = note
        self.code.append([LAUNCH, kernel, first, items, grain, 1, 0, 0])
        return found


class NativeSupport(Support):
    """The functions of generated code over an arena that compiled kernels work on."""

    _memory: NativeMemory

    @property
    def address(self) -> int:
        return self._memory.address

    def native(self, entries: Sequence[Any]) -> Callable[..., None]:
        """What runs a list, given the turns of the loops around it."""
        made = _List()
        made.add(entries)
        code = np.array(made.code or np.zeros((0, 8)), np.int64)
        arguments = np.array(made.arguments, np.int64)
        movers = np.array(made.movers or np.zeros((0, 2)), np.int64)
        run = self._memory.sequence(code, arguments, movers)
        turns, notes, fault = made.turns, made.notes, self._memory.fault

        def start(*given: int) -> None:
            for turn, place, base, stride in turns:
                run.move(place, base + given[turn] * stride)
            try:
                run()
            except Exception as error:
                found = fault(error)
                if found is None:
                    raise
                raise _refused(notes[found[0]], found[1]) from None

        return start

    def panels(
        self, kernel: int, dtype: str, batch: int, rows: int, columns: int,
        places: tuple[int, ...], sizes: tuple[int, ...],
    ) -> tuple[Any, ...]:  # fmt: skip
        """The launch that packs matrices."""
        width = self._memory.panels[dtype]
        return kernel, batch * -(-columns // width), 1, (*places, *sizes)

    def blocks(
        self, kernel: int, dtype: str, batch: int, rows: int, columns: int,
        places: tuple[int, ...], sizes: tuple[int, ...],
    ) -> tuple[Any, ...]:  # fmt: skip
        """The launch of a product, cut so that the threads have equal parts."""
        threads, across = self._memory.threads, -(-columns // self._memory.panels[dtype])
        if rows <= 0 or columns <= 0:
            return kernel, 0, 1, ()
        down = -(-rows // ROWS)
        if batch * down % threads:  # as many blocks as the threads share out evenly
            down = -(-down // threads) * threads
        block = -(-rows // down)
        block = min(-(-block // 8) * 8, rows) if block > 8 else block
        run = across
        if batch * -(-rows // block) < threads:
            run = -(-across // threads)
        items = batch * -(-rows // block) * -(-across // run)
        return kernel, items, 1, (*places, block, run, *sizes)

    def poisoned(self, at: Sequence[int], buffer: int) -> tuple[Any, ...]:
        """The launch that overwrites a dead buffer."""
        return _FILL, self._sizes[buffer], 64, (self.address + at[buffer],)


def _refused(note: Any, fault: int) -> DataError:
    """The error for an index that a kernel refused."""
    place, *axes = note
    index, (axis, size) = fault >> 16, axes[fault >> 8 & 0xFF]
    valid = f"{-size} to {size - 1}" if size else "there is none"
    return DataError(
        f"{place}: index {index} is out of range for axis {axis} of size {size} ({valid})"
    )
