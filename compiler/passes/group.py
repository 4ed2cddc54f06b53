"""Groups elementwise chains and row reductions into `fused` regions: Graph -> Graph.

Members of a group share one iteration space: a full shape S, or its rows S[:-1] + (1,), so that
a device can run the whole group tile by tile while the tile is in cache.  On the native device sums
over all rows (gradients of biases and gains) are members too, which no other member may read, and
so are gathers, which read what is complete before the group.
Invariant: the groups contracted, the graph stays acyclic (no path leaves a group and comes back),
and members are of one phase: forward, backward or update, but where a kernel goes both ways.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from retrograde.compiler.ir.builder import next_id
from retrograde.compiler.ir.graph import Graph, Node, Value
from retrograde.compiler.ir.registry import lookup
from retrograde.compiler.ops.region import effects_of
from retrograde.compiler.passes.clustering import Cluster, Clustering
from retrograde.compiler.passes.refusals import Grouped, refusals
from retrograde.compiler.passes.siblings import Siblings
from retrograde.compiler.passes.spaces import sums_rows


@dataclass(frozen=True)
class Group:
    """Groups elementwise chains and row reductions into steps.

    `window`: how many clusters back a group may still grow; `largest`: its most members;
    `native`: for kernels that add up and gather rows as well."""

    window: int = 48
    largest: int = 40
    native: bool = False

    def __call__(self, graph: Graph) -> Graph:
        clustering = Clustering(self.window, self.largest, self.native)
        clustering.run(graph)
        siblings = Siblings(graph, clustering)
        if self.native:
            siblings.run()
        clusters = list(clustering.clusters)
        kept = tuple(refusals(graph, clustering, siblings.apart))
        nodes = graph.nodes
        if any(map(self._one_step, clusters)):
            nodes = tuple(self._contract(graph, clusters))
        return Grouped(
            graph.name, graph.inputs, nodes, graph.outputs, graph.input_names, graph.output_names,
            graph.aliases, refusals=kept,
        )  # fmt: skip

    def _one_step(self, c: Cluster) -> bool:
        """Whether the members become a `fused` node: those of two or more, and a lone sum over rows
        of a kernel, so that it adds in the same order whether others are with it or not."""
        return len(c.members) > 1 or (self.native and sums_rows(c.members[0]))

    def _contract(self, graph: Graph, clusters: list[Cluster]) -> list[Node]:
        """The graph's nodes with the groups as `fused` nodes, in order."""
        users = graph.users()
        returned = set(graph.outputs)
        steps: list[Node] = []
        priority: list[int] = []
        for c in clusters:
            steps.append(_fused(c, users, returned) if self._one_step(c) else c.members[0])
            priority.append(c.first)
        return _sorted(steps, priority)


def _fused(c: Cluster, users: dict[Value, list[Node]], returned: set[Value]) -> Node:
    members = _ordered(c.members)
    inside = set(members)
    made = {v for n in members for v in n.outputs}
    inputs = tuple(dict.fromkeys(v for n in members for v in n.inputs if v not in made))
    outputs = tuple(
        v for n in members for v in n.outputs
        if v in returned or any(u not in inside for u in users.get(v, ()))
    )  # fmt: skip
    last = members[-1]
    body = Graph("fused", inputs, tuple(members), outputs)
    attrs = {"body": body, "shape": c.shape}
    return Node(
        next_id(), lookup("fused"), inputs, attrs, outputs, last.loc, last.scope, last.origin
    )


def _ordered(members: list[Node]) -> list[Node]:
    """The members in an order that defines before it uses."""
    return _sorted(members, list(range(len(members))))


def _sorted(nodes: list[Node], priority: list[int]) -> list[Node]:
    """A topological order that prefers low priority numbers; effects keep their order."""
    producer = {v: i for i, n in enumerate(nodes) for v in n.outputs}
    waiting = [0] * len(nodes)
    readers: list[list[int]] = [[] for _ in nodes]
    last: dict[str, int] = {}  # by effect channel
    for i, n in enumerate(nodes):
        sources = {producer[v] for v in n.inputs if v in producer}
        for channel in effects_of(n):
            if channel in last:
                sources.add(last[channel])
            last[channel] = i
        waiting[i] = len(sources)
        for s in sources:
            readers[s].append(i)
    ready = [(priority[i], i) for i, n in enumerate(waiting) if n == 0]
    heapq.heapify(ready)
    out: list[Node] = []
    while ready:
        _, i = heapq.heappop(ready)
        out.append(nodes[i])
        for r in readers[i]:
            waiting[r] -= 1
            if waiting[r] == 0:
                heapq.heappush(ready, (priority[r], r))
    if len(out) != len(nodes):
        raise AssertionError("a group is part of a cycle")
    return out
