"""Rematerialization within a budget: a DAG and bytes -> the cheapest order found, and a bound.

Invariant: a recipe returned keeps to the budget, as `replay` counts it, and no order within the
budget costs less than its bound.  Plain data: this knows nothing of the IR.

The problem, tensor rematerialization with a cost and a size for each node, and its integer
programme are those of Jain et al., "Checkmate: breaking the memory wall with optimal tensor
rematerialization" (MLSys 2020).  Their programme fixes the order in which nodes run for the first
time, and runs no node twice between two first runs; here both are free, so the optimum is theirs or
below.  Small graphs are solved exactly (`remat_exact`), large ones by heuristics: recomputation on
demand (`remat_search`) and the frontier of single recomputations (`frontier`).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import NoReturn

from retrograde.compiler.errors import BudgetError, DataError
from retrograde.compiler.plan.dag import Dag, Recipe, replay
from retrograde.compiler.plan.frontier import frontier
from retrograde.compiler.plan.lifetimes import whole
from retrograde.compiler.plan.remat_exact import MOST_NODES, cheapest, least_peak
from retrograde.compiler.plan.remat_search import base_orders, orders_within, trim

__all__ = ["Dag", "Recipe", "rematerialize", "replay"]

# What may be spent without a time limit: counts, not a clock, so that the same problem gets the
# same recipe every time.  A few seconds each.
_STATES = 120_000
_LOOKS = 1_800_000


def rematerialize(dag: Dag, budget: int, time_limit: float | None = None) -> Recipe:
    """The cheapest order of `dag` found whose peak is at most `budget` bytes.

    The peak counts what a running node reads and makes, and every value kept.  Values may be
    dropped after any run and made again any number of times; nodes may run in any order.

    With `time_limit` the search stops after about so many seconds, or sooner if it is done; without
    one the result is a function of the input alone.  Raises `BudgetError` if no order was found:
    its `minimum_bytes` can be had, with less than its `lower_bound_bytes` nothing can be done.
    """
    budget = whole(budget, "budget")
    if time_limit is not None and not time_limit >= 0:
        raise DataError(f"time_limit must be None or some seconds from 0 on, not {time_limit!r}")
    deadline = None if time_limit is None else time.perf_counter() + time_limit
    bases = base_orders(dag)
    if budget < dag.floor[0]:
        _refuse(dag, budget, bases, deadline)
    once = dag.least_cost
    best: Recipe | None = None
    for base in bases:
        best = _better(dag, budget, best, [base])
        if best is not None and best.cost <= once:
            return best
    for base in bases:
        if deadline is None or time.perf_counter() < deadline or best is None:
            recipes = frontier(dag, given_order=base)
            fitting = next((r for r in recipes if r.peak <= budget), None)
            if fitting is not None:
                best = _better(dag, budget, best, [trim(dag, fitting.order, budget)])
    small = len(dag.needed) <= MOST_NODES
    effort = _LOOKS // 8 if small else _LOOKS
    more = orders_within(dag, budget, bases, effort=effort, deadline=deadline)
    best = _better(dag, budget, best, more)
    if small:
        known = None if best is None else best.order
        states = _states(dag, deadline)
        found = cheapest(dag, budget, best=known, effort=states, deadline=deadline)
        if found.order is not None:
            peak, cost = replay(dag, found.order)
            bound = cost if found.exhausted else max(once, min(found.lower_bound, cost))
            best = Recipe(found.order, peak, cost, bound)
    if best is None:
        _refuse(dag, budget, bases, deadline)
    return best


def _better(
    dag: Dag, budget: int, best: Recipe | None, orders: Iterable[list[int]]
) -> Recipe | None:
    for order in orders:
        peak, cost = replay(dag, order)
        if peak <= budget and (best is None or (cost, peak) < (best.cost, best.peak)):
            best = Recipe(tuple(order), peak, cost, dag.least_cost)
    return best


def _states(dag: Dag, deadline: float | None) -> int:
    """How many states the exact search may meet; each takes time with the nodes."""
    return _STATES * 30 // max(30, len(dag.needed)) if deadline is None else 2**40


def _refuse(
    dag: Dag, budget: int, bases: Sequence[Sequence[int]], deadline: float | None
) -> NoReturn:
    """Raises, with the smallest peak that was found and the bound."""
    bound, node = dag.floor
    least = min(replay(dag, base)[0] for base in bases)
    for base in bases:
        least = min(least, frontier(dag, given_order=base)[-1].peak)
    if len(dag.needed) <= MOST_NODES:
        states = _states(dag, deadline)
        least, _, bound = least_peak(dag, least, effort=states, deadline=deadline)
    else:
        least = _squeezed(dag, bases, bound, least, deadline)
    where = f"node {node}" if node >= 0 else "holding the outputs"
    proof = (
        "no order needs less"
        if least == bound
        else f"no order needs less than {bound}, and whether one needs less than {least} is open"
    )
    raise BudgetError(
        f"no order was found within {budget} bytes: the smallest peak found is {least} bytes, "
        f"{proof}. The most that one run needs is {dag.floor[0]} bytes, for {where}. "
        f"Ask for a budget of {least} bytes or more",
        minimum_bytes=least,
        lower_bound_bytes=bound,
        operation=where,
    )


def _squeezed(
    dag: Dag, bases: Sequence[Sequence[int]], low: int, high: int, deadline: float | None
) -> int:
    """A small peak that recomputation on demand keeps to, by halving the range."""
    for _ in range(8):
        if low >= high or (deadline is not None and time.perf_counter() > deadline):
            break
        probe = (low + high) // 2
        orders = orders_within(dag, probe, bases, effort=_LOOKS // 3, deadline=deadline)
        found = next((replay(dag, order)[0] for order in orders), None)
        if found is None:
            low = probe + 1
        else:
            high = found
    return high
