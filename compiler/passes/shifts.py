"""Softmax spelled out: what is subtracted for safety needs no gradient: Graph -> Graph.

    e = exp(x - max(x)); e / sum(e)   ->   e = exp(x - stop_gradient(max(x))); e / sum(e)

The quotient is the same whatever is subtracted from a whole row, so its derivative by that is
zero, at ties of the maximum too; only rounding came of it, by way of masks of the places that are
equal to the maximum.  Invariant: no value changes, NaN of an empty row included.  Where `e` or its
sum is read by anything else, the derivative is not zero and stays.
"""

from __future__ import annotations

from collections.abc import Iterator

from retrograde.compiler.ir.builder import Builder
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.graph import Graph, Node, Value, same_shape
from retrograde.compiler.ir.registry import lookup


def without_shift_gradients(graph: Graph) -> Graph:
    """The graph to be differentiated; itself where there is no such spelling."""
    if not any(node.op.name == "div" for node in graph.nodes):
        return graph
    cut = set(_shifted(graph))
    if not cut:
        return graph
    builder = Builder(graph.name, Expr)
    builder.inputs.extend(graph.inputs)
    builder.input_names.extend(graph.input_names)
    with builder:
        for node in graph.nodes:
            if node in cut:
                x, shift = node.inputs
                with builder.located(node.loc, node.scope, node.origin):
                    held: Expr = lookup("stop_gradient")(Expr(shift, builder))
                node = node.with_inputs((x, held.value))
            builder.append(node)
    return builder.finish(graph.outputs, graph.output_names, graph.aliases)


def _shifted(graph: Graph) -> Iterator[Node]:
    """The subtractions whose second operand leaves a quotient as it is."""
    makers, users = graph.producers(), graph.users()
    returned = set(graph.outputs)

    def made(v: Value, name: str) -> Node | None:
        maker = makers.get(v)
        return maker if maker is not None and maker.op.name == name else None

    def along(v: Value, name: str) -> tuple[Node, list[Value]] | None:
        """The reduction of one axis, which stays with size 1, that `v` is spread from; with the
        values on the way."""
        way = [v]
        while (maker := made(v, "broadcast_to")) is not None:
            (v,) = maker.inputs
            way.append(v)
        spread = v.shape
        while (maker := made(v, "reshape")) is not None:
            (v,) = maker.inputs
            way.append(v)
        found = made(v, name)
        if found is None or len(found.attrs["axes"]) != 1:
            return None
        (axis,) = found.attrs["axes"]
        kept = tuple(1 if a == axis else d for a, d in enumerate(found.inputs[0].shape))
        return (found, way) if same_shape(spread, kept) else None

    for node in graph.nodes:
        if node.op.name != "div":
            continue
        e, total = node.inputs
        exp, found = made(e, "exp"), along(total, "sum")
        shift = made(exp.inputs[0], "sub") if exp is not None else None
        if shift is None or found is None or found[0].inputs[0] is not e:
            continue
        top = along(shift.inputs[1], "max")
        if top is None or top[0].inputs[0] is not shift.inputs[0]:
            continue
        if top[0].attrs["axes"] != found[0].attrs["axes"]:
            continue
        inner = [e, shift.output, *found[1]]
        alone = all(v not in returned for v in inner)
        alone = alone and all(len(users[v]) == 1 for v in inner[1:])
        if alone and set(users[e]) == {node, found[0]}:
            yield shift
