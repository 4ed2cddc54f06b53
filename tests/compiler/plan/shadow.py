"""A run of a schedule without numbers: every byte of the arena remembers which storage wrote it.

Input: a planned program and sizes.  Output: the first and last access of each storage.  Invariant
that it checks: whatever a step reads was written by the storage that it reads, and by no other
since; a step writes over an operand only element by element, where its op allows that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde.compiler.ir import dims
from retrograde.compiler.ir.registry import Kind
from retrograde.compiler.pipeline import CompiledGraph
from retrograde.compiler.plan.steps import (
    BranchStep,
    CopyStep,
    FusedStep,
    LoopStep,
    MatmulStep,
    OpStep,
    Step,
    Tile,
    WhileStep,
)
from retrograde.compiler.plan.views import Operand, Storage, Turn, View

Addresses = npt.NDArray[np.int64]


class Shadow:
    """The arena at one size; `run` walks the schedule."""

    def __init__(self, compiled: CompiledGraph, sizes: Mapping[str, int]) -> None:
        self.schedule = compiled.planned.schedule
        self.liveness = compiled.planned.liveness
        self.places = compiled.planned.places
        self.sizes = sizes
        self.at, self.state, self.height = compiled.program.layout(sizes)
        self.bytes = compiled.program.buffer_bytes(sizes)
        self.owner = np.full(self.height, -1, np.int64)
        self.clock = 0
        self.accessed: dict[Storage, tuple[int, int]] = {}  # by the clock
        self.touched = 0
        self.turns: dict[object, int] = {}  # of the loops that are at work

    def run(self) -> None:
        for view in self.schedule.inputs:
            self.write(view)
        self.steps(self.schedule.steps)
        self.clock += 1
        for place in self.schedule.outputs:
            if isinstance(place, View):
                found = set(np.unique(self.owner[self.addresses(place)]).tolist())
                home = {s.id for s in self.liveness.lives if self.liveness.home(s) is place.storage}
                assert found <= home | {place.storage.id}, "an output was overwritten"
                self.note(place)

    def steps(self, steps: Sequence[Step]) -> None:
        for step in steps:
            self.clock += 1
            if isinstance(step, LoopStep):
                self.loop(step)
            elif isinstance(step, BranchStep):
                self.branch(step)
            elif isinstance(step, WhileStep):
                self.repeat(step)
            elif isinstance(step, FusedStep):
                self.fused(step)
            else:
                self.plain(step)

    # --- steps

    def plain(self, step: OpStep | CopyStep | MatmulStep) -> None:
        operands: Sequence[Operand]
        if isinstance(step, CopyStep):
            operands, results = (step.operand,), [step.result]
        else:
            operands, results = step.operands, [*step.results]
            results += getattr(step, "scratch", ())
        for x in operands:
            self.read(x)
        for y in results:
            for i, x in enumerate(operands):
                if isinstance(x, View) and self.overlap(x, y):
                    assert isinstance(step, OpStep), "only ops work in place"
                    assert i in step.node.op.inplace, f"{step.node.op.name} over operand {i}"
                    assert self.aligned(x, y), "an element is written before another reads it"
            self.write(y)

    def fused(self, step: FusedStep) -> None:
        place: dict[Tile, View] = {}
        place |= {Tile("x", i): x for i, x in enumerate(step.operands) if isinstance(x, View)}
        place |= {Tile("y", i): y for i, y in enumerate(step.results)}
        for x in step.operands:
            for y in step.results:
                if isinstance(x, View) and self.overlap(x, y):
                    assert self.aligned(x, y), "a tile is written before another reads it"
        written: set[Tile] = set()
        for s in step.statements:
            for k, t in enumerate(s.operands):
                if t.role == "x":
                    self.read(step.operands[t.index])
                else:
                    assert t in written, "a tile is read before it is written"
                mine, theirs = place.get(t), place.get(s.result)
                shared = t == s.result or (
                    mine is not None and theirs is not None and self.overlap(mine, theirs)
                )
                if shared:
                    assert s.node.op.kind is Kind.ELEMENTWISE and k in s.node.op.inplace
            written.add(s.result)
            if s.result.role == "y":
                self.write(step.results[s.result.index])
        for view in step.scratch:
            self.write(view)

    def loop(self, step: LoopStep) -> None:
        for init, place in step.carries:
            self.read(init)
            self.write(place)
        length = dims.evaluate(step.length, self.sizes)
        turns = range(length)[::-1] if step.reverse else range(length)
        for turn in turns:
            self.clock += 1
            self.turns[step.turns] = turn
            for stacked, place in step.slices:
                self.read(stacked, turn)
                self.write(place)
            for view in step.captured:
                self.note(view)
            self.steps(step.body)
            self.clock += 1
            for result, target in step.stacked:
                self.read(result)
                self.write(target, turn)
            for new, place in step.updates:
                self.read(new)
                self.write(place)

    def branch(self, step: BranchStep) -> None:
        """Both ways, each from the same start; bytes that they leave unlike are nobody's."""
        self.read(step.flag)
        before, ends = self.owner, []
        for run in (step.then, step.otherwise):
            self.owner = before.copy()
            for view in step.captured:
                self.note(view)
            self.steps(run)
            for result in step.results:
                self.read(result)
            ends.append(self.owner)
        self.owner = np.where(ends[0] == ends[1], ends[0], -2)

    def repeat(self, step: WhileStep) -> None:
        for init, place in step.carries:
            self.read(init)
            self.write(place)
        for turn in range(3):
            self.clock += 1
            for view in step.captured:
                self.note(view)
            self.steps(step.condition)
            self.read(step.flag)
            if turn == 2:
                break
            self.steps(step.body)
            self.clock += 1
            for new, place in step.updates:
                self.read(new)
                self.write(place)

    # --- bytes

    def addresses(self, view: View, turn: int | None = None) -> Addresses:
        """The bytes of a view (of its part `turn` along the first axis)."""
        if isinstance(view, Turn):
            assert view.stacked is not None
            view, turn = view.stacked, self.turns[view.loop]
        home = self.places[self.liveness.home(view.storage)]
        shape = [dims.evaluate(d, self.sizes) for d in view.shape]
        strides = [dims.evaluate(s, self.sizes) for s in view.strides]
        width = view.dtype.bytes
        first = width * dims.evaluate(view.offset, self.sizes)
        if turn is not None:
            first += width * turn * strides[0]
            shape, strides = shape[1:], strides[1:]
        total: Any = np.zeros((), np.int64)
        for n, stride in zip(shape, strides, strict=True):
            total = total[..., None] + np.arange(n) * stride * width
        local = (first + total.reshape(-1)[:, None] + np.arange(width)).reshape(-1)
        if local.size:
            assert local.min() >= 0 and local.max() < self.bytes[home], "outside of the buffer"
        return np.asarray(self.at[home] + local)

    def overlap(self, a: View, b: View) -> bool:
        return bool(np.intersect1d(self.addresses(a), self.addresses(b)).size)

    def aligned(self, a: View, b: View) -> bool:
        """Whether both are the same bytes in the same order."""
        return np.array_equal(self.addresses(a), self.addresses(b)) and a.dtype is b.dtype

    def read(self, view: Operand, turn: int | None = None) -> None:
        if not isinstance(view, View):
            return
        where = self.addresses(view, turn)
        assert (self.owner[where] == view.storage.id).all(), "overwritten, or never written"
        self.note(view)

    def write(self, view: View, turn: int | None = None) -> None:
        where = self.addresses(view, turn)
        self.owner[where] = view.storage.id
        self.touched = max(self.touched, int(where.max(initial=-1)) + 1)
        self.note(view)

    def note(self, view: View) -> None:
        first, _ = self.accessed.get(view.storage, (self.clock, 0))
        self.accessed[view.storage] = (first, self.clock)
