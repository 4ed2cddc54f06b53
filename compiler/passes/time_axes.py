"""Which axes of a graph's values are time: (Graph, symbol T) -> for each value its axes of T steps.

`flattened` first takes calls apart and unrolls loops that hold T inside, so that what is left says
of each axis where it comes from.  An axis may hold time among other factors, [B, T] reshaped to
[B*T]: index = (outer * T + t) * inner.  Invariant: an axis that is found is time in the order of
the inputs; what cuts or joins time otherwise is in `strange`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from retrograde.compiler.ir import dims
from retrograde.compiler.ir.builder import Builder
from retrograde.compiler.ir.dims import Dim, Symbol
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.graph import Graph, Node, Value
from retrograde.compiler.ir.registry import Kind, lookup
from retrograde.compiler.passes.dce import DCE

_TAKEN_APART = frozenset({"call", "remat_call", "custom_call", "fused"})
_LAST_AXIS = frozenset({"layer_norm", "rms_norm", "row_dot", "top_k", "token_nll"})
_ONE_AXIS = frozenset({"softmax", "log_softmax", "sort", "argsort", "argmax", "argmin"})
RUNNING = frozenset({"cumsum", "cumprod", "cummax", "cummin", "linear_recurrence"})
_IN_PLACE = frozenset({"slice", "pad", "flip", "set_slice", "concatenate"})
# Several places a step may be side by side or far apart; beside an operand that is held the other
# way nothing is said of them.
_NEW_AXES = frozenset({"iota", "broadcast_to"})
KEYS = 4  # the label of the keys of tiled attention, whose results have up to 4 axes
UNROLLED = 64  # the most turns of a loop that are written out

Labels = dict[int, int]  # axis of an operand -> axis of the result, or a number behind those


@dataclass(frozen=True)
class TimeAxis:
    """An axis of outer * (T + extra) * inner elements."""

    extra: int = 0
    outer: Dim = 1
    inner: Dim = 1

    @property
    def plain(self) -> bool:
        """Whether it is time and nothing else."""
        return dims.same(self.outer, 1) and dims.same(self.inner, 1)

    def alike(self, other: TimeAxis) -> bool:
        """Whether both have time among the same factors."""
        return dims.same(self.outer, other.outer) and dims.same(self.inner, other.inner)

    def moved(self, low: float, high: float) -> tuple[float, float]:
        """By how many steps an index can be off that is off by low to high."""
        if not low and not high:
            return low, high
        if not dims.same(self.outer, 1):  # the last step stands before the first of the next row
            return -math.inf, math.inf
        if not isinstance(self.inner, int):
            return (-math.inf if low < 0 else 0), (math.inf if high > 0 else 0)
        floor = low if math.isinf(low) else low // self.inner
        return floor, high if math.isinf(high) else -(-high // self.inner)

    def sized(self, steps: Dim) -> Dim:
        """Its size where there are so many steps."""
        return self.outer * steps * self.inner


def holds(d: Any, symbol: str) -> bool:
    """Whether a size, or a tuple of sizes, has the symbol in it."""
    if isinstance(d, tuple):
        return any(holds(x, symbol) for x in d)
    return isinstance(d, dims.Poly) and any(s.name == symbol for s in dims.symbols(d))


def mentions(graph: Graph, symbol: str) -> bool:
    """Whether a type or an attribute inside of a graph has the symbol."""
    return any(holds(v.shape, symbol) for v in graph.values()) or any(
        holds(x, symbol) or (isinstance(x, Graph) and mentions(x, symbol))
        for node in graph.nodes
        for x in node.attrs.values()
    )


# --- taking apart


def flattened(graph: Graph, symbol: Symbol) -> Graph:
    """The graph without calls, and without loops of a known length that have T in their bodies."""
    while any(_is_apart(node, symbol.name) for node in graph.nodes):
        builder = Builder(graph.name, Expr)
        builder.inputs.extend(graph.inputs)
        builder.input_names.extend(graph.input_names)
        renamed: dict[Value, Value] = {}
        with builder:
            for node in graph.nodes:
                node = node.with_inputs(renamed.get(v, v) for v in node.inputs)
                if not _is_apart(node, symbol.name):
                    builder.append(node)
                    continue
                with builder.located(node.loc, node.scope, node.origin):
                    operands = [Expr(v, builder) for v in node.inputs]
                    if node.op.name == "scan":
                        results = _written_out(node, builder, operands)
                    else:
                        results = builder.inline(node.attrs["body"], operands)
                renamed.update(
                    (v, e.value) for v, e in zip(node.outputs, results, strict=True)
                )
        outputs = [renamed.get(v, v) for v in graph.outputs]
        graph = builder.finish(outputs, graph.output_names, graph.aliases)
    return DCE()(graph)


def _is_apart(node: Node, symbol: str) -> bool:
    if node.op.name in _TAKEN_APART:
        return True
    if node.op.name != "scan" or not mentions(node.attrs["body"], symbol):
        return False
    length = node.attrs["length"]
    return isinstance(length, int) and length <= UNROLLED


def _written_out(node: Node, builder: Builder, operands: list[Expr]) -> list[Expr]:
    """The turns of a loop one behind the other."""
    n, m = node.attrs["carries"], node.attrs["carries"] + node.attrs["slices"]
    length: int = node.attrs["length"]
    carries, sliced, constants = operands[:n], operands[n:m], operands[m:]
    made: list[list[Expr]] = [[] for _ in node.outputs[n:]]
    turns = range(length - 1, -1, -1) if node.attrs["reverse"] else range(length)
    for t in turns:
        rows = []
        for x in sliced:
            rest = x.shape[1:]
            row = lookup("slice")(
                x, start=(t, *(0 for _ in rest)), stop=(t + 1, *rest), step=(1,) * x.ndim
            )
            rows.append(lookup("reshape")(row, shape=rest))
        results = builder.inline(node.attrs["body"], [*carries, *rows, *constants])
        carries = results[:n]
        for kept, y in zip(made, results[n:], strict=True):
            kept.append(lookup("reshape")(y, shape=(1, *y.shape)))
    stacked = []
    for v, kept in zip(node.outputs[n:], made, strict=True):
        kept = kept[::-1] if node.attrs["reverse"] else kept
        if not kept:
            zero = builder.constant(0.0 if v.dtype.is_float else 0, v.dtype)
            stacked.append(lookup("broadcast_to")(zero, shape=v.shape))
        else:
            stacked.append(kept[0] if len(kept) == 1 else lookup("concatenate")(*kept, axis=0))
    return [*carries, *stacked]


# --- axes


class TimeAxes:
    """The time axes of all values of a flattened graph."""

    def __init__(self, graph: Graph, symbol: Symbol) -> None:
        self.graph = graph
        self.symbol = symbol
        self.name = symbol.name
        self.of: dict[Value, dict[int, TimeAxis]] = {}
        self.strange: dict[Value, Node | None] = {}
        for v in graph.inputs:
            self._find(v, None, [])
        for node in graph.nodes:
            labels = self.labels(node)
            for v in node.outputs:
                self._find(v, node, labels)

    def _find(self, v: Value, node: Node | None, labels: list[Labels | None]) -> None:
        found: dict[int, TimeAxis] = {}
        for axis, d in enumerate(v.shape):
            if not holds(d, self.name):
                continue
            known = self._inherited(node, labels, axis, d)
            if known is None and (node is None or node.op.name != "reshape"):
                time = dims.dim(self.name, self.symbol.min, self.symbol.max)
                extra = d - time
                known = TimeAxis(extra) if isinstance(extra, int) else None
                if known is None and node is not None and node.op.name in _NEW_AXES:
                    times = dims.divide_exact(d, time)
                    known = TimeAxis(inner=times) if isinstance(times, int) else None
            if known is None:
                self.strange.setdefault(v, node)
            else:
                found[axis] = known
        self.of[v] = found

    def _inherited(
        self, node: Node | None, labels: list[Labels | None], axis: int, d: Dim
    ) -> TimeAxis | None:
        """What an operand says of the axis."""
        if node is None:
            return None
        for x, own in zip(node.inputs, labels, strict=False):
            for a, label in (own or {}).items():
                known = self.of[x].get(a)
                if label != axis or known is None:
                    continue
                if node.op.name == "reshape":
                    return self._reshaped(node, a)[1]
                if dims.same(x.shape[a], d):
                    return known
        return None

    def labels(self, node: Node) -> list[Labels | None]:
        """For each operand: where its axes lie in the result; numbers behind the axes of the result
        for those that are summed, searched or compared, one number for axes that run together.
        None for an operand of which nothing is known."""
        found = list(self._labels(node))
        return found if found else [None] * len(node.inputs)

    def _labels(self, node: Node) -> Iterator[Labels | None]:
        name, attrs, inputs = node.op.name, node.attrs, node.inputs
        if not node.outputs:
            return
        out = node.outputs[0]
        rank = out.type.ndim
        if node.op.kind is Kind.ELEMENTWISE or name in ("gelu", "silu", "broadcast_to"):
            for x in inputs:
                yield aligned(x, out)
        elif name == "transpose":
            yield {a: i for i, a in enumerate(attrs["perm"])}
        elif name == "reshape":
            x = inputs[0]
            yield {a: k for a in self.of[x] if (k := self._reshaped(node, a)[0]) is not None}
        elif name in _IN_PLACE or name in RUNNING:
            for x in inputs:
                yield {a: a for a in range(x.type.ndim)}
        elif name == "dot_general":
            yield from _dot_labels(node)
        elif name == "attention":
            yield from _attention_labels(node)
        elif name == "flash_attention":
            yield from _flash_labels(node)
        elif name == "gather":
            axes, k = attrs["axes"], inputs[1].type.ndim
            left = [a for a in range(inputs[0].type.ndim) if a not in axes]
            table = {a: k + i for i, a in enumerate(left)}
            yield table | {a: rank + i for i, a in enumerate(axes)}
            for x in inputs[1:]:
                yield {a: a for a in range(x.type.ndim)}
        elif name in _LAST_AXIS or name in _ONE_AXIS or "axes" in attrs or name == "row_dot":
            yield from _reduced_labels(node)

    def along(self, node: Node, axis: int) -> int | None:
        """Where a reshape leaves a time axis of its operand, perhaps among other factors."""
        return self._reshaped(node, axis)[0]

    def _reshaped(self, node: Node, axis: int) -> tuple[int | None, TimeAxis | None]:
        """Where a reshape leaves a time axis of its operand."""
        x, shape = node.inputs[0], node.output.shape
        time = self.of[x].get(axis)
        if time is None:
            return None, None
        outer = dims.product(x.shape[:axis]) * time.outer
        inner = dims.product(x.shape[axis + 1 :]) * time.inner
        steps = dims.dim(self.name, self.symbol.min, self.symbol.max) + time.extra
        for k, d in enumerate(shape):
            if not holds(d, self.name):
                continue
            before = dims.divide_exact(outer, dims.product(shape[:k]))
            behind = dims.divide_exact(inner, dims.product(shape[k + 1 :]))
            if before is None or behind is None or not dims.same(d, before * steps * behind):
                continue
            return k, TimeAxis(time.extra, before, behind)
        return None, None


def aligned(x: Value, out: Value) -> Labels:
    """The axes of an operand that broadcasts to a result."""
    ahead = out.type.ndim - x.type.ndim
    return {
        a: a + ahead
        for a, d in enumerate(x.shape)
        if dims.same(d, out.shape[a + ahead])
    }


def _dot_labels(node: Node) -> Iterator[Labels]:
    (left, right), (left_batch, right_batch) = node.attrs["contract"], node.attrs["batch"]
    lhs, rhs = node.inputs
    rank, lead = node.output.type.ndim, len(left_batch)
    free = [a for a in range(lhs.type.ndim) if a not in left and a not in left_batch]
    other = [a for a in range(rhs.type.ndim) if a not in right and a not in right_batch]
    first = {a: i for i, a in enumerate(left_batch)} | {a: lead + i for i, a in enumerate(free)}
    middle = lead + len(free)
    second = {a: i for i, a in enumerate(right_batch)}
    second |= {a: middle + i for i, a in enumerate(other)}
    yield first | {a: rank + i for i, a in enumerate(left)}
    yield second | {a: rank + i for i, a in enumerate(right)}


def _attention_labels(node: Node) -> Iterator[Labels]:
    q, k, _, *masks = node.inputs
    rank = q.type.ndim
    lead = {a: a for a in range(rank - 2)}
    keys = rank
    yield lead | {rank - 2: rank - 2, rank - 1: rank + 1}
    yield lead | {rank - 2: keys, rank - 1: rank + 1}
    yield lead | {rank - 2: keys, rank - 1: rank - 1}
    scores = (*q.shape[:-1], k.shape[-2])
    for mask in masks:
        ahead = rank - mask.type.ndim
        yield {
            a: keys if a + ahead == rank - 1 else a + ahead
            for a, d in enumerate(mask.shape)
            if dims.same(d, scores[a + ahead])
        }


# The axes of what may come after q, k, v (see `ops.flash`), as axes of the scores.
_FLASH: dict[str, Labels] = {
    "lengths": {0: 0}, "query_segments": {0: 0, 1: 2}, "key_segments": {0: 0, 1: KEYS},
    "drop_key": {}, "drop_row": {},
}  # fmt: skip


def _flash_labels(node: Node) -> Iterator[Labels]:
    q, k, *_ = node.inputs
    heads = {1: 1} if dims.same(q.shape[1], k.shape[1]) else {}
    yield {0: 0, 1: 1, 2: 2, 3: KEYS + 1}
    yield {0: 0, **heads, 2: KEYS, 3: KEYS + 1}
    yield {0: 0, **heads, 2: KEYS, 3: 3}
    for x, name in zip(node.inputs[3:], node.attrs["extras"], strict=True):
        stretched = {
            a: KEYS if a == 3 else a for a, d in enumerate(x.shape) if not dims.same(d, 1)
        }
        yield _FLASH.get(name, stretched)


def _reduced_labels(node: Node) -> Iterator[Labels]:
    attrs, rank = node.attrs, node.outputs[0].type.ndim
    x = node.inputs[0]
    if node.op.name in _LAST_AXIS:
        axes: tuple[int, ...] = (x.type.ndim - 1,)
    else:
        axes = tuple(attrs["axes"]) if "axes" in attrs else (attrs["axis"],)
    stays = rank == x.type.ndim
    left = [a for a in range(x.type.ndim) if a not in axes]
    place = {a: a for a in left} if stays else {a: i for i, a in enumerate(left)}
    own = place | {a: rank + i for i, a in enumerate(axes)}
    for other in node.inputs:
        if other.type.ndim == x.type.ndim:
            yield own
        else:  # gains, biases, targets
            yield {a: a for a in range(other.type.ndim)} if node.op.name == "token_nll" else {}
