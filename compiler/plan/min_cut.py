"""Minimum cuts: edges with capacities -> which nodes stay on the side of the source.

Source: Dinic, "Algorithm for solution of a problem of maximum flow in networks with power
estimation" (1970).  Integers of any size: a solver with 32-bit capacities would return nonsense for
arrays of a training step.  Invariant: no cut is smaller than the one that is returned.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

INFINITE = 1 << 62


class Network:
    """Nodes by number; edges are added, then cut once."""

    def __init__(self, count: int) -> None:
        self._edges: list[list[int]] = [[] for _ in range(count)]  # by node: places in the rest
        self._to: list[int] = []
        self._room: list[int] = []  # the edge back stands right behind each edge

    def add(self, a: int, b: int, capacity: int) -> None:
        """An edge from `a` to `b`."""
        for node, target, room in ((a, b, capacity), (b, a, 0)):
            self._edges[node].append(len(self._to))
            self._to.append(target)
            self._room.append(room)

    def cut(self, source: int, sink: int) -> tuple[int, frozenset[int]]:
        """The capacity of a minimum cut, and the nodes on the side of the source: of all minimum
        cuts the one closest to it."""
        flow = 0
        while (level := self._levels(source))[sink] >= 0:
            at = [0] * len(self._edges)
            while pushed := self._push(source, sink, level, at):
                flow += pushed
        return flow, frozenset(i for i, n in enumerate(level) if n >= 0)

    def _levels(self, source: int) -> list[int]:
        """By node: how many edges with room lead there from the source; -1 where none do."""
        level = [-1] * len(self._edges)
        level[source] = 0
        queue = deque((source,))
        while queue:
            node = queue.popleft()
            for e in self._edges[node]:
                if self._room[e] and level[self._to[e]] < 0:
                    level[self._to[e]] = level[node] + 1
                    queue.append(self._to[e])
        return level

    def _push(self, source: int, sink: int, level: Sequence[int], at: list[int]) -> int:
        """Sends flow along one path of rising levels; 0 where there is none.  `at` remembers which
        edges lead nowhere."""
        path: list[int] = []
        node = source
        while node != sink:
            edges = self._edges[node]
            while at[node] < len(edges):
                e = edges[at[node]]
                if self._room[e] and level[self._to[e]] == level[node] + 1:
                    break
                at[node] += 1
            else:
                if not path:
                    return 0
                at[node] = len(edges)
                node = self._to[path.pop() ^ 1]
                at[node] += 1
                continue
            path.append(e)
            node = self._to[e]
        pushed = min(self._room[e] for e in path)
        for e in path:
            self._room[e] -= pushed
            self._room[e ^ 1] += pushed
        return pushed
