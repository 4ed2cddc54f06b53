"""A plan run on names instead of numbers: steps and places -> what is read after it was lost.

Each byte of the arena is known by the storage that was written there last.  A step that reads a
storage finds it whole, or the plan gave its place away too early.  This knows nothing of lifetimes,
which is what makes it a check of them.  Invariant: loops turn twice, so that what a turn destroys
is missed by the next.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from retrograde.compiler.plan.build import Planned
from retrograde.compiler.plan.recipe import Recipe
from retrograde.compiler.plan.steps import (
    LoopStep,
    Schedule,
    Step,
    WhileStep,
    inside,
    reads,
    writes,
)
from retrograde.compiler.plan.views import Operand, Storage, View

TURNS = 2


@dataclass(frozen=True)
class Misread:
    """A step that reads what another wrote over: `lost`, by `taker`."""

    step: str
    lost: str
    taker: str

    def __str__(self) -> str:
        return f"{self.step} reads {self.lost}, whose place {self.taker} has taken"


def overlaps(recipe: Recipe, sizes: Mapping[str, int]) -> list[tuple[str, str]]:
    """The pairs of buffers that live at one time and share bytes."""
    offsets, *_ = recipe.layout(sizes)
    bytes = recipe.buffer_bytes(sizes)
    items = sorted((o, o + n, i) for i, (o, n) in enumerate(zip(offsets, bytes, strict=True)) if n)
    found = []
    open_: list[tuple[int, int]] = []  # (end of its bytes, buffer)
    for start, end, i in items:
        open_ = [(e, j) for e, j in open_ if e > start]
        b = recipe.buffers[i]
        for _, j in open_:
            other = recipe.buffers[j]
            if b.start < other.end and other.start < b.end:
                found.append((other.name or other.kind, b.name or b.kind))
        open_.append((end, i))
    return found


def misreads(planned: Planned, recipe: Recipe, sizes: Mapping[str, int]) -> list[Misread]:
    """What the steps of `planned` read after it was written over, at `sizes` (the plan's too)."""
    offsets, *_ = recipe.layout(sizes)
    bytes = recipe.buffer_bytes(sizes)
    memory = _Memory(planned, offsets, bytes)
    memory.schedule(planned.schedule)
    return memory.found


class _Memory:
    def __init__(self, planned: Planned, offsets: Sequence[int], bytes: Sequence[int]) -> None:
        self.planned = planned
        self.where: dict[Storage, tuple[int, int]] = {}
        for storage, i in planned.places.items():
            self.where[storage] = (offsets[i], offsets[i] + bytes[i])
        for storage in planned.liveness.merged:
            home = planned.liveness.home(storage)
            if home in self.where:
                self.where[storage] = self.where[home]
        self.heirs = {home: _name(new) for new, home in planned.schedule.merged}
        self.found: list[Misread] = []
        self.lost: dict[Storage, str] = {}  # by whom
        # Storages by the place that they begin at, to find those that a write meets.
        items = sorted((span, s.id, s) for s, span in self.where.items())
        self.starts = [span[0] for span, _, _ in items]
        self.items = [(span, s) for span, _, s in items]
        self.widest = max((b - a for (a, b), _ in self.items), default=0)

    def schedule(self, schedule: Schedule) -> None:
        for view in schedule.inputs:
            self.lost.pop(view.storage, None)
        for step in schedule.steps:
            self.run(step)
        for output in schedule.outputs:
            self.read(output, "the result", final=True)

    def run(self, step: Step) -> None:
        label = _label(step)
        for view in reads(step):
            self.read(view, label)
        if isinstance(step, LoopStep):
            self.loop(step, label)
        elif isinstance(step, WhileStep):
            for _, place in step.carries:
                self.write(place, label)
            for _ in range(TURNS):
                for part in step.condition:
                    self.run(part)
                self.read(step.flag, label)
                for part in step.body:
                    self.run(part)
                self.update(step.updates, label)
                self.turn()
        elif inside(step):
            for _, place in getattr(step, "carries", ()):
                self.write(place, label)
            for _ in range(TURNS):
                for run in inside(step):
                    for part in run:
                        self.run(part)
                self.turn()
            for view in writes(step):
                self.write(view, label)
        else:
            for view in writes(step):
                self.write(view, label)

    def loop(self, step: LoopStep, label: str) -> None:
        for _, place in step.carries:
            self.write(place, label)
        for _ in range(TURNS):
            for stacked, place in step.slices:
                self.read(stacked, label)
                self.write(place, label)
            for part in step.body:
                self.run(part)
            for operand, place in step.stacked:
                self.read(operand, label)
                self.write(place, label)
            self.update(step.updates, label)
            self.turn()
        for view in step.direct:
            self.lost.pop(view.storage, None)

    def turn(self) -> None:
        """Ends a turn: a new carry that was made in the carry's place is the carry of the next."""
        for new, home in self.planned.schedule.merged:
            if home.kind != "state" and self.lost.get(home) == _name(new):
                del self.lost[home]

    def update(self, updates: Sequence[tuple[Operand, View]], label: str) -> None:
        for operand, _ in updates:
            self.read(operand, label)
        for _, place in updates:
            self.write(place, label)

    def read(self, x: Operand, label: str, final: bool = False) -> None:
        if not isinstance(x, View) or x.storage not in self.lost:
            return
        taker = self.lost[x.storage]
        if final and self._updated(x.storage, taker):
            return
        found = Misread(label, _name(x.storage), taker)
        if found not in self.found:
            self.found.append(found)

    def _updated(self, storage: Storage, taker: str) -> bool:
        """Whether what took the place is the new value of donated state."""
        return storage.kind == "state" and self.heirs.get(storage) == taker

    def write(self, view: View, label: str) -> None:
        storage = view.storage
        self.lost.pop(storage, None)
        span = self.where.get(storage)
        if span is None or span[0] == span[1]:
            return
        first = bisect_left(self.starts, span[0] - self.widest)
        for (start, end), other in self.items[first:]:
            if start >= span[1]:
                break
            if end > span[0] and other is not storage:
                self.lost[other] = _name(storage)


def _name(storage: Storage) -> str:
    what = storage.name or storage.kind
    return f"{what} ({storage.place})" if storage.place else what


def _label(step: Step) -> str:
    node = getattr(step, "node", None)
    if node is None:
        return "a copy"
    name = node.op.name
    if name == "fused":
        name = "+".join(dict.fromkeys(n.op.name for n in node.attrs["body"].nodes))
    return f"{name} ({node.place})" if node.place else name

