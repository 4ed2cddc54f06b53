"""What generated native schedules call, beside what all schedules do.

Invariant: what is bound for one size holds numbers alone; the kernels are the same for all sizes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np

from retrograde.compiler.codegen.native_ahead import ahead
from retrograde.compiler.codegen.native_lists import LaunchList, Table
from retrograde.compiler.codegen.native_ragged import Counted, ragged_loop
from retrograde.compiler.codegen.numpy_support import Memory, Support
from retrograde.compiler.errors import DataError
from retrograde.compiler.ops.segments import segments
from retrograde.compiler.plan.chain import LARGE
from retrograde.compiler.plan.revolve import checkpoints

FEW = 2  # rows a thread, below which it is better to share out launches
SMALL = 1 << 18  # bytes of all buffers, below which one thread runs a program
TILE, SMALLEST, TILES = 256, 64, 8  # of a BLAS: most and fewest rows or columns, how many to share
ROWS = 64  # of a block of a product: its part of the left operand stays in cache
SLICE = 32  # rows: blocks of a chain are whole slices of sums over rows (plan.fused.ROWS)
CHAINED = 64  # rows a thread, below which a chain would leave threads without any
NEAR = 256 << 10  # bytes of it in a block, which stay in the second cache

_EMPTY = 2  # a fault of kernels: an extreme of no elements

Entries = Sequence[Any]


class NativeMemory(Memory, Protocol):
    """An arena that compiled kernels work on."""

    address: int
    threads: int
    panels: dict[str, int]  # the columns of a panel, by dtype
    blas: dict[str, tuple[int, int]]  # the address of a product, and whether its sizes have 64 bits

    def sequence(self, code: Table, arguments: Table, movers: Table) -> BoundList:
        """What runs a list; raises `fault` errors through its own."""
        ...

    def fault(self, error: Exception) -> tuple[int, int] | None:
        """The instruction that failed and what its kernel returned; None for other errors."""
        ...


class BoundList(Protocol):
    """A list, bound."""

    def __call__(self) -> None: ...

    def move(self, argument: int, value: int) -> None:
        """Sets an argument for the runs to come."""
        ...


class NativeSupport(Support):
    """The functions of generated code over an arena that compiled kernels work on."""

    _memory: NativeMemory

    def __init__(self, memory: NativeMemory, sizes: Sequence[int]) -> None:
        super().__init__(memory, sizes)
        # Waking a thread takes longer than running a program on little memory.
        self.threads = memory.threads if sum(sizes) >= SMALL else 1
        self._sharers = self.threads  # how many share out the items of the launches at work
        self._counted: list[Counted] = []  # the ragged loops of the list in the making

    @property
    def address(self) -> int:
        return self._memory.address

    def native(self, entries: Entries) -> Callable[..., None]:
        """What runs a list, given the turns of the loops around it."""
        made = LaunchList.of(entries)
        counted, self._counted = self._counted, []
        run = self._memory.sequence(*made.tables(self.threads))
        turns, notes = made.turns, made.notes

        def start(*given: int) -> None:
            for turn, place, base, stride in turns:
                run.move(place, base + given[turn] * stride)
            try:
                self.guarded(run, notes)
            finally:
                for loop in counted:
                    loop.add_to(self._memory.ragged)

        return start

    def split(
        self, batch: int, own: Callable[[int, int], Entries], shared: Callable[[], Entries]
    ) -> list[Any]:
        """A loop whose rows the threads share out, or whose launches where there are too few."""
        threads = self.threads
        if threads == 1 or batch < FEW * threads:
            return list(shared())
        borders = [batch * t // threads for t in range(threads + 1)]
        self._sharers = 1
        entries = [own(a, b - a) for a, b in itertools.pairwise(borders)]
        self._sharers = threads
        return [("own", tuple(entries))]

    def guarded(self, run: Callable[[], None], notes: dict[int, Any]) -> None:
        """Runs a list; what a kernel refuses is told as the op's reference tells it."""
        try:
            run()
        except Exception as error:
            found = self._memory.fault(error)
            if found is None or found[0] not in notes:
                raise
            raise _refused(notes[found[0]], found[1]) from None

    def ragged(self, *given: Any) -> list[Any]:
        """A ragged loop (native_ragged.ragged_loop), whose counts are noted after a run."""
        entries, counted = ragged_loop(*given)
        self._counted.append(counted)
        return entries

    def ahead(self, *given: Any) -> list[Any]:
        """What asks for a later turn of a loop, where a thread has all of its launches."""
        return list(ahead(*given)) if self._sharers == 1 else []

    # --- loops in segments, as entries

    def swept(
        self, length: int, segment: int, reverse: bool, rest_last: bool, slots: int,
        advance: Callable[[int], Entries], ahead: Callable[[int], Entries] | None,
        carries: Sequence[tuple[int, int]], kept: Sequence[int],
    ) -> list[Any]:  # fmt: skip
        """All segments, the last one by `ahead`.  `carries` are places with their bytes, `kept` the
        places of what is kept of them."""
        cut = list(segments(length, segment, reverse, rest_last))
        parts = _calls(advance, cut)
        last = parts if ahead is None else _calls(ahead, cut)
        if not kept or not parts:
            return [*parts[:-1], *last[-1:]]
        entries: list[Any] = []
        for action in checkpoints(len(parts), slots).sweep:
            if action.kind == "store":
                entries += [
                    ("move", to + action.slot * bytes, source, bytes)
                    for (source, bytes), to in zip(carries, kept, strict=True)
                ]
            else:
                entries.append(parts[action.segment])
        return [*entries, last[-1]]

    def replayed(
        self, length: int, segment: int, reverse: bool, rest_last: bool, slots: int,
        advance: Callable[[int], Entries], again: Callable[[int], Entries],
        retreat: Callable[[int], Entries], kept: Sequence[tuple[int, int]],
    ) -> list[Any]:  # fmt: skip
        """The way back through all segments; `kept` are places with the bytes of a state."""
        cut = list(segments(length, segment, reverse, rest_last))
        forth, more, back = (_calls(make, cut) for make in (advance, again, retreat))
        entries: list[Any] = []
        for action in checkpoints(len(cut), slots).back:
            if action.kind == "reverse":
                if action.segment < len(cut) - 1:
                    entries.append(more[action.segment])
                entries.append(back[action.segment])
            elif action.kind == "advance":
                entries.append(forth[action.segment])
            else:
                to, source = slots, action.slot
                if action.kind == "store":
                    to, source = source, to
                entries += [("move", at + to * n, at + source * n, n) for at, n in kept]
        return entries

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
        threads, across = self._sharers, -(-columns // self._memory.panels[dtype])
        if rows <= 0 or columns <= 0:
            return kernel, 0, 1, (*places, 1, 1, *sizes)
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

    def products(
        self, kernel: int, dtype: str, batch: int, rows: int, columns: int,
        places: tuple[int, ...], sizes: tuple[int, ...],
    ) -> tuple[Any, ...]:  # fmt: skip
        """The launch of a product by a BLAS.  Its bits depend on the tile that an element is in, so
        tiles follow from the sizes alone."""
        found = self._memory.blas.get(dtype, (0, 0))
        if rows <= 0 or columns <= 0:
            return kernel, 0, 1, (*places, *found, 1, 1, *sizes)
        down, across = -(-rows // TILE), -(-columns // TILE)
        while batch * down * across < TILES:
            if max(rows // down, columns // across) < 2 * SMALLEST:
                break
            if rows // down >= columns // across:
                down *= 2
            else:
                across *= 2
        height, width = -(-rows // (8 * down)) * 8, -(-columns // (8 * across)) * 8
        items = batch * -(-rows // height) * -(-columns // width)
        return kernel, items, 1, (*places, *found, height, width, *sizes)

    def repeated(
        self, at: Sequence[int], bytes: Sequence[int], table: Sequence[Sequence[int]],
        make: Callable[[Table, Table], Entries],
    ) -> list[Any]:  # fmt: skip
        """Launches once for each row of a table of buffers: `make` gives those of all rows, from
        where the buffers of each column lie and how many bytes they have."""
        columns = np.array(table, np.int64).T
        return [("repeat", len(table), make(np.asarray(at)[columns], np.asarray(bytes)[columns]))]

    def chained(self, rows: int, links: Sequence[tuple[Any, ...]]) -> list[Any]:
        """The links on one block of rows after the other; as launches where that is faster, because
        what lies between them stays in the cache anyway, or for lack of rows.

        A product is (dtype, columns, kernel, places, sizes), a row kernel its launch and how many
        items it has a row, 0 where an item is a slice of rows."""
        threads = self._sharers
        wide = max(x[1] * int(x[0][1:]) // 8 for x in links if isinstance(x[0], str))
        if rows < CHAINED * threads or rows * wide < LARGE:
            return [
                self.blocks(x[2], x[0], 1, rows, x[1], *x[3:]) if isinstance(x[0], str) else x[:4]
                for x in links
            ]
        most = min(max(NEAR // max(wide, 1), SLICE), 2 * ROWS)
        down = -(-rows // most)
        down = -(-down // threads) * threads
        block = -(-rows // (down * SLICE)) * SLICE
        made = []
        for x in links:
            if isinstance(x[0], str):
                dtype, columns, kernel, places, sizes = x
                run = max(-(-columns // self._memory.panels[dtype]), 1)
                blocks = -(-rows // block) if columns > 0 else 0
                made.append((kernel, blocks, 1, (*places, block, run, *sizes)))
            else:
                kernel, items, _, given, each = x
                made.append((kernel, items, block * each or block // SLICE, given))
        return [("chain", -(-rows // block), made)]


def _calls(make: Callable[[int], Entries], cut: Any) -> list[Any]:
    """A call for each segment, by (its start, its steps)."""
    return [("call", (make, steps), partial(make, steps), start) for start, steps in cut]


def _refused(note: Any, fault: int) -> DataError:
    """The error for what a kernel refused (enum rg_fault of csource/base.h)."""
    place, wrap, *axes = note
    kind, which, index = fault & 0xFF, fault >> 8 & 0xFF, fault >> 16
    if kind == _EMPTY:
        text = f"axis {which} has size 0: there is no extreme of no elements"
    else:
        axis, size = axes[which]
        valid = f"{-size if wrap else 0} to {size - 1}" if size else "there is none"
        text = f"index {index} is out of range for axis {axis} of size {size} ({valid})"
    error = DataError(f"{place}: {text}")
    error.placed = True
    return error
