"""What joining asks of a graph: where values have the steps of a loop, and what depends on what.

Graph -> Facts.  Invariant: an effect depends on the one before it on its channel.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from retrograde.compiler.ir.graph import Graph, Node, Value
from retrograde.compiler.ops.region import effects_of
from retrograde.compiler.passes.cuts import Cut, over_all
from retrograde.compiler.passes.devectorize import pushed
from retrograde.compiler.passes.devectorize_sums import SUMS
from retrograde.compiler.passes.regions import is_apart


class Facts:
    """A graph, and where the results of its loops lead to, step by step."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.makers = graph.producers()
        self.by_id = {node.id: node for node in graph.nodes}
        self.place = {node: i for i, node in enumerate(graph.nodes)}
        self.cuts: dict[Value, Cut] = {}
        self.sums: list[Node] = []  # nodes that add up over the steps
        for node in graph.nodes:
            self._follow(node)

    def _follow(self, node: Node) -> None:
        if node.op.name == "scan" and not is_apart(node):
            for v in node.outputs[node.attrs["carries"] :]:
                self.cuts[v] = over_all(node.attrs["length"])
            return
        if not any(v in self.cuts for v in node.inputs):
            return
        cut = pushed(node, self.cuts, self.makers)
        if cut is not None:
            self.cuts.update(dict.fromkeys(node.outputs, cut))
            return
        rule = SUMS.get(node.op.name)
        if rule is not None and rule.pull(node, self.cuts, self.makers) is not None:
            self.sums.append(node)

    def reached(self, values: Iterable[Value]) -> set[Value]:
        """What depends on `values`, themselves included."""
        found = set(values)
        acted: set[str] = set()  # channels on which something that depends on them has acted
        for node in self.graph.nodes:
            channels = effects_of(node)
            if channels & acted or any(v in found for v in node.inputs):
                found.update(node.outputs)
                acted |= channels
        return found


def in_order(graph: Graph, nodes: Sequence[Node]) -> Graph:
    """`graph` with `nodes`, put in an order that defines before it uses and keeps effects in the
    order in which `nodes` has them."""
    makers = {v: node for node in nodes for v in node.outputs}
    before: dict[Node, list[Node]] = {}
    last: dict[str, Node] = {}
    for node in nodes:
        earlier = [makers[v] for v in node.inputs if v in makers]
        for channel in sorted(effects_of(node)):
            if channel in last:
                earlier.append(last[channel])
            last[channel] = node
        before[node] = earlier
    done: dict[Node, None] = {}
    for node in nodes:
        work = [node]
        while work:
            top = work[-1]
            missing = [] if top in done else [x for x in before[top] if x not in done]
            if missing:
                work.extend(reversed(missing))
            else:
                done[work.pop()] = None
    return graph.replace(nodes=tuple(done))
