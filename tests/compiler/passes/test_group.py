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
from retrograde.compiler.passes.group import Group, wider
from tests.compiler.passes.harness import becomes, names, same_numbers, written

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
    becomes(Group(), ALONE[name], "")


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
    elif kind == 2 and x.ndim == 2:
        out = op("sort")(x, axis=0)
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
)
def test_groups_are_valid(seed: int, count: int, window: int, largest: int) -> None:
    before = Expand()(tangle(seed, count))
    after = Group(window, largest)(before)
    verify(after)  # every operand is defined before it is used: no group is part of a cycle
    same_numbers(before, after, seeds=range(1))
    inside = [n for g in after.nodes if g.op.name == "fused" for n in g.attrs["body"].nodes]
    outside = [n for n in after.nodes if n.op.name != "fused"]
    assert sorted(n.id for n in (*inside, *outside)) == sorted(n.id for n in before.nodes)
    for group in after.nodes:
        if group.op.name == "fused":
            check_group(group, largest)


def check_group(group: Node, largest: int) -> None:
    body: Graph = group.attrs["body"]
    assert 2 <= len(body.nodes) <= largest
    phases = {{"recompute": "cotangent"}.get(n.origin.role, n.origin.role) for n in body.nodes}
    assert len(phases) == 1
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
