"""The frontier of single recomputations: monotone, replayed, and in the base order."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import checkmate
from retrograde.compiler.errors import DataError
from retrograde.compiler.plan.dag import Dag, Recipe, replay
from retrograde.compiler.plan.frontier import frontier, pareto
from tests.compiler.plan.small_dags import dags


def assert_frontier(dag: Dag, recipes: list[Recipe], scratch: list[int] | None = None) -> None:
    for recipe in recipes:
        assert replay(dag, recipe.order, scratch) == (recipe.peak, recipe.cost)
        assert max((recipe.order.count(i) for i in recipe.order), default=0) <= 2
        first = list(dict.fromkeys(recipe.order))
        assert first == list(dict.fromkeys(recipes[0].order))
    for cheap, dear in itertools.pairwise(recipes):
        assert cheap.peak > dear.peak and cheap.cost < dear.cost


@settings(max_examples=100, deadline=None)
@given(dags(most=9), st.data())
def test_every_frontier_is_sound(dag: Dag, data: st.DataObject) -> None:
    count = len(dag)
    scratch = data.draw(st.lists(st.integers(0, 9), min_size=count, max_size=count))
    nodes = st.sets(st.integers(0, count - 1))
    pinned, group = data.draw(nodes), data.draw(nodes)
    recipes = frontier(dag, scratch=scratch, pinned=pinned, groups=[sorted(group)])
    assert_frontier(dag, recipes, scratch)
    assert recipes[0].cost == dag.least_cost
    assert all(recipe.order.count(i) <= 1 for recipe in recipes for i in pinned)


def test_a_trained_chain_goes_down_to_about_a_root_of_it() -> None:
    """64 layers of 10 bytes: segments of eight take about 16 values, at one more forward pass."""
    dag = checkmate.chain(64)
    recipes = frontier(dag)
    assert_frontier(dag, recipes)
    assert recipes[0].peak == 65 * 10
    assert recipes[-1].peak <= 220
    assert recipes[-1].cost <= dag.least_cost * 4 / 3
    assert len(recipes) > 20
    half = next(r for r in recipes if r.peak <= 330)
    assert half.cost <= dag.least_cost * 1.2


@pytest.mark.parametrize("blocks", [4, 24])
def test_a_transformer_halves_for_little(blocks: int) -> None:
    dag = checkmate.transformer(blocks)
    recipes = frontier(dag)
    assert_frontier(dag, recipes)
    half = next(r for r in recipes if r.peak <= recipes[0].peak * 0.55)
    assert half.cost <= 1.1 * dag.least_cost
    assert recipes[-1].peak < 0.45 * recipes[0].peak


def test_groups_move_together() -> None:
    """Of equal blocks the first ones go first, and none is passed over."""
    dag = checkmate.transformer(8)
    wide = [i for i in range(len(dag) // 2) if dag.size[i] == 16]
    groups = [wide[0::2], wide[1::2]]
    recipes = frontier(dag, groups=groups)
    assert_frontier(dag, recipes)
    parts = set()
    for recipe in recipes:
        for group in groups:
            twice = [i for i in group if recipe.order.count(i) == 2]
            assert twice == group[: len(twice)]
            parts.add(len(twice))
    assert len(parts) > 4 and max(parts) == 8


def test_a_given_order_is_kept() -> None:
    dag = checkmate.random_dag(40, 5, 10)
    order = sorted(range(40), key=lambda i: (len([a for a, b in dag.edges if b == i]) > 0, i))
    recipes = frontier(dag, given_order=order)
    assert list(recipes[0].order) == order
    assert_frontier(dag, recipes)


def test_bad_given_orders_are_refused() -> None:
    dag = Dag([1, 1, 1], [1, 1, 1], [(0, 1), (1, 2)], [2])
    for order, says in (
        ([1, 0, 2], "runs node 1 where it cannot"),
        ([0, 0, 1, 2], "runs node 0 where it cannot"),
        ([0, 1], "leaves out node 2"),
        ([0, 1, 2, 3], "runs node 3"),
    ):
        with pytest.raises(DataError, match=says):
            frontier(dag, given_order=order)


def test_pareto_keeps_what_nothing_beats() -> None:
    points = [(10, 5.0), (9, 5.0), (9, 6.0), (12, 4.0), (8, 6.0), (8, 7.0)]
    kept = pareto(Recipe((), peak, cost, 0.0) for peak, cost in points)
    assert [(r.peak, r.cost) for r in kept] == [(12, 4.0), (9, 5.0), (8, 6.0)]
