"""Computing values again: what the pass makes of an order with repeats, and of which orders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import retrograde as rg
import retrograde.numpy as rnp
from retrograde.compiler.ir.graph import Graph
from retrograde.compiler.ir.interpreter import evaluate
from retrograde.compiler.ir.verify import verify
from retrograde.compiler.passes.dce import DCE
from retrograde.compiler.passes.expand import Expand
from retrograde.compiler.passes.group import Group
from retrograde.compiler.passes.remat import Remat
from retrograde.compiler.plan.min_cut import Network
from retrograde.compiler.plan.recomputing import Recomputing
from retrograde.compiler.plan.save_sets import everything, keeping, least
from retrograde.compiler.plan.schedule import Order
from retrograde.compiler.plan.units import Units, find_units

SIZES = {"B": 13}


def two_layers(w: Any, u: Any, x: Any) -> Any:
    h = rnp.tanh(x @ w)
    h = rnp.exp(-h * h) + h
    return rnp.sum(rnp.sin(h @ u) ** 2)


def graph() -> Graph:
    specs = rg.spec("f32", 8, 24), rg.spec("f32", 24, 5), rg.spec("f32", "B", 8)
    return DCE()(Expand()(rg.trace(rg.grad(two_layers, (0, 1)), *specs)))


def units_of(traced: Graph) -> Units:
    return find_units(traced, Order(SIZES)(Group(native=True)(traced)), SIZES, True)


def numbers(traced: Graph) -> list[Any]:
    rng = np.random.default_rng(0)
    shapes = (8, 24), (24, 5), (13, 8)
    return list(evaluate(traced, [rng.normal(size=s).astype("f4") for s in shapes]))


def test_golden(golden: Callable[[str, str], None]) -> None:
    traced = graph()
    units = units_of(traced)
    made = Remat(units.units, keeping(units, ()))(traced)
    verify(made)
    golden("passes/remat.ir", made.text())
    for a, b in zip(numbers(traced), numbers(made), strict=True):
        assert np.array_equal(a, b)


def test_no_later_pass_merges_a_recomputation_back() -> None:
    from retrograde.compiler.passes.cse import CSE

    traced = CSE()(graph())
    units = units_of(traced)
    made = Remat(units.units, keeping(units, ()))(traced)
    again = [n for n in made.nodes if n.origin.made_by == "remat"]
    assert again and all(n.origin.role == "recompute" for n in again)
    assert len(CSE()(made).nodes) == len(made.nodes)


def test_the_cut_keeps_products_and_not_what_follows_from_them() -> None:
    units = units_of(graph())
    kept = least(units)
    assert sum(units.bytes[i] for i in kept) < sum(units.bytes[i] for i in everything(units))
    assert {units.units[i].nodes[-1].op.name for i in kept} == {"dot_general"}


def test_ways_under_a_budget_fall_in_peak() -> None:
    traced = graph()
    found = Recomputing(traced, Order(SIZES)(Group(native=True)(traced)), SIZES, True)
    peaks = [way.peak for way in found.under_budget(None)]
    assert peaks == sorted(peaks, reverse=True)
    for way in found.under_budget(None):
        made = way.transform(traced)
        verify(made)
        for a, b in zip(numbers(traced), numbers(made), strict=True):
            assert np.array_equal(a, b)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 14))
def test_cuts_are_as_small_as_those_of_networkx(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    network, oracle = Network(count), nx.DiGraph()
    oracle.add_nodes_from(range(count))
    capacity = np.zeros((count, count), object)
    for a, b in rng.integers(0, count, (3 * count, 2)).tolist():
        if a != b:
            room = int(rng.integers(0, 2**40))
            network.add(a, b, room)
            capacity[a, b] += room
    for a, b in zip(*np.nonzero(capacity), strict=True):
        oracle.add_edge(int(a), int(b), capacity=int(capacity[a, b]))
    flow, near = network.cut(0, count - 1)
    assert flow == nx.minimum_cut_value(oracle, 0, count - 1)
    assert 0 in near and count - 1 not in near
    across = sum(int(capacity[a, b]) for a in near for b in range(count) if b not in near)
    assert across == flow


def test_what_prints_is_not_run_again(capsys: pytest.CaptureFixture[str]) -> None:
    def loss(w: Any, x: Any) -> Any:
        h = rnp.tanh(x @ w)
        rg.debug.print("{}", rnp.sum(h))
        return rnp.sum(rnp.exp(-h * h) @ w.T)

    specs = rg.spec("f32", 8, 24), rg.spec("f32", "B", 8)
    step = rg.compile(rg.grad(loss), *specs, at={"B": 50}, budget="1GiB", backend="numpy")
    rng = np.random.default_rng(1)
    w, x = rng.normal(size=(8, 24)).astype("f4"), rng.normal(size=(50, 8)).astype("f4")
    for recipe in step._runnable().recipes:
        printed = [n for n in recipe.stages["order"].nodes if n.op.effect == "debug"]
        assert len(printed) == 1
    step(w, x)
    assert capsys.readouterr().out.count("\n") == 1
