"""Merging of clusters that read the same: clusters of a graph -> fewer, for kernels.

Two clusters over one space that read the same array, or of which the backward one is all that reads
a result of the forward one, run together where that moves fewer bytes.  Invariant: no large array
lives longer for it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator

from retrograde.compiler.ir.graph import Graph, Node, Value, same_shape
from retrograde.compiler.ir.registry import Kind
from retrograde.compiler.passes.clustering import SHORT, UPDATE, Cluster, Clustering, short

_STILL = (Kind.MOVE, Kind.CREATE)
LONGER = "an array would live longer"


class Siblings:
    """Merges the clusters of a finished clustering; `apart` says of (array, two readers) why they
    stay apart."""

    def __init__(self, graph: Graph, clustering: Clustering) -> None:
        self.clustering = clustering
        self.users = graph.users()
        self.returned = set(graph.outputs)
        self.apart: dict[tuple[Value, Node, Node], str] = {}
        self.starts = sorted(c.first for c in clustering.clusters if _computes(c))
        self.reader = {n: c for c in clustering.clusters for n in c.members}

    def run(self) -> None:
        """Takes the arrays in the order of their first readers, each with those who read all of
        it, element by element."""
        reader = self.reader
        for v, nodes in self.users.items():
            if len(nodes) < 2 and v not in self.clustering.home:
                continue
            maker = self.clustering.home.get(v)
            found = [] if maker is None else [maker]
            found += [reader[n] for n in nodes]
            found = [
                c for c in dict.fromkeys(found)
                if c.shape is not None and v.shape and same_shape(c.shape, v.shape)
            ]  # fmt: skip
            for a, b in _pairs(found, maker):
                if a not in self.clustering.clusters or b not in self.clustering.clusters:
                    continue
                if why := self._merged(a, b, v):
                    if a is not maker:
                        first, second = (next(n for n in nodes if reader[n] is c) for c in (a, b))
                        self.apart[v, first, second] = why
                    continue
                for n in b.members:
                    reader[n] = a

    def _merged(self, a: Cluster, b: Cluster, v: Value) -> str:
        """Merges `b` into `a`, which both read `v` or make it, or tells why not."""
        if a.phase != b.phase and not self._both_ways(a, b, v):
            return "another phase"
        if (a.splits() or b.splits()) and short(v.shape) and not (a.by_rows() or b.by_rows()):
            return SHORT
        if self._longer(a, b, v):
            return LONGER
        before = [c.first for c in (a, b) if _computes(c)]
        if why := self.clustering.merged(a, b):
            return why
        for first in before:
            self.starts.remove(first)
        if before:
            insort(self.starts, a.first)
        a.phase = max(a.phase, b.phase)
        return ""

    def _both_ways(self, a: Cluster, b: Cluster, v: Value) -> bool:
        """Whether `b` goes back from where `a` went forward, and computes nothing again, unless it
        runs next: then what it computes again is at hand."""
        if UPDATE in (a.phase, b.phase):
            return False
        again = any(n.origin.role == "recompute" for n in b.members)
        made = any(v in n.outputs for n in a.members)
        return (made and not again) or self._next(a, b)

    def _longer(self, a: Cluster, b: Cluster, v: Value) -> bool:
        """Whether an array of the space would be made earlier, or read later, than it is now."""
        made = {w for n in a.members for w in n.outputs}
        between = {w for n in b.members for w in n.inputs if w in made}
        inside = {*a.members, *b.members}
        gone = [
            w for w in between
            if w not in self.returned and all(u in inside for u in self.users.get(w, ()))
            and same_shape(w.shape, v.shape)
        ]  # fmt: skip
        if between:
            return len(self._large(b, v)) > len(gone) and not self._next(a, b)
        if not self._own(a, b, v) and (not self._large(a, v) or self._next(a, b)):
            return False
        return bool(self._own(b, a, v) or self._large(b, v))

    def _own(self, c: Cluster, other: Cluster, v: Value) -> list[Value]:
        """The operands as large as `v` that only one of two clusters reads."""
        known = {w for n in other.members for w in n.inputs}
        known.update(w for n in c.members for w in n.outputs)
        read = dict.fromkeys(w for n in c.members for w in n.inputs)
        return [w for w in read if w not in known and same_shape(w.shape, v.shape)]

    def _next(self, a: Cluster, b: Cluster) -> bool:
        """Whether nothing is computed between the first nodes of two clusters."""
        return bisect_right(self.starts, a.first) >= bisect_left(self.starts, b.first)

    def _large(self, c: Cluster, v: Value) -> list[Value]:
        """The results of a cluster that are as large as `v`."""
        inside = set(c.members)
        return [
            w for n in c.members for w in n.outputs
            if same_shape(w.shape, v.shape)
            and (w in self.returned or any(u not in inside for u in self.users.get(w, ())))
        ]  # fmt: skip


def _computes(c: Cluster) -> bool:
    return any(n.op.kind not in _STILL for n in c.members)


def _pairs(found: list[Cluster], maker: Cluster | None) -> Iterator[tuple[Cluster, Cluster]]:
    """Every two of them, the earlier first; a maker only with readers of another phase, for those
    of its own have been tried."""
    for i, a in enumerate(found):
        for b in found[i + 1 :]:
            if a is not maker or a.phase != b.phase:
                yield (a, b) if a is maker or a.first <= b.first else (b, a)
