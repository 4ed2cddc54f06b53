"""Steps that differ in nothing but where they lie: a step -> a key, and the storages that it names.

Steps with one key have the same launches, up to their storages, which stand in the same order.  So
what is printed for one layer need not be printed again for the next.  Invariant: a key holds all
that a launch is made from but storages and the lines of the model.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from retrograde.compiler.ir.graph import Graph, Node, Value
from retrograde.compiler.plan.steps import CopyStep, FusedStep, MatmulStep, OpStep, PackStep, Step
from retrograde.compiler.plan.views import Literal, Operand, Storage, Turn, View


def alike(step: Step) -> tuple[Hashable, list[Storage]] | None:
    """The key of a step that holds no others, with its storages; None where it moves with a loop
    or is no single launch."""
    storages: dict[Storage, int] = {}
    views: tuple[Operand | None, ...]
    if isinstance(step, OpStep):
        views = (*step.operands, None, *step.results, None, *step.scratch)
        more: Hashable = _of_node(step.node)
    elif isinstance(step, FusedStep):
        views = (*step.operands, None, *step.results, None, *step.scratch)
        more = (step.shape, step.rows, step.whole_rows, _of_body(step.node.attrs["body"]))
    elif isinstance(step, MatmulStep):
        views = (*step.operands, *step.results, step.panels)
        more = (_of_node(step.node), step.blas)
    elif isinstance(step, (PackStep, CopyStep)):
        views, more = (step.operand, step.result), None
    else:
        return None
    if any(isinstance(x, Turn) for x in views):
        return None
    where = tuple(_of_operand(x, storages) for x in views)
    return (type(step), where, more), list(storages)


def _of_operand(x: Operand | None, storages: dict[Storage, int]) -> Hashable:
    if x is None:
        return None
    if isinstance(x, Literal):
        return _exact(x.value), x.dtype.name, x.shape
    assert isinstance(x, View)
    s = x.storage
    number = storages.setdefault(s, len(storages))
    return number, s.kind, s.bytes, x.dtype.name, x.shape, x.strides, x.offset


def _of_node(node: Node) -> Hashable:
    return (
        node.op.name, _attrs(node), _types(node.inputs), _repeated(node.inputs),
        _types(node.outputs),
    )  # fmt: skip


def _types(values: Sequence[Value]) -> Hashable:
    return tuple([(v.dtype.name, v.shape) for v in values])


def _repeated(values: Sequence[Value]) -> Hashable:
    """Which operands are one value."""
    first: dict[Value, int] = {}
    return tuple(first.setdefault(v, len(first)) for v in values)


def _of_body(body: Graph) -> Hashable:
    numbers: dict[Value, int] = {}
    for v in body.inputs:
        numbers[v] = len(numbers)
    nodes = []
    for node in body.nodes:
        inputs = tuple(numbers[v] for v in node.inputs)
        for v in node.outputs:
            numbers[v] = len(numbers)
        nodes.append((node.op.name, inputs, _attrs(node), _types(node.outputs)))
    return _types(body.inputs), tuple(nodes), tuple(numbers[v] for v in body.outputs)


def _attrs(node: Node) -> Hashable:
    return tuple((name, _exact(x)) for name, x in node.attrs.items())


def _exact(x: Any) -> Hashable:
    """Tells 0.0 from -0.0 and 1 from True."""
    if isinstance(x, (float, bool)):
        return type(x), repr(x)
    if isinstance(x, tuple):
        return tuple(map(_exact, x))
    if isinstance(x, Graph):
        return _of_body(x)
    found: Hashable = x
    return found
