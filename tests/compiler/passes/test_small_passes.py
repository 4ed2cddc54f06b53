"""Fold, CSE, DCE, Expand and RowProducts: before and after as text, the same bits from both."""

from __future__ import annotations

import math

import numpy as np
import pytest

from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.builder import Builder
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.graph import Graph, TensorType
from retrograde.compiler.ir.registry import all_ops
from retrograde.compiler.ir.registry import lookup as op
from retrograde.compiler.ir.verify import verify
from retrograde.compiler.passes.backward import Backward
from retrograde.compiler.passes.cse import CSE
from retrograde.compiler.passes.dce import DCE
from retrograde.compiler.passes.expand import Expand
from retrograde.compiler.passes.fold import Fold
from retrograde.compiler.passes.regions import everywhere
from retrograde.compiler.passes.rows import RowProducts
from retrograde.compiler.passes.simplify import Simplify
from tests.compiler.passes.harness import becomes, names, same_numbers, written

# --- Fold


def test_fold_makes_constants_of_constants() -> None:
    """With the value of the reference in the dtype: f32 rounds, i8 wraps, bf16 rounds coarsely."""
    found = becomes(
        Fold(),
        """(%0: f32[B]) {
          %1: f32[] = constant {dtype=f32, value=0.1}
          %2: f32[] = constant {dtype=f32, value=3.0}
          %3: f32[] = mul %1, %2
          %4: f32[] = exp %3
          %5: f32[] = broadcast_to %4 {shape=()}
          %6: f32[B] = add %0, %5
          return %6 }""",
        f"""(%0: f32[B]) {{
          %1: f32[] = constant {{dtype=f32, value={float(np.float32(0.1))}}}
          %2: f32[] = constant {{dtype=f32, value=3.0}}
          %3: f32[] = constant {{dtype=f32, value={float(np.float32(0.1) * np.float32(3))}}}
          %4: f32[] = constant {{dtype=f32, value={float(np.exp(np.float32(0.1) * np.float32(3)))}}}
          %5: f32[] = constant {{dtype=f32, value={float(np.exp(np.float32(0.1) * np.float32(3)))}}}
          %6: f32[B] = add %0, %5
          return %6 }}""".replace(f"value={float(np.float32(0.1))}", "value=0.1", 1),
    )
    assert names(found).count("constant") == 5


@pytest.mark.parametrize(
    ("dtype", "a", "b", "name", "value"),
    [
        ("i8", 100, 100, "add", -56),
        ("i32", 7, 0, "floor_div", 0),
        ("f32", 1.0, 0.0, "div", math.inf),
        ("f64", math.inf, math.inf, "sub", math.nan),
        ("f64", 0.0, -1.0, "mul", -0.0),
        ("bf16", 1.0, 0.001, "add", 1.0),
        ("u32", 2**32 - 1, 2, "add", 1),
        ("bool", True, False, "logical_xor", True),
        ("f64", 2.0, 3.0, "less", True),
    ],
)
def test_fold_computes_in_the_type(
    dtype: str, a: object, b: object, name: str, value: object
) -> None:
    builder = Builder("fold", Expr)
    with builder:
        x, y = (op("constant")(value=v, dtype=dtypes.dtype(dtype)) for v in (a, b))
        out = op(name)(x, y)
    graph = builder.finish([out.value])
    after = Fold()(graph)
    node = after.nodes[-1]
    assert node.op.name == "constant" and repr(node.attrs["value"]) == repr(value)
    assert node.output is graph.outputs[0]
    verify(after)
    same_numbers(graph, after)


def test_fold_leaves_arrays_and_unknowns() -> None:
    becomes(
        Fold(),
        """(%0: f32[], %1: f32[B]) {
          %2: f32[] = constant {dtype=f32, value=2.0}
          %3: f32[B] = broadcast_to %2 {shape=(dim(B),)}
          %4: f32[] = mul %0, %2
          %5: i64[] = dim_value {dtype=i64, size=dim(B)}
          %6: i64[] = neg %5
          return %3, %4, %6 }""",
        "",
    )


# --- CSE


