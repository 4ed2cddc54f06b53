"""Which nodes run together: the nodes of a graph, one after the other -> clusters.

A node joins what it reads where both run over one space and no path leads out and back; clusters
that meet in a node merge.  Invariant: the clusters contracted, the graph stays acyclic; every pair
of a maker and a reader that stay apart is known with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.graph import Graph, Node, Value
from retrograde.compiler.ir.registry import Kind
from retrograde.compiler.passes.spaces import (
    NARROW,
    gathers,
    gathers_rows,
    iteration_shape,
    sums_rows,
    wider,
)

ALONE = "runs alone"
SHORT = "rows too short for a loop of their own"
UPDATE = 2
_PHASE = {"primal": 0, "cotangent": 1, "recompute": 1, "update": UPDATE}


@dataclass(eq=False)
class Cluster:
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
    direct: set[Cluster] = field(default_factory=set)
    users: set[Cluster] = field(default_factory=set)
    sums: set[Value] = field(default_factory=set)  # complete only when all rows are done

    def waits(self, node: Node) -> str:
        """Why `node` has to wait for the end of this step, "" if it need not."""
        if gathers(node) and any(v in n.outputs for n in self.members for v in node.inputs):
            return "read at places that indices tell"
        return "" if self.sums.isdisjoint(node.inputs) else "complete only with its last row"

    def by_rows(self) -> bool:
        """Whether its rows are told apart anyway."""
        return any(n.op.kind is Kind.REDUCE and not sums_rows(n) for n in self.members)

    def splits(self) -> bool:
        """Whether a member tells its rows apart that is not worth it where they are short."""
        return bool(self.sums) or any(map(gathers_rows, self.members))


class Clustering:
    """`window`: how many clusters back one may still grow; `largest`: its most members; `native`:
    for kernels that add up and gather rows as well."""

    def __init__(self, window: int, largest: int, native: bool) -> None:
        self.window, self.largest, self.native = window, largest, native
        self.apart: dict[tuple[Value, Node], str] = {}  # why a reader of a value is not with it
        self.count = 0
        self.clusters: dict[Cluster, None] = {}  # those not merged into another, in order
        self.home: dict[Value, Cluster] = {}

    def run(self, graph: Graph) -> None:
        for position, node in enumerate(graph.nodes):
            self._place(node, position)

    def _place(self, node: Node, position: int) -> None:
        shape = iteration_shape(node, self.native)
        adds = self.native and sums_rows(node)
        phase = _PHASE[node.origin.role]
        reads = {c for v in node.inputs if (c := self.home.get(v)) is not None}
        target: Cluster | None = None
        if shape is not None:
            for c in sorted(reads, key=lambda c: c.index, reverse=True):
                why = self._hindrance(c, node, shape, reads)
                if not why and target is not None:
                    why = self.merged(target, c, room=1)
                if why:
                    given = [v for v in node.inputs if self.home.get(v) is c and why is not ALONE]
                    self.apart.update({(v, node): why for v in given})
                    continue
                assert c.shape is not None
                if target is None:
                    target = c
                shape = wider(c.shape, shape)
                assert shape is not None
                target.shape = shape
        if target is None:
            target = Cluster(self.count, shape, phase, [], position, 1 << self.count)
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

    def _hindrance(
        self, c: Cluster, node: Node, shape: tuple[Dim, ...], reads: Iterable[Cluster]
    ) -> str:
        """Why a node over `shape` that reads the clusters `reads` may not enter `c`, or ""."""
        if c.shape is None:
            return ALONE
        if c.phase != _PHASE[node.origin.role]:
            return "another phase"
        if wider(c.shape, shape) is None:
            return "another space"
        if c.index < self.count - self.window:
            return "made too many steps before"
        if len(c.members) >= self.largest:
            return "the group is full"
        if any(other is not c and other.above & c.bits for other in reads):
            return "a path through another step"
        if why := c.waits(node):
            return why
        if (sums_rows(node) or c.splits()) and self.native and short(shape) and not c.by_rows():
            return SHORT
        return ""

    def merged(self, target: Cluster, c: Cluster, room: int = 0) -> str:
        """Moves the members of `c` to `target`, or tells why not: a path between them leads
        outside, or there would be no room for so many nodes that are to come."""
        if len(target.members) + len(c.members) + room > self.largest:
            return "the group is full"
        if path_around(target, c) or path_around(c, target):
            return "a path through another step"
        for above, below in ((target, c), (c, target)):
            if why := next(filter(None, map(above.waits, below.members)), ""):
                return why
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
            self._raise(other, target.above | target.bits, target.bits)
        return ""

    def _raise(self, c: Cluster, gained: int, one: int = 0) -> None:
        """Records new dependencies of `c`, for itself and for all that depend on it.  `one`: the
        bits of a single cluster, any of which says as much as all of them."""
        work = [c]
        while work:
            found = work.pop()
            new = gained & ~found.above
            if new & ~one or (new and not found.above & one):
                found.above |= gained
                work.extend(found.users)


def short(shape: tuple[Dim, ...]) -> bool:
    """Whether rows are known to be too short for a loop of their own."""
    return isinstance(shape[-1], int) and shape[-1] < NARROW


def path_around(above: Cluster, below: Cluster) -> bool:
    """Whether `below` depends on `above` through a third cluster."""
    return any(c is not above and c.above & above.bits for c in below.direct)
