"""Common subexpression elimination: Graph -> Graph.

Invariant: of two nodes with the same op, operands and attributes one remains, unless they belong
to different recomputation groups: merging those would keep the value that was to be recomputed.
Effects and regions are never merged; of a loop, operands that it gets twice are given to it once,
and what its steps return twice is stacked once.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
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
            if node.op.name == "scan":
                node = self._merge_scan(node, renamed)
            if node.op.effect is not None or node.op.has_regions:
                kept.append(node)
                continue
            first = seen.setdefault(_key(node), node)
            if first is node:
                kept.append(node)
            else:
                renamed.update(zip(node.outputs, first.outputs, strict=True))
        if len(kept) == len(graph.nodes) and all(map(_is, kept, graph.nodes)):
            return graph
        return graph.replace(
            nodes=tuple(kept), outputs=tuple(renamed.get(v, v) for v in graph.outputs)
        )

    def _merge_scan(self, node: Node, renamed: dict[Value, Value]) -> Node:
        """The scan without repeated slices, constants and step results."""
        body: Graph = node.attrs["body"]
        n, m = node.attrs["carries"], node.attrs["carries"] + node.attrs["slices"]
        first: dict[Hashable, Value] = {}
        inner: dict[Value, Value] = {}
        operands = list(zip(body.inputs, node.inputs, strict=True))
        for i, (v, given) in enumerate(operands[n:], n):
            found = first.setdefault((i < m, given), v)
            if found is not v:
                inner[v] = found
        if inner:
            entering = [i for i, v in enumerate(body.inputs) if v not in inner]
            names = body.input_names or ("",) * len(body.inputs)
            body = self(
                body.replace(
                    inputs=tuple(body.inputs[i] for i in entering),
                    nodes=tuple(
                        x.with_inputs(inner.get(v, v) for v in x.inputs) for x in body.nodes
                    ),
                    outputs=tuple(inner.get(v, v) for v in body.outputs),
                    input_names=tuple(names[i] for i in entering),
                )
            )
            node = replace(
                node,
                inputs=tuple(node.inputs[i] for i in entering),
                attrs={
                    **node.attrs, "body": body, "slices": sum(n <= i < m for i in entering),
                },
            )  # fmt: skip
        made: dict[Value, Value] = {}
        steps = zip(body.outputs[n:], node.outputs[n:], strict=True)
        twice = {out: made[v] for v, out in steps if made.setdefault(v, out) is not out}
        if not twice:
            return node
        renamed.update(twice)
        kept = [i for i, out in enumerate(node.outputs) if out not in twice]
        body = body.replace(outputs=tuple(body.outputs[i] for i in kept), output_names=())
        return replace(
            node,
            outputs=tuple(node.outputs[i] for i in kept),
            attrs={**node.attrs, "body": body},
        )


def _is(a: Node, b: Node) -> bool:
    return a is b


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
