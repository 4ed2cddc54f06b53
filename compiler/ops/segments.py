"""Loops over time in segments: `scan_sweep` runs a scan forward and keeps a few of its states,
`scan_replay` runs its reverse scan from them.

A scan of `length` steps is cut into segments of `segment` steps; where the division leaves a rest,
the first of them is shorter, or with `rest_last` the last.  The sub-graphs are over one segment;
their sizes hold the symbol that `segment` is.  `advance` takes the states to its end; `ahead` and
`again` do that and return the residuals too; `retreat` goes back through it from residuals.  The
residuals of the last segment are kept by the sweep, in the memory that `again` then uses for those
of the others.  Both ops are made after differentiation, by `SegmentScans` and `TruncateScans`.
Invariant: which states are kept changes what is computed again, never a result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from retrograde.compiler.errors import ShapeError
from retrograde.compiler.ir import dims
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.graph import Attrs, Graph, TensorType, Value, same_type
from retrograde.compiler.ir.op import Op
from retrograde.compiler.ir.registry import Kind, NotDifferentiable, register
from retrograde.compiler.ops.region import graph_cost
from retrograde.compiler.ops.scan import parts, stacked

_MADE_LATE = NotDifferentiable("it is made from a scan that was differentiated", refuses=True)


def segment_count(length: int, segment: int) -> int:
    """How many segments of `segment` steps cover `length` steps."""
    return -(-length // segment)


def segments(
    length: int, segment: int, reverse: bool, rest_last: bool
) -> Iterator[tuple[int, int]]:
    """(first index, steps) of each segment, in the order in which they run."""
    count = segment_count(length, segment)
    shorter = count - 1 if rest_last else 0
    begin = 0
    for i in range(count):
        steps = length - (count - 1) * segment if i == shorter else segment
        yield (length - begin - steps if reverse else begin), steps
        begin += steps


@dataclass(frozen=True)
class ReplayParts:
    """The operands of a replay: kept states, residuals of the last segment, carries of the way
    back, stacked operands, constants."""

    states: list[Any]
    residuals: list[Any]
    carries: list[Any]
    slices: list[Any]
    constants: list[Any]

    @classmethod
    def of(cls, items: Sequence[Any], attrs: Attrs) -> ReplayParts:
        counts = (attrs["states"], attrs["residuals"], attrs["carries"], attrs["slices"])
        found, start = [], 0
        for count in counts:
            found.append(list(items[start : start + count]))
            start += count
        states, residuals, carries, slices = found
        return cls(states, residuals, carries, slices, list(items[start:]))


def snapshots(type: TensorType, slots: Dim) -> TensorType:
    """The kept states of one carry: `slots` of them, and the one that is at work."""
    return stacked(slots + 1, type)


def _per_segment(values: Sequence[Value], attrs: Attrs, what: str) -> list[TensorType]:
    """The types over all steps of what `values` are over one segment."""
    found = []
    for v in values:
        if not v.shape or not dims.same(v.shape[0], attrs["segment"]):
            raise ShapeError(f"{what} {v.type} of a segment does not run over {attrs['segment']}")
        found.append(TensorType(v.dtype, (attrs["length"], *v.shape[1:])))
    return found


def _expect(got: Sequence[TensorType], want: Sequence[TensorType]) -> None:
    if len(got) != len(want):
        raise ShapeError(f"the segments take {len(want)} operands, got {len(got)}")
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        if not same_type(a, b):
            raise ShapeError(f"operand {i} is {a}, the segments need {b}")


def _sweep_infer(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    advance: Graph = attrs["advance"]
    n = attrs["carries"]
    carries, slices, constants = parts(advance.inputs, attrs)
    _expect(
        types,
        [*(v.type for v in carries), *_per_segment(slices, attrs, "an operand"),
         *(v.type for v in constants)],
    )  # fmt: skip
    new = [v.type for v in advance.outputs[:n]]
    _expect(new, [v.type for v in carries])
    ys = _per_segment(advance.outputs[n:], attrs, "a result")
    residuals: list[TensorType] = []
    if "ahead" in attrs:
        ahead: Graph = attrs["ahead"]
        m = len(advance.outputs)
        _expect([v.type for v in ahead.inputs], [v.type for v in advance.inputs])
        _expect([v.type for v in ahead.outputs[:m]], [v.type for v in advance.outputs])
        _per_segment(ahead.outputs[m:], attrs, "a residual")
        residuals = [v.type for v in ahead.outputs[m:]]
    kept = (snapshots(t, attrs["slots"]) for t in new[: attrs["kept"]])
    return (*new, *ys, *kept, *residuals)


def _cut(attrs: Attrs) -> Iterator[tuple[int, int]]:
    return segments(attrs["length"], attrs["segment"], attrs["reverse"], attrs["rest_last"])


def _sized(body: Any, attrs: Attrs, steps: int) -> Any:
    """The sub-graph as a function of arrays, for a segment of `steps` steps."""
    return body.at({attrs["symbol"]: steps})


def _sweep_evaluate(attrs: Attrs, *arrays: Any) -> Any:
    """The snapshots are zeros but for the initial state, from which a replay can find the rest."""
    carries, slices, constants = parts(arrays, attrs)
    n, length = attrs["carries"], attrs["length"]
    shapes = attrs["advance"].output_types
    ys = [np.empty((length, *shape[1:]), dtype) for dtype, shape in shapes[n:]]
    kept = []
    for c in carries[: attrs["kept"]]:
        rows = np.zeros((attrs["slots"] + 1, *np.shape(c)), np.asarray(c).dtype)
        rows[0] = c
        kept.append(rows)
    more = attrs["ahead"].output_types[len(shapes) :] if "ahead" in attrs else ()
    residuals = [np.zeros(shape, dtype) for dtype, shape in more]
    cut = list(_cut(attrs))
    for i, (start, steps) in enumerate(cut):
        part = slice(start, start + steps)
        last = i == len(cut) - 1 and "ahead" in attrs
        run = _sized(attrs["ahead" if last else "advance"], attrs, steps)
        results = run(*carries, *(x[part] for x in slices), *constants)
        carries = list(results[:n])
        for out, y in zip(ys, results[n : len(shapes)], strict=True):
            out[part] = y
        for out, x in zip(residuals, results[len(shapes) :], strict=False):
            out[:steps] = x
    everything = (*carries, *ys, *kept, *residuals)
    return everything if len(everything) != 1 else everything[0]


def _over_all(graph: Graph, attrs: Attrs) -> Dim:
    """The operations of all segments together."""
    (symbol,) = dims.symbols(attrs["segment"])
    return dims.substitute(graph_cost(graph), {symbol.name: attrs["length"]})


def _sweep_cost(inputs: Any, outputs: Any, attrs: Attrs) -> Dim:
    return _over_all(attrs["advance"], attrs)


sweep = register(
    Op(
        "scan_sweep",
        Kind.REGION,
        _sweep_infer,
        _sweep_evaluate,
        vjp=_MADE_LATE,
        doc="a scan in segments: returns the last carries, the stacked step results, for the first "
        "`kept` carries the states that `scan_replay` goes back from, and the residuals of the "
        "last segment",
        convention="the last row of the kept states is for the one that is at work",
        cost=_sweep_cost,
        has_regions=True,
    )
)


def _replay_infer(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    advance: Graph = attrs["advance"]
    again: Graph = attrs["again"]
    retreat: Graph = attrs["retreat"]
    n, k, r = attrs["states"], attrs["carries"], attrs["residuals"]
    states = [v.type for v in advance.inputs[:n]]
    residuals, rest = retreat.inputs[:r], retreat.inputs[r:]
    back = [v.type for v in rest[:k]]
    slices, constants = rest[k : k + attrs["slices"]], rest[k + attrs["slices"] :]
    over_time = _per_segment(slices, attrs, "an operand")
    _per_segment(residuals, attrs, "a residual")
    fixed = [v.type for v in constants]
    _expect(
        types,
        [*(snapshots(t, attrs["slots"]) for t in states), *(v.type for v in residuals), *back,
         *over_time, *fixed],
    )  # fmt: skip
    for graph in (advance, again):
        _expect(
            [v.type for v in graph.inputs], [*states, *(v.type for v in slices), *fixed]
        )
    _expect([v.type for v in advance.outputs], states)
    _expect([v.type for v in again.outputs], [v.type for v in residuals])
    _expect([v.type for v in retreat.outputs[:k]], back)
    return (*back, *_per_segment(retreat.outputs[k:], attrs, "a result"))


def _replay_evaluate(attrs: Attrs, *arrays: Any) -> Any:
    """From the first state alone: the others and all residuals are found again."""
    given = ReplayParts.of(arrays, attrs)
    k, length = attrs["carries"], attrs["length"]
    shapes = attrs["retreat"].output_types
    ys = [np.empty((length, *shape[1:]), dtype) for dtype, shape in shapes[k:]]
    state = [rows[0] for rows in given.states]
    entering = []
    cut = list(_cut(attrs))
    for start, steps in cut:
        entering.append(state)
        fixed = [*(x[start : start + steps] for x in given.slices), *given.constants]
        state = list(_sized(attrs["advance"], attrs, steps)(*state, *fixed))
    carries = given.carries
    for (start, steps), state in zip(reversed(cut), reversed(entering), strict=True):
        part = slice(start, start + steps)
        fixed = [*(x[part] for x in given.slices), *given.constants]
        residuals = _sized(attrs["again"], attrs, steps)(*state, *fixed)
        results = _sized(attrs["retreat"], attrs, steps)(*residuals, *carries, *fixed)
        carries = list(results[:k])
        for out, y in zip(ys, results[k:], strict=True):
            out[part] = y
    everything = (*carries, *ys)
    return everything if len(everything) != 1 else everything[0]


def _replay_cost(inputs: Any, outputs: Any, attrs: Attrs) -> Dim:
    """What going back takes; how much runs again depends on the segments and slots."""
    return _over_all(attrs["retreat"], attrs)


replay = register(
    Op(
        "scan_replay",
        Kind.REGION,
        _replay_infer,
        _replay_evaluate,
        vjp=_MADE_LATE,
        doc="a reverse scan in segments, last to first: `advance` finds the states that enter them "
        "from the kept ones, `again` the residuals of a segment, `retreat` goes back through it",
        convention="runs `advance` as rarely as the slots allow (Griewank & Walther 2000)",
        cost=_replay_cost,
        has_regions=True,
    )
)
