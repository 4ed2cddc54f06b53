"""Elementwise ops of which parts alone are wanted, on the parts: Graph -> Graph.

    slice(x @ u + h @ w + b)   ->   slice(x @ u) + slice(h @ w) + slice(b)

The gates of a recurrent cell are split from one sum; computed by gate, the sum is a part of the
kernel of the cell and no array.  Done where elementwise ops alone read the parts, and no element
would be computed twice.  Invariant: same values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from retrograde.compiler.ir import dims
from retrograde.compiler.ir.builder import Builder
from retrograde.compiler.ir.dims import Dim, same
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.graph import Graph, Node, Value
from retrograde.compiler.ir.registry import Kind, lookup


@dataclass(frozen=True)
class SliceFirst:
    """Moves slices before the elementwise ops that they are taken of."""

    def __call__(self, graph: Graph) -> Graph:
        while any(node.op.name == "slice" for node in graph.nodes):
            found = _cut(graph)
            if not found:
                break
            graph = _rebuilt(graph, found)
        return graph


def _cut(graph: Graph) -> dict[Value, Node]:
    """The elementwise ops to be done on parts, by what they make; none makes what another reads."""
    users, returned = graph.users(), set(graph.outputs)
    found: dict[Value, Node] = {}
    for node in graph.nodes:
        if node.op.kind is not Kind.ELEMENTWISE or node.output in returned:
            continue
        parts = users.get(node.output, [])
        if not parts or any(part.op.name != "slice" for part in parts):
            continue
        readers = [reader for part in parts for reader in users.get(part.output, [])]
        wanted = [part for part in parts if part.output not in returned]
        if len(wanted) < len(parts) or any(r.op.kind is not Kind.ELEMENTWISE for r in readers):
            continue
        if readers and _apart(node.output, parts) is not None:
            found[node.output] = node
    return found


def _apart(whole: Value, parts: Sequence[Node]) -> int | None:
    """The one axis along which the parts are cut, one beside the other; None if there is none."""
    axes = {a for part in parts for a in range(whole.type.ndim) if not _full(whole, part, a)}
    if len(axes) != 1 or any(step != 1 for part in parts for step in part.attrs["step"]):
        return None
    (axis,) = axes
    windows = [(part.attrs["start"][axis], part.attrs["stop"][axis]) for part in parts]
    if not all(isinstance(d, int) for window in windows for d in window):
        return None
    ordered = pairwise(sorted(windows))
    return axis if all(dims.decide_le(a[1], b[0]) is True for a, b in ordered) else None


def _full(whole: Value, part: Node, axis: int) -> bool:
    start, stop = part.attrs["start"][axis], part.attrs["stop"][axis]
    return same(start, 0) and same(stop, whole.shape[axis])


def _rebuilt(graph: Graph, found: Mapping[Value, Node]) -> Graph:
    builder = Builder(graph.name, Expr)
    builder.inputs.extend(graph.inputs)
    builder.input_names.extend(graph.input_names)
    renamed: dict[Value, Value] = {}
    with builder:
        for node in graph.nodes:
            if any(v in found for v in node.outputs):
                continue
            whole = found.get(node.inputs[0]) if node.op.name == "slice" else None
            if whole is None:
                builder.append(node.with_inputs(renamed.get(v, v) for v in node.inputs))
                continue
            operands = [Expr(renamed.get(v, v), builder) for v in whole.inputs]
            with builder.located(whole.loc, whole.scope, whole.origin):
                parts = [_part(x, node) for x in operands]
                out: Expr = lookup(whole.op.name)(*parts, **whole.attrs)
            renamed[node.output] = out.value
    outputs = [renamed.get(v, v) for v in graph.outputs]
    return builder.finish(outputs, graph.output_names, graph.aliases)


def _part(x: Expr, part: Node) -> Expr:
    """What the slice `part` of a result takes of an operand, which may be stretched to it."""
    whole, extra = part.inputs[0].shape, part.inputs[0].type.ndim - x.ndim
    start: list[Dim] = []
    stop: list[Dim] = []
    for axis, size in enumerate(x.shape):
        stretched = not same(size, whole[extra + axis])
        start.append(0 if stretched else part.attrs["start"][extra + axis])
        stop.append(size if stretched else part.attrs["stop"][extra + axis])
    if all(map(same, start, (0,) * x.ndim)) and all(map(same, stop, x.shape)):
        return x
    out: Expr = lookup("slice")(x, start=tuple(start), stop=tuple(stop), step=(1,) * x.ndim)
    return out
