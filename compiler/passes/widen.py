"""The same graph in float64: Graph -> Graph, and which value stands for which.

Every float becomes an f64, inside of sub-graphs too.  Casts between floats change nothing then:
what they round is an error of the narrow type, and the widened graph is the number that all of them
are compared with.  Integers, booleans and random bits stay what they are, so that a dropout mask is
the same mask; and so do single numbers that are computed from constants alone: some pass may fold
them, in the precision that they have.  Invariant: same nodes in the same order, but for the casts
behind such numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from retrograde.compiler.ir import dtypes
from retrograde.compiler.ir.builder import next_id
from retrograde.compiler.ir.dtypes import DType
from retrograde.compiler.ir.graph import Graph, Node, TensorType, Value
from retrograde.compiler.ir.registry import lookup


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
    written: dict[Value, Value] = {}  # single numbers made of constants, as they are
    nodes: list[Node] = []
    for node in graph.nodes:
        if _is_written(node, written):
            own = tuple(Value(next_id(), v.type) for v in node.outputs)
            operands = tuple(written[v] for v in node.inputs)
            nodes.append(replace(node, inputs=operands, outputs=own))
            written.update(zip(node.outputs, own, strict=True))
            if node.op.name != "constant":
                for v, made in zip(node.outputs, own, strict=True):
                    values[v] = made
                    if v.dtype.is_float and v.dtype is not dtypes.f64:
                        nodes.append(_cast(node, made, new(v)))
                continue
        operands = tuple(values[v] for v in node.inputs)
        outputs = tuple(map(new, node.outputs))
        nodes.append(replace(node, inputs=operands, outputs=outputs, attrs=_attrs(node)))
    wide = graph.replace(
        inputs=inputs,
        nodes=tuple(nodes),
        outputs=tuple(values[v] for v in graph.outputs),
        derivatives=(),
    )
    return Widened(wide, values)


def _is_written(node: Node, written: dict[Value, Value]) -> bool:
    """Whether the node makes single numbers of constants."""
    if node.op.has_regions or any(v.shape for v in node.outputs):
        return False
    if node.op.name == "constant":
        return True
    return bool(node.inputs) and all(v in written for v in node.inputs)


def _cast(node: Node, x: Value, to: Value) -> Node:
    return Node(
        next_id(), lookup("cast"), (x,), {"dtype": dtypes.f64}, (to,), node.loc, node.scope,
        node.origin,
    )  # fmt: skip


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
