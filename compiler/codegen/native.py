"""The native printer: a schedule -> Python that binds lists of launches, and their kernels in C.

Runs of steps that have kernels become one list each, loops included; what has none is printed for
NumPy, so a program of kernels alone is one call a run.  Kernels of the same text are one function.
Invariant: sizes and places are numbers in the lists, so a kernel serves every size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from retrograde.compiler.codegen.c import row_function
from retrograde.compiler.codegen.csource import part
from retrograde.compiler.codegen.kernel import copy_kernel
from retrograde.compiler.codegen.launches import Launch, launches
from retrograde.compiler.codegen.numpy import INDENT, Printer, place_of, print_with, whole_of
from retrograde.compiler.ir import dims
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.plan.liveness import Liveness
from retrograde.compiler.plan.steps import LoopStep, Schedule, Step, inside
from retrograde.compiler.plan.views import Operand, Storage, Turn, View

PARTS = ("base", "math", "gemm")


@dataclass(frozen=True)
class NativeText:
    """The Python that binds and runs, and the C that it launches."""

    source: str
    kernels: str


def print_native(
    schedule: Schedule, liveness: Liveness, places: Mapping[Storage, int], symbols: Sequence[str],
    poison: bool = False,
) -> NativeText:  # fmt: skip
    """The sources of `schedule`, as codegen.numpy.print_schedule."""
    kernels = Kernels()
    source = print_with(NativePrinter, schedule, liveness, places, symbols, poison, kernels=kernels)
    return NativeText(source, kernels.text(schedule.name))


@dataclass
class Kernels:
    """The functions of a program, by their text."""

    numbers: dict[str, int] = field(default_factory=dict)
    notes: dict[int, dict[str, None]] = field(default_factory=dict)  # where they come from

    def number(self, text: str, note: str) -> int:
        found = self.numbers.setdefault(text, len(self.numbers))
        if note:
            self.notes.setdefault(found, {})[note] = None
        return found

    def text(self, name: str) -> str:
        """The whole C file."""
        pieces = [part(p) for p in PARTS]
        for text, number in self.numbers.items():
            notes = list(self.notes.get(number, ()))
            shown = [f"/* {note.replace('*/', '* /')} */" for note in notes[:4]]
            if len(notes) > 4:
                shown.append(f"/* and {len(notes) - 4} more places */")
            pieces.append("\n".join([*shown, text.replace("@", f"k{number}", 1)]))
        table = ", ".join(f"k{n}" for n in range(len(self.numbers)))
        pieces.append(
            "typedef i64 (*rg_kernel)(const i64 *a, i64 lo, i64 hi, i64 part);\n"
            f"const rg_kernel rg_kernels[] = {{{table or '0'}}};\n"
            f"const i64 rg_kernel_count = {len(self.numbers)};\n"
            "const i64 rg_panels[] = {RG_NR_f32, RG_NR_f64};"
        )
        return "\n\n".join(pieces) + "\n"


@dataclass
class NativePrinter(Printer):
    """Prints what has kernels as lists of launches."""

    prologue: tuple[str, ...] = ("m = rt.address",)
    kernels: Kernels = field(default_factory=Kernels)
    made: dict[int, list[Launch] | None] = field(default_factory=dict)  # by step identity
    depths: dict[int, int] = field(default_factory=dict)  # of loops within a list, by identity
    outer_turns: list[str] = field(default_factory=list)  # the turns around it that a list wants

    def steps(self, steps: Sequence[Step], depth: int) -> list[str]:
        lines: list[str] = []
        run: list[Step] = []
        for step in [*steps, None]:
            if step is not None and self._native(step):
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
        if isinstance(step, LoopStep):
            return step.mask is None and all(map(self._native, step.body))
        if inside(step):
            return False
        return self._launches(step) is not None

    def _launches(self, step: Step) -> list[Launch] | None:
        if id(step) not in self.made:
            self.made[id(step)] = launches(step)
        return self.made[id(step)]

    # --- lists of launches

    def _list(self, run: Sequence[Step], depth: int) -> list[str]:
        """The statement that runs `run`, whose list is bound before."""
        self.heading = ""
        entries = self._entries(run, 1)
        name = self.fresh("run")
        turns = list(dict.fromkeys(self.outer_turns))
        self.outer_turns.clear()
        lines = [f"{name} = rt.native([", *entries, "])"]
        (self.local.bindings if self.local is not None else self.bindings).extend(lines)
        if self.local is not None:
            self.local.words.add(name)
        return [f"{INDENT * depth}{name}({', '.join(turns)})"]

    def _entries(self, steps: Sequence[Step], depth: int) -> list[str]:
        lines: list[str] = []
        pad = INDENT * depth
        for step in steps:
            place = place_of(step.node)
            if place and place != self.heading:
                lines.append(f"{pad}# {place}")
                self.heading = place
            if isinstance(step, LoopStep):
                lines += self._loop_entry(step, depth)
            else:
                found = self._launches(step)
                assert found is not None
                lines += [pad + self._entry(launch, place) for launch in found]
            for position in sorted(set(self.times[id(step)])):
                for buffer in self.dead.get(position, ()):
                    lines.append(f"{pad}rt.poisoned(at, {buffer}),")
        return lines

    def _entry(self, launch: Launch, place: str) -> str:
        f = launch.function
        number = self.kernels.number(f.text, place)
        where = ", ".join(self._address(v) for v in f.places)
        sizes = "".join(f", {self.spell.size(d)}" for d in f.sizes)
        checks = ""
        if launch.checks:
            axes = "".join(
                f"({axis}, {self.spell.size(v.shape[axis])}), " for axis, v in launch.checks
            )
            checks = f", ({place!r}, {axes})"
        if f.share is None:
            return f"({number}, {self.spell.size(f.items)}, {f.grain}, ({where}{sizes},){checks}),"
        s = f.share
        cut = f"{s.dtype.name!r}, " + ", ".join(map(self.spell.size, (s.batch, s.rows, s.columns)))
        return f"rt.{s.what}({number}, {cut}, ({where},), ({sizes[2:]}{',' if sizes else ''})),"

    def _address(self, v: View) -> str:
        if isinstance(v, Turn):
            whole = whole_of(v)
            stride = self.spell.size(whole.strides[0] * v.dtype.bytes)
            level = self.depths.get(id(v.loop))
            if level is None:
                name = self.turns[id(v.loop)]
                self.outer_turns.append(name)
                level = -1 - list(dict.fromkeys(self.outer_turns)).index(name)
            return f"({self._at(whole)}, {stride}, {level})"
        return self._at(v)

    def _at(self, v: View) -> str:
        at = f"m + at[{self.places[self.liveness.home(v.storage)]}]"
        if not dims.same(v.offset, 0):
            at += f" + {v.dtype.bytes} * ({self.spell.size(v.offset)})"
        return at

    def _loop_entry(self, step: LoopStep, depth: int) -> list[str]:
        pad = INDENT * depth
        lines = self._copies(step.carries, pad)
        level = len(self.depths)
        self.depths[id(step.turns)] = level
        body = self._turn_entries(step, depth + 1, level)
        del self.depths[id(step.turns)]
        count: Dim = step.length
        direction = -1 if step.reverse else 1
        lines += [f"{pad}({self.spell.size(count)}, {direction}, [", *body, f"{pad}]),"]
        self.heading = ""
        return lines

    def _turn_entries(self, step: LoopStep, depth: int, level: int) -> list[str]:
        pad = INDENT * depth
        lines: list[str] = []
        for stacked, place in step.slices:
            lines += self._copies([(_turn(stacked, step), place)], pad)
        self.heading = ""
        lines += self._entries(step.body, depth)
        for result, whole in step.stacked:
            lines += self._copies([(result, _turn(whole, step))], pad)
        lines += self._copies(step.updates, pad)
        return lines

    def _copies(self, pairs: Sequence[tuple[Operand, View]], pad: str) -> list[str]:
        return [
            pad + self._entry(Launch(row_function(copy_kernel(x, place))), "")
            for x, place in pairs
        ]


def _turn(whole: View, step: LoopStep) -> Turn:
    """The part of a stacked array that a turn has."""
    return Turn(
        whole.storage, whole.dtype, whole.shape[1:], whole.strides[1:], whole.offset, whole,
        step.turns,
    )  # fmt: skip

