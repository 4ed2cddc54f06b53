"""Rematerialization: orders that replay within the budget, optimal where it says so."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import checkmate
from retrograde.compiler.errors import BudgetError, DataError
from retrograde.compiler.plan.order_bound import order_bound
from retrograde.compiler.plan.remat import Dag, rematerialize, replay
from retrograde.compiler.plan.remat_exact import cheapest, least_peak
from retrograde.compiler.plan.remat_search import OnDemand, base_orders, trim
from tests.compiler.plan.small_dags import dags, least_cost, peak_and_cost, single_runs


def everything(dag: Dag) -> int:
    """The peak of running each node once."""
    return replay(dag, [i for i in dag.topological if i in dag.needed])[0]


def least_budget(dag: Dag) -> int:
    with pytest.raises(BudgetError) as caught:
        rematerialize(dag, 0)
    assert caught.value.minimum_bytes is not None
    return caught.value.minimum_bytes


@settings(max_examples=60, deadline=None)
@given(dags(), st.data())
def test_replay_is_the_definition(dag: Dag, data: st.DataObject) -> None:
    order = [i for i in dag.topological if i in dag.needed]
    for again in data.draw(st.lists(st.integers(0, max(len(order) - 1, 0)), max_size=3)):
        order = order[: again + 1] + order[again : again + 1] + order[again + 1 :]
    assert replay(dag, order) == peak_and_cost(dag, tuple(order))


@settings(max_examples=120, deadline=None)
@given(dags(), st.data())
def test_against_every_set_of_live_values(dag: Dag, data: st.DataObject) -> None:
    budget = data.draw(st.integers(0, everything(dag)))
    least = least_cost(dag, budget)
    if least is None:
        with pytest.raises(BudgetError) as caught:
            rematerialize(dag, budget)
        assert caught.value.lower_bound_bytes == caught.value.minimum_bytes > budget
        assert least_cost(dag, caught.value.minimum_bytes) is not None
        assert least_cost(dag, caught.value.minimum_bytes - 1) is None
        return
    recipe = rematerialize(dag, budget)
    assert recipe.optimal and recipe.cost == recipe.lower_bound == least
    assert peak_and_cost(dag, recipe.order) == (recipe.peak, recipe.cost)
    assert recipe.peak <= budget


@pytest.mark.parametrize("seed", range(3))
def test_no_dearer_than_the_integer_programme(seed: int) -> None:
    """And below it where another order of first runs helps, or a node twice between two of them."""
    dag = checkmate.random_dag(9, seed, reach=5)
    low, high = least_budget(dag), everything(dag)
    for budget in checkmate.between(dag, low, high, (0.5,)):
        recipe = rematerialize(dag, budget)
        solved = checkmate.optimum(dag, budget)
        if solved is not None:
            assert recipe.cost <= solved[0] + 1e-6
    solved = checkmate.optimum(dag, high)
    assert solved is not None and solved[0] == pytest.approx(rematerialize(dag, high).cost)
    assert checkmate.optimum(dag, low - 1) is None


@pytest.mark.parametrize(("seed", "reach"), [(0, None), (2, 8)])
def test_thirty_nodes_are_solved_at_every_budget(seed: int, reach: int | None) -> None:
    dag = checkmate.random_dag(30, seed, reach)
    low, high = least_budget(dag), everything(dag)
    costs = []
    for budget in checkmate.between(dag, low, high, (0, 0.1, 0.3, 0.6, 1)):
        recipe = rematerialize(dag, budget)
        assert recipe.optimal and recipe.peak <= budget
        assert replay(dag, recipe.order) == (recipe.peak, recipe.cost)
        costs.append(recipe.cost)
    assert costs == sorted(costs, reverse=True)
    assert costs[0] > costs[-1] == dag.least_cost


def test_below_the_minimum_is_refused_with_a_proof() -> None:
    dag = checkmate.random_dag(30, 0)
    least = least_budget(dag)
    assert rematerialize(dag, least).peak == least > dag.floor[0]
    with pytest.raises(BudgetError, match=f"{least} bytes, no order needs less") as caught:
        rematerialize(dag, least - 1)
    assert caught.value.minimum_bytes == caught.value.lower_bound_bytes == least
    assert caught.value.operation == "holding the outputs"  # what takes the most there


def test_a_chain_by_hand() -> None:
    """a -> b -> c -> d, and d also reads a: b is needed for c alone, a for b and d."""
    dag = Dag([3, 5, 7, 1], [10, 10, 10, 1], [(0, 1), (1, 2), (2, 3), (0, 3)], [3])
    assert rematerialize(dag, 30).order == (0, 1, 2, 3)
    tight = rematerialize(dag, 29)  # while c is made, a is not there
    assert (tight.order, tight.peak, tight.cost) == ((0, 1, 2, 0, 3), 21, 19)
    assert str(tight) == "5 runs, 21 bytes, cost 19 (optimal)"
    with pytest.raises(BudgetError, match="21 bytes, no order needs less"):
        rematerialize(dag, 20)


LARGE: dict[str, Callable[[], Dag]] = {
    "chain": lambda: checkmate.chain(150),
    "skips": lambda: checkmate.chain(150, skip=4),
    "transformer": lambda: checkmate.transformer(15),
    "u-net": lambda: checkmate.u_net(5, 15),
    "random": lambda: checkmate.random_dag(300, 3, 20),
}


@pytest.mark.parametrize("name", LARGE)
def test_large_graphs_replay_within_the_budget(name: str) -> None:
    dag = LARGE[name]()
    high = everything(dag)
    least = min(replay(dag, base)[0] for base in base_orders(dag))
    for part in (0.25, 0.75):
        budget = int(dag.floor[0] + part * (least - dag.floor[0]))
        if name == "random" and part < 0.5:
            continue
        recipe = rematerialize(dag, budget)
        assert replay(dag, recipe.order) == (recipe.peak, recipe.cost)
        assert recipe.peak <= budget < high
        assert recipe.lower_bound <= recipe.cost <= 1.45 * dag.least_cost


def test_the_time_limit_is_kept() -> None:
    dag = checkmate.chain(400, skip=4)
    begun = time.perf_counter()
    recipe = rematerialize(dag, everything(dag) // 3, time_limit=0.5)
    assert time.perf_counter() - begun < 6  # generous: other work may share the machine
    assert replay(dag, recipe.order)[0] == recipe.peak <= everything(dag) // 3


def test_same_input_same_recipe() -> None:
    dag = checkmate.transformer(4)
    budget = everything(dag) // 2
    assert rematerialize(dag, budget) == rematerialize(dag, budget)


@settings(max_examples=60, deadline=None)
@given(dags(most=9), st.data())
def test_orders_on_demand_keep_to_the_budget(dag: Dag, data: st.DataObject) -> None:
    budget = data.draw(st.integers(dag.floor[0], max(dag.floor[0], everything(dag))))
    powers = data.draw(st.sampled_from([(1.0, 1.0), (0.3, 0.0)]))
    for base in base_orders(dag):
        order = OnDemand(dag, base, budget, *powers).run(100_000)
        if order is not None:
            peak, cost = replay(dag, order)
            assert peak <= budget
            trimmed_peak, trimmed_cost = replay(dag, trim(dag, order, budget))
            assert trimmed_peak <= budget and trimmed_cost <= cost


def test_trimming_takes_back_what_there_was_room_for() -> None:
    dag = checkmate.chain(6)
    order = [i for i in dag.topological for _ in range(2)]
    assert replay(dag, order)[1] == 2 * dag.least_cost
    assert replay(dag, trim(dag, order, everything(dag)))[1] == dag.least_cost


def test_a_search_that_is_cut_short_claims_no_more_than_it_knows() -> None:
    dag = checkmate.random_dag(30, 0)
    budget = 96
    optimum = rematerialize(dag, budget)
    assert optimum.optimal
    for effort in (1, 200, 600):
        found = cheapest(dag, budget, effort=effort)
        assert found.lower_bound <= optimum.cost and not found.exhausted
        assert found.order is None or found.cost >= optimum.cost
        least, _, bound = least_peak(dag, everything(dag), effort=effort)
        assert bound <= 95 <= least


# --- bounds over all orders


@settings(max_examples=80, deadline=None)
@given(dags(most=6))
def test_no_order_is_below_the_bound(dag: Dag) -> None:
    bound, node = order_bound(dag)
    peaks = [replay(dag, order)[0] for order in single_runs(dag)]
    assert bound <= min(peaks)
    assert node == -1 or node in dag.needed
    free, _ = order_bound(dag, recompute=True)
    assert dag.floor[0] <= free <= bound
    assert not dag.outputs or least_cost(dag, free - 1) is None


def test_the_bound_counts_what_passes_by() -> None:
    """A chain that comes back to each of its values: all of them are there at the turn."""
    dag = checkmate.chain(20)
    assert order_bound(dag)[0] == everything(dag) > 10 * dag.floor[0] / 4
    assert order_bound(dag, recompute=True)[0] < everything(dag) / 4


def test_the_bound_is_quick_on_large_graphs() -> None:
    dag = checkmate.transformer(50)
    begun = time.perf_counter()
    bound, _ = order_bound(dag)
    assert time.perf_counter() - begun < 3  # generous: other work may share the machine
    assert bound <= min(replay(dag, base)[0] for base in base_orders(dag))


# --- what is refused, and what is not


@pytest.mark.parametrize(
    ("cost", "size", "edges", "outputs", "says"),
    [
        ([1], [1, 2], [], [0], "1 costs were given, and 2 sizes"),
        ([1, -1], [1, 2], [], [0], r"cost\[1\] must be finite and at least 0"),
        ([1, float("nan")], [1, 2], [], [0], r"cost\[1\] must be finite"),
        ([1, "a"], [1, 2], [], [0], r"cost\[1\] must be a number"),
        ([1, 1], [1, 2.5], [], [0], r"size\[1\] must be an integer"),
        ([1, 1], [1, -2], [], [0], r"size\[1\]=-2"),
        ([1, 1], [1, 2], [(0, 2)], [0], "an edge names node 2; there are 2"),
        ([1, 1], [1, 2], [(0, 1)], [5], "an output names node 5"),
        ([1, 1], [1, 2], [(0, 1), (1, 0)], [1], "cycle"),
        ([1, 1], [2**59, 2**60], [], [1], "add up to more"),
    ],
)
def test_bad_graphs_are_refused(
    cost: list[float], size: list[int], edges: list[tuple[int, int]], outputs: list[int], says: str
) -> None:
    with pytest.raises(DataError, match=says):
        Dag(cost, size, edges, outputs)


def test_bad_orders_are_refused() -> None:
    dag = Dag([1, 1], [1, 1], [(0, 1)], [1])
    for order, says in (([1], "never ran"), ([0], "never made"), ([0, 2], "node 2; there are 2")):
        with pytest.raises(DataError, match=says):
            replay(dag, order)
    with pytest.raises(DataError, match="budget must be an integer"):
        rematerialize(dag, 1.5)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="time_limit"):
        rematerialize(dag, 5, time_limit=-1)


def test_what_is_not_needed_does_not_run() -> None:
    dag = Dag([1, 2, 4], [1, 9, 1], [(0, 1), (0, 2)], [2])
    assert rematerialize(dag, 2).order == (0, 2)
    empty = Dag([], [], [], [])
    assert rematerialize(empty, 0).order == () and rematerialize(empty, 0).optimal


def test_numbers_of_numpy_and_fractions_are_costs() -> None:
    dag = Dag(np.array([0.5, 0.25]), np.array([3, 4]), [(0, 1)], [1])
    assert rematerialize(dag, 7).cost == 0.75
