"""Where results are wanted: graph -> for some values, the view they should be written to.

The operands of a concatenation want to lie in its result; a value that is transposed and then
reshaped wants to lie in the transposed order.  Invariant: a target is given only to a value with a
single use, so writing there is all that its reader needs; readers that take strides do not count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.graph import Graph, Node, Value
from retrograde.compiler.plan.views import View, new_view

# Read their operands wherever these lie, as long as the last axis has a unit stride.
STRIDED = frozenset({"flash_attention", "flash_attention_grad"})


def find_targets(graph: Graph, wanted: Mapping[Value, View] | None = None) -> dict[Value, View]:
    """The targets of all values that have one; `wanted` are settled beforehand."""
    uses: dict[Value, int] = {}
    for node in graph.nodes:
        if node.op.name in STRIDED:
            continue
        for v in node.inputs:
            uses[v] = uses.get(v, 0) + 1
    for v in graph.outputs:
        uses[v] = uses.get(v, 0) + 1
    producers = graph.producers()
    targets: dict[Value, View] = dict(wanted or {})

    def only_use(v: Value) -> bool:
        return uses.get(v, 0) == 1 and v in producers

    for node in reversed(graph.nodes):
        if node.op.name == "concatenate":
            _spread(node, targets, only_use)
        elif node.op.name == "transpose" and node.output in targets and only_use(node.inputs[0]):
            targets[node.inputs[0]] = targets[node.output].transposed(_inverse(node.attrs["perm"]))
        elif node.op.name == "reshape" and only_use(node.inputs[0]):
            _through_reshape(node, producers, targets)
    return targets


def _spread(node: Node, targets: dict[Value, View], only_use: Callable[[Value], bool]) -> None:
    """Gives each operand of a concatenation its part of the result."""
    whole = targets.get(node.output)
    if whole is None:
        whole = targets[node.output] = _own(node)
    axis = node.attrs["axis"]
    start: Dim = 0
    for v in node.inputs:
        if only_use(v):
            starts = tuple(start if i == axis else 0 for i in range(v.type.ndim))
            targets[v] = whole.sliced(starts, (1,) * v.type.ndim, v.shape)
        start = start + v.shape[axis]


def _through_reshape(node: Node, producers: dict[Value, Node], targets: dict[Value, View]) -> None:
    source = node.inputs[0]
    target = targets.get(node.output)
    if target is None:
        if producers[source].op.name != "transpose":
            return
        target = targets[node.output] = _own(node)
    shaped = target.reshaped(source.shape)
    if shaped is not None:
        targets[source] = shaped


def _own(node: Node) -> View:
    return new_view(node.output.type, "value", node.op.name, node.place)


def _inverse(perm: tuple[int, ...]) -> tuple[int, ...]:
    out = [0] * len(perm)
    for i, p in enumerate(perm):
        out[p] = i
    return tuple(out)
