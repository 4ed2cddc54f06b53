"""A bound on the peak over all orders of the steps of a schedule: Schedule -> bytes at any size.

Invariant: no sequence of these steps, each run as often as one likes and with whatever placement,
is below; the tests compare it with all sequences of small programs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde.compiler.ir import dims
from retrograde.compiler.ir.collection import paused_collection
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.plan.in_place import takes_over
from retrograde.compiler.plan.liveness import walk
from retrograde.compiler.plan.steps import (
    ChainStep,
    CopyStep,
    FusedStep,
    OpStep,
    Schedule,
    Step,
    reads,
    writes,
)
from retrograde.compiler.plan.views import Storage, View

_MOST_MAKERS = 64  # of what one step reads, beyond which they are not told apart

Row = tuple[int, ...]  # how often each distinct size counts


@dataclass(frozen=True)
class Need:
    """While `operation` is at work, at least one of `ways` is there, each a sum of sizes."""

    operation: str
    ways: tuple[Row, ...]


@dataclass(frozen=True)
class StepBound:
    """The least peak of a schedule's steps over all their orders, at any size.

    State is always there.  An input is there from the start to its last reader, and cannot be made
    again.  Every other value is there from the end of a run of its maker to the last step that
    reads it before it is made anew.  While a step runs, its operands, results and scratch are
    there; a result lies in the place of an operand where the step allows it and nothing reads the
    operand afterwards.  The new value of state counts as nothing, for it may lie where the old one
    does.  Three sums follow, and the largest is the bound:

    - While step v runs for the first time: what it reads and makes, and every input that a step
      reads which needs a result of v, by whatever way, and has therefore not run yet.
    - Let w read some values, and let v be what ran last of their makers before the first run of
      w.  While v runs, all of those values are there, for their makers have run, or it is v, and
      w is still to come.  With them is what v reads, and the inputs that w or what needs w reads.
      Which maker is last is not known, so the least over them counts.
    - The same at the end, where the outputs are what is read; and before the first step, when all
      inputs are there.

    Of a result that may take over an operand, the operand alone is counted.
    """

    sizes: tuple[Dim, ...]  # the distinct ones
    needs: tuple[Need, ...]
    symbols: tuple[str, ...]

    def at(self, sizes: Mapping[str, int], ends: Mapping[str, tuple[int, int]]) -> tuple[int, str]:
        """(bytes beside the state, what needs them).  `ends`: the least and the most that sizes
        may be which the plan is free to choose."""
        values = self._values(sizes)
        for corner in _corners(ends):
            values = np.minimum(values, self._values({**sizes, **corner}))
        rows, starts = self._table
        least = np.minimum.reduceat(rows @ values, starts)
        most = int(least.argmax())
        return int(least[most]), self.needs[most].operation

    def _values(self, sizes: Mapping[str, int]) -> npt.NDArray[np.int64]:
        return np.array(self._evaluated(*(sizes[name] for name in self.symbols)), np.int64)

    @cached_property
    def _table(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.intp]]:
        rows = [way for need in self.needs for way in need.ways]
        starts = np.cumsum([0, *(len(need.ways) for need in self.needs[:-1])])
        return np.array(rows, np.int64), starts

    @cached_property
    def _evaluated(self) -> Callable[..., tuple[int, ...]]:
        values = "".join(f"{dims.source(size)}, " for size in self.sizes)
        namespace: dict[str, Any] = {}
        exec(f"def sizes({', '.join(self.symbols)}):\n    return ({values})", namespace)
        found: Callable[..., tuple[int, ...]] = namespace["sizes"]
        return found


def _corners(ends: Mapping[str, tuple[int, int]]) -> list[dict[str, int]]:
    """Every choice of least and most: sizes that rise or fall with each symbol have their least
    value at one of them."""
    corners: list[dict[str, int]] = [{}]
    for name, (low, high) in ends.items():
        corners = [{**corner, name: n} for corner in corners for n in {low, high}]
    return corners if ends else []


def step_bound(schedule: Schedule) -> StepBound:
    """The bound of the steps of `schedule`, chains taken apart into their links."""
    with paused_collection():
        return _Needs(schedule).bound()


class _Needs:
    """The steps of a schedule as sets of storages, and what they need."""

    def __init__(self, schedule: Schedule) -> None:
        self.steps: list[Step] = []
        for step in schedule.steps:
            self.steps += step.links if isinstance(step, ChainStep) else [step]
        donated = {o for o, _ in schedule.donated}
        outputs = [v for i, v in enumerate(schedule.outputs) if i not in donated]
        self._home = dict(schedule.merged)
        # Nothing where it is state, or may become it.
        self._state = {v.storage for v in schedule.inputs if v.storage.kind == "state"}
        for i in donated:
            new = schedule.outputs[i]
            if isinstance(new, View):
                self._state.add(self._at_home(new.storage))
        for step in self.steps:  # donated state that was copied to its place
            if isinstance(step, CopyStep) and step.result.storage in self._state:
                self._state |= {v.storage for v in reads(step)}
        self._index: dict[Storage, int] = {}
        self.inputs = self._set(schedule.inputs)
        self.outputs = self._set(v for v in outputs if isinstance(v, View))
        self.read = [self._set(reads(step)) for step in self.steps]
        self.made = [self._set(writes(step)) for step in self.steps]
        self.makers: dict[int, list[int]] = {}
        for i, made in enumerate(self.made):
            for s in made:
                self.makers.setdefault(s, []).append(i)
        self.later = self._inputs_read_later()

    def _at_home(self, storage: Storage) -> Storage:
        while storage in self._home:
            storage = self._home[storage]
        return storage

    def _number(self, view: View) -> int:
        """The number of where a view lies; -1 for state."""
        return self._index.get(self._at_home(view.storage), -1)

    def _set(self, views: Iterable[View]) -> frozenset[int]:
        """The storages of views, as numbers."""
        homes = {self._at_home(v.storage) for v in views} - self._state
        return frozenset(self._index.setdefault(s, len(self._index)) for s in homes)

    def _inputs_read_later(self) -> list[frozenset[int]]:
        """By step: the inputs that are read by steps that need it, which is certain only through
        values that one step alone makes; and those that are returned, which stay to the end."""
        bit = {s: 1 << k for k, s in enumerate(sorted(self.inputs))}
        always = sum(bit[s] for s in self.inputs & self.outputs)
        found = [always] * len(self.steps)
        needed = [False] * len(self.steps)  # that it has to run at all
        for i in range(len(self.steps) - 1, -1, -1):
            step = self.steps[i]
            own = {self._at_home(v.storage) for v in writes(step)}
            needed[i] |= bool(own & self._state or self.made[i] & self.outputs)
            if not needed[i]:
                continue
            passed = found[i] | sum(bit[s] for s in self.read[i] & self.inputs)
            for s in self.read[i]:
                makers = self.makers.get(s, ())
                if len(makers) == 1 and makers[0] < i:
                    found[makers[0]] |= passed
                    needed[makers[0]] = True
        sets: dict[int, frozenset[int]] = {}
        for bits in found:
            if bits not in sets:
                sets[bits] = frozenset(s for s, b in bit.items() if bits & b)
        return [sets[bits] for bits in found]

    def bound(self) -> StepBound:
        everything = list(self._index)
        distinct = list(dict.fromkeys(dims.source(s.bytes) for s in everything))
        column = {text: k for k, text in enumerate(distinct)}
        kind = [column[dims.source(s.bytes)] for s in everything]
        size = {dims.source(s.bytes): s.bytes for s in everything}
        needs: dict[tuple[Row, ...], str] = {}

        def note(operation: str, ways: Iterable[frozenset[int]]) -> None:
            rows = set()
            for way in ways:
                row = [0] * len(distinct)
                for s in way:
                    row[kind[s]] += 1
                rows.add(tuple(row))
            needs.setdefault(tuple(_least(rows)), operation)

        note("its inputs", [self.inputs])
        for i, step in enumerate(self.steps):
            note(_operation(step), [self._during(i, self.later[i])])
            self._note_last(note, _operation(step), self.read[i], self.later[i], i)
        always = self.inputs & self.outputs
        self._note_last(note, "its outputs", self.outputs, always, len(self.steps))
        symbols = dict.fromkeys(s.name for d in size.values() for s in dims.symbols(d))
        return StepBound(
            tuple(size[text] for text in distinct),
            tuple(Need(operation, ways) for ways, operation in needs.items()),
            tuple(symbols),
        )

    def _note_last(
        self, note: Callable[[str, Iterable[frozenset[int]]], None], operation: str,
        read: frozenset[int], later: frozenset[int], reader: int,
    ) -> None:  # fmt: skip
        """What is there while the last of the makers of `read` runs."""
        makers = {m for s in read for m in self.makers.get(s, ()) if m != reader}
        if not makers or len(makers) > _MOST_MAKERS:
            note(operation, [read | later])
        else:
            note(operation, [self._during(v, read | later) for v in makers])

    def _during(self, i: int, kept: frozenset[int]) -> frozenset[int]:
        """What is there while step i runs and `kept` is still to be read."""
        there = kept | self.read[i] | self.made[i]
        return there - self._shared(i, kept)

    def _shared(self, i: int, kept: frozenset[int]) -> set[int]:
        """The results of step i that may lie where an operand does, whose place is counted."""
        return {new for new, old in self._takeovers[i] if old not in kept}

    @cached_property
    def _takeovers(self) -> list[list[tuple[int, int]]]:
        found: list[list[tuple[int, int]]] = []
        for step in self.steps:
            pairs: list[tuple[int, int]] = []
            if isinstance(step, (OpStep, FusedStep)):
                pairs = [
                    (self._number(new), self._number(old))
                    for new in step.results
                    for old in reads(step)
                    if old.storage is not new.storage and takes_over(step, old, new)
                ]
            found.append(pairs)
        return found


def _least(rows: Iterable[Row]) -> list[Row]:
    """The rows that are not everywhere at least another one, in a fixed order."""
    found: list[Row] = []
    for row in sorted(set(rows), key=lambda row: (sum(row), row)):
        if not any(all(a <= b for a, b in zip(other, row, strict=True)) for other in found):
            found.append(row)
    return found


def operation_at(schedule: Schedule, time: int) -> str:
    """The operation that is at work at a time, as lifetimes count it, and its line."""
    at = [step for position, step, end in walk(schedule.steps) if position <= time <= end]
    return _operation(at[-1]) if at else "its outputs"


def _operation(step: Step) -> str:
    node = step.node
    if node is None:
        return "a copy"
    name = node.op.name
    if name == "fused":
        body: Sequence[Any] = node.attrs["body"].nodes
        name = "+".join(dict.fromkeys(n.op.name for n in body[:3])) + ("+…" if body[3:] else "")
    return f"{name} {node.place}".strip()
