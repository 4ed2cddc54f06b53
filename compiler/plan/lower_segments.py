"""Lowering loops in segments: `scan_sweep` and `scan_replay` -> steps over one segment.

Invariant: a run of steps over one segment begins with the copies of what it reads of the stacked
operands, and ends with the new carries in their places; nothing else passes from run to run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.graph import Graph, Node, Value
from retrograde.compiler.ops.scan import parts
from retrograde.compiler.ops.segments import ReplayParts
from retrograde.compiler.plan.in_place import made_in
from retrograde.compiler.plan.steps import (
    CopyStep,
    PartStep,
    ReplayStep,
    Segments,
    Step,
    SweepStep,
)
from retrograde.compiler.plan.views import Operand, View, new_view

if TYPE_CHECKING:
    from retrograde.compiler.plan.lower import Lowering


def lower_sweep(outer: Lowering, node: Node) -> SweepStep:
    """The step of a `scan_sweep`; its results get their places."""
    n = node.attrs["carries"]
    advance: Graph = node.attrs["advance"]
    ends = n, len(advance.outputs), len(advance.outputs) + node.attrs["kept"]
    init, slices, constants = parts(node.inputs, node.attrs)
    carries = [_carry(outer, v, node) for v in init]
    places = [place for _, place in carries]
    stacked = tuple(outer.result(node, v) for v in node.outputs[ends[0] : ends[1]])
    kept = tuple(outer.result(node, v) for v in node.outputs[ends[1] : ends[2]])
    residuals = tuple(outer.result(node, v) for v in node.outputs[ends[2] :])
    runs = [_Run(outer, node, advance)]
    runs[0].enter(places, slices, constants)
    runs[0].leave(places, stacked)
    if "ahead" in node.attrs:
        runs.append(_Run(outer, node, node.attrs["ahead"]))
        runs[1].enter(places, slices, constants, residuals)
        runs[1].leave(places, stacked, residuals)
    outer.places.update(zip(node.outputs[:n], places, strict=True))
    captured = dict.fromkeys(v for run in runs for v in (*run.captured, *run.hoisted()))
    ahead = tuple(runs[1].steps) if len(runs) > 1 else ()
    return SweepStep(
        node, _cut(node), tuple(carries), tuple(runs[0].steps), ahead, kept, residuals, stacked,
        tuple(captured),
    )  # fmt: skip


def lower_replay(outer: Lowering, node: Node) -> ReplayStep:
    """The step of a `scan_replay`; its results get their places."""
    k, attrs = node.attrs["carries"], node.attrs
    given = ReplayParts.of(node.inputs, attrs)
    kept = [outer.view_of(v, node) for v in given.states]
    residuals = [outer.view_of(v, node) for v in given.residuals]
    at_work = [_last_row(view, attrs["slots"]) for view in kept]
    carries = [_carry(outer, v, node) for v in given.carries]
    places = [place for _, place in carries]
    stacked = tuple(outer.result(node, v) for v in node.outputs[k:])
    advance, again, retreat = (
        _Run(outer, node, attrs[name]) for name in ("advance", "again", "retreat")
    )
    advance.enter(at_work, given.slices, given.constants)
    advance.leave(at_work, ())
    again.enter(at_work, given.slices, given.constants, residuals)
    again.leave((), (), residuals)
    retreat.enter([*residuals, *places], given.slices, given.constants)
    retreat.leave(places, stacked)
    outer.places.update(zip(node.outputs[:k], places, strict=True))
    runs = (advance, again, retreat)
    captured = dict.fromkeys(v for run in runs for v in (*run.captured, *run.hoisted()))
    return ReplayStep(
        node, _cut(node), tuple(kept), tuple(residuals), tuple(carries), tuple(advance.steps),
        tuple(again.steps), tuple(retreat.steps), stacked, tuple(captured),
    )  # fmt: skip


def _cut(node: Node) -> Segments:
    attrs = node.attrs
    return Segments(
        attrs["length"], attrs["segment"], attrs["symbol"], attrs["slots"], attrs["reverse"],
        attrs["rest_last"],
    )  # fmt: skip


def _carry(outer: Lowering, v: Value, node: Node) -> tuple[Operand, View]:
    return outer.places[v], new_view(v.type, "value", "carry", node.place)


def _last_row(view: View, slots: Dim) -> View:
    """The state at work among the kept ones."""
    shape = view.shape[1:]
    starts = (slots, *(0 for _ in shape))
    row = view.sliced(starts, (1,) * len(starts), (1, *shape)).reshaped(shape)
    assert row is not None
    return row


class _Run:
    """The steps over one segment in the making."""

    def __init__(self, outer: Lowering, node: Node, graph: Graph) -> None:
        self.outer = outer
        self.node = node
        self.graph = graph
        self.inner = outer.inside()
        self.captured: list[View] = []

    def hoisted(self) -> list[View]:
        """Panels that the runs over all segments share, packed before them."""
        return self.outer.hoisted(self.inner, self.captured)

    @property
    def steps(self) -> list[Step]:
        return self.inner.steps

    def enter(
        self, carries: Sequence[View], slices: Sequence[Value], constants: Sequence[Value],
        residuals: Sequence[View] = (),
    ) -> None:  # fmt: skip
        """Gives the inputs of the graph their places, and lowers it; the last of its results are
        wanted where `residuals` are."""
        inputs = iter(self.graph.inputs)
        read = {v for node in self.graph.nodes for v in node.inputs} | set(self.graph.outputs)
        for place in carries:
            self.inner.places[next(inputs)] = place
        for v in slices:
            mine = next(inputs)
            if mine not in read:
                continue
            whole = self.outer.view_of(v, self.node)
            place = self.inner.places[mine] = new_view(
                mine.type, "value", "segment", self.node.place
            )
            self.captured.append(whole)
            self.steps.append(PartStep(self.node, whole, place))
        self.captured += self.outer.captures(self.inner, zip(constants, inputs, strict=True))
        last = self.graph.outputs[len(self.graph.outputs) - len(residuals) :]
        made = self.graph.producers()
        once = [v for v in last if v in made and self.graph.outputs.count(v) == 1]
        wanted = dict(zip(last, residuals, strict=True))
        self.inner.run(self.graph, {v: wanted[v] for v in once})

    def leave(
        self, places: Sequence[View], stacked: Sequence[View], residuals: Sequence[View] = ()
    ) -> None:
        """Stores the new carries, stacked results and residuals, which the graph returns in this
        order."""
        k = len(places)
        m = k + len(stacked)
        for v, place in zip(self.graph.outputs[m:], residuals, strict=True):
            if not place.equals(self.inner.places[v]):
                self.steps.append(
                    CopyStep(self.inner.places[v], place, "a residual of the segment", self.node)
                )
        results = self.inner.carried(self.graph.outputs[:k], places, self.node)
        for v, whole in zip(self.graph.outputs[k:m], stacked, strict=True):
            self.steps.append(PartStep(self.node, self.inner.places[v], whole, back=True))
        for new, place in zip(results, places, strict=True):
            if place.equals(new) or made_in(self.steps, place, new, self.outer.merged):
                continue
            self.steps.append(CopyStep(new, place, "the carry of the next segment", self.node))
