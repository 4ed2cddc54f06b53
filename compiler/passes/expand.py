"""Expands composites and calls into what they are made of: Graph -> Graph.

Invariant: values outside the expanded nodes are untouched; the new nodes carry the location and
scope of the node they replace.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from retrograde.compiler.ir.builder import Builder
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.graph import Graph, Node, Origin, Value
from retrograde.compiler.ir.registry import Kind


@dataclass(frozen=True)
class Expand:
    """Inlines the decompositions of composite ops and plain calls.

    With `differentiable` only those that have no gradient rule of their own are expanded, which
    is what differentiation needs; otherwise all of them, which is what devices need.
    """

    differentiable: bool = False

    def __call__(self, graph: Graph) -> Graph:
        if not any(map(self._applies, graph.nodes)):
            return graph
        builder = Builder(graph.name, Expr)
        builder.inputs.extend(graph.inputs)
        builder.input_names.extend(graph.input_names)
        renamed: dict[Value, Value] = {}
        with builder:
            self._emit(builder, graph.nodes, renamed)
        outputs = [renamed.get(v, v) for v in graph.outputs]
        return builder.finish(outputs, graph.output_names, graph.aliases)

    def _applies(self, node: Node) -> bool:
        if node.op.decompose is None:
            return False
        if self.differentiable:
            return node.op.vjp is None
        return node.op.kind in (Kind.COMPOSITE, Kind.REGION)

    def _emit(
        self, builder: Builder, nodes: Sequence[Node], renamed: dict[Value, Value]
    ) -> None:
        """Emits `nodes`, expanding again what an expansion made."""
        for node in nodes:
            if any(v in renamed for v in node.inputs):
                node = node.with_inputs(renamed.get(v, v) for v in node.inputs)
            if not self._applies(node):
                builder.append(node)
                continue
            assert node.op.decompose is not None
            first = len(builder.nodes)
            old = node.origin
            origin = Origin(old.role, "expand", (node.id, *old.ancestors[:3]), old.group)
            with builder.located(node.loc, node.scope, origin):
                results = node.op.decompose(node.attrs, *(Expr(v, builder) for v in node.inputs))
            if isinstance(results, Expr):
                results = (results,)
            made = builder.nodes[first:]
            if any(map(self._applies, made)):
                del builder.nodes[first:]
                self._emit(builder, made, renamed)
            for v, e in zip(node.outputs, results, strict=True):
                renamed[v] = renamed.get(e.value, e.value)

