"""Loops over time in segments: `scan_sweep` runs a scan forward and keeps a few of its states,
`scan_replay` runs its reverse scan from them.

A scan of `length` steps is cut into segments of `segment` steps; where the division leaves a rest,
the first of them is shorter, or with `rest_last` the last.  `advance` and `retreat` are graphs over
one segment; their sizes hold the symbol that `segment` is.  Both ops are made after
differentiation, by `SegmentScans` and `TruncateScans`.  Invariant: which states are kept changes
what is computed again, never a result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from retrograde.compiler.errors import ShapeError
from retrograde.compiler.ir import dims
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.graph import Attrs, Graph, TensorType, Value, same_type
from retrograde.compiler.ir.op import Op
from retrograde.compiler.ir.registry import Kind, NotDifferentiable, register
from retrograde.compiler.ops.region import graph_cost
from retrograde.compiler.ops.scan import stacked

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


def sweep_parts(items: Sequence[Any], attrs: Attrs) -> tuple[list[Any], list[Any], list[Any]]:
    """Operands as carries, stacked operands, constants."""
    n, m = attrs["carries"], attrs["carries"] + attrs["slices"]
    return list(items[:n]), list(items[n:m]), list(items[m:])


def replay_parts(
    items: Sequence[Any], attrs: Attrs
) -> tuple[list[Any], list[Any], list[Any], list[Any]]:
    """Operands as states, carries of the way back, stacked operands, constants."""
    a = attrs["states"]
    b = a + attrs["carries"]
    c = b + attrs["slices"]
    return list(items[:a]), list(items[a:b]), list(items[b:c]), list(items[c:])


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
    carries, slices, constants = sweep_parts(advance.inputs, attrs)
    _expect(
        types,
        [*(v.type for v in carries), *_per_segment(slices, attrs, "an operand"),
         *(v.type for v in constants)],
    )  # fmt: skip
    new = [v.type for v in advance.outputs[:n]]
    _expect(new, [v.type for v in carries])
    ys = _per_segment(advance.outputs[n:], attrs, "a result")
    return (*new, *ys, *(snapshots(t, attrs["slots"]) for t in new[: attrs["kept"]]))


def _cut(attrs: Attrs) -> Iterator[tuple[int, int]]:
    return segments(attrs["length"], attrs["segment"], attrs["reverse"], attrs["rest_last"])


def _sized(body: Any, attrs: Attrs, steps: int) -> Any:
    """The sub-graph as a function of arrays, for a segment of `steps` steps."""
    return type(body)(body.graph, {**body.sizes, attrs["symbol"]: steps}, body.trace)


def _sweep_evaluate(attrs: Attrs, *arrays: Any) -> Any:
    """The snapshots are zeros but for the initial state, from which a replay can find the rest."""
    carries, slices, constants = sweep_parts(arrays, attrs)
    n, length = attrs["carries"], attrs["length"]
    shapes = attrs["advance"].output_types
    ys = [np.empty((length, *shape[1:]), dtype) for dtype, shape in shapes[n:]]
    kept = []
    for c in carries[: attrs["kept"]]:
        rows = np.zeros((attrs["slots"] + 1, *np.shape(c)), np.asarray(c).dtype)
        rows[0] = c
        kept.append(rows)
    for start, steps in _cut(attrs):
        part = slice(start, start + steps)
        run = _sized(attrs["advance"], attrs, steps)
        results = run(*carries, *(x[part] for x in slices), *constants)
        carries = list(results[:n])
        for out, y in zip(ys, results[n:], strict=True):
            out[part] = y
    everything = (*carries, *ys, *kept)
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
        doc="a scan in segments: returns the last carries, the stacked step results, and for the "
        "first `kept` carries the states that `scan_replay` goes back from",
        convention="the last row of the kept states is the one that enters the last segment",
        cost=_sweep_cost,
        has_regions=True,
    )
)


def _replay_infer(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    advance: Graph = attrs["advance"]
    retreat: Graph = attrs["retreat"]
    k = attrs["carries"]
    states, carries, slices, constants = replay_parts(retreat.inputs, attrs)
    over_time = _per_segment(slices, attrs, "an operand")
    _expect(
        types,
        [*(snapshots(v.type, attrs["slots"]) for v in states), *(v.type for v in carries),
         *over_time, *(v.type for v in constants)],
    )  # fmt: skip
    _expect(
        [v.type for v in advance.inputs], [v.type for v in (*states, *slices, *constants)]
    )
    _expect([v.type for v in advance.outputs], [v.type for v in states])
    new = [v.type for v in retreat.outputs[:k]]
    _expect(new, [v.type for v in carries])
    return (*new, *_per_segment(retreat.outputs[k:], attrs, "a result"))


def _replay_evaluate(attrs: Attrs, *arrays: Any) -> Any:
    kept, carries, slices, constants = replay_parts(arrays, attrs)
    k, length = attrs["carries"], attrs["length"]
    shapes = attrs["retreat"].output_types
    ys = [np.empty((length, *shape[1:]), dtype) for dtype, shape in shapes[k:]]
    state = [rows[0] for rows in kept]
    entering = []
    parts = list(_cut(attrs))
    for start, steps in parts:
        entering.append(state)
        sliced = [x[start : start + steps] for x in slices]
        state = list(_sized(attrs["advance"], attrs, steps)(*state, *sliced, *constants))
    for (start, steps), state in zip(reversed(parts), reversed(entering), strict=True):
        part = slice(start, start + steps)
        run = _sized(attrs["retreat"], attrs, steps)
        results = run(*state, *carries, *(x[part] for x in slices), *constants)
        carries = list(results[:k])
        for out, y in zip(ys, results[k:], strict=True):
            out[part] = y
    everything = (*carries, *ys)
    return everything if len(everything) != 1 else everything[0]


def _replay_cost(inputs: Any, outputs: Any, attrs: Attrs) -> Dim:
    """What each segment takes once; how often `advance` runs depends on the slots."""
    return _over_all(attrs["retreat"], attrs)


replay = register(
    Op(
        "scan_replay",
        Kind.REGION,
        _replay_infer,
        _replay_evaluate,
        vjp=_MADE_LATE,
        doc="a reverse scan in segments, last to first: `advance` finds the states that enter them "
        "from the kept ones, `retreat` runs a segment forward with residuals and back",
        convention="runs `advance` as rarely as the slots allow (Griewank & Walther 2000)",
        cost=_replay_cost,
        has_regions=True,
    )
)
