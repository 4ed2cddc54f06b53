"""Applying a pass inside the bodies of region ops.

Input: a pass; output: the same pass over a graph and, bodies first, over every sub-graph.
Invariant: a body keeps the types of its inputs and outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from retrograde.compiler.ir.graph import Graph

Pass = Callable[[Graph], Graph]


def everywhere(transform: Pass, graph: Graph) -> Graph:
    """`transform` of the graph after `transform` of all of its sub-graphs."""
    if any(node.op.has_regions for node in graph.nodes):
        nodes = []
        for node in graph.nodes:
            bodies = {key: everywhere(transform, body) for key, body in node.subgraphs()}
            nodes.append(replace(node, attrs={**node.attrs, **bodies}) if bodies else node)
        graph = graph.replace(nodes=tuple(nodes))
    return transform(graph)