def test_cse_merges_equal_nodes() -> None:
    becomes(
        CSE(),
        """(%0: f32[B,4], %1: f32[4]) {
          %2: f32[B,4] = add %0, %1
          %3: f32[B,4] = add %1, %0
          %4: f32[B,4] = mul %2, %3
          %5: f32[B,4] = mul %3, %2
          %6: f32[B,4] = sub %4, %5
          return %6, %5, %3 }""",
        """(%0: f32[B,4], %1: f32[4]) {
          %2: f32[B,4] = add %0, %1
          %3: f32[B,4] = mul %2, %2
          %4: f32[B,4] = sub %3, %3
          return %4, %3, %2 }""",
    )


def test_cse_tells_apart_what_differs_in_a_bit() -> None:
    becomes(
        CSE(),
        """(%0: f32[B,4], %1: f32[4]) {
          %2: f32[] = constant {dtype=f32, value=0.0}
          %3: f32[] = constant {dtype=f32, value=-0.0}
          %4: f64[] = constant {dtype=f64, value=0.0}
          %5: f32[B,4] = maximum %0, %1
          %6: f32[B,4] = maximum %1, %0
          %7: f32[B,4] = sub %0, %1
          %8: f32[B,4] = sub %1, %0
          %9: f32[B] = sum %0 {axes=(1,), keepdims=False}
          %10: f32[B,1] = sum %0 {axes=(1,), keepdims=True}
          %11: i32[] = constant {dtype=i32, value=1}
          %12: bool[] = constant {dtype=bool, value=True}
          return %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12 }""",
        "",
    )


def test_cse_merges_nan() -> None:
    text = """(%0: f32[B]) {
          %1: f32[] = constant {dtype=f32, value=nan}
          %2: f32[] = constant {dtype=f32, value=nan}
          %3: f32[B] = add %0, %1
          %4: f32[B] = add %0, %2
          return %3, %4 }"""
    after = CSE()(written(text))
    assert names(after) == ["constant", "add"] and after.outputs[0] is after.outputs[1]


def recomputed(wrap: bool) -> Graph:
    """The gradient of a function with or without `remat_call` around a costly part."""
    builder, inner = Builder("remat", Expr), Builder("part", Expr)
    with inner:
        x, w = (inner.input(TensorType(dtypes.f64, s)) for s in ((dims.dim("B"), 4), (4, 4)))
        y = op("tanh")(op("exp")(op("sin")(x @ w)) @ w)
    part = inner.finish([y.value])
    with builder:
        x = builder.input(TensorType(dtypes.f64, (dims.dim("B"), 4)), "x")
        w = builder.input(TensorType(dtypes.f64, (4, 4)), "w")
        y = op("remat_call" if wrap else "call")(x, w, body=part)
        out = op("sum")(y * y, axes=(0, 1))
    return Backward((0,), (0, 1))(builder.finish([out.value]))


def test_cse_keeps_recomputations() -> None:
    """sin and exp run twice where the user asked for that, through the whole pipeline."""
    graphs = {wrap: recomputed(wrap) for wrap in (False, True)}
    for wrap, graph in graphs.items():
        after = graph
        for transform in (DCE(), Expand(), Simplify(), Fold(), CSE(), Simplify(), DCE()):
            after = transform(after)
            verify(after)
        same_numbers(graph, after, exact=False)
        assert names(after).count("exp") == (2 if wrap else 1)
        groups = {node.origin.group for node in after.nodes if node.op.name == "exp"}
        assert len(groups) == (2 if wrap else 1)
        saved = {v for n in after.nodes if n.origin.role == "primal" for v in n.outputs}
        read = [v for n in after.nodes if n.origin.role != "primal" for v in n.inputs if v in saved]
        made_by = {v: n.op.name for n in after.nodes for v in n.outputs}
        kept = {made_by[v] for v in read} - {"constant"}
        assert bool(kept & {"sin", "exp"}) != wrap  # the backward pass reads its own


def test_cse_merges_within_a_recomputation() -> None:
    text = """(%0: f32[B]) {
          %1: f32[B] = exp %0
          %2: f32[B] = exp %0   # <recompute group=7>
          %3: f32[B] = exp %0   # <recompute group=7>
          %4: f32[B] = exp %0   # <recompute group=8>
          %5: f32[B] = add %2, %3
          return %1, %4, %5 }"""
    graph = written(text)
    none, one, same, other, last = (n.origin.group for n in graph.nodes)
    assert none == last == 0 and 0 != one == same != other != 0
    after = CSE()(graph)
    assert names(after).count("exp") == 3
    same_numbers(graph, after)


