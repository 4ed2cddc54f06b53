"""The same graph in float64: Graph -> Graph, and which value stands for which.

Every float becomes an f64, constants and what is computed inside of sub-graphs too.  Casts between
floats change nothing then: what they round is an error of the narrow type, and the widened graph is
the number that all of them are compared with.  Integers, booleans and random bits stay what they
are, so that a dropout mask is the same mask.  Invariant: same nodes in the same order.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from retrograde.compiler.ir import dtypes
from retrograde.compiler.ir.builder import next_id
from retrograde.compiler.ir.dtypes import DType
from retrograde.compiler.ir.graph import Graph, Node, TensorType, Value


@dataclass(frozen=True)
class Widened:
    """A graph in float64, and the value in it of each value of the original."""

    graph: Graph
    values: dict[Value, Value]

    def __getitem__(self, v: Value) -> Value:
        return self.values[v]

    def all(self, values: Iterable[Value]) -> tuple[Value, ...]:
        """Those of several values."""
        return tuple(self.values[v] for v in values)


def widened(graph: Graph) -> Widened:
    """`graph` with f64 for every float."""
    values: dict[Value, Value] = {}

    def new(v: Value) -> Value:
        made = values[v] = Value(next_id(), _type(v.type))
        return made

    inputs = tuple(map(new, graph.inputs))
    nodes = []
    for node in graph.nodes:
        operands = tuple(values[v] for v in node.inputs)
        outputs = tuple(map(new, node.outputs))
        nodes.append(replace(node, inputs=operands, outputs=outputs, attrs=_attrs(node)))
    made = graph.replace(
        inputs=inputs,
        nodes=tuple(nodes),
        outputs=tuple(values[v] for v in graph.outputs),
        derivatives=(),
    )
    return Widened(made, values)


def _type(t: TensorType) -> TensorType:
    return TensorType(_wide(t.dtype), t.shape)


def _wide(dtype: DType) -> DType:
    return dtypes.f64 if dtype.is_float else dtype


def _attrs(node: Node) -> dict[str, Any]:
    return {key: _attr(x) for key, x in node.attrs.items()}


def _attr(x: Any) -> Any:
    if isinstance(x, DType):
        return _wide(x)
    if isinstance(x, Graph):
        return widened(x).graph
    if isinstance(x, tuple):
        return tuple(map(_attr, x))
    return x
