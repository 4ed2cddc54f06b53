"""Exhaustive answers about rematerialization, straight from the definitions; small graphs only."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator

from hypothesis import strategies as st

from retrograde.compiler.plan.remat import Dag


def peak_and_cost(dag: Dag, order: tuple[int, ...]) -> tuple[int, float]:
    """Replays an order with sets, dropping what nobody reads before it is made again."""
    peak, live = 0, set()
    for now, node in enumerate(order):
        assert set(dag.predecessors[node]) <= live, (now, node)
        peak = max(peak, sum(dag.size[v] for v in live | {node}))
        live.add(node)
        for v in list(live):
            later = order[now + 1 :]
            again = later.index(v) if v in later else len(later)
            read = any(v in dag.predecessors[i] for i in later[:again])
            if not read and not (v in dag.outputs and again == len(later)):
                live.discard(v)
    assert set(dag.outputs) <= live
    return peak, sum(dag.cost[i] for i in order)


def _drops(live: frozenset[int]) -> Iterator[frozenset[int]]:
    for count in range(len(live) + 1):
        yield from map(frozenset, itertools.combinations(sorted(live), count))


def least_cost(dag: Dag, budget: int) -> float | None:
    """Dijkstra over sets of live values: any node may run, anything may be dropped."""
    best: dict[frozenset[int], float] = {frozenset(): 0.0}
    queue: list[tuple[float, list[int]]] = [(0.0, [])]
    while queue:
        paid, listed = heapq.heappop(queue)
        live = frozenset(listed)
        if paid > best[live]:
            continue
        if live >= set(dag.outputs):
            return paid
        for node in range(len(dag)):
            if node in live or not live.issuperset(dag.predecessors[node]):
                continue
            together = live | {node}
            if sum(dag.size[v] for v in together) > budget:
                continue
            for after in _drops(together):
                cost = paid + dag.cost[node]
                if cost < best.get(after, float("inf")):
                    best[after] = cost
                    heapq.heappush(queue, (cost, sorted(after)))
    return None


def single_runs(dag: Dag) -> Iterator[tuple[int, ...]]:
    """Every order that runs each needed node once."""
    for order in itertools.permutations(sorted(dag.needed)):
        place = {node: at for at, node in enumerate(order)}
        if all(place[a] < place[b] for a, b in dag.edges if b in place):
            yield order


@st.composite
def dags(draw: st.DrawFn, most: int = 6) -> Dag:
    count = draw(st.integers(1, most))
    pairs = [(a, b) for b in range(count) for a in range(b)]
    edges = draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []
    sizes = draw(st.lists(st.integers(0, 9), min_size=count, max_size=count))
    costs = draw(st.lists(st.integers(0, 9), min_size=count, max_size=count))
    outputs = draw(st.sets(st.integers(0, count - 1), max_size=2))
    names = draw(st.permutations(range(count)))  # indices need not be in topological order
    order = sorted(range(count), key=lambda i: names[i])
    return Dag(
        [costs[i] for i in order],
        [sizes[i] for i in order],
        [(names[a], names[b]) for a, b in edges],
        [names[o] for o in outputs],
    )
