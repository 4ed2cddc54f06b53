"""Where results are wanted: graph -> for some values, the view they should be written to.

The operands of a concatenation want to lie in its result; a value that is transposed and then
reshaped wants to lie in the transposed order.  Invariant: a target is given only to a value with a
single use, so writing there is all that its reader needs; readers that take strides do not count,
and the same move of the same value counts once, as where what reads it is computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping

from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.graph import Graph, Node, Value
from retrograde.compiler.plan.views import View, new_view

# Read their operands wherever these lie, as long as the last axis has a unit stride.
STRIDED = frozenset({"flash_attention", "flash_attention_grad"})


def find_targets(graph: Graph, wanted: Mapping[Value, View] | None = None) -> dict[Value, View]:
    """The targets of all values that have one; `wanted` are settled beforehand."""
    uses: dict[Value, int] = {}
    repeated = _repeated_moves(graph, wanted or {})
    for node in graph.nodes:
        if node.op.name in STRIDED or any(v in repeated for v in node.outputs):
            continue
        for v in node.inputs:
            v = repeated.get(v, v)
            uses[v] = uses.get(v, 0) + 1
    for v in graph.outputs:
        v = repeated.get(v, v)
        uses[v] = uses.get(v, 0) + 1
    producers = graph.producers()
    targets: dict[Value, View] = dict(wanted or {})

    def only_use(v: Value) -> bool:
        return uses.get(v, 0) == 1 and v in producers

    for node in reversed(graph.nodes):
        if node.outputs and node.outputs[0] in repeated:
            continue
        if node.op.name == "concatenate":
            _spread(node, targets, only_use)
        elif node.op.name == "transpose" and node.output in targets and only_use(node.inputs[0]):
            targets[node.inputs[0]] = targets[node.output].transposed(_inverse(node.attrs["perm"]))
        elif node.op.name == "reshape" and only_use(node.inputs[0]):
            _through_reshape(node, producers, targets)
    targets.update((v, targets[first]) for v, first in repeated.items() if first in targets)
    return targets


def _repeated_moves(graph: Graph, wanted: Mapping[Value, View]) -> dict[Value, Value]:
    """What is the same transpose or reshape of the same value as one before it: that one."""
    seen: dict[Hashable, Value] = {}
    repeated: dict[Value, Value] = {}
    for node in graph.nodes:
        if node.op.name in ("transpose", "reshape") and node.output not in wanted:
            source = repeated.get(node.inputs[0], node.inputs[0])
            how = node.attrs["perm" if node.op.name == "transpose" else "shape"]
            first = seen.setdefault((node.op.name, source, how), node.output)
            if first is not node.output:
                repeated[node.output] = first
    return repeated


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
