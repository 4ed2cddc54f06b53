"""Common subexpression elimination: Graph -> Graph.

Invariant: of two nodes with the same op, operands and attributes one remains, unless they belong
to different recomputation groups: merging those would keep the value that was to be recomputed.
Effects and regions are never merged.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from retrograde.compiler.ir.graph import Graph, Node, Value

# Not maximum and minimum: of 0.0 and -0.0 they may take whichever comes first.
COMMUTATIVE = frozenset({"add", "mul", "equal", "not_equal"})


@dataclass(frozen=True)
class CSE:
    """Merges equal nodes."""

    def __call__(self, graph: Graph) -> Graph:
        seen: dict[Hashable, Node] = {}
        renamed: dict[Value, Value] = {}
        kept: list[Node] = []
        for node in graph.nodes:
            if renamed and any(v in renamed for v in node.inputs):
                node = node.with_inputs(renamed.get(v, v) for v in node.inputs)
            if node.op.effect is not None or node.op.has_regions:
                kept.append(node)
                continue
            first = seen.setdefault(_key(node), node)
            if first is node:
                kept.append(node)
            else:
                renamed.update(zip(node.outputs, first.outputs, strict=True))
        if not renamed:
            return graph
        return graph.replace(
            nodes=tuple(kept), outputs=tuple(renamed.get(v, v) for v in graph.outputs)
        )


def _key(node: Node) -> Hashable:
    inputs = [v.id for v in node.inputs]
    if node.op.name in COMMUTATIVE:
        inputs.sort()
    attrs = tuple((k, _exact(v)) for k, v in sorted(node.attrs.items()))
    return node.op.name, tuple(inputs), attrs, node.origin.group


def _exact(attr: Any) -> Hashable:
    """Tells 0.0 from -0.0, 1 from True, and lets NaN equal itself."""
    if isinstance(attr, (float, bool)):
        return type(attr), repr(attr)
    if isinstance(attr, tuple):
        return tuple(map(_exact, attr))
    found: Hashable = attr
    return found
