"""Groups elementwise chains and row reductions into `fused` regions: Graph -> Graph.

Members of a group share one iteration space: a full shape S, or its rows S[:-1] + (1,), so that
a device can run the whole group tile by tile while the tile is in cache.  Invariant: the groups
contracted, the graph stays acyclic (no path leaves a group and comes back), and members are of
one phase: forward, backward or update.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field

from retrograde.compiler.ir.builder import next_id
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.graph import Graph, Node, Value, same_shape
from retrograde.compiler.ir.registry import Kind, lookup
from retrograde.compiler.passes.regions import effects_of

ROW_REDUCTIONS = frozenset({"sum", "max", "min", "prod"})
_PHASE = {"primal": 0, "cotangent": 1, "recompute": 1, "update": 2}


@dataclass(eq=False)
class _Cluster:
    """Nodes that will be one step.  `above` is a bit set of the clusters this one depends on."""

    index: int
    shape: tuple[Dim, ...] | None  # None: never joined
    phase: int
    members: list[Node]
    above: int = 0
    first: int = 0
    direct: set[int] = field(default_factory=set)  # clusters it reads


@dataclass(frozen=True)
class Group:
    """Forms the groups.  `window`: how many clusters back a group may still grow."""

    window: int = 48
    largest: int = 40

    def __call__(self, graph: Graph) -> Graph:
        clusters = _Clustering(self.window, self.largest).run(graph)
        if all(len(c.members) == 1 for c in clusters):
            return graph
        return graph.replace(nodes=tuple(_contract(graph, clusters)))


class _Clustering:
    def __init__(self, window: int, largest: int) -> None:
        self.window = window
        self.largest = largest
        self.clusters: list[_Cluster | None] = []  # None: merged into another
        self.home: dict[Value, _Cluster] = {}

    def run(self, graph: Graph) -> list[_Cluster]:
        for position, node in enumerate(graph.nodes):
            self._place(node, position)
        return [c for c in self.clusters if c is not None]

    def _place(self, node: Node, position: int) -> None:
        shape = iteration_shape(node)
        phase = _PHASE[node.origin.role]
        reads = {c.index for v in node.inputs if (c := self.home.get(v)) is not None}
        target: _Cluster | None = None
        if shape is not None:
            candidates = sorted(reads, reverse=True)
            for i in candidates:
                c = self.clusters[i]
                assert c is not None
                if target is None:
                    if self._joins(c, shape, phase, reads):
                        target = c
                elif target.shape is not None and self._joins(c, target.shape, phase, reads):
                    self._merge_into(target, c)
                    reads.discard(c.index)
        if target is None:
            target = _Cluster(len(self.clusters), shape, phase, [], first=position)
            self.clusters.append(target)
        elif target.shape is not None and shape is not None:
            target.shape = wider(target.shape, shape)
        target.members.append(node)
        self._depend(target, reads)
        for v in node.outputs:
            self.home[v] = target

    def _joins(
        self, c: _Cluster, shape: tuple[Dim, ...], phase: int, reads: Iterable[int]
    ) -> bool:
        """Whether a node over `shape` that reads the clusters `reads` may enter `c`."""
        if c.shape is None or c.phase != phase or len(c.members) >= self.largest:
            return False
        if c.index < len(self.clusters) - self.window or wider(c.shape, shape) is None:
            return False
        bit = 1 << c.index
        return not any(
            (other := self.clusters[i]) is not None and other is not c and other.above & bit
            for i in reads
        )

    def _merge_into(self, target: _Cluster, c: _Cluster) -> None:
        """Moves the members of `c` to `target` unless a path between them leads outside."""
        if target.shape is None or c.shape is None:
            return
        shape = wider(target.shape, c.shape)
        if shape is None or len(target.members) + len(c.members) > self.largest:
            return
        if self._path_around(target, c) or self._path_around(c, target):
            return
        target.shape = shape
        target.members.extend(c.members)
        target.first = min(target.first, c.first)
        for node in c.members:
            for v in node.outputs:
                self.home[v] = target
        self.clusters[c.index] = None
        old, new = 1 << c.index, 1 << target.index
        for other in self.clusters[c.index + 1 :]:  # only later clusters can depend on this one
            if other is None:
                continue
            if other.above & old:
                other.above = (other.above & ~old) | new
            if c.index in other.direct:
                other.direct.discard(c.index)
                other.direct.add(target.index)
        target.direct.discard(target.index)
        self._depend(target, c.direct)
        target.members.sort(key=lambda n: n.id)

    def _path_around(self, above: _Cluster, below: _Cluster) -> bool:
        """Whether `below` depends on `above` through a third cluster."""
        bit = 1 << above.index
        return any(
            i != above.index and (c := self.clusters[i]) is not None and c.above & bit
            for i in below.direct
        )

    def _depend(self, c: _Cluster, reads: Iterable[int]) -> None:
        """Records that `c` reads clusters, for itself and for all that depend on it."""
        gained = 0
        for i in reads:
            other = self.clusters[i]
            if i != c.index and other is not None:
                c.direct.add(i)
                gained |= other.above | (1 << i)
        if not gained & ~c.above:
            return
        c.above |= gained
        bit = 1 << c.index
        for other in self.clusters[c.index + 1 :]:
            if other is not None and other.above & bit:
                other.above |= gained


def iteration_shape(node: Node) -> tuple[Dim, ...] | None:
    """The space a groupable node runs over, None for nodes that stay alone."""
    if node.op.kind is Kind.ELEMENTWISE:
        shape = node.output.shape
        return shape if shape else None
    if node.op.name == "row_dot":
        return node.inputs[0].shape
    if node.op.name in ROW_REDUCTIONS:
        source = node.inputs[0]
        last = source.type.ndim - 1
        if last >= 0 and node.attrs["axes"] == (last,) and node.attrs["keepdims"]:
            return source.shape if source.dtype is node.output.dtype else None
    return None


def wider(a: tuple[Dim, ...], b: tuple[Dim, ...]) -> tuple[Dim, ...] | None:
    """The common space of two shapes: equal, or one the rows of the other; None if neither."""
    if same_shape(a, b):
        return a
    if len(a) != len(b) or not same_shape(a[:-1], b[:-1]):
        return None
    if isinstance(a[-1], int) and a[-1] == 1:
        return b
    return a if isinstance(b[-1], int) and b[-1] == 1 else None


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
