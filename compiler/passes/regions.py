"""Applying a pass inside the bodies of region ops.

Input: a pass; output: the same pass over a graph and, bodies first, over every sub-graph.
Invariant: a body keeps the types of its inputs and outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from operator import itemgetter

from retrograde.compiler.ir.builder import Builder
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.graph import Graph, Node, Value

Pass = Callable[[Graph], Graph]


Emit = Callable[[Node, Builder, dict[Value, Value]], None]


def rewrite_scans(graph: Graph, emit: Emit) -> Graph:
    """The graph with each scan emitted anew: `emit(scan, builder, renamed)` appends what takes its
    place and notes in `renamed` the results that are other values now."""
    if not any(node.op.name == "scan" for node in graph.nodes):
        return graph
    builder = Builder(graph.name, Expr)
    builder.inputs.extend(graph.inputs)
    builder.input_names.extend(graph.input_names)
    renamed: dict[Value, Value] = {}
    with builder:
        for node in graph.nodes:
            if any(v in renamed for v in node.inputs):
                node = node.with_inputs(renamed.get(v, v) for v in node.inputs)
            if node.op.name == "scan":
                emit(node, builder, renamed)
            else:
                builder.append(node)
    outputs = [renamed.get(v, v) for v in graph.outputs]
    return builder.finish(outputs, graph.output_names, graph.aliases)


def everywhere(transform: Pass, graph: Graph, but: str = "") -> Graph:
    """`transform` of the graph after `transform` of all of its sub-graphs, those of the op `but`
    left out."""
    if any(node.op.has_regions for node in graph.nodes):
        nodes = []
        for node in graph.nodes:
            parts = node.subgraphs() if node.op.name != but else ()
            regions = sorted(parts, key=itemgetter(0))  # as a graph's text has them
            bodies = {key: everywhere(transform, body, but) for key, body in regions}
            nodes.append(replace(node, attrs={**node.attrs, **bodies}) if bodies else node)
        graph = graph.replace(nodes=tuple(nodes))
    return transform(graph)
