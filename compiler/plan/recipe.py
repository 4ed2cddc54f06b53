"""Recipes: one schedule with its memory, as plain data, for every size.

A program may hold several recipes for the same results.  What a recipe leaves open (how many steps
a segment has, how many states are kept) are symbols of its own, the plan's.  Invariant: nothing in
a recipe depends on a size; `layout` binds sizes by evaluation alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from retrograde.compiler.ir import dims
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.plan.bounds import PeakForm, peak_terms
from retrograde.compiler.plan.memory import Orientation
from retrograde.compiler.plan.specs import BufferSpec

if TYPE_CHECKING:
    from retrograde.compiler.plan.step_bound import StepBound
    from retrograde.compiler.plan.steps import Schedule

_KEPT = 4  # layouts of a recipe that are remembered: a plan asks several times for one
_HEADING = re.compile(r"\n\n/\*(?:(?!\*/).)*\*/\n(?=static i64 k\d+\()", re.DOTALL)


class KernelFile(NamedTuple):
    """A C file, and by which numbers a schedule launches its kernels, in their order."""

    text: str
    numbers: tuple[int, ...]

    @property
    def code(self) -> str:
        """The text without what kernels are for: the lines of a model that it was made from may
        change without anything to compile."""
        return _HEADING.sub("\n\n", self.text)


@dataclass(frozen=True)
class TimeLoop:
    """A loop that is cut into segments: its steps, and the operations of running one of them
    forward once more, without residuals (`step`) and with them (`again`); the names of the plan's
    symbols for its segments and the states kept.  `longest`: the most steps of a segment.
    `given`: the states that are kept, with segments of one step, where the scan says so.  `turns`:
    segments are multiples of it."""

    length: Dim
    step: Dim
    again: Dim
    segment: str
    slots: str
    longest: int | None = None
    given: int | None = None
    turns: int = 1


@dataclass(frozen=True)
class Runs:
    """A loop in runs of `steps` steps: the plan's symbol `name` is that many, or all there are."""

    name: str
    length: Dim
    steps: int


