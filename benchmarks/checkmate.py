"""The integer programme of rematerialization, and simple graphs to try it on: an independent check.

Jain et al., "Checkmate: breaking the memory wall with optimal tensor rematerialization" (MLSys
2020), with SciPy's HiGHS.  In stage t, node t runs for the first time; `run[t, i]`: node i runs in
stage t, each at most once and by rising index; `keep[t, i]`: its value is kept into stage t.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
from scipy import optimize, sparse

from retrograde.compiler.plan.remat import Dag


def optimum(dag: Dag, budget: int, time_limit: float = 60.0) -> tuple[float, float] | None:
    """The least cost and HiGHS's bound on it, in the order of the indices; None if there is none.

    Raises TimeoutError if nothing was found, and nothing was ruled out, in the time."""
    n = len(dag)
    number: dict[tuple[object, ...], int] = {}

    def at(*name: object) -> int:
        return number.setdefault(name, len(number))

    rows: list[tuple[dict[int, float], float, float]] = []  # terms, least, most
    low: dict[int, float] = {}
    users = [sorted(s) for s in dag.successors]
    for t in range(n):
        low[at("run", t, t)] = 1
        for j in range(t + 1):
            for i in dag.predecessors[j]:
                terms = {at("run", t, j): 1.0, at("run", t, i): -1.0}
                if t:
                    terms[at("keep", t, i)] = -1.0
                rows.append((terms, -np.inf, 0))
        for i in range(t):
            terms = {at("keep", t, i): 1.0, at("run", t - 1, i): -1.0}
            if i < t - 1:
                terms[at("keep", t - 1, i)] = -1.0
            rows.append((terms, -np.inf, 0))
    for o in dag.outputs:
        terms = {at("run", n - 1, o): 1.0}
        if o < n - 1:
            terms[at("keep", n - 1, o)] = 1.0
        rows.append((terms, 1, np.inf))
    for t in range(n):
        # What is live, as a sum: kept values, then what each node adds, then what it frees.
        live = {at("keep", t, i): float(dag.size[i]) for i in range(t)}
        for k in range(t + 1):
            live[at("run", t, k)] = live.get(at("run", t, k), 0.0) + dag.size[k]
            rows.append((dict(live), -np.inf, budget))
            for i in (*dag.predecessors[k], k):
                if t == n - 1 and i in dag.outputs:
                    continue
                free = at("free", t, i, k)
                hazards = {at("run", t, k): -1.0}  # plus one
                later = [j for j in users[i] if k < j <= t]
                for j in later:
                    hazards[at("run", t, j)] = 1.0
                if t + 1 < n:
                    hazards[at("keep", t + 1, i)] = 1.0
                most = len(later) + 2
                hazards[free] = float(most)
                rows.append((hazards, -np.inf, most - 1))
                live[free] = -float(dag.size[i])
    cost = np.zeros(len(number))
    for name, column in number.items():
        if name[0] == "run":
            cost[column] = dag.cost[int(name[2])]  # type: ignore[call-overload]
    entries = [(r, c, v) for r, (terms, _, _) in enumerate(rows) for c, v in terms.items()]
    where, columns, values = zip(*entries, strict=True)
    matrix = sparse.csr_array((values, (where, columns)), shape=(len(rows), len(number)))
    least = np.array([low.get(c, 0) for c in range(len(number))])
    done = optimize.milp(
        cost,
        integrality=np.ones(len(number)),
        bounds=optimize.Bounds(least, 1),
        constraints=optimize.LinearConstraint(
            matrix, [lower for _, lower, _ in rows], [upper for _, _, upper in rows]
        ),
        options={"time_limit": time_limit, "mip_rel_gap": 0},
    )
    if done.status == 2:
        return None
    if done.x is None:
        raise TimeoutError(f"HiGHS found nothing in {time_limit} seconds: {done.message}")
    return float(done.fun), float(done.mip_dual_bound)


def random_dag(count: int, seed: int, reach: int | None = None) -> Dag:
    """Each node reads one to three of the `reach` before it; what nobody reads is an output."""
    chance = random.Random(seed)
    edges = {
        (chance.randrange(max(0, node - (reach or node)), node), node)
        for node in range(1, count)
        for _ in range(chance.randint(1, 3))
    }
    outputs = sorted(set(range(count)) - {a for a, _ in edges})
    cost = [chance.randint(1, 20) for _ in range(count)]
    return Dag(cost, [chance.randint(1, 20) for _ in range(count)], sorted(edges), outputs)


def trained(cost: list[float], size: list[int], edges: list[tuple[int, int]]) -> Dag:
    """Forward nodes and then, for each, a node of the backward pass.

    It reads what its node reads, and the gradients of those that read its node; it costs twice as
    much, and its value is as large as what its node makes.  The first node is the input."""
    count = len(size)
    before = [[a for a, b in edges if b == i] for i in range(count)]
    after = [[b for a, b in edges if a == i] for i in range(count)]
    gradient = {i: 2 * count - 1 - i for i in range(count)}
    back = [(a, gradient[i]) for i in range(count) for a in (*before[i], i)]
    back += [(gradient[b], gradient[i]) for i in range(count) for b in after[i]]
    return Dag(
        [*cost, *(2 * c for c in cost[::-1])], [*size, *size[::-1]], [*edges, *back], [gradient[0]]
    )


def chain(layers: int, skip: int = 0) -> Dag:
    """A chain of equal layers, trained; with `skip`, each third one also reads one further back."""
    edges = [(i - 1, i) for i in range(1, layers)]
    edges += [(i - skip, i) for i in range(skip, layers, 3) if skip > 1]
    return trained([10.0] * layers, [10] * layers, edges)


def transformer(blocks: int) -> Dag:
    """Blocks of ten nodes about a stream of residuals, trained; costs and sizes as in a GPT."""
    cost, size, edges = [1.0], [4], []
    stream = 0
    parts = ((1, 4), (12, 12), (8, 4), (4, 4), (1, 4), (1, 4), (16, 16), (3, 16), (16, 4), (1, 4))
    for _ in range(blocks):
        base = len(cost)
        for k, (price, bytes_) in enumerate(parts):
            cost.append(float(price))
            size.append(bytes_)
            edges.append((base + k - 1 if k and k != 5 else (base + 4 if k else stream), base + k))
        edges += [(stream, base + 4), (base + 4, base + 9)]
        stream = base + 9
    return trained(cost, size, edges)


def u_net(depth: int, each: int = 4) -> Dag:
    """Down and up again, halving what is there at each level, with skips across; trained."""
    cost, size, edges, left = [8.0], [2**10], [], []
    for level in range(2 * depth):
        down = level < depth
        scale = level if down else 2 * depth - 1 - level
        for k in range(each):
            node = len(cost)
            cost.append(8.0)
            size.append(max(2 ** (10 - scale), 1))
            edges.append((node - 1, node))
            if not down and not k:
                edges.append((left[scale], node))
        if down:
            left.append(len(cost) - 1)
    return trained(cost, size, edges)


def between(dag: Dag, least: int, most: int, parts: tuple[float, ...]) -> Iterator[int]:
    """Budgets at some parts of the way from the least to the most."""
    return (int(least + (most - least) * part) for part in parts)
