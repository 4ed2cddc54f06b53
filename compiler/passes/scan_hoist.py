"""Hoisting: what a loop's body computes from its slices and constants alone leaves the loop.

Graph -> Graph.  The per-step op becomes one op over all steps: an input projection is then one
matrix product over T*B rows, gathers and embeddings are batched.  It knows no cell: whatever has a
batching rule and does not depend on a carry goes; a carry that never changes is a constant, and a
slice that a step returns is where it was.  Invariant: same values; cheap arithmetic on slices stays
inside, where it costs no memory, unless it is needed outside anyway.  On constants alone it leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from retrograde.compiler.ir.builder import Builder
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.graph import Graph, Node, Value
from retrograde.compiler.ir.registry import Kind
from retrograde.compiler.ops.region import nested
from retrograde.compiler.ops.scan import ARITHMETIC
from retrograde.compiler.passes.dce import has_effect
from retrograde.compiler.passes.ragged import Filled
from retrograde.compiler.passes.regions import rewrite_scans
from retrograde.compiler.passes.scan_carries import frozen
from retrograde.compiler.passes.vectorize import can_vectorize, vectorize


def is_costly(node: Node) -> bool:
    """Whether an op is worth moving for its own sake."""
    if node.op.kind in (Kind.MOVE, Kind.CREATE):
        return False
    return node.op.kind is not Kind.ELEMENTWISE or node.op.name not in ARITHMETIC


def is_work(node: Node) -> bool:
    """Whether an op that is the same in every step does anything but show its operand anew."""
    views = ("reshape", "transpose", "broadcast_to", "slice", "flip")
    return node.op.kind is not Kind.CREATE and node.op.name not in views


@dataclass(frozen=True)
class HoistScan:
    """Moves what needs no carry out of loops, as ops over all steps.

    `merges` as for `vectorize`."""

    merges: bool = True

    def __call__(self, graph: Graph) -> Graph:
        def emit(node: Node, builder: Builder, renamed: dict[Value, Value]) -> None:
            builder.append(_hoist(frozen(node, renamed), builder, renamed, self.merges))

        return rewrite_scans(graph, emit)


@dataclass
class _Plan:
    """What leaves one body."""

    stacked: dict[Value, None] = field(default_factory=dict)  # values over the steps
    shared: dict[Value, None] = field(default_factory=dict)  # the same at every step
    worth: set[Value] = field(default_factory=set)  # of those, what took more than cheap ops
    nodes: list[Node] = field(default_factory=list)

    def has(self, v: Value) -> bool:
        return v in self.stacked or v in self.shared


def _plan(node: Node) -> _Plan:
    body: Graph = node.attrs["body"]
    n, m = node.attrs["carries"], node.attrs["carries"] + node.attrs["slices"]
    plan = _Plan(dict.fromkeys(body.inputs[n:m]), dict.fromkeys(body.inputs[m:]))
    filled = Filled(node)
    for inner in body.nodes:
        if has_effect(inner) or not all(map(plan.has, inner.inputs)):
            continue
        flags = [v in plan.stacked for v in inner.inputs]
        if not can_vectorize(inner, flags):
            continue
        if not any(flags) and any(_may_not_return(part) for part in nested(inner)):
            continue  # with no step to run there would be nothing to check, or to wait for
        if filled.keeps_inside(inner):
            continue
        plan.nodes.append(inner)
        (plan.stacked if any(flags) else plan.shared).update(dict.fromkeys(inner.outputs))
        costly = is_costly(inner) if any(flags) else is_work(inner)
        if costly or any(v in plan.worth for v in inner.inputs):
            plan.worth.update(inner.outputs)
    return plan


def _may_not_return(node: Node) -> bool:
    return node.op.checks_data or node.op.name == "while"


def _hoist(node: Node, builder: Builder, renamed: dict[Value, Value], merges: bool) -> Node:
    """The scan without what can leave it; the hoisted nodes are emitted before it."""
    body: Graph = node.attrs["body"]
    n, m = node.attrs["carries"], node.attrs["carries"] + node.attrs["slices"]
    plan = _plan(node)
    leaving = {inner for inner in plan.nodes if any(v in plan.worth for v in inner.outputs)}
    slices = set(body.inputs[n:m])
    if not leaving and slices.isdisjoint(body.outputs[n:]):
        return node
    staying = [inner for inner in body.nodes if inner not in leaving]
    read = {v for inner in staying for v in inner.inputs} | set(body.outputs[:n])
    new_slices = [v for v in plan.stacked if v in plan.worth and v in read]
    new_constants = [v for v in plan.shared if v in plan.worth and v in read]
    wanted = {*new_slices, *new_constants, *(v for v in body.outputs[n:] if v in plan.worth)}
    outside = {v for made in needed_for(plan.nodes, wanted) for v in made.outputs} | slices
    replaced = [j for j, v in enumerate(body.outputs) if j >= n and v in outside]
    operands = dict(zip(body.inputs, (Expr(v, builder) for v in node.inputs), strict=True))
    found = vectorize(
        needed_for(plan.nodes, wanted),
        {v: operands[v] for v in body.inputs[n:m]},
        {v: operands[v] for v in body.inputs[m:]},
        node.attrs["length"],
        made_by="hoist",
        merges=merges,
    )
    for j in replaced:
        v = body.outputs[j]
        renamed[node.outputs[j]] = found.over_steps(v).value
    kept = [j for j in range(len(body.outputs)) if j not in replaced]
    names = body.input_names or ("",) * len(body.inputs)
    inner_body = body.replace(
        inputs=(*body.inputs[:m], *new_slices, *body.inputs[m:], *new_constants),
        nodes=tuple(staying),
        outputs=tuple(body.outputs[j] for j in kept),
        input_names=(
            *names[:m], *("hoisted",) * len(new_slices),
            *names[m:], *("hoisted",) * len(new_constants),
        ),
        output_names=(),
    )  # fmt: skip
    return replace(
        node,
        inputs=(
            *node.inputs[:m],
            *(found.stacked[v].value for v in new_slices),
            *node.inputs[m:],
            *(found.shared[v].value for v in new_constants),
        ),
        outputs=tuple(node.outputs[j] for j in kept),
        attrs={
            **node.attrs,
            "body": inner_body,
            "slices": node.attrs["slices"] + len(new_slices),
        },
    )


def needed_for(nodes: Sequence[Node], wanted: set[Value]) -> list[Node]:
    """Those of `nodes` that `wanted` values need, in order."""
    live = set(wanted)
    found: list[Node] = []
    for node in reversed(nodes):
        if any(v in live for v in node.outputs):
            found.append(node)
            live.update(node.inputs)
    return found[::-1]

