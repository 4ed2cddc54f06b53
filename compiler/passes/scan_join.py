"""Joining: what is done around a loop for each of its steps is done in its body.

Graph -> Graph.  The inverse of hoisting and sinking, for when memory is short: the values over all
steps are then never there at once.  What a loop reads is made in its body from what has to be there
anyway; what is summed over the steps of its results becomes a carry that adds up; a loop that reads
the results of another, step by step, becomes one with it.  Where two loops need the same, the later
one computes it again, and so does not keep it.  It knows no model: whatever has a rule in
`devectorize` and keeps the steps apart joins.
Invariant: same values up to the order of summation over time; what is random or has an effect stays
where it is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from retrograde.compiler.ir.builder import next_id
from retrograde.compiler.ir.graph import Graph, Node, Origin, Value
from retrograde.compiler.passes.dce import DCE
from retrograde.compiler.passes.join_emit import joined
from retrograde.compiler.passes.join_facts import Facts
from retrograde.compiler.passes.join_plan import plan_for
from retrograde.compiler.passes.regions import is_apart
from retrograde.compiler.passes.scan_hoist import is_costly

ROUNDS = 4  # how often what turned out to stay outside is taken into account


@dataclass(frozen=True)
class JoinScan:
    """Moves per-step work on stacked values into loops.

    With `merge`, loops over the same steps of which one reads the other's results become one."""

    merge: bool = True

    def __call__(self, graph: Graph) -> Graph:
        if not any(node.op.name == "scan" for node in graph.nodes):
            return graph
        graph = _on_all_rows(graph)
        staying = {
            v for node in graph.nodes for v in node.outputs
            if v in graph.outputs and is_costly(node)
        }  # fmt: skip
        for _ in range(ROUNDS):
            copies: dict[int, Node] = {}
            found = self._joined(graph, staying, copies)
            if found is graph:
                return graph
            outside = {node.id for node in found.nodes}
            twice = {
                v for node in copies.values() for v in node.outputs
                if node.id in outside and is_costly(node)
            }  # fmt: skip
            if twice <= staying:
                break
            staying |= twice
        return _told_apart(found, copies)

    def _joined(self, graph: Graph, staying: set[Value], copies: dict[int, Node]) -> Graph:
        """Loop by loop, the last first: `staying` values are there anyway; notes in `copies` which
        node each joined one, by its id, computes."""
        start = DCE()(graph)
        found = start
        for loop in reversed([node.id for node in graph.nodes if _joins(node)]):
            facts = Facts(found)
            node = facts.by_id.get(loop)
            if node is None or not _has_steps(node):
                continue
            plan = plan_for(facts, node, staying, self.merge)
            if plan.changes:
                found = DCE()(joined(plan, copies))
        return graph if found is start else found


def _on_all_rows(graph: Graph) -> Graph:
    """The graph with no ragged loop: all that joins a loop runs on the rows that the others run on,
    so each runs on all of them, of which the masks in the bodies know."""
    if not any("live" in node.attrs for node in graph.nodes):
        return graph
    return graph.replace(
        nodes=tuple(
            replace(node, attrs={k: x for k, x in node.attrs.items() if k != "live"})
            if node.op.name == "scan" and "live" in node.attrs
            else node
            for node in graph.nodes
        )
    )


def _joins(node: Node) -> bool:
    return node.op.name == "scan" and not is_apart(node)


def _has_steps(node: Node) -> bool:
    length = node.attrs["length"]
    return not isinstance(length, int) or length > 1


def _told_apart(graph: Graph, copies: dict[int, Node]) -> Graph:
    """Of what several places compute, the first is the original and the others recompute it: merged
    again, it would have to be kept in between."""
    seen: set[int] = set()
    nodes = []
    for node in graph.nodes:
        seen.add(node.id)
        if node.op.name == "scan":
            body: Graph = node.attrs["body"]
            groups: dict[int, int] = {}
            inner = []
            here: set[int] = set()
            for step in body.nodes:
                original = copies.get(step.id)
                if original is not None:
                    here.add(original.id)
                    if original.id in seen:
                        group = groups.setdefault(step.origin.group, next_id())
                        origin = Origin("recompute", "join", step.origin.ancestors, group)
                        step = replace(step, origin=origin)
                inner.append(step)
            seen |= here
            if groups:
                node = replace(node, attrs={**node.attrs, "body": body.replace(nodes=tuple(inner))})
        nodes.append(node)
    return graph.replace(nodes=tuple(nodes))
