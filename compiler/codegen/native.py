"""The native printer: a schedule -> Python that binds lists of launches, and their kernels in C.

Runs of steps that have kernels become one list each, loops included; what has none is printed for
NumPy, so a program of kernels alone is one call a run.  Kernels of the same text are one function.
Invariant: sizes and places are numbers in the lists, so a kernel serves every size.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from retrograde.compiler.codegen.alike import alike
from retrograde.compiler.codegen.c_copy import copy_function
from retrograde.compiler.codegen.kernel_file import COPY, Kernels, Note, note_of
from retrograde.compiler.codegen.launches import Launch, launches
from retrograde.compiler.codegen.native_ahead import ahead_entry
from retrograde.compiler.codegen.native_ragged import ragged_entries
from retrograde.compiler.codegen.numpy import Printer, place_of, print_with, whole_of
from retrograde.compiler.codegen.repeats import HOLE, Line, folded
from retrograde.compiler.codegen.spelling import INDENT
from retrograde.compiler.ir import dims
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.plan.liveness import Liveness
from retrograde.compiler.plan.recipe import KernelFile
from retrograde.compiler.plan.steps import (
    BranchStep,
    ChainStep,
    FusedStep,
    LoopStep,
    PartStep,
    ReplayStep,
    Rows,
    Schedule,
    Segments,
    Step,
    SweepStep,
    WhileStep,
    inside,
)
from retrograde.compiler.plan.views import Literal, Operand, Storage, Turn, View, turn_of


class NativeProgram:
    """The schedules of one program, over the same symbols: what they share is printed and compiled
    once."""

    def __init__(self) -> None:
        self._kernels = Kernels()
        self._kernels.number(POISON, OVERWRITE)  # used or not: one library for both
        self._known: dict[Hashable, _Printed | None] = {}

    def print(
        self, schedule: Schedule, liveness: Liveness, places: Mapping[Storage, int],
        symbols: Sequence[str], poison: bool = False,
    ) -> str:  # fmt: skip
        """The Python that binds and runs `schedule`, as codegen.numpy.print_schedule."""
        source = print_with(
            NativePrinter, schedule, liveness, places, symbols, poison,
            kernels=self._kernels, known=self._known,
        )  # fmt: skip
        if not self._kernels.cuts:  # the files of the first one are those that it has alone
            self._kernels.cut()
        return source

    @property
    def files(self) -> tuple[KernelFile, ...]:
        """The C that all of them launch."""
        return self._kernels.files()


@dataclass
class _Printed:
    """The launches of steps that are alike, and their lines, whose holes are for storages."""

    launches: list[Launch]
    storages: list[Storage]  # of the first of them; none where there is only one
    lines: list[tuple[str, tuple[int, ...], int]] | None = None  # text, storages, kernel


@dataclass
class NativePrinter(Printer):
    """Prints what has kernels as lists of launches."""

    prologue: tuple[str, ...] = ("m = rt.address",)
    kernels: Kernels = field(default_factory=Kernels)
    made: dict[int, _Printed | None] = field(default_factory=dict)  # by step identity
    storages: dict[int, list[Storage]] = field(default_factory=dict)  # likewise, where alike
    known: dict[Hashable, _Printed | None] = field(default_factory=dict)  # of steps that are alike
    named: list[Storage] = field(default_factory=list)  # of the line at work
    levels: dict[int, int | str] = field(default_factory=dict)  # of what moves, by identity
    outer_turns: list[str] = field(default_factory=list)  # the turns around it that a list wants

    def steps(self, steps: Sequence[Step], depth: int) -> list[str]:
        lines: list[str] = []
        run: list[Step] = []
        for step in [*steps, None]:
            # A part is copied by a list only where the list runs the segments too.
            if step is not None and self._native(step) and not isinstance(step, PartStep):
                run.append(step)
                continue
            if run:
                lines.extend(self._list(run, depth))
                run = []
            if step is not None:
                lines.extend(super().steps([step], depth))
        return lines

    def _native(self, step: Step) -> bool:
        """Whether kernels do all of a step."""
        if isinstance(step, (BranchStep, WhileStep)) and isinstance(step.flag, Literal):
            return False
        if isinstance(step, PartStep):
            return True
        runs = inside(step)
        if isinstance(step, LoopStep) and step.rows is not None:
            runs = (step.rows.body,)
        if runs or isinstance(step, (LoopStep, BranchStep, WhileStep)):
            return all(self._native(inner) for run in runs for inner in run)
        return self._launches(step) is not None

    def _launches(self, step: Step) -> _Printed | None:
        if id(step) in self.made:
            return self.made[id(step)]
        found = alike(step)
        if found is not None and found[0] in self.known:
            made = self.known[found[0]]
        else:
            given = launches(step)
            if given is not None and any(launch.checks or launch.refuses for launch in given):
                found = None  # what may fail names its line
            made = None if given is None else _Printed(given, [] if found is None else found[1])
        if found is not None:
            self.known[found[0]], self.storages[id(step)] = made, found[1]
        self.made[id(step)] = made
        return made

    # --- lists of launches

    def _list(self, run: Sequence[Step], depth: int) -> list[str]:
        """The statement that runs `run`, whose list is bound before."""
        self.heading = ""
        entries = folded(self._entries(run, 1), INDENT)
        name = self.fresh("run")
        turns = list(dict.fromkeys(self.outer_turns))
        self.outer_turns.clear()
        lines = [f"{name} = rt.native([", *entries, "])"]
        (self.local.bindings if self.local is not None else self.bindings).extend(lines)
        if self.local is not None:
            self.local.words.add(name)
        return [f"{INDENT * depth}{name}({', '.join(turns)})"]

    def _entries(self, steps: Sequence[Step], depth: int) -> list[Line | str]:
        lines: list[Line | str] = []
        pad = INDENT * depth
        for step in steps:
            place = place_of(step.node)
            if place and place != self.heading:
                lines.append(f"{pad}# {place}")
                self.heading = place
            entry = _ENTRIES.get(type(step))
            if entry is not None:
                lines += entry(self, step, depth)
            else:
                lines += self._lines(step)
            for position in sorted(set(self.times.get(id(step), ()))):
                for buffer in self.dead.get(position, ()):
                    number = self.kernels.number(POISON, OVERWRITE)
                    text = f"({number}, bytes[{HOLE}] // 4, 64, (m + at[{HOLE}],)),"
                    lines.append(Line(text, (buffer, buffer)))
        return lines

    def _text(self, steps: Sequence[Step], depth: int) -> list[str]:
        """The lines of steps inside of others."""
        pad = INDENT * depth
        return [f"{pad}{x}" if isinstance(x, Line) else x for x in self._entries(steps, depth)]

    def _lines(self, step: Step) -> list[Line]:
        """A line for each launch of a step that holds no others."""
        found = self._launches(step)
        assert found is not None
        if not found.storages:
            return [self._line(launch, note_of(step)) for launch in found.launches]
        if found.lines is None:
            number = {s: i for i, s in enumerate(found.storages)}
            found.lines = []
            for launch in found.launches:
                self.named = []
                text = self._entry(launch, note_of(step))
                kernel = self.kernels.numbers[launch.function.text]
                found.lines.append((text, tuple(number[s] for s in self.named), kernel))
        buffers, place = list(map(self._buffer, self.storages[id(step)])), place_of(step.node)
        for _, _, kernel in found.lines:
            self.kernels.also(kernel, place)
        return [Line(text, tuple(buffers[i] for i in named)) for text, named, _ in found.lines]

    def _line(self, launch: Launch, note: Note) -> Line:
        self.named = []
        text = self._entry(launch, note)
        return Line(text, tuple(map(self._buffer, self.named)))

    def _buffer(self, storage: Storage) -> int:
        return self.places[self.liveness.home(storage)]

    def _entry(self, launch: Launch, note: Note) -> str:
        """The text of a launch, with holes for the buffers of `named`."""
        f = launch.function
        number = self.kernels.number(f.text, note)
        if f.mixed:
            given = ", ".join(
                self._address(x) if isinstance(x, View) else self.spell.size(x) for x in f.mixed
            )
            return f"({number}, {self.spell.size(f.items)}, {f.grain}, ({given},)),"
        where = ", ".join(self._address(v) for v in f.places)
        sizes = "".join(f", {self.spell.size(d)}" for d in f.sizes)
        checks = ""
        if launch.checks or launch.refuses:
            axes = "".join(
                f"({axis}, {self.spell.size(v.shape[axis])}), " for axis, v in launch.checks
            )
            checks = f", ({(launch.place or note.place)!r}, {launch.wrap}, {axes})"
        if f.share is None:
            given = f"({(where + sizes).removeprefix(', ')},)"
            return f"({number}, {self.spell.size(f.items)}, {f.grain}, {given}{checks}),"
        s = f.share
        cut = f"{s.dtype.name!r}, " + ", ".join(map(self.spell.size, (s.batch, s.rows, s.columns)))
        return f"rt.{s.what}({number}, {cut}, ({where},), ({sizes[2:]}{',' if sizes else ''})),"

    def _address(self, v: View) -> str:
        if isinstance(v, Turn):
            whole = whole_of(v)
            stride = self.spell.size(whole.strides[0] * v.dtype.bytes)
            level = self.levels.get(id(v.loop))
            if level is None:
                name = self.turns[id(v.loop)]
                self.outer_turns.append(name)
                level = -1 - list(dict.fromkeys(self.outer_turns)).index(name)
            return f"({self._at(whole)}, {stride}, {level!r})"
        self.named.append(v.storage)
        return self._from(HOLE, v)

    def _at(self, v: View) -> str:
        return self._from(str(self._buffer(v.storage)), v)

    def _from(self, buffer: str, v: View) -> str:
        at = f"m + at[{buffer}]"
        if not dims.same(v.offset, 0):
            at += f" + {v.dtype.bytes} * ({self.spell.size(v.offset)})"
        return at

    def _chain_entry(self, step: ChainStep, depth: int) -> list[str]:
        """What checks indices, then the links, then what adds up the parts of sums over rows."""
        pad, before, after = INDENT * depth, list[str](), list[str]()
        links: list[str] = []
        apart: list[str] = []  # the same links as launches
        whole = False
        for link in step.links:
            place, note = place_of(link.node), note_of(link)
            found = launches(link)
            assert found is not None
            sums = isinstance(link, FusedStep) and link.sweeps is not None and link.sweeps.sums
            main = len(found) - 2 if sums else len(found) - 1
            before += [f"{pad}{self._line(launch, note)}" for launch in found[:main]]
            after += [f"{pad}{self._line(launch, note)}" for launch in found[main + 1 :]]
            if place and place != self.heading:
                links.append(f"{pad}{INDENT}# {place}")
                self.heading = place
            each = 0 if sums else dims.divide_exact(found[main].function.items, step.rows)
            # A kernel that merged axes may take several rows of the chain as one.
            whole = whole or (each is None and found[main].function.share is None)
            links.append(f"{pad}{INDENT}{self._link(found[main], note, each or 0)}")
            apart.append(f"{pad}{self._line(found[main], note)}")
        rows = self.spell.size(step.rows)
        self.heading = ""
        if whole:
            return [*before, *apart, *after]
        return [*before, f"{pad}*rt.chained({rows}, [", *links, f"{pad}]),", *after]

    def _link(self, launch: Launch, note: Note, each: Dim) -> str:
        """A launch as a link: a product as what `blocks` wants, but for batch and rows; a kernel of
        rows with the items that a row has, 0 for slices of rows."""
        f = launch.function
        if f.share is None:
            text = str(self._line(launch, note)).removesuffix("),")
            return f"{text}, {self.spell.size(each)}),"
        number = self.kernels.number(f.text, note)
        self.named = []
        where = ", ".join(map(self._address, f.places))
        sizes = "".join(f"{self.spell.size(d)}, " for d in f.sizes)
        columns = self.spell.size(f.share.columns)
        text = f"({f.share.dtype.name!r}, {columns}, {number}, ({where},), ({sizes.rstrip()})),"
        return str(Line(text, tuple(map(self._buffer, self.named))))

    def _loop_entry(self, step: LoopStep, depth: int) -> list[str]:
        pad, more = INDENT * depth, INDENT * (depth + 1)
        lines = self._copies(step.carries, pad)
        if step.mask is not None:
            return [*lines, *ragged_entries(self, step, depth)]
        if step.split is None or self.dead:
            return [*lines, *self._turns(step, step, depth)]
        # Each thread its rows of all turns; with too few rows all threads share out each launch.
        batch = self.spell.size(step.split.batch)
        lines += [f"{pad}*rt.split({batch}, lambda first, rows: ["]
        lines += self._turns(step, step.split, depth + 2)
        return [*lines, f"{more}], lambda: [", *self._turns(step, step, depth + 2), f"{more}]),"]

    def _turns(self, step: LoopStep, turn: LoopStep | Rows, depth: int) -> list[str]:
        """The loop over all turns."""
        pad = INDENT * depth
        with self.within(step.turns):
            body = self.turn_entries(turn, step.turns, depth + 1)
            if step.split is not None and (ahead := ahead_entry(self, step, turn, depth + 1)):
                body.insert(0, ahead)
        direction = -1 if step.reverse else 1
        self.heading = ""
        return [f"{pad}({self.spell.size(step.length)}, {direction}, [", *body, f"{pad}]),"]

    @contextmanager
    def within(self, turns: object) -> Iterator[None]:
        """What is of `turns` moves with the innermost loop."""
        self.levels[id(turns)] = sum(isinstance(at, int) for at in self.levels.values())
        yield
        del self.levels[id(turns)]

    def turn_entries(
        self, step: LoopStep | Rows, turns: object, depth: int,
        more: Sequence[tuple[Operand, View]] = (),
    ) -> list[str]:  # fmt: skip
        """One turn of a loop, whose number moves what is of `turns`, with `more` copies to what it
        stacks."""
        given = [(turn_of(whole, turns), place) for whole, place in step.slices]
        lines = self.together(given, depth)
        self.heading = ""
        lines += self._text(step.body, depth)
        out = [(result, turn_of(whole, turns)) for result, whole in step.stacked]
        lines += self.together([*out, *more], depth)
        lines += self._copies(step.updates, INDENT * depth)
        self.heading = ""
        return lines

    def together(self, pairs: Sequence[tuple[Operand, View]], depth: int) -> list[str]:
        """Copies of which none reads or writes what another one writes."""
        pad, more = INDENT * depth, INDENT * (depth + 1)
        if len(pairs) < 2:
            return self._copies(pairs, pad)
        return [f'{pad}("together", [', *self._copies(pairs, more), f"{pad}]),"]

    def _branch_entry(self, step: BranchStep, depth: int) -> list[str]:
        pad = INDENT * depth
        assert isinstance(step.flag, View)
        lines = [f'{pad}("if", {self.located(step.flag)}, [']
        lines += [*self._run_entries(step.then, depth + 1), f"{pad}], ["]
        return [*lines, *self._run_entries(step.otherwise, depth + 1), f"{pad}]),"]

    def located(self, v: View) -> str:
        """Where an array lies, as an argument."""
        self.named = []
        text = self._address(v)
        return str(Line(text, tuple(map(self._buffer, self.named))))

    def _while_entry(self, step: WhileStep, depth: int) -> list[str]:
        pad = INDENT * depth
        assert isinstance(step.flag, View)
        lines = [*self._copies(step.carries, pad), f'{pad}("while", [']
        lines += [*self._run_entries(step.condition, depth + 1)]
        lines += [f"{pad}], {self.located(step.flag)}, ["]
        lines += self._run_entries(step.body, depth + 1)
        return [*lines, *self._copies(step.updates, pad + INDENT), f"{pad}]),"]

    def _run_entries(self, steps: Sequence[Step], depth: int) -> list[str]:
        self.heading = ""
        lines = self._text(steps, depth)
        self.heading = ""
        return lines

    # --- loops in segments

    def _sweep_entry(self, step: SweepStep, depth: int) -> list[str]:
        pad, more = INDENT * depth, INDENT * (depth + 1)
        lines = [*self._copies(step.carries, pad), f"{pad}*rt.swept({self._cut(step.cut)},"]
        lines += self._segment(step.cut, step.advance, depth + 1)
        lines += self._segment(step.cut, step.ahead, depth + 1) if step.ahead else [f"{more}None,"]
        carries = [place for _, place in step.carries[: len(step.kept)]]
        sized = "".join(f"({self._at(v)}, {self._bytes(v)}), " for v in carries)
        kept = "".join(f"{self._at(v)}, " for v in step.kept)
        return [*lines, f"{more}({sized}), ({kept})),"]

    def _replay_entry(self, step: ReplayStep, depth: int) -> list[str]:
        pad, more = INDENT * depth, INDENT * (depth + 1)
        lines = [*self._copies(step.carries, pad), f"{pad}*rt.replayed({self._cut(step.cut)},"]
        for run in (step.advance, step.again, step.retreat):
            lines += self._segment(step.cut, run, depth + 1)
        rows = [(v, replace(v, shape=v.shape[1:], strides=v.strides[1:])) for v in step.kept]
        kept = "".join(f"({self._at(v)}, {self._bytes(row)}), " for v, row in rows)
        return [*lines, f"{more}({kept})),"]

    def _cut(self, cut: Segments) -> str:
        length, segment, slots = map(self.spell.size, (cut.length, cut.segment, cut.slots))
        return f"{length}, {segment}, {cut.reverse}, {cut.rest_last}, {slots}"

    def _bytes(self, v: View) -> str:
        return self.spell.size(dims.product(v.shape) * v.dtype.bytes)

    def _segment(self, cut: Segments, run: Sequence[Step], depth: int) -> list[str]:
        """The entries over one segment, as a function of its steps."""
        (size,) = dims.symbols(cut.segment)
        pad = INDENT * depth
        outer, self.levels = self.levels, {}
        lines = self._run_entries(run, depth + 1)
        self.levels = outer
        return [f"{pad}lambda {self.spell.size(dims.dim(size.name))}: [", *lines, f"{pad}],"]

    def _part_entry(self, step: PartStep, depth: int) -> list[str]:
        """A copy from or to the part of a stacked array that begins at the start of a segment."""
        whole = step.result if step.back else step.operand
        place = step.operand if step.back else step.result
        assert isinstance(whole, View)
        steps = step.node.attrs["segment"]
        count = place.shape[0] if isinstance(place, View) else dims.dim(steps.name)
        window = Turn(
            whole.storage, whole.dtype, (count, *whole.shape[1:]), whole.strides, whole.offset,
            whole, step,
        )  # fmt: skip
        self.levels[id(step)] = "start"
        pair = (place, window) if step.back else (window, place)
        assert isinstance(pair[1], View)
        lines = self._copies([(pair[0], pair[1])], INDENT * depth)
        del self.levels[id(step)]
        return lines

    def _copies(self, pairs: Sequence[tuple[Operand, View]], pad: str) -> list[str]:
        return [f"{pad}{self._line(Launch(copy_function(x, y)), COPY)}" for x, y in pairs]


_ENTRIES: dict[type, Callable[[NativePrinter, Any, int], list[str]]] = {
    ChainStep: NativePrinter._chain_entry,
    LoopStep: NativePrinter._loop_entry,
    BranchStep: NativePrinter._branch_entry,
    WhileStep: NativePrinter._while_entry,
    SweepStep: NativePrinter._sweep_entry,
    ReplayStep: NativePrinter._replay_entry,
    PartStep: NativePrinter._part_entry,
}

OVERWRITE = Note("", ("overwrite what is not read again, where that is asked for",))
POISON = """\
static i64 @(const i64 *a, i64 lo, i64 hi, i64 part) {
  u32 *const y = (void *)a[0];
  for (i64 i = lo; i < hi; i++) y[i] = 0x7fffffffu;
  return RG_OK;
}"""
