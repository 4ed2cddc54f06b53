"""Orders: data flow, effects, reads of state before its update, checks before updates; a peak that
is not above that of the order of the program."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.graph import Graph, same_type
from retrograde.compiler.ir.verify import verify
from retrograde.compiler.ops.region import effects_of
from retrograde.compiler.passes.expand import Expand
from retrograde.compiler.pipeline import compile_graph
from retrograde.compiler.plan.schedule import Order, may_refuse, peak_of
from tests.compiler.passes.harness import same_numbers, written
from tests.device.random_graphs import RandomGraph

SIZES = {"B": 4, "T": 6}


def with_updates(seed: int, steps: int) -> Graph:
    """A random graph with prints in between, some inputs of which are replaced."""
    from retrograde.compiler.ir.registry import lookup

    chance = random.Random(seed)

    class Noisy(RandomGraph):
        def step(self) -> None:
            super().step()
            if chance.random() < 0.2:
                lookup("debug_print")(self.pool[-1], format="{}")

    made = Noisy(chance.randrange, dtypes.f64, steps)
    graph = made.graph
    outputs, aliases = list(graph.outputs), []
    for i, v in enumerate(graph.inputs):
        fits = [e.value for e in made.pool if same_type(e.type, v.type)]
        if any(isinstance(d, dims.Poly) for d in v.shape) or not fits:
            continue
        outputs.append(chance.choice(fits))
        aliases.append((len(outputs) - 1, i))
    return Expand()(graph.replace(outputs=tuple(outputs), aliases=tuple(aliases)))


@given(seed=st.integers(0, 2**32 - 1), steps=st.integers(3, 30))
def test_order_keeps_every_rule(seed: int, steps: int) -> None:
    before = with_updates(seed, steps)
    after = Order(SIZES)(before)
    verify(after, before=before)
    assert sorted(n.id for n in after.nodes) == sorted(n.id for n in before.nodes)
    effects = [n.id for n in before.nodes if effects_of(n)]
    assert [n.id for n in after.nodes if effects_of(n)] == effects
    place = {n: i for i, n in enumerate(after.nodes)}
    producers = after.producers()
    depends = _dependents(after)
    updates = {producers[after.outputs[o]]: after.inputs[i] for o, i in after.aliases
               if after.outputs[o] in producers}  # fmt: skip
    for update, state in updates.items():
        below = depends[update]
        for n in after.nodes:
            must = state in n.inputs or may_refuse(n)
            if n is update or n in below or not must:
                continue
            later = [u for u in updates if u is not update and n in depends[u] | {u}]
            assert place[n] < place[update] or later, "another update must come first"
    assert peak_of(after, SIZES) <= peak_of(before, SIZES) or updates


def _dependents(graph: Graph) -> dict:  # type: ignore[type-arg]
    """For each node all nodes that depend on it."""
    users = graph.users()
    found: dict = {}  # type: ignore[type-arg]
    for n in reversed(graph.nodes):
        direct = [u for v in n.outputs for u in users.get(v, ())]
        found[n] = set(direct).union(*(found[u] for u in direct))
    return found


def test_order_lowers_the_peak() -> None:
    """Two wide values that are reduced at once must not live together."""
    text = """(%0: f64[8]) {
      %1: f64[1000,8] = broadcast_to %0 {shape=(1000,8)}
      %2: f64[1000,8] = exp %1
      %3: f64[1000,8] = sin %1
      %4: f64[1000,8] = tanh %1
      %5: f64[8] = sum %2 {axes=(0,), keepdims=False}
      %6: f64[8] = sum %3 {axes=(0,), keepdims=False}
      %7: f64[8] = sum %4 {axes=(0,), keepdims=False}
      %8: f64[8] = add %5, %6
      %9: f64[8] = add %8, %7
      return %9 }"""
    before = written(text)
    after = Order({})(before)
    assert peak_of(before, {}) == 3 * 64_000 + 64
    assert peak_of(after, {}) == 64_000 + 2 * 64
    same_numbers(before, after)


def test_what_grows_memory_waits_for_its_reader() -> None:
    """%4 would be ready from the start; until %8 reads it another wide value comes and goes."""
    text = """(%0: f64[1000,8], %1: f64[8]) {
      %2: f64[1000,8] = exp %0
      %3: f64[1000,8] = broadcast_to %1 {shape=(1000,8)}
      %4: f64[1000,8] = sin %3
      %5: f64[1000,8] = tanh %2
      %6: f64[8] = sum %5 {axes=(0,), keepdims=False}
      %7: f64[1000,8] = broadcast_to %6 {shape=(1000,8)}
      %8: f64[1000,8] = sub %2, %7
      %9: f64[1000,8] = mul %8, %4
      %10: f64[8] = sum %9 {axes=(0,), keepdims=False}
      return %10 }"""
    before = written(text)
    after = Order({})(before)
    assert [n.op.name for n in after.nodes if n.op.name in ("sin", "sum", "mul")] == [
        "sum", "sin", "mul", "sum",
    ]  # fmt: skip
    assert compile_graph(before).planned.placement.lower_bound < 3 * 64_000
    same_numbers(before, after)


def test_effects_in_loops_keep_their_place() -> None:
    text = """(%0: f64[3], %1: f64[T,3], %2: f64[100,100]) {
      %3: f64[100,100] = exp %2
      = debug_print %3 {format="first {}"}
      %4: f64[3] = scan %0, %1 {
        body=graph body(%0: f64[3], %1: f64[3]) {
          %2: f64[3] = add %0, %1
          = debug_print %2 {format="turn {}"}
          return %2
        }, carries=1, length=dim(T), reverse=False, slices=1}
      %5: f64[3] = neg %0
      = debug_print %5 {format="last {}"}
      return %4 }"""
    before = written(text)
    after = Order(SIZES)(before)
    kept = [n for n in after.nodes if effects_of(n)]
    assert [n.op.name for n in kept] == ["debug_print", "scan", "debug_print"]
    assert [n.attrs["format"] for n in (kept[0], kept[2])] == ["first {}", "last {}"]