def test_simplify_keeps_the_recomputation_of_a_sum() -> None:
    """The sum that is put in another form stays in its group: CSE may not merge it back."""
    text = """(%0: f64[B,4]) {
          %1: f64[B,1] = sum %0 {axes=(1,), keepdims=True}
          %2: f64[B] = sum %0 {axes=(1,), keepdims=False}   # <recompute group=7>
          %3: f64[B,1] = reshape %2 {shape=(dim(B),1)}
          return %1, %3 }"""
    graph = written(text)
    after = DCE()(CSE()(Simplify()(graph)))
    assert names(after) == ["sum", "sum"]
    first, second = after.nodes
    assert first.origin.group == 0 != second.origin.group
    same_numbers(graph, after)


# --- DCE


def test_dce_drops_what_nobody_reads() -> None:
    becomes(
        DCE(),
        """(%0: f32[B,4], %1: f32[4]) {
          %2: f32[B,4] = add %0, %1
          %3: f32[B,4] = exp %2
          %4: f32[B,2] %5: i32[B,2] = top_k %2 {k=2}
          return %2 }""".replace("%4: f32[B,2] %5", "%4: f32[B,2], %5"),
        """(%0: f32[B,4], %1: f32[4]) {
          %2: f32[B,4] = add %0, %1
          return %2 }""",
    )


def test_dce_keeps_effects() -> None:
    text = """(%0: f32[B]) {
          %1: f32[B] = exp %0
          = debug_print %1 {format="{}"}
          return %0 }"""
    graph = written(text)
    assert DCE()(graph) is graph


LOOP = """(%0: f32[3], %1: f32[T,3], %2: f32[3], %3: f32[3], %4: f32[T,3]) {
  %5: f32[3], %6: f32[T,3], %7: f32[T,3] = scan %0, %1, %4, %2, %3 {
    body=graph body(%0: f32[3], %1: f32[3], %2: f32[3], %3: f32[3], %4: f32[3]) {
      %5: f32[3] = mul %0, %3
      %6: f32[3] = add %5, %1
      %7: f32[3] = exp %4
      %8: f32[3] = sub %7, %2
      return %6, %8, %5
    }, carries=1, length=dim(T), reverse=False, slices=2}
  return %5, %7 }"""
PRUNED = """(%0: f32[3], %1: f32[T,3], %2: f32[3], %3: f32[3], %4: f32[T,3]) {
  %5: f32[3], %6: f32[T,3] = scan %0, %1, %2 {
    body=graph body(%0: f32[3], %1: f32[3], %2: f32[3]) {
      %3: f32[3] = mul %0, %2
      %4: f32[3] = add %3, %1
      return %4, %3
    }, carries=1, length=dim(T), reverse=False, slices=1}
  return %5, %6 }"""


def test_dce_prunes_loops() -> None:
    """A step result nobody reads takes its work, its slices and its constants with it."""
    becomes(DCE(), LOOP, PRUNED)


def test_dce_drops_a_loop() -> None:
    after = DCE()(written(LOOP.replace("return %5, %7", "return %2")))
    assert after.nodes == ()


def test_passes_reach_into_loops() -> None:
    text = """(%0: f32[3], %1: f32[T,3]) {
      %2: f32[3] = scan %0, %1 {
        body=graph body(%0: f32[3], %1: f32[3]) {
          %2: f32[3] = neg %1
          %3: f32[3] = add %0, %2
          %4: f32[] = constant {dtype=f32, value=2.0}
          %5: f32[] = mul %4, %4
          %6: f32[3] = mul %3, %5
          %7: f32[3] = add %0, %2
          %8: f32[3] = maximum %6, %7
          return %8
        }, carries=1, length=dim(T), reverse=True, slices=1}
      return %2 }"""
    graph = after = written(text)
    for transform in (Simplify(), Fold(), CSE(), DCE()):
        after = everywhere(transform, after)
        verify(after)
    (loop,) = after.nodes
    assert names(loop.attrs["body"]) == ["sub", "constant", "mul", "maximum"]
    same_numbers(graph, after)


