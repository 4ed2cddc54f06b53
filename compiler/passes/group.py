"""Groups elementwise chains and row reductions into `fused` regions: Graph -> Graph.

Members of a group share one iteration space: a full shape S, or its rows S[:-1] + (1,), so that
a device can run the whole group tile by tile while the tile is in cache.  On the native device sums
over all rows (gradients of biases and gains) are members too, which no other member may read, and
so are gathers, which read what is complete before the group.
Invariant: the groups contracted, the graph stays acyclic (no path leaves a group and comes back),
and members are of one phase: forward, backward or update.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field

from retrograde.compiler.ir.builder import next_id
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.graph import Graph, Node, Value
from retrograde.compiler.ir.registry import Kind, lookup
from retrograde.compiler.ops.region import effects_of
from retrograde.compiler.passes.spaces import (
    NARROW,
    gathers,
    gathers_rows,
    iteration_shape,
    sums_rows,
    wider,
)

_PHASE = {"primal": 0, "cotangent": 1, "recompute": 1, "update": 2}


@dataclass(eq=False)
class _Cluster:
    """Nodes that will be one step.

    `bits` stands for it in bit sets, with one bit for each cluster that went into it; `above` is
    the set of all clusters that it depends on, directly (`direct`) or not; `users` read it."""

    index: int
    shape: tuple[Dim, ...] | None  # None: never joined
    phase: int
    members: list[Node]
    first: int
    bits: int
    above: int = 0
    direct: set[_Cluster] = field(default_factory=set)
    users: set[_Cluster] = field(default_factory=set)
    sums: set[Value] = field(default_factory=set)  # complete only when all rows are done

    def waits(self, node: Node) -> bool:
        """Whether `node` reads what is complete only at the end of this step, or from places in it
        that indices tell."""
        if gathers(node):
            return any(v in n.outputs for n in self.members for v in node.inputs)
        return not self.sums.isdisjoint(node.inputs)

    def by_rows(self) -> bool:
        """Whether its rows are told apart anyway."""
        return any(n.op.kind is Kind.REDUCE for n in self.members)

    def splits(self) -> bool:
        """Whether a member tells its rows apart that is not worth it where they are short."""
        return bool(self.sums) or any(map(gathers_rows, self.members))


@dataclass(frozen=True)
class Group:
    """Groups elementwise chains and row reductions into steps.

    `window`: how many clusters back a group may still grow; `largest`: its most members;
    `native`: for kernels that add up rows as well."""

    window: int = 48
    largest: int = 40
    native: bool = False

    def __call__(self, graph: Graph) -> Graph:
        clusters = _Clustering(self).run(graph)
        if all(len(c.members) == 1 for c in clusters):
            return graph
        return graph.replace(nodes=tuple(_contract(graph, clusters)))


class _Clustering:
    def __init__(self, options: Group) -> None:
        self.options = options
        self.window, self.largest = options.window, options.largest
        self.count = 0
        self.clusters: dict[_Cluster, None] = {}  # those not merged into another, in order
        self.home: dict[Value, _Cluster] = {}

    def run(self, graph: Graph) -> list[_Cluster]:
        for position, node in enumerate(graph.nodes):
            self._place(node, position)
        return list(self.clusters)

    def _place(self, node: Node, position: int) -> None:
        shape = iteration_shape(node, self.options.native)
        adds = self.options.native and sums_rows(node)
        phase = _PHASE[node.origin.role]
        reads = {c for v in node.inputs if (c := self.home.get(v)) is not None}
        target: _Cluster | None = None
        if shape is not None:
            for c in sorted(reads, key=lambda c: c.index, reverse=True):
                if not self._joins(c, shape, phase, reads) or c.waits(node):
                    continue
                assert c.shape is not None
                if (adds or c.splits()) and _short(shape) and not c.by_rows():
                    continue
                if target is None:
                    target = c
                elif not self._merge(target, c):
                    continue
                shape = wider(c.shape, shape)
                assert shape is not None
                target.shape = shape
        if target is None:
            target = _Cluster(self.count, shape, phase, [], position, 1 << self.count)
            self.clusters[target] = None
            self.count += 1
        target.members.append(node)
        if adds:
            target.sums.update(node.outputs)
        gained = 0
        for c in reads:
            if c is not target and c in self.clusters:
                target.direct.add(c)
                c.users.add(target)
                gained |= c.above | c.bits
        self._raise(target, gained)
        for v in node.outputs:
            self.home[v] = target

    def _joins(
        self, c: _Cluster, shape: tuple[Dim, ...], phase: int, reads: Iterable[_Cluster]
    ) -> bool:
        """Whether a node over `shape` that reads the clusters `reads` may enter `c`."""
        if c.shape is None or c.phase != phase or len(c.members) >= self.largest:
            return False
        if c.index < self.count - self.window or wider(c.shape, shape) is None:
            return False
        return not any(other is not c and other.above & c.bits for other in reads)

    def _merge(self, target: _Cluster, c: _Cluster) -> bool:
        """Moves the members of `c` to `target` unless a path between them leads outside, or
        there would be no room for the node that is to come."""
        if len(target.members) + len(c.members) >= self.largest:
            return False
        if _path_around(target, c) or _path_around(c, target):
            return False
        if any(map(target.waits, c.members)) or any(map(c.waits, target.members)):
            return False
        target.sums |= c.sums
        target.members.extend(c.members)
        target.members.sort(key=lambda n: n.id)
        target.first = min(target.first, c.first)
        for node in c.members:
            for v in node.outputs:
                self.home[v] = target
        del self.clusters[c]
        target.bits |= c.bits
        target.above = (target.above | c.above) & ~target.bits
        for other in c.direct:
            other.users.discard(c)
            if other is not target:
                other.users.add(target)
                target.direct.add(other)
        for other in c.users:
            other.direct.discard(c)
            if other is not target:
                other.direct.add(target)
                target.users.add(other)
        target.direct.discard(c)
        target.users.discard(c)
        for other in target.users:
            self._raise(other, target.above | target.bits)
        return True

    def _raise(self, c: _Cluster, gained: int) -> None:
        """Records new dependencies of `c`, for itself and for all that depend on it."""
        work = [c]
        while work:
            found = work.pop()
            if gained & ~found.above:
                found.above |= gained
                work.extend(found.users)


def _short(shape: tuple[Dim, ...]) -> bool:
    """Whether rows are known to be too short for a loop of their own."""
    return isinstance(shape[-1], int) and shape[-1] < NARROW


def _path_around(above: _Cluster, below: _Cluster) -> bool:
    """Whether `below` depends on `above` through a third cluster."""
    return any(c is not above and c.above & above.bits for c in below.direct)


def _contract(graph: Graph, clusters: list[_Cluster]) -> list[Node]:
    """The graph's nodes with every group of two or more as one `fused` node, in order."""
    users = graph.users()
    returned = set(graph.outputs)
    steps: list[Node] = []
    priority: list[int] = []
    for c in clusters:
        if len(c.members) == 1:
            steps.append(c.members[0])
        else:
            steps.append(_fused(c, users, returned))
        priority.append(c.first)
    return _sorted(steps, priority)


def _fused(c: _Cluster, users: dict[Value, list[Node]], returned: set[Value]) -> Node:
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
