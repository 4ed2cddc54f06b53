"""Applying a pass inside the bodies of region ops.

Input: a pass; output: the same pass over a graph and, bodies first, over every sub-graph.
Invariant: a body keeps the types of its inputs and outputs.

A scan with the attribute `apart` works on the parts of something too large to be worked on whole,
one after the other: nothing goes over its border, and what passes do about the outermost loops of a
program they do about those in its body.  Its carries are added to where they lie: the body has
them as aliases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from operator import itemgetter

from retrograde.compiler.ir.builder import Builder
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.graph import Graph, Node, Value

Pass = Callable[[Graph], Graph]


Emit = Callable[[Node, Builder, dict[Value, Value]], None]


def rewrite_scans(graph: Graph, emit: Emit) -> Graph:
    """The graph with each scan that is not over parts emitted anew: `emit(scan, builder, renamed)`
    appends what takes its place and notes in `renamed` the results that are other values now."""
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
            if node.op.name == "scan" and not is_apart(node):
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


def is_apart(node: Node) -> bool:
    """Whether nothing may leave or enter the body of the node, a scan over parts."""
    return node.op.name == "scan" and bool(node.attrs.get("apart"))


def outermost(transform: Pass, graph: Graph, but: str = "") -> Graph:
    """`transform` of the graph after that of the bodies of its scans over parts, and of no other
    sub-graph; `AtWork` finds its body by itself."""
    if not isinstance(transform, AtWork) and any(map(is_apart, graph.nodes)):
        nodes = []
        for node in graph.nodes:
            if is_apart(node):
                body = outermost(transform, node.attrs["body"])
                node = replace(node, attrs={**node.attrs, "body": body})
            nodes.append(node)
        graph = graph.replace(nodes=tuple(nodes))
    return transform(graph)


def outermost_nodes(graph: Graph) -> Iterator[Node]:
    """The nodes of the graph and of the bodies of its scans over parts."""
    for node in graph.nodes:
        yield node
        if is_apart(node):
            yield from outermost_nodes(node.attrs["body"])


def part_at_work(graph: Graph) -> Graph:
    """What runs forward and back: the body of a scan over parts that does, else the graph."""
    for node in graph.nodes:
        if is_apart(node) and runs_back(node.attrs["body"]):
            body: Graph = node.attrs["body"]
            return body
    return graph


def runs_back(graph: Graph) -> bool:
    """Whether there is anything in the graph beside what the user wrote: derivatives, updates."""
    return any(node.origin.role != "primal" for node in graph.nodes)


@dataclass(frozen=True)
class AtWork:
    """A pass on `part_at_work`."""

    transform: Pass

    def __call__(self, graph: Graph) -> Graph:
        nodes = list(graph.nodes)
        for i, node in enumerate(nodes):
            if is_apart(node) and runs_back(node.attrs["body"]):
                body = self.transform(node.attrs["body"])
                nodes[i] = replace(node, attrs={**node.attrs, "body": body})
                return graph.replace(nodes=tuple(nodes))
        return self.transform(graph)