# --- Expand


def test_expand_leaves_no_composite_and_no_call() -> None:
    text = """(%0: f64[B,T,6], %1: f64[6]) {
      %2: f64[B,T,6] = softmax %0 {axis=2}
      %3: f64[B,T,6] = call %2, %1 {
        body=graph inner(%0: f64[B,T,6], %1: f64[6]) {
          %2: f64[B,T,6], %3: f64[B,T,1] = rms_norm %0, %1 {eps=0.1}
          %4: f64[B,T,6] = gelu %2 {approximate=True}
          return %4
        }}
      return %3 }"""
    graph = written(text)
    after = Expand()(graph)
    verify(after, "expanded")
    assert not {"softmax", "call", "rms_norm", "gelu"} & set(names(after))
    assert {n.origin.made_by for n in after.nodes} <= {"expand", "trace"}
    assert after.output_names == graph.output_names and after.inputs == graph.inputs
    same_numbers(graph, after, exact=False)
    assert Expand()(after) is after


def test_expand_for_differentiation_keeps_what_has_a_rule() -> None:
    text = """(%0: f64[B,T,6]) {
      %1: f64[B,T,6] = softmax %0 {axis=2}
      %2: f64[B,T,6] = attention %0, %0, %1 {causal=False, scale=0.5}
      return %2 }"""
    after = Expand(differentiable=True)(written(text))
    assert names(after).count("softmax") == 2 and "attention" not in names(after)
    same_numbers(written(text), after, exact=False)


def test_expand_keeps_recomputation_groups() -> None:
    text = """(%0: f64[B,4]) {
          %1: f64[B,4] = softmax %0 {axis=1}
          %2: f64[B,4] = softmax %0 {axis=1}   # <recompute group=7>
          %3: f64[B,4] = sub %1, %2
          return %3 }"""
    after = CSE()(Expand()(written(text)))
    assert names(after).count("exp") == 2


def test_every_composite_expands_to_primitives() -> None:
    composites = [o.name for o in all_ops() if o.decompose is not None]
    assert len(composites) >= 9
    # each is run expanded against its reference in tests/device/test_ops.py


# --- RowProducts

DOT = """({inputs}) {{
  %2: f64[{dot}] = dot_general %0, %1 {{batch={batch}, contract={contract}}}
  %3: f64[{row}] = reshape %2 {{shape={shape}}}
  return %3 }}"""


@pytest.mark.parametrize(
    ("a", "b", "batch", "contract", "dot", "row", "becomes_rows"),
    [
        ("B,T,6", "B,T,6", "((0,1),(0,1))", "((2,),(2,))", "B,T", "B,T,1", True),
        ("B,T,6", "6", "((),())", "((2,),(0,))", "B,T", "B,T,1", True),
        ("6", "6", "((),())", "((0,),(0,))", "", "1", True),
        ("B,T,6", "B,T,6", "((1,0),(1,0))", "((2,),(2,))", "T,B", "T,B,1", False),
        ("B,6,T", "B,6,T", "((0,2),(0,2))", "((1,),(1,))", "B,T", "B,T,1", False),
        ("B,T,6", "B,T,6", "((0,1),(0,1))", "((2,),(2,))", "B,T", "B,1,T", False),
        ("B,6", "6,1", "((),())", "((1,),(0,))", "B,1", "B,1,1", False),
    ],
)
def test_row_products(
    a: str, b: str, batch: str, contract: str, dot: str, row: str, becomes_rows: bool
) -> None:
    shape = "".join(f"dim({d})," if d.isalpha() else f"{d}," for d in row.split(","))
    text = DOT.format(
        inputs=f"%0: f64[{a}], %1: f64[{b}]", dot=dot, row=row, batch=batch, contract=contract,
        shape=f"({shape})",
    )  # fmt: skip
    graph = written(text)
    verify(graph)
    after = DCE()(RowProducts()(graph))
    verify(after)
    assert (names(after) == ["row_dot"]) == becomes_rows
    same_numbers(graph, after, exact=False)
