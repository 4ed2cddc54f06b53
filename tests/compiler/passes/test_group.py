"""Groups of elementwise chains: convex, of one phase, over one space; the same bits as before."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.builder import Builder
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.graph import Graph, Node, Origin, TensorType, same_shape
from retrograde.compiler.ir.registry import Kind
from retrograde.compiler.ir.registry import lookup as op
from retrograde.compiler.ir.verify import verify
from retrograde.compiler.passes.expand import Expand
from retrograde.compiler.passes.group import Group
from retrograde.compiler.passes.spaces import sums_rows, wider
from tests.compiler.passes.harness import becomes, names, plain, same_numbers, written

GROUPS = {
    "a chain": (
        """(%0: f32[B,4], %1: f32[4]) {
          %2: f32[B,4] = add %0, %1
          %3: f32[B,4] = tanh %2
          %4: f32[B,4] = mul %3, %0
          return %4 }""",
        """(%0: f32[B,4], %1: f32[4]) {
          %2: f32[B,4] = fused %0, %1 {shape=(dim(B),4),
            body=graph fused(%0: f32[B,4], %1: f32[4]) {
              %2: f32[B,4] = add %0, %1
              %3: f32[B,4] = tanh %2
              %4: f32[B,4] = mul %3, %0
              return %4
            }}
          return %2 }""",
    ),
    "rows and what is spread over them": (
        """(%0: f64[B,4]) {
          %1: f64[B,1] = max %0 {axes=(1,), keepdims=True}
          %2: f64[B,4] = sub %0, %1
          %3: f64[B,4] = exp %2
          %4: f64[B,1] = sum %3 {axes=(1,), keepdims=True}
          %5: f64[B,4] = div %3, %4
          return %5, %1 }""",
        """(%0: f64[B,4]) {
          %1: f64[B,1], %2: f64[B,4] = fused %0 {shape=(dim(B),4),
            body=graph fused(%0: f64[B,4]) {
              %1: f64[B,1] = max %0 {axes=(1,), keepdims=True}
              %2: f64[B,4] = sub %0, %1
              %3: f64[B,4] = exp %2
              %4: f64[B,1] = sum %3 {axes=(1,), keepdims=True}
              %5: f64[B,4] = div %3, %4
              return %1, %5
            }}
          return %2, %1 }""",
    ),
    "a path that leaves and comes back": (
        """(%0: f64[B,4]) {
          %1: f64[B,4] = exp %0
          %2: f64[B,4] = sort %1 {axis=0, descending=False}
          %3: f64[B,4] = tanh %2
          %4: f64[B,4] = add %3, %1
          return %4 }""",
        """(%0: f64[B,4]) {
          %1: f64[B,4] = exp %0
          %2: f64[B,4] = sort %1 {axis=0, descending=False}
          %3: f64[B,4] = fused %2, %1 {shape=(dim(B),4),
            body=graph fused(%0: f64[B,4], %1: f64[B,4]) {
              %2: f64[B,4] = tanh %0
              %3: f64[B,4] = add %2, %1
              return %3
            }}
          return %3 }""",
    ),
    "two phases": (
        """(%0: f64[B,4]) {
          %1: f64[B,4] = exp %0
          %2: f64[B,4] = tanh %1
          %3: f64[B,4] = neg %2   # <cotangent>
          %4: f64[B,4] = mul %3, %1   # <cotangent>
          %5: f64[B,4] = sin %4   # <update>
          return %5 }""",
        """(%0: f64[B,4]) {
          %1: f64[B,4], %2: f64[B,4] = fused %0 {shape=(dim(B),4),
            body=graph fused(%0: f64[B,4]) {
              %1: f64[B,4] = exp %0
              %2: f64[B,4] = tanh %1
              return %1, %2
            }}
          %3: f64[B,4] = fused %2, %1 {shape=(dim(B),4),
            body=graph fused(%0: f64[B,4], %1: f64[B,4]) {
              %2: f64[B,4] = neg %0
              %3: f64[B,4] = mul %2, %1
              return %3
            }}
          %4: f64[B,4] = sin %3
          return %4 }""",
    ),
    "two chains that meet": (
        """(%0: f64[B,4], %1: f64[B,4]) {
          %2: f64[B,4] = exp %0
          %3: f64[B,4] = sin %1
          %4: f64[B,4] = add %2, %3
          return %4 }""",
        """(%0: f64[B,4], %1: f64[B,4]) {
          %2: f64[B,4] = fused %0, %1 {shape=(dim(B),4),
            body=graph fused(%0: f64[B,4], %1: f64[B,4]) {
              %2: f64[B,4] = exp %0
              %3: f64[B,4] = sin %1
              %4: f64[B,4] = add %2, %3
              return %4
            }}
          return %2 }""",
    ),
}
ALONE = {
    "scalars": """(%0: f64[]) {
          %1: f64[] = exp %0
          %2: f64[] = sin %1
          return %2 }""",
    "other spaces": """(%0: f64[B,4], %1: f64[T,B,4]) {
          %2: f64[B,4] = exp %0
          %3: f64[T,B,4] = add %1, %2
          return %3 }""",
    "columns are no rows": """(%0: f64[B,4]) {
          %1: f64[B,4] = exp %0
          %2: f64[1,4] = sum %1 {axes=(0,), keepdims=True}
          return %2 }""",
    "a sum that changes the type": """(%0: i8[B,4]) {
          %1: i8[B,4] = neg %0
          %2: i32[B,1] = sum %1 {axes=(1,), keepdims=True}
          return %2 }""",
}


@pytest.mark.parametrize("name", GROUPS)
def test_group(name: str) -> None:
    becomes(Group(), *GROUPS[name])


@pytest.mark.parametrize("name", ALONE)
def test_alone(name: str) -> None:
    graph = written(ALONE[name])
    found = Group()(graph)
    assert found.nodes == graph.nodes and plain(found) == plain(graph)


REFUSED = {
    "other spaces": ["another space"],
    "columns are no rows": ["read by sum"],
    "a sum that changes the type": ["read by sum"],
    "scalars": [],
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_stays_apart_has_a_reason(name: str) -> None:
    found = Group()(written(ALONE[name]))
    assert [r.reason for r in found.refusals] == REFUSED[name]


def tangle(seed: int, count: int) -> Graph:
    """A random graph of elementwise ops, row sums and barriers in three phases."""
    chance = random.Random(seed)
    builder = Builder("tangle", Expr)
    B = dims.dim("B")
    with builder:
        pool = [builder.input(TensorType(dtypes.f64, s)) for s in ((B, 4), (B, 1), (4,), (B, 3))]
        for i in range(count):
            x = pool[max(chance.randrange(len(pool)), chance.randrange(len(pool)))]
            role = ("primal", "cotangent", "recompute", "update")[min(3, 4 * i // count)]
            with builder.located(None, "", Origin(role)):
                pool.append(_one(chance, pool, x))
        outputs = [pool[-1], *chance.sample(pool, min(4, len(pool)))]
    return builder.finish([e.value for e in outputs])


def _one(chance: random.Random, pool: list[Expr], x: Expr) -> Expr:
    kind = chance.randrange(10)
    out: Expr
    if kind < 2 and x.ndim == 2:
        out = op("sum")(op("sin")(x), axes=(1,), keepdims=True)
    elif kind == 2 and x.ndim == 2 and chance.random() < 0.5:
        out = op("sort")(x, axis=0)
    elif kind == 2 and x.ndim == 2:
        out = op("sum")(op("sin")(x), axes=(0,), keepdims=chance.random() < 0.5)
    elif kind < 8:
        fits = [y for y in pool if y.ndim <= x.ndim and _stretches(y, x)]
        out = op("add")(x, chance.choice(fits))
        out = op("sin")(out) if kind == 3 else out
    else:
        out = op("tanh")(x)
    return out


def _stretches(y: Expr, x: Expr) -> bool:
    pairs = zip(reversed(y.shape), reversed(x.shape), strict=False)
    return all(dims.same(a, b) or dims.same(a, 1) for a, b in pairs)


@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(3, 60),
    window=st.sampled_from((2, 5, 48)),
    largest=st.sampled_from((2, 3, 7, 40)),
    native=st.booleans(),
)
def test_groups_are_valid(
    seed: int, count: int, window: int, largest: int, native: bool
) -> None:
    before = Expand()(tangle(seed, count))
    after = Group(window, largest, native)(before)
    verify(after)  # every operand is defined before it is used: no group is part of a cycle
    same_numbers(before, after, seeds=range(1))
    inside = [n for g in after.nodes if g.op.name == "fused" for n in g.attrs["body"].nodes]
    outside = [n for n in after.nodes if n.op.name != "fused"]
    assert sorted(n.id for n in (*inside, *outside)) == sorted(n.id for n in before.nodes)
    for group in after.nodes:
        if group.op.name == "fused":
            check_group(group, largest, native)


def check_group(group: Node, largest: int, native: bool) -> None:
    body: Graph = group.attrs["body"]
    alone = native and sums_rows(body.nodes[0])  # so that a sum is one kernel wherever it stands
    assert (1 if alone else 2) <= len(body.nodes) <= largest
    phases = {{"recompute": "cotangent"}.get(n.origin.role, n.origin.role) for n in body.nodes}
    assert len(phases) == 1 or (native and phases == {"primal", "cotangent"})
    sums = {n.output for n in body.nodes if sums_rows(n)}
    assert native or not sums
    assert all(sums.isdisjoint(n.inputs) for n in body.nodes)
    full = group.attrs["shape"]
    for n in body.nodes:
        space = n.inputs[0].shape if n.op.kind is Kind.REDUCE else n.output.shape
        assert same_shape(wider(full, space) or (), full)


def test_groups_keep_their_growth_in_bounds() -> None:
    """A chain of 100 is cut into groups of at most 40."""
    builder = Builder("long", Expr)
    with builder:
        x = y = builder.input(TensorType(dtypes.f64, (7, 4)))
        for _ in range(100):
            y = op("tanh")(y + x)
    graph = builder.finish([y.value])
    after = Group()(graph)
    assert names(after) == ["fused"] * 5
    assert all(len(n.attrs["body"].nodes) == 40 for n in after.nodes)


def test_effects_stay_in_order_around_groups() -> None:
    text = """(%0: f64[B,4], %1: f64[B,4]) {
      %2: f64[B,4] = exp %0
      = debug_print %2 {format="a {}"}
      %3: f64[B,4] = sin %1
      = debug_print %3 {format="b {}"}
      %4: f64[B,4] = add %2, %3
      %5: f64[B,4] = mul %4, %0
      = debug_print %5 {format="c {}"}
      return %5 }"""
    after = Group()(written(text))
    assert [n.attrs["format"][0] for n in after.nodes if n.op.name == "debug_print"] == list("abc")
    verify(after)


APART = {
    "another phase": """(%0: f64[B,4]) {
          %1: f64[B,4] = exp %0
          %2: f64[B,4] = neg %1   # <update>
          return %2 }""",
    "a path through another step": """(%0: f64[B,4]) {
          %1: f64[B,4] = exp %0
          %2: f64[B,4] = sort %1 {axis=0, descending=False}
          %3: f64[B,4] = add %2, %1
          return %3 }""",
    "made by a matrix product": """(%0: f64[B,4], %1: f64[4,3]) {
          %2: f64[B,3] = dot_general %0, %1 {batch=((),()), contract=((1,),(0,))}
          %3: f64[B,3] = exp %2
          return %3 }""",
    "read by a matrix product": """(%0: f64[B,4], %1: f64[4,3]) {
          %2: f64[B,4] = exp %0
          %3: f64[B,3] = dot_general %2, %1 {batch=((),()), contract=((1,),(0,))}
          return %3 }""",
    "debug_print has an effect": """(%0: f64[B,4]) {
          %1: f64[B,4] = exp %0
          = debug_print %1 {format="a {}"}
          return %1 }""",
    "scatter_add takes places in the order of its indices": """(
          %0: f64[7,4], %1: f64[B,4], %2: i32[B]) {
          %3: f64[B,4] = exp %1
          %4: f64[7,4] = scatter_add %0, %3, %2 {axes=(0,), wrap=False}
          return %4 }""",
    "complete only with its last row": """(%0: f64[B,40]) {
          %1: f64[B,40] = exp %0
          %2: f64[1,40] = sum %1 {axes=(0,), keepdims=True}
          %3: f64[B,40] = sub %0, %2
          return %3 }""",
    "read at places that indices tell": """(%0: f64[B,40], %1: i32[B]) {
          %2: f64[B,40] = exp %0
          %3: f64[B,40] = gather %2, %1 {axes=(0,), wrap=False}
          return %3 }""",
    "rows too short for a loop of their own": """(%0: f64[B,3]) {
          %1: f64[B,3] = exp %0
          %2: f64[1,3] = sum %1 {axes=(0,), keepdims=True}
          return %1, %2 }""",
}


@pytest.mark.parametrize("reason", APART)
def test_reasons(reason: str) -> None:
    graph = written(APART[reason])
    found = Group(native=True)(graph)
    verify(found)
    told = {r.reason: r for r in found.refusals}
    assert reason in told
    assert dims.evaluate(told[reason].bytes, {"B": 5}) > 0


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(3, 60))
def test_every_array_between_steps_has_a_reason(seed: int, count: int) -> None:
    graph = Group(native=True)(Expand()(tangle(seed, count)))
    verify(graph)
    users = graph.users()
    handed = 0
    for node in graph.nodes:
        for v in node.outputs:
            spaces = [n for n in users.get(v, ()) if n.op.name != "sort" or node.op.name != "sort"]
            handed += len(spaces)
    assert handed == sum(not r.sibling for r in graph.refusals)


SIBLINGS = {
    "two readers of one array": (
        """(%0: f64[B,4]) {
          %1: f64[B,4] = exp %0
          %2: f64[B,4] = sin %0
          return %1, %2 }""",
        1,
    ),
    "a sum of what another reads": (
        """(%0: f64[B,40]) {
          %1: f64[40] = sum %0 {axes=(0,), keepdims=False}
          %2: f64[B,40] = exp %0
          return %1, %2 }""",
        1,
    ),
    "back from where it went forward": (
        """(%0: f64[B,4], %1: f64[B,4]) {
          %2: f64[B,4] = sub %0, %1
          %3: f64[B,1] = row_dot %2, %2
          %4: f64[B,4] = add %2, %2   # <cotangent>
          return %3, %4 }""",
        1,
    ),
    "nothing is computed again": (
        """(%0: f64[B,4], %1: f64[B,4]) {
          %2: f64[B,4] = sub %0, %1
          %3: f64[B,1] = row_dot %2, %2
          %4: f64[B,4] = sort %1 {axis=0, descending=False}
          %5: f64[B,4] = add %2, %2   # <recompute>
          return %3, %4, %5 }""",
        3,
    ),
    "what is computed again at once": (
        """(%0: f64[B,4], %1: f64[B,4]) {
          %2: f64[B,4] = tanh %0
          %3: f64[B,4] = tanh %0   # <recompute>
          %4: f64[B,4] = mul %3, %1   # <cotangent>
          return %2, %4 }""",
        1,
    ),
    "a result that is read on the way back at once": (
        """(%0: f64[B,4], %1: f64[B,4]) {
          %2: f64[B,4] = tanh %0
          %3: f64[B,4] = mul %2, %1   # <cotangent>
          return %2, %3 }""",
        1,
    ),
    "an array that would live longer": (
        """(%0: f64[B,4], %1: f64[B,4]) {
          %2: f64[B,4] = exp %0
          %3: f64[B,4] = sort %2 {axis=0, descending=False}
          %4: f64[B,4] = sort %3 {axis=0, descending=True}
          %5: f64[B,4] = add %4, %1
          %6: f64[B,4] = mul %0, %1
          return %5, %6 }""",
        5,
    ),
}


@pytest.mark.parametrize("name", SIBLINGS)
def test_siblings(name: str) -> None:
    text, count = SIBLINGS[name]
    graph = written(text)
    found = Group(native=True)(graph)
    verify(found)
    assert len(found.nodes) == count
    same_numbers(graph, found)
