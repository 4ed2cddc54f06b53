"""Problems of rematerialization as plain data, and what an order of them costs.

Input: costs, sizes and edges of a directed acyclic graph; output: `replay` of any order, repeats
included.  Invariant: an order says everything, for a value is best dropped right after its last use
before it is made anew.  This knows nothing of the IR, so public instances run as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from retrograde.compiler.errors import DataError
from retrograde.compiler.plan.lifetimes import LARGEST, whole


@dataclass(frozen=True)
class Dag:
    """Node i makes one value of `size[i]` bytes, at `cost[i]`, from those of its predecessors.

    `edges` are pairs (from, to).  The values of `outputs` have to be there at the end; a node that
    no output depends on need not run.  Sizes are integers, costs any finite numbers from 0 on.
    """

    cost: Sequence[float]
    size: Sequence[int]
    edges: Iterable[tuple[int, int]]
    outputs: Iterable[int]

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "cost", tuple(_cost(c, i) for i, c in enumerate(self.cost)))
        put(self, "size", tuple(whole(s, f"size[{i}]") for i, s in enumerate(self.size)))
        count = len(self.cost)
        if len(self.size) != count:
            raise DataError(f"{count} costs were given, and {len(self.size)} sizes")
        if any(s < 0 for s in self.size):
            node = next(i for i, s in enumerate(self.size) if s < 0)
            raise DataError(f"a value cannot have a negative size: size[{node}]={self.size[node]}")
        if sum(self.size) > LARGEST:
            raise DataError(f"the sizes add up to more than the {LARGEST} bytes allowed")
        pairs = [(_node(a, count, "an edge"), _node(b, count, "an edge")) for a, b in self.edges]
        put(self, "edges", tuple(dict.fromkeys(pairs)))
        wanted = dict.fromkeys(_node(o, count, "an output") for o in self.outputs)
        put(self, "outputs", tuple(wanted))
        self.topological  # noqa: B018 - refuses cycles right here

    def __len__(self) -> int:
        return len(self.size)

    @cached_property
    def predecessors(self) -> tuple[tuple[int, ...], ...]:
        """By node: what it reads."""
        found: list[list[int]] = [[] for _ in self.size]
        for a, b in self.edges:
            found[b].append(a)
        return tuple(map(tuple, found))

    @cached_property
    def successors(self) -> tuple[tuple[int, ...], ...]:
        """By node: what reads it."""
        found: list[list[int]] = [[] for _ in self.size]
        for a, b in self.edges:
            found[a].append(b)
        return tuple(map(tuple, found))

    @cached_property
    def topological(self) -> tuple[int, ...]:
        """All nodes, each after its predecessors; that of rising indices where it is one."""
        waiting = [len(p) for p in self.predecessors]
        if all(a < b for a, b in self.edges):
            return tuple(range(len(self)))
        ready = [i for i in range(len(self) - 1, -1, -1) if not waiting[i]]
        found = []
        while ready:
            node = ready.pop()
            found.append(node)
            for after in self.successors[node]:
                waiting[after] -= 1
                if not waiting[after]:
                    ready.append(after)
        if len(found) < len(self):
            stuck = next(i for i, w in enumerate(waiting) if w)
            raise DataError(f"the edges have a cycle, before or through node {stuck}")
        return tuple(found)

    @cached_property
    def needed(self) -> frozenset[int]:
        """The nodes that some output depends on, outputs included."""
        found = set(self.outputs)
        work = list(found)
        while work:
            for before in self.predecessors[work.pop()]:
                if before not in found:
                    found.add(before)
                    work.append(before)
        return frozenset(found)

    @cached_property
    def least_cost(self) -> float:
        """The cost of running each needed node once; no order costs less."""
        return total(self.cost[i] for i in sorted(self.needed))

    def working(self, node: int) -> int:
        """Bytes that have to be there while `node` runs: what it reads and what it makes."""
        return self.size[node] + sum(self.size[p] for p in self.predecessors[node])

    @cached_property
    def floor(self) -> tuple[int, int]:
        """A peak that no order is below, and a node that needs it (-1: the outputs together)."""
        least, node = sum(self.size[o] for o in self.outputs), -1
        for i in self.needed:
            if self.working(i) > least:
                least, node = self.working(i), i
        return least, node


@dataclass(frozen=True)
class Recipe:
    """An order of nodes, repeats being recomputations; its `peak` in bytes and its `cost`.

    `lower_bound`: a cost that no order within the budget asked for is below, proven.
    """

    order: tuple[int, ...]
    peak: int
    cost: float
    lower_bound: float

    @property
    def gap_fraction(self) -> float:
        """What the order costs beyond the bound, as a fraction of the bound."""
        return (self.cost - self.lower_bound) / self.lower_bound if self.lower_bound else 0.0

    @property
    def optimal(self) -> bool:
        """Whether the bound proves that nothing is cheaper."""
        return self.cost <= self.lower_bound

    def __str__(self) -> str:
        state = "optimal" if self.optimal else f"within {self.gap_fraction:.2%} of the bound"
        return f"{len(self.order)} runs, {self.peak} bytes, cost {self.cost} ({state})"


def total(costs: Iterable[float]) -> float:
    """The sum: exact for integers, rounded once for the rest."""
    found = list(costs)
    return sum(found) if all(type(c) is int for c in found) else math.fsum(found)


def replay(
    dag: Dag, order: Sequence[int], scratch: Sequence[int] | None = None
) -> tuple[int, float]:
    """Peak in bytes and cost of an order.  Raises `DataError` if it cannot run or misses an output.

    A run reads the latest value of each predecessor.  A value lives from its run to its last reader
    before it is made anew, or to the end if it is the last of an output.
    """
    return max(profile(dag, order, scratch), default=0), total(dag.cost[i] for i in order)


def profile(dag: Dag, order: Sequence[int], scratch: Sequence[int] | None = None) -> list[int]:
    """By run of an order: the bytes that live while it runs.  Raises as `replay` does."""
    made: dict[int, int] = {}  # by value: the run that made it last
    ends = list(range(len(order)))  # by run: the last run that needs what it made
    for now, node in enumerate(order):
        if not 0 <= node < len(dag):
            raise DataError(f"run {now} is of node {node}; there are {len(dag)}")
        for before in dag.predecessors[node]:
            if before not in made:
                raise DataError(f"run {now}, of node {node}, reads node {before}, which never ran")
            ends[made[before]] = now
        made[node] = now
    for node in dag.outputs:
        if node not in made:
            raise DataError(f"output {node} is never made")
        ends[made[node]] = len(order) - 1
    change = [0] * (len(order) + 1)
    for now, node in enumerate(order):
        change[now] += dag.size[node]
        change[ends[now] + 1] -= dag.size[node]
    live, found = 0, []
    for now, node in enumerate(order):
        live += change[now]
        found.append(live + (scratch[node] if scratch is not None else 0))
    return found


def _node(value: object, count: int, what: str) -> int:
    node = whole(value, f"the node of {what}")
    if not 0 <= node < count:
        raise DataError(f"{what} names node {node}; there are {count}, from 0 on")
    return node


def _cost(value: object, node: int) -> float:
    if isinstance(value, (np.integer, np.floating)):
        value = value.item()
    if type(value) not in (int, float):
        raise DataError(f"cost[{node}] must be a number, not {value!r} ({type(value).__name__})")
    if not 0 <= value < math.inf:  # type: ignore[operator]
        raise DataError(f"cost[{node}] must be finite and at least 0, not {value}")
    return value  # type: ignore[return-value]
