"""Constant folding: Graph -> Graph.

Invariant: an op whose operands are all 0-d constants, and whose result is 0-d, is a constant, with
the value that its reference gives in the op's dtype.  Larger constants stay expressions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from retrograde.compiler.ir.graph import Graph, Node, Value
from retrograde.compiler.ir.registry import Kind, lookup

_FOLDED = (Kind.ELEMENTWISE, Kind.MOVE, Kind.REDUCE)


@dataclass(frozen=True)
class Fold:
    """Evaluates scalar constants at compile time."""

    def __call__(self, graph: Graph) -> Graph:
        known: dict[Value, Any] = {}
        nodes: list[Node] = []
        changed = False
        for node in graph.nodes:
            if node.op.name == "constant":
                known[node.output] = np.asarray(node.attrs["value"], node.output.dtype.numpy)
            elif self._foldable(node, known):
                with np.errstate(all="ignore"):
                    result = node.op.evaluate(node.attrs, *(known[v] for v in node.inputs))
                value = np.asarray(result, node.output.dtype.numpy)
                node = _constant(node, value)
                known[node.output] = value
                changed = True
            nodes.append(node)
        return graph.replace(nodes=tuple(nodes)) if changed else graph

    def _foldable(self, node: Node, known: dict[Value, Any]) -> bool:
        return (
            node.op.kind in _FOLDED
            and bool(node.inputs)
            and len(node.outputs) == 1
            and node.output.shape == ()
            and all(v in known for v in node.inputs)
        )


def _constant(node: Node, value: Any) -> Node:
    dtype = node.output.dtype
    attrs = {"value": value.item() if dtype.name != "bf16" else float(value), "dtype": dtype}
    op = lookup("constant")
    return Node(node.id, op, (), attrs, node.outputs, node.loc, node.scope, node.origin)