@dataclass(frozen=True)
class Recipe:
    """One way to run a program: `work` operations, and what `loops` have to run again.  `slower`
    tells by what factor they take longer than those of the program's first recipe."""

    name: str
    symbols: tuple[dims.Symbol, ...]  # the program's, then the plan's
    buffers: tuple[BufferSpec, ...]  # state first, in the order of the donated inputs
    orientation: Orientation  # of the buffers that are not state
    source: str
    kernels: tuple[KernelFile, ...] = ()  # what a native schedule launches
    work: Dim = 0
    slower: float = 1.0
    loops: tuple[TimeLoop, ...] = ()
    runs: tuple[Runs, ...] = ()
    limits: tuple[tuple[Dim, int], ...] = ()  # sizes and what they may be at most
    reuse: bool = True  # False: every buffer has a place of its own
    gap: int = 0  # bytes before the first buffer and behind each, where none is reused
    schedule: Schedule = field(kw_only=True, repr=False, compare=False)  # what `source` spells

    def serves(self, sizes: Mapping[str, int]) -> bool:
        """Whether the recipe is one for these sizes."""
        return all(dims.evaluate(d, sizes) <= most for d, most in self.limits)

    @cached_property
    def state_count(self) -> int:
        """How many buffers are state."""
        return sum(1 for b in self.buffers if b.kind == "state")

    @cached_property
    def _sizes(self) -> Callable[..., tuple[int, ...]]:
        """The bytes of every buffer as a function of the symbols, one evaluation per polynomial."""
        distinct = list(dict.fromkeys(dims.source(b.bytes) for b in self.buffers))
        index = {text: i for i, text in enumerate(distinct)}
        order = ", ".join(f"s[{index[dims.source(b.bytes)]}]" for b in self.buffers)
        names = ", ".join(s.name for s in self.symbols)
        values = "".join(f"{text}, " for text in distinct)
        namespace: dict[str, Callable[..., tuple[int, ...]]] = {}
        exec(
            f"def sizes({names}):\n    s = ({values})\n    return ({order}{',' if order else ''})",
            namespace,
        )
        return namespace["sizes"]

    def buffer_bytes(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The size of each buffer."""
        return self._sizes(**{s.name: sizes[s.name] for s in self.symbols})

    def layout(self, sizes: Mapping[str, int]) -> tuple[list[int], int, int]:
        """(the offset of each buffer, the bytes of state, the height of the arena)."""
        key = tuple(sizes[s.name] for s in self.symbols)
        found = self._layouts.get(key)
        if found is None:
            while len(self._layouts) >= _KEPT:
                self._layouts.pop(next(iter(self._layouts)), None)
            found = self._layouts[key] = self._laid_out(sizes)
        return found

    @cached_property
    def _layouts(self) -> dict[tuple[int, ...], tuple[list[int], int, int]]:
        return {}

    def _laid_out(self, sizes: Mapping[str, int]) -> tuple[list[int], int, int]:
        size = self.buffer_bytes(sizes)
        n = self.state_count
        if self.gap:
            offsets, height = stack(size, self.gap)
            return offsets, offsets[n] if n < len(size) else height, height
        offsets, state = stack(size[:n])
        if self.reuse:
            above, height = self.orientation.offsets(size[n:])
        else:
            above, height = stack(size[n:])
        return [*offsets, *(state + o for o in above)], state, state + height

    @cached_property
    def _bound(self) -> StepBound:
        from retrograde.compiler.plan.step_bound import step_bound  # when somebody asks

        return step_bound(self.schedule)

    def order_bound(self, sizes: Mapping[str, int]) -> tuple[int, str]:
        """Bytes that no order of the recipe's steps needs less than, each run as often as one
        likes, whatever the recipe's own sizes; and the operation that needs them."""
        ends: dict[str, tuple[int, int]] = {}
        for loop in self.loops:
            length = max(1, dims.evaluate(loop.length, sizes))
            segment = 1 if loop.given else min(length, loop.longest or length)
            ends[loop.segment] = 1, segment
            if loop.slots:
                ends[loop.slots] = 1, length
        for runs in self.runs:
            steps = max(1, min(runs.steps, dims.evaluate(runs.length, sizes)))
            ends.setdefault(runs.name, (steps, steps))
        full = {**sizes, **{name: low for name, (low, _) in ends.items()}}
        state = sum(self.buffer_bytes(full)[: self.state_count])
        needed, operation = self._bound.at(full, ends)
        return state + needed, operation

    @cached_property
    def _events(self) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int64]]:
        """The buffers that are not state as they come and go, and 1 or -1 for each.  At one
        instant the ends come before the starts; what lives for no time comes and goes."""
        events = []
        for i, b in enumerate(self.buffers[self.state_count :], self.state_count):
            events += [(b.start, 1, i), (max(b.end, b.start), 2 if b.end <= b.start else 0, i)]
        events.sort()
        signs = [1 if turn == 1 else -1 for _, turn, _ in events]
        return np.array([i for *_, i in events], np.intp), np.array(signs, np.int64)

    def most_live(self, sizes: Mapping[str, int]) -> int:
        """The most bytes that are live at once, state included: no placement is below."""
        return sum(self.buffer_bytes(sizes)[: self.state_count]) + int(
            self._live(sizes).max(initial=0)
        )

    def fullest(self, sizes: Mapping[str, int]) -> int:
        """A step at which the most bytes are live."""
        live = self._live(sizes)
        return self.buffers[int(self._events[0][live.argmax()])].start if len(live) else 0

    def _live(self, sizes: Mapping[str, int]) -> npt.NDArray[np.int64]:
        """The bytes of what is not state, after each of the events."""
        which, signs = self._events
        live: npt.NDArray[np.int64] = np.cumsum(
            np.array(self.buffer_bytes(sizes), np.int64)[which] * signs
        )
        return live

    @cached_property
    def form(self) -> PeakForm:
        """The height of the arena in closed form over the symbols."""
        n = self.state_count
        state: Dim = 0
        for b in self.buffers[:n]:
            state = state + b.bytes
        transient = [b.bytes for b in self.buffers[n:]]
        if self.reuse:
            form = peak_terms(self.orientation, transient)
        else:
            form = PeakForm((sum(transient),), True)
        if self.gap:
            state = state + self.gap * (len(self.buffers) + 1)
        terms = tuple(state + term for term in form.terms)
        return PeakForm(terms or (state,), form.exact)


def stack(sizes: Sequence[int], gap: int = 0) -> tuple[list[int], int]:
    """Offsets one after the other, with a gap before each and behind the last, and the total."""
    offsets: list[int] = []
    total = gap
    for size in sizes:
        offsets.append(total)
        total += size + gap
    return offsets, total
