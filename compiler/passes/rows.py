"""Row products by name: Graph -> Graph, after differentiation.

A contraction of the last axes with all others as batch (or with a vector), kept as a column,
becomes `row_dot`, which groups with the elementwise ops around it.  Invariant: same values.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from retrograde.compiler.ir.graph import Graph, Node, Value, same_shape
from retrograde.compiler.ir.registry import lookup


@dataclass(frozen=True)
class RowProducts:
    """Rewrites reshape(dot_general) to row_dot where that is what it computes."""

    def __call__(self, graph: Graph) -> Graph:
        producers = graph.producers()
        changed = False
        nodes: list[Node] = []
        for node in graph.nodes:
            operands = _row_product(node, producers)
            if operands is not None:
                node = replace(node, op=lookup("row_dot"), inputs=operands, attrs={})
                changed = True
            nodes.append(node)
        return graph.replace(nodes=tuple(nodes)) if changed else graph


def _row_product(node: Node, producers: dict[Value, Node]) -> tuple[Value, Value] | None:
    """The operands of the row_dot that `node`, a reshape, amounts to."""
    if node.op.name != "reshape":
        return None
    dot = producers.get(node.inputs[0])
    if dot is None or dot.op.name != "dot_general" or not dot.output.dtype.is_float:
        return None
    a, b = dot.inputs
    rank = a.type.ndim
    if rank == 0 or not same_shape(node.output.shape, (*a.shape[:-1], 1)):
        return None
    lead = tuple(range(rank - 1))
    if dot.attrs["contract"] == ((rank - 1,), (b.type.ndim - 1,)):
        if dot.attrs["batch"] == (lead, lead) and b.type.ndim == rank:
            return a, b
        if b.type.ndim == 1 and dot.attrs["batch"] == ((), ()):
            return a, b
    return None

