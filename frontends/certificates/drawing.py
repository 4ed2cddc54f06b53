"""Numbers for a graph's inputs: types and how they are used -> random arrays that it accepts.

Integers are drawn within the tables that they index; what is compared with places along an axis is
a length, 1 to the length of that axis.  Invariant: the same graph, sizes and round give the same
numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde.compiler.ir import dims
from retrograde.compiler.ir.dims import Dim, Symbol
from retrograde.compiler.ir.graph import Graph, Node, Value
from retrograde.compiler.ir.registry import Kind
from retrograde.compiler.ops.cross_entropy import sizes_of
from retrograde.compiler.ops.flash import named
from retrograde.compiler.ops.scan import parts
from retrograde.compiler.passes.expand import Expand
from retrograde.compiler.passes.regions import everywhere

Array = npt.NDArray[Any]

_SMALL = (3, 5, 7, 11, 13, 17)  # sizes that no two symbols share
_LONG = 67  # beyond two tiles of 32
_CARRIED = frozenset({"select", "maximum", "minimum", "concatenate", "mod", "abs"})
_COMPARED = frozenset({"less", "less_equal", "greater", "greater_equal"})


def rounds(symbols: Mapping[str, Symbol]) -> list[dict[str, int]]:
    """Sizes to certify at: small ones, all unequal; the smallest there are; and one axis long."""
    if not symbols:
        return [{}]
    names = sorted(symbols)
    found = [
        {n: _within(symbols[n], _SMALL[i % len(_SMALL)]) for i, n in enumerate(names)},
        {n: symbols[n].min for n in names},
        {n: _within(symbols[n], _LONG if n == names[-1] else 2) for n in names},
    ]
    return [sizes for i, sizes in enumerate(found) if sizes not in found[:i]]


def _within(symbol: Symbol, n: int) -> int:
    n = max(symbol.min, n)
    return n if symbol.max is None else min(symbol.max, n)


@dataclass(frozen=True)
class Range:
    """Integers from `low` to `high`, both included."""

    low: int
    high: Dim


@dataclass
class Ranges:
    """What is known of the integer inputs of a graph."""

    least: dict[int, list[Range]]

    def at(self, i: int, sizes: Mapping[str, int]) -> tuple[int, int] | None:
        """The bounds of input `i`, None where nothing tells."""
        found = self.least.get(i)
        if not found:
            return None
        high = min(dims.evaluate(r.high, sizes) for r in found)
        return min(max(r.low for r in found), high), high


def integer_ranges(graph: Graph) -> Ranges:
    """How the integers among the inputs of `graph` are used, sub-graphs included."""
    graph = everywhere(Expand(), graph)
    ranges = Ranges({})
    origins = {v: frozenset({i}) for i, v in enumerate(graph.inputs) if v.dtype.is_integer}
    _follow(graph, origins, {}, ranges)
    return ranges


def _follow(
    graph: Graph, origins: dict[Value, frozenset[int]], along: dict[Value, Dim], ranges: Ranges
) -> None:
    """`origins`: the inputs that a value's integers come from; `along`: of places on an axis, the
    length of the axis."""
    nothing: frozenset[int] = frozenset()

    def note(v: Value, low: int, high: Dim) -> None:
        for i in origins.get(v, nothing):
            ranges.least.setdefault(i, []).append(Range(low, high))

    for node in graph.nodes:
        name, attrs = node.op.name, node.attrs
        if name in ("gather", "scatter_add", "scatter_set"):
            axes = attrs["axes"]
            for v, axis in zip(node.inputs[-len(axes) :], axes, strict=True):
                note(v, 0, node.inputs[0].shape[axis] - 1)
        elif name.startswith("linear_cross_entropy"):
            note(node.inputs[2], 0, sizes_of(attrs, node.inputs[1].type)[1] - 1)
        elif name.startswith("flash_attention"):
            given = named(attrs, node.inputs[3 : 3 + len(attrs["extras"])])
            if "lengths" in given:
                note(given["lengths"], 1, node.inputs[1].shape[2])
        elif name in _COMPARED:
            a, b = node.inputs
            for one, other in ((a, b), (b, a)):
                if other in along:
                    note(one, 1, along[other])
        elif name == "iota":
            along[node.output] = attrs["size"]
        bodies = dict(node.subgraphs())
        if bodies:
            _into(node, bodies, origins, along, ranges)
            continue
        if len(node.outputs) != 1:
            continue
        keeps = node.op.kind is Kind.MOVE or name in _CARRIED or name == "cast"
        if keeps or name in ("add", "sub"):
            found = [along[v] for v in node.inputs if v in along]
            if found:
                along[node.output] = found[0]
        if keeps and node.output.dtype.is_integer:
            from_all = (origins.get(v, nothing) for v in node.inputs)
            origins[node.output] = nothing.union(*from_all)


def _into(
    node: Node,
    bodies: Mapping[str, Graph],
    origins: dict[Value, frozenset[int]],
    along: dict[Value, Dim],
    ranges: Ranges,
) -> None:
    """What a sub-graph does with the operands."""
    operands: Sequence[Value] = node.inputs
    if node.op.name == "cond":
        operands = node.inputs[1:]
    elif node.op.name == "scan":
        operands = [v for part in parts(node.inputs, node.attrs) for v in part]
    elif node.op.name not in ("call", "remat_call", "custom_call", "fused", "while"):
        return
    for body in bodies.values():
        pairs = list(zip(body.inputs, operands, strict=False))
        _follow(
            body,
            {inner: origins[v] for inner, v in pairs if v in origins},
            {inner: along[v] for inner, v in pairs if v in along},
            ranges,
        )


def draw(
    graph: Graph, i: int, sizes: Mapping[str, int], ranges: Ranges, rng: Any, positive: bool = False
) -> Array:
    """An array for input `i`: normal floats (with `positive` from 0.5 to 1.5), integers within
    their range."""
    t = graph.inputs[i].type
    shape = tuple(dims.evaluate(d, sizes) for d in t.shape)
    dtype = t.dtype.numpy
    if t.dtype.is_float:
        x = rng.uniform(0.5, 1.5, shape) if positive else rng.standard_normal(shape)
        return np.asarray(x).astype(dtype)
    if t.dtype.kind == "bool":
        return np.asarray(rng.random(shape) < 0.7)
    if t.dtype.name == "u32":  # a key
        return np.asarray(rng.integers(0, 2**32, shape, dtype=np.uint32))
    low, high = ranges.at(i, sizes) or (0, 1)
    return np.asarray(rng.integers(low, max(low, high) + 1, shape)).astype(dtype)
