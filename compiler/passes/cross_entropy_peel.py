"""Takes the product that a recomputed call ends with out of it: Graph -> Graph.

Where a body returns x @ w (+ bias) of an x of its own and matrices it was given, the call returns x
and the product stands behind it.  Invariant: same values; what is before the product is recomputed
as before.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from retrograde.compiler.ir import dims
from retrograde.compiler.ir.builder import new_value, next_id
from retrograde.compiler.ir.graph import Graph, Node
from retrograde.compiler.passes.cross_entropy_match import is_product, right_matrix
from retrograde.compiler.passes.dce import DCE


@dataclass(frozen=True)
class _Tail:
    """The nodes from the product to a result, in order, and what they read of the body."""

    product: Node
    nodes: tuple[Node, ...]


def peeled(graph: Graph, chosen: Collection[Node] | None = None) -> tuple[Graph, dict[Node, Node]]:
    """The graph with recomputed calls (those `chosen`, or all) opened so, and for each product that
    came out the call that it was in."""
    nodes: list[Node] = []
    calls: dict[Node, Node] = {}
    for node in graph.nodes:
        opened = None
        if node.op.name == "remat_call" and (chosen is None or node in chosen):
            opened = _opened(node)
        if opened is None:
            nodes.append(node)
            continue
        nodes += opened
        calls.update((n, node) for n in opened if is_product(n))
    return (graph.replace(nodes=tuple(nodes)) if calls else graph), calls


def _opened(call: Node) -> list[Node] | None:
    body: Graph = call.attrs["body"]
    if len(body.outputs) != 1:
        return None
    tail = _tail(body)
    if tail is None:
        return None
    made = dict(zip(body.inputs, call.inputs, strict=True))
    x = tail.product.inputs[0]
    nodes: list[Node] = []
    if x not in made:
        short = DCE()(body.replace(outputs=(x,), output_names=()))
        made[x] = new_value(x.type)
        nodes.append(replace(call, attrs={**call.attrs, "body": short}, outputs=(made[x],)))
    for node in tail.nodes:
        ends = node.output is body.outputs[0]
        made[node.output] = call.output if ends else new_value(node.output.type)
        inputs = tuple(made[v] for v in node.inputs)
        nodes.append(replace(node, id=next_id(), inputs=inputs, outputs=(made[node.output],)))
    return nodes


def _tail(body: Graph) -> _Tail | None:
    """The product that makes the result, with what comes after it and what moves its matrix."""
    makers, users = body.producers(), body.users()
    given = set(body.inputs)
    v, nodes = body.outputs[0], []
    while (node := makers.get(v)) is not None:
        if node is not makers.get(body.outputs[0]) and len(users.get(v, ())) != 1:
            return None
        nodes.append(node)
        if is_product(node):
            matrix, _ = right_matrix(node.inputs[1], 0, makers)
            if matrix not in given:
                return None
            w = node.inputs[1]
            while w not in given:
                nodes.append(makers[w])
                w = makers[w].inputs[0]
            return _Tail(node, tuple(reversed(nodes)))
        if node.op.name == "add":
            a, b = node.inputs
            if b not in given and a not in given:
                return None
            v = a if b in given else b
        elif node.op.name == "reshape" and dims.same(
            node.output.shape[-1] if node.output.shape else 1, node.inputs[0].shape[-1]
        ):
            v = node.inputs[0]
        else:
            return None
    return None
