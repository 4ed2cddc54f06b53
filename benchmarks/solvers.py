"""Graphs and buffers -> how close the solvers come, and how long they take.

    python -m benchmarks.solvers                 # about ten minutes
    python -m benchmarks.solvers --only place    # or programs, exact, large, frontier
    python -m benchmarks.solvers --quick         # fewer instances

`place` on random lifetimes, on rectangles cut into pieces (full at every instant, so the optimum is
known) and on the buffers of compiled programs; `rematerialize` beside the integer programme of
Checkmate on small random graphs, at budgets across the feasible range, and on large graphs.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import checkmate
from retrograde.compiler.errors import BudgetError
from retrograde.compiler.plan.frontier import frontier
from retrograde.compiler.plan.memory import Buffer, place
from retrograde.compiler.plan.order_bound import order_bound
from retrograde.compiler.plan.remat import Dag, rematerialize, replay

PARTS = (0.0, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75)


def cut(count: int, seed: int, width: int = 10**6, height: int = 10**6) -> list[Buffer]:
    """A rectangle cut into pieces by straight cuts: a perfect packing of it is the optimum."""
    chance = random.Random(seed)
    pieces = [(0, width, 0, height)]
    while len(pieces) < count:
        some = (chance.randrange(len(pieces)) for _ in range(3))
        at = max(some, key=lambda i: (pieces[i][1] - pieces[i][0]) * (pieces[i][3] - pieces[i][2]))
        pieces[at], pieces[-1] = pieces[-1], pieces[at]
        left, right, low, high = pieces.pop()
        if max(right - left, high - low) < 5:  # on a coarse grid some pieces get too small
            pieces.insert(0, (left, right, low, high))
        elif high - low < 5 or (right - left >= 5 and chance.random() < 0.5):
            at = left + int((right - left) * chance.uniform(0.2, 0.8))
            pieces += [(left, at, low, high), (at, right, low, high)]
        else:
            at = low + int((high - low) * chance.uniform(0.2, 0.8))
            pieces += [(left, right, low, at), (left, right, at, high)]
    chance.shuffle(pieces)
    return [Buffer(left, right, high - low) for left, right, low, high in pieces]


def lifetimes(count: int, seed: int) -> list[Buffer]:
    """Random lifetimes, most of them short, of random sizes."""
    chance = random.Random(seed)
    starts = [chance.randrange(count) for _ in range(count)]
    return [
        Buffer(s, s + 1 + int(chance.expovariate(0.05)), chance.randint(1, 2**20)) for s in starts
    ]


def placements(quick: bool) -> Iterator[list[str]]:
    cases: list[tuple[str, list[Buffer], float | None]] = [
        ("20,000 random lifetimes", lifetimes(20_000, 0), None),
        ("20,000 pieces", cut(20_000, 0), None),
    ]
    for seed in range(2 if quick else 5):
        cases.append((f"500 pieces, {seed}", cut(500, seed), 10.0))
        cases.append((f"500 pieces on a coarse grid, {seed}", cut(500, seed, 400, 1000), 10.0))
    for seed in range(0 if quick else 3):
        cases.append((f"500 pieces, {seed}, no limit given", cut(500, seed), None))
    for name, buffers, limit in cases:
        begun = time.perf_counter()
        placement = place(buffers, time_limit=limit)
        seconds = time.perf_counter() - begun
        yield [name, f"{placement.gap_fraction:.2%}", f"{seconds:.2f}"]


def programs(quick: bool) -> Iterator[list[str]]:
    """The buffers of compiled training steps, at several sizes, placed anew, and their plans.

    A plan is placed at one size and evaluated at the others, so its own gap may be larger there."""
    import retrograde as rg

    def loss(model: Any, tokens: Any, targets: Any) -> Any:
        return rg.losses.cross_entropy(model(tokens), targets)

    models: list[tuple[str, Any, Sequence[tuple[int, int]]]] = [
        (
            "GPT, 2 layers, width 64",
            rg.models.GPT(vocab=65, width=64, layers=2, heads=2, context=128),
            ((4, 64), (1, 128), (32, 17)),
        ),
        (
            "LSTM, 2 layers, width 64",
            rg.models.RNNLM(vocab=65, width=64, layers=2, cell="lstm"),
            ((4, 64), (1, 500), (32, 17)),
        ),
        (
            "GRU, width 96",
            rg.models.RNNLM(vocab=65, width=96, layers=1, cell="gru"),
            ((4, 64), (16, 100)),
        ),
    ]
    if not quick:
        models.append(
            (
                "GPT, 6 layers, width 384",
                rg.models.GPT(vocab=65, width=384, layers=6, heads=6, context=256),
                ((8, 256), (1, 64), (3, 201)),
            )
        )
    ids = rg.spec("i32", "B", "T")
    for name, model, sizes in models:
        step = rg.compile_training(
            loss, model, rg.optim.AdamW(1e-3), batch={"tokens": ids, "targets": ids}
        )
        for b, t in sizes:
            plan = step.plan(B=b, T=t)
            buffers = [Buffer(p.start, p.end, p.bytes) for p in plan.buffers if p.kind != "state"]
            begun = time.perf_counter()
            placement = place(buffers, align=64)
            seconds = time.perf_counter() - begun
            gaps = f"{placement.gap_fraction:.2%}", f"{plan.gap_fraction:.2%}"
            yield [f"{name}, B{b} T{t}", str(len(buffers)), *gaps, f"{seconds:.3f}"]


def peaks(dag: Dag) -> tuple[int, int, int]:
    """The least peak that is found, a bound on it, and that of running each node once."""
    most = replay(dag, [i for i in dag.topological if i in dag.needed])[0]
    try:
        rematerialize(dag, dag.floor[0] - 1)
    except BudgetError as error:
        assert error.minimum_bytes is not None and error.lower_bound_bytes is not None
        return error.minimum_bytes, error.lower_bound_bytes, most
    raise AssertionError("a budget below what one node needs was met")


def exact(quick: bool) -> Iterator[list[str]]:
    """Per graph: the largest excess over the proven bound and over the integer programme."""
    cases = [(n, seed) for n in (10, 14) for seed in range(2 if quick else 4)]
    cases += [(30, seed) for seed in range(3 if quick else 10)]
    for count, seed in cases:
        dag = checkmate.random_dag(count, seed, (None, 8)[seed % 2])
        least, bound, most = peaks(dag)
        over, against, proven, seconds = 0.0, [], 0, 0.0
        for budget in checkmate.between(dag, least, most, PARTS):
            begun = time.perf_counter()
            recipe = rematerialize(dag, budget)
            seconds = max(seconds, time.perf_counter() - begun)
            over, proven = max(over, recipe.gap_fraction), proven + recipe.optimal
            if count < 30:
                solved = checkmate.optimum(dag, budget)
                if solved is not None:
                    against.append(recipe.cost / solved[0] - 1)
        found = f"{min(against):+.2%} to {max(against):+.2%}" if against else "-"
        optimal = f"{proven} of {len(PARTS)}"
        peak = "proven" if least == bound else f"{least / bound - 1:.2%} above its bound"
        yield [f"{count} nodes, {seed}", optimal, f"{over:.2%}", found, peak, f"{seconds:.2f}"]


LARGE: dict[str, Callable[[], Dag]] = {
    "chain of 500, trained": lambda: checkmate.chain(500),
    "with skips": lambda: checkmate.chain(500, skip=5),
    "transformer, 50 blocks": lambda: checkmate.transformer(50),
    "u-net, 7 levels": lambda: checkmate.u_net(7, 36),
    "random, reach 30": lambda: checkmate.random_dag(1000, 0, 30),
    "random, reach 200": lambda: checkmate.random_dag(1000, 1, 200),
}


def large(quick: bool) -> Iterator[list[str]]:
    """Per graph: cost over that of running everything once, at budgets between least and most."""
    for name, make in list(LARGE.items())[: 3 if quick else None]:
        dag = make()
        begun = time.perf_counter()
        least, _, most = peaks(dag)
        seconds = time.perf_counter() - begun
        found = []
        for budget in checkmate.between(dag, least, most, (0.05, 0.1, 0.25, 0.5)):
            begun = time.perf_counter()
            try:
                recipe = rematerialize(dag, budget)
            except BudgetError:
                found.append("none")
            else:
                assert replay(dag, recipe.order) == (recipe.peak, recipe.cost)
                assert recipe.peak <= budget
                found.append(f"{recipe.cost / dag.least_cost:.3f}")
            seconds = max(seconds, time.perf_counter() - begun)
        yield [name, str(len(dag)), f"{least / most:.1%}", *found, f"{seconds:.1f}"]


def frontiers(quick: bool) -> Iterator[list[str]]:
    for name, make in list(LARGE.items())[: 3 if quick else None]:
        dag = make()
        begun = time.perf_counter()
        recipes = frontier(dag)
        seconds = time.perf_counter() - begun
        begun = time.perf_counter()
        bound, _ = order_bound(dag)
        bounding = time.perf_counter() - begun
        lowest = recipes[-1]
        yield [
            name,
            str(len(recipes)),
            f"{lowest.peak / recipes[0].peak:.1%}",
            f"{lowest.cost / dag.least_cost:.3f}",
            f"{seconds:.2f}",
            f"{bound / recipes[0].peak:.1%}",
            f"{bounding:.2f}",
        ]


TABLES: dict[str, tuple[str, tuple[str, ...], Callable[[bool], Iterator[list[str]]]]] = {
    "place": ("place", ("instance", "gap", "seconds"), placements),
    "programs": (
        "plans of training steps",
        ("program", "buffers", "gap", "of the plan", "seconds"),
        programs,
    ),
    "exact": (
        "rematerialize, random graphs, seven budgets each",
        ("graph", "proven", "over the bound", "over Checkmate's optimum", "least peak", "seconds"),
        exact,
    ),
    "large": (
        "rematerialize: cost over that of running each node once",
        ("graph", "nodes", "least peak", "5%", "10%", "25%", "50%", "seconds at most"),
        large,
    ),
    "frontier": (
        "frontier, and the bound over all orders of single runs",
        ("graph", "recipes", "lowest peak", "its cost", "seconds", "bound", "seconds"),
        frontiers,
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", action="append", choices=list(TABLES), help="repeatable")
    parser.add_argument("--quick", action="store_true", help="fewer instances")
    options = parser.parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 110)
    for name, (title, headings, rows) in TABLES.items():
        if options.only and name not in options.only:
            continue
        table = Table(title=title)
        for heading in headings:
            table.add_column(heading, justify="left" if heading == headings[0] else "right")
        for row in rows(options.quick):
            table.add_row(*row)
            print("  ".join(row), file=sys.stderr)
        console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
