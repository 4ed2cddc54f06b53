"""Loops over time in words: the scheduled graph and its plan -> what each loop does at every step.

Invariant: what left a loop is told by the nodes that are there, which say what pass made them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from retrograde.compiler.ir import dims
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.graph import Graph, Node
from retrograde.compiler.ops.region import graph_cost, nested
from retrograde.compiler.ops.segments import segment_count
from retrograde.compiler.program import MemoryPlan

_MOVED = {"hoist": "hoisted out of loops", "sink": "sunk behind loops"}
_PLACED = frozenset({"reshape", "transpose", "broadcast_to", "constant"})  # lead to the others

_INSIDE = {
    ("scan_sweep", "advance"): ", in the sweep",
    ("scan_sweep", "ahead"): ", in the sweep's last segment",
    ("scan_replay", "again"): ", again with residuals",
    ("scan_replay", "advance"): ", between kept states",
    ("scan_replay", "retreat"): ", on the way back",
}


def loop_lines(graph: Graph, plan: MemoryPlan | None) -> list[str]:
    """A section for the report; empty where there is no loop."""
    loops = list(_loops(graph))
    if not loops:
        return []
    lines = ["", f"loops over time: {len(loops)}"]
    for node, where in loops:
        lines.append(_line(node, where, plan))
    for made_by, words in _MOVED.items():
        names = Counter(
            n.op.name for n in _every(graph)
            if n.origin.made_by == made_by and n.op.name not in _PLACED
        )  # fmt: skip
        listed = ", ".join(f"{count} {name}" for name, count in names.most_common())
        lines.append(f"  {words}: {listed or 'nothing'}")
    return [*lines, *_segment_lines(graph, plan)]


def product_cost(graph: Graph) -> Dim:
    """The operations of the matrix products, those in loops at every step."""
    total: Dim = 0
    for node in graph.nodes:
        if node.op.name == "dot_general":
            types = [v.type for v in node.inputs], [v.type for v in node.outputs]
            total = total + node.op.cost(*types, node.attrs)
        elif node.op.name == "scan":
            total = total + product_cost(node.attrs["body"]) * node.attrs["length"]
        elif node.op.name in ("scan_sweep", "scan_replay"):
            body = node.attrs["advance" if node.op.name == "scan_sweep" else "retreat"]
            sizes = {node.attrs["symbol"]: node.attrs["length"]}
            total = total + dims.substitute(product_cost(body), sizes)
    return total


def _every(graph: Graph) -> Iterator[Node]:
    for node in graph.nodes:
        yield from nested(node)


def _loops(graph: Graph, where: str = "") -> Iterator[tuple[Node, str]]:
    """The scans of a graph and of what it holds, with the words for what holds them."""
    for node in graph.nodes:
        if node.op.name == "scan":
            yield node, where
        for key, body in node.subgraphs():
            if node.op.name != "fused":
                yield from _loops(body, _INSIDE.get((node.op.name, key), ", inside of another"))


def _line(node: Node, where: str, plan: MemoryPlan | None) -> str:
    body: Graph = node.attrs["body"]
    products = sum(n.op.name == "dot_general" for n in _every(body))
    way = "backward" if node.attrs["reverse"] else "forward"
    role = "" if node.origin.role == "primal" else f" ({node.origin.role})"
    work = _number(graph_cost(body), plan)
    matrix = f"{products} matrix product{'' if products == 1 else 's'}"
    return (
        f"  {node.place}{role}: {_number(node.attrs['length'], plan)} steps {way}{where}, "
        f"{matrix} and {work} operations a step"
    ).replace("  :", " loop:")


def _segment_lines(graph: Graph, plan: MemoryPlan | None) -> list[str]:
    replays = [node for node in graph.nodes if node.op.name == "scan_replay"]
    if not replays or plan is None:
        return []
    lines = []
    sizes = {**plan.sizes, **plan.plan_sizes}
    for node in replays:
        length = dims.evaluate(node.attrs["length"], sizes)
        segment = dims.evaluate(node.attrs["segment"], sizes)
        slots = dims.evaluate(node.attrs["slots"], sizes)
        count = segment_count(length, segment)
        lines.append(
            f"  {node.place}: in {count} segments of {segment} steps, {slots} of the states that "
            "enter them kept"
        )
    steps = plan.recomputed_steps
    return [*lines, f"  {steps} steps run forward again, the least for so many states"]


def _number(d: Dim, plan: MemoryPlan | None) -> str:
    sizes = {**plan.sizes, **plan.plan_sizes} if plan is not None else {}
    if all(s.name in sizes for s in dims.symbols(d)):
        return f"{dims.evaluate(d, sizes):,}"
    return str(d)
