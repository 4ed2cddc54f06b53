"""Axis provenance: query and key axes told apart, and nothing claimed that does not hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.axes import UNKNOWN, AxisSource, aligned, provenance
from retrograde.compiler.ir.builder import Builder, new_value, next_id
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.graph import Graph, Node, TensorType
from retrograde.compiler.ir.interpreter import evaluate
from retrograde.compiler.ir.op import Op
from retrograde.compiler.ir.registry import Kind, NotDifferentiable, lookup
from retrograde.compiler.passes.backward import Backward
from tests.compiler.ops.harness import build as op_graph
from tests.compiler.ops.samples import SAMPLES

B, T = dims.dim("B"), dims.dim("T")
F32, I32 = dtypes.f32, dtypes.i32
Build = Callable[..., Graph]


def f32(*shape: Any) -> TensorType:
    return TensorType(F32, shape)


def shown(graph: Graph, sources: frozenset[AxisSource]) -> str:
    """`x.1` for axis 1 of input x, `~` where moved, `iota.0` for what a node created."""
    names = dict(zip(graph.inputs, graph.input_names, strict=True))
    made = {v: node.op.name for node in graph.nodes for v in node.outputs}

    def one(s: AxisSource) -> str:
        if s.value is None:
            return "?"
        return f"{names.get(s.value) or made.get(s.value)}.{s.axis}{'~' if s.moved else ''}"

    return " ".join(sorted({one(s) for s in sources}))


def of_output(build: Build, fn: Callable[..., Any], *types: TensorType) -> list[str]:
    graph = build(fn, *types, names="xyzuv"[: len(types)])
    return [shown(graph, s) for s in provenance(graph)[graph.outputs[0]]]


def attention(x: Any, wq: Any, wk: Any, wv: Any) -> Any:
    def heads(w: Any) -> Any:
        split = lookup("reshape")(x @ w, shape=(B, T, 3, 4))
        return lookup("transpose")(split, perm=(0, 2, 1, 3))

    at = {"batch": ((0, 1), (0, 1))}
    scores = lookup("dot_general")(heads(wq), heads(wk), contract=((3,), (3,)), **at)
    place = lookup("iota")(size=T, dtype=I32)
    causal = lookup("reshape")(place, shape=(T, 1)) >= lookup("reshape")(place, shape=(1, T))
    masked = lookup("select")(causal, scores * 0.5, -1e9)
    e = lookup("exp")(masked - lookup("max")(masked, axes=(3,), keepdims=True))
    p = e / lookup("sum")(e, axes=(3,), keepdims=True)
    context = lookup("dot_general")(p, heads(wv), contract=((3,), (2,)), **at)
    merged = lookup("transpose")(context, perm=(0, 2, 1, 3))
    return x + lookup("reshape")(merged, shape=(B, T, 12))


TYPES = (f32(B, T, 12), f32(12, 12), f32(12, 12), f32(12, 12))
NAMES = ("x", "q", "k", "v")


def nodes_named(graph: Graph, name: str) -> list[Node]:
    return [n for n in graph.nodes if n.op.name == name]


def is_score(v: Any) -> bool:
    return v.type.ndim == 4 and dims.same(v.shape[2], T) and dims.same(v.shape[3], T)


def test_query_and_key_axes_are_told_apart(build: Build) -> None:
    graph = build(attention, *TYPES, names=NAMES)
    found = provenance(graph)
    scores = nodes_named(graph, "dot_general")[2]
    batch, _, query, key = found[scores.output]
    x = graph.inputs[0]
    assert batch == {AxisSource(x, 0)}
    assert query == {AxisSource(x, 1, via=(scores.id, 0))}
    assert key == {AxisSource(x, 1, via=(scores.id, 1))}
    later = [v for n in graph.nodes for v in n.outputs if is_score(v)]
    assert len(later) == 6  # scores, scaled, masked, shifted, exp, divided
    for v in later:
        assert query <= found[v][2]
        assert key <= found[v][3]
        assert not aligned(found[v][2], found[v][3])


def test_context_runs_along_the_queries_and_the_keys_are_gone(build: Build) -> None:
    graph = build(attention, *TYPES, names=NAMES)
    found = provenance(graph)
    assert [shown(graph, s) for s in found[graph.outputs[0]]][:2] == ["x.0", "iota.0 x.1"]
    sums = nodes_named(graph, "sum")[0]
    assert shown(graph, found[sums.output][2]) == "iota.0 x.1"
    assert found[sums.output][3] == frozenset()


def test_two_layers_do_not_blur_into_one_another(build: Build) -> None:
    def twice(x: Any, *ws: Any) -> Any:
        return attention(attention(x, *ws), *ws)

    graph = build(twice, *TYPES, names=NAMES)
    found = provenance(graph)
    x = graph.inputs[0]
    for n in graph.nodes:
        for v in n.outputs:
            if is_score(v):
                assert not aligned(found[v][2], found[v][3])
            if v.type.ndim == 3:
                assert AxisSource(x, 1) in found[v][1]
    assert {s.root for s in found[graph.outputs[0]][1] if s.value is x} == {(x, 1)}


def test_the_gradients_scores_keep_query_and_key_apart(build: Build) -> None:
    def loss(*operands: Any) -> Any:
        y = attention(*operands)
        return lookup("sum")(y * y, axes=(0, 1, 2))

    graph = Backward((0,), (0, 1, 2))(build(loss, *TYPES, names=NAMES))
    found = provenance(graph)
    (forward,) = (v for n in graph.nodes[:12] for v in n.outputs if n.op.name == "dot_general"
                  and is_score(v))  # fmt: skip
    query, key = found[forward][2:]
    reached = [
        n.output for n in graph.nodes
        if n.origin.role == "cotangent" and n.op.name == "select" and is_score(n.output)
    ]  # fmt: skip
    assert reached
    for v in reached:
        assert query <= found[v][2]
        assert key <= found[v][3]
    for gradient, w in zip(graph.outputs[2:], graph.inputs[1:3], strict=True):
        assert gradient.shape == w.shape
        assert shown(graph, found[gradient][0]) == "x.2"


def test_an_outer_difference_is_told_apart_and_its_diagonal_sum_is_not(build: Build) -> None:
    def outer(x: Any) -> Any:
        row = lookup("reshape")(x, shape=(B, T, 1))
        column = lookup("reshape")(x, shape=(B, 1, T))
        return row - column

    graph = build(outer, f32(B, T), names=("x",))
    found = provenance(graph)[graph.outputs[0]]
    assert [shown(graph, s) for s in found] == ["x.0", "x.1", "x.1"]
    assert not aligned(found[1], found[2])
    symmetric = build(
        lambda x: (d := outer(x)) + lookup("transpose")(d, perm=(0, 2, 1)), f32(B, T), names=("x",)
    )
    _, one, other = provenance(symmetric)[symmetric.outputs[0]]
    assert one == other
    assert len(one) == 2


def test_merging_query_and_key_axes_does_not_blur_them(build: Build) -> None:
    def fn(x: Any) -> Any:
        scores = lookup("dot_general")(x, x, contract=((2,), (2,)), batch=((0,), (0,)))
        flat = lookup("tanh")(lookup("reshape")(scores, shape=(B, T * T)))
        return lookup("reshape")(flat, shape=(B, T, T)), scores

    graph = build(fn, f32(B, T, 4), names=("x",))
    found = provenance(graph)
    again, scores = (found[v] for v in graph.outputs)
    assert again == scores
    assert not aligned(again[1], again[2])


def test_time_and_an_axis_captured_from_the_same_input_are_told_apart(build: Build) -> None:
    def fn(x: Any) -> Any:  # outer product by a loop: x[t] * x
        return L("scan")(x, x, body=step, carries=0, slices=1, length=T)

    step = build(lambda x, c: c * x, f32(), f32(T))
    graph = build(fn, f32(T), names=("x",))
    row, column = provenance(graph)[graph.outputs[0]]
    assert shown(graph, row) == shown(graph, column) == "x.0"
    assert not aligned(row, column)


L = lookup
CASES: dict[str, tuple[Callable[..., Any], tuple[TensorType, ...], list[str]]] = {
    "elementwise": (lambda x, y: x * y, (f32(B, 3), f32(3)), ["x.0", "x.1 y.0"]),
    "stretched": (lambda x, y: x * y, (f32(B, 3), f32(1, 3)), ["x.0", "x.1 y.1"]),
    "scalar": (lambda x: x * 2.0, (f32(B, 3),), ["x.0", "x.1"]),
    "matmul": (lambda x, y: x @ y, (f32(B, 3), f32(3, 5)), ["x.0", "y.1"]),
    "batched": (lambda x, y: x @ y, (f32(B, 3, 4), f32(B, 4, 5)), ["x.0 y.0", "x.1", "y.2"]),
    "sum": (lambda x: L("sum")(x, axes=(1,)), (f32(B, 3, 4),), ["x.0", "x.2"]),
    "kept": (lambda x: L("sum")(x, axes=(1,), keepdims=True), (f32(B, 3, 4),), ["x.0", "", "x.2"]),
    "argmax": (lambda x: L("argmax")(x, axis=1), (f32(B, 3, 4),), ["x.0", "x.2"]),
    "running": (lambda x: L("cumsum")(x, axis=1), (f32(B, 3),), ["x.0", "x.1"]),
    "transpose": (
        lambda x: L("transpose")(x, perm=(2, 0, 1)), (f32(B, 3, 4),), ["x.2", "x.0", "x.1"],
    ),
    "broadcast": (
        lambda x: L("broadcast_to")(x, shape=(7, B, 3, 4)), (f32(B, 1, 4),), ["", "x.0", "", "x.2"],
    ),
    "flip": (lambda x: L("flip")(x, axes=(1,)), (f32(B, 3),), ["x.0", "x.1~"]),
    "prefix": (
        lambda x: L("slice")(x, start=(0, 0), stop=(B, 2), step=(1, 1)), (f32(B, 3),),
        ["x.0", "x.1"],
    ),
    "suffix": (
        lambda x: L("slice")(x, start=(0, 1), stop=(B, 3), step=(1, 1)), (f32(B, 3),),
        ["x.0", "x.1~"],
    ),
    "steps": (
        lambda x: L("slice")(x, start=(0, 0), stop=(B, 3), step=(1, 2)), (f32(B, 3),),
        ["x.0", "x.1~"],
    ),
    "padded behind": (
        lambda x: L("pad")(x, low=(0, 0), high=(0, 2), interior=(0, 0)), (f32(B, 3),),
        ["x.0", "x.1"],
    ),
    "padded before": (
        lambda x: L("pad")(x, low=(0, 2), high=(0, 0), interior=(0, 0)), (f32(B, 3),),
        ["x.0", "x.1~"],
    ),
    "written": (
        lambda x, y: L("set_slice")(x, y, start=(0, 1), step=(1, 1)), (f32(B, 5), f32(B, 2)),
        ["x.0 y.0", "x.1 y.1~"],
    ),
    "joined": (
        lambda x, y: L("concatenate")(x, y, axis=1), (f32(B, 3), f32(B, 2)),
        ["x.0 y.0", "x.1~ y.1~"],
    ),
    "merged": (lambda x: L("reshape")(x, shape=(B * T, 3)), (f32(B, T, 3),), ["x.0~ x.1~", "x.2"]),
    "split": (lambda x: L("reshape")(x, shape=(B, 3, 4)), (f32(B, 12),), ["x.0", "x.1~", "x.1~"]),
    "merged and split again": (
        lambda x, y: L("reshape")(L("reshape")(x, shape=(B * T, 3)) @ y, shape=(B, T, 5)),
        (f32(B, T, 3), f32(3, 5)), ["x.0", "x.1", "y.1"],
    ),
    "split elsewhere": (
        lambda x: L("reshape")(x, shape=(B, 4, 3)), (f32(B, 3, 4),),
        ["x.0", "x.1~ x.2~", "x.1~ x.2~"],
    ),
    "ones come and go": (
        lambda x: L("reshape")(x, shape=(1, B, 1, 3)), (f32(B, 1, 3),), ["", "x.0", "", "x.2"],
    ),
    "empty": (lambda x: L("reshape")(x, shape=(0, 5)), (f32(3, 0),), ["x.0~ x.1~", "x.0~ x.1~"]),
    "embedding": (
        lambda x, y: L("gather")(x, y, axes=(0,)), (f32(65, 8), TensorType(I32, (B, T))),
        ["y.0", "y.1", "x.1"],
    ),
    "scatter": (
        lambda x, y, z: L("scatter_add")(x, z, y, axes=(0,)),
        (f32(65, 8), TensorType(I32, (B,)), f32(B, 8)), ["x.0 z.0~", "x.1 z.1"],
    ),
    "sort": (lambda x: L("sort")(x, axis=1), (f32(B, 3),), ["x.0", "x.1~"]),
    "range": (lambda: L("iota")(size=T, dtype=I32), (), ["iota.0"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_each_kind_of_op(build: Build, case: str) -> None:
    fn, types, expected = CASES[case]
    assert of_output(build, fn, *types) == expected


def test_a_call_is_looked_into(build: Build) -> None:
    body = build(lambda a: L("transpose")(a, perm=(1, 0)), f32(B, 3))
    assert of_output(build, lambda x: L("call")(x, body=body), f32(B, 3)) == ["x.1", "x.0"]


def test_a_scan_runs_along_time_and_its_carries_settle(build: Build) -> None:
    b = Builder("step", Expr)
    with b:
        h, g = b.input(f32(B, 4)), b.input(f32(B, 4))
        x, w = b.input(f32(B, 4)), b.input(f32(4, 4))
        body = b.finish([(g + x).value, (h @ w).value, h.value])  # h reaches g one step later
    graph = build(
        lambda h, g, xs, w: L("scan")(h, g, xs, w, body=body, carries=2, slices=1, length=T),
        f32(B, 4), f32(B, 4), f32(T, B, 4), f32(4, 4), names=("h", "g", "xs", "w"),
    )  # fmt: skip
    found = provenance(graph)
    last_h, last_g, hs = ([shown(graph, s) for s in found[v]] for v in graph.outputs)
    assert last_h == ["g.0 h.0 xs.1", "g.1 h.1 w.1 xs.2"]
    assert last_g == ["g.0 h.0 xs.1", "g.1 w.1"]
    assert hs == ["xs.0", *last_h]


def test_a_composite_is_what_it_is_made_of() -> None:
    op = Op(
        "turned", Kind.COMPOSITE, lambda types, attrs: (f32(*reversed(types[0].shape)),),
        lambda attrs, x: x.T, None, decompose=lambda attrs, x: L("transpose")(x, perm=(1, 0)),
    )  # fmt: skip
    x, y = new_value(f32(B, 3)), new_value(f32(3, B))
    graph = Graph("g", (x,), (Node(next_id(), op, (x,), {}, (y,)),), (y,))
    assert provenance(graph)[y] == (frozenset({AxisSource(x, 1)}), frozenset({AxisSource(x, 0)}))


def test_nothing_is_claimed_of_an_op_without_a_rule() -> None:
    op = Op(
        "shuffled", Kind.OPAQUE, lambda types, attrs: types, lambda attrs, x: x,
        NotDifferentiable("a test"),
    )  # fmt: skip
    x, y = new_value(f32(B, 3)), new_value(f32(B, 3))
    graph = Graph("g", (x,), (Node(next_id(), op, (x,), {}, (y,)),), (y,))
    found = provenance(graph)
    assert found[y] == (frozenset({UNKNOWN}), frozenset({UNKNOWN}))
    assert not aligned(found[y][0], found[y][0])
    assert aligned(found[x][0], found[x][0])


def ones(*shape: Any) -> Any:
    return L("broadcast_to")(L("constant")(value=1.0, dtype=F32), shape=shape)


VARYING: dict[str, tuple[Callable[..., Any], list[str]]] = {
    "cumsum": (lambda: L("cumsum")(ones(2, 3), axis=1), ["", "cumsum.1"]),
    "pad": (
        lambda: L("pad")(ones(2, 3), low=(0, 1), high=(0, 0), interior=(0, 0)), ["", "pad.1"],
    ),
    "set_slice": (
        lambda: L("set_slice")(ones(2, 3), ones(2, 1) * 2, start=(0, 2), step=(1, 1)),
        ["", "set_slice.1"],
    ),
    "concatenate": (
        lambda: L("concatenate")(ones(2, 3), -ones(2, 1), axis=1), ["", "concatenate.1"],
    ),
    "argsort": (lambda: L("argsort")(ones(2, 3), axis=1), ["", "argsort.1"]),
    "scatter_add": (
        lambda: L("scatter_add")(ones(5, 3), ones(2, 3), L("iota")(size=2, dtype=I32), axes=(0,)),
        ["scatter_add.0", ""],
    ),
    "linear_recurrence": (
        lambda: L("linear_recurrence")(ones(2, 3), ones(2, 3), axis=0), ["linear_recurrence.0", ""],
    ),
    "flip": (lambda: L("flip")(ones(2, 3), axes=(1,)), ["", ""]),
}  # fmt: skip


@pytest.mark.parametrize("op", VARYING)
def test_ops_that_make_ones_vary_are_a_source(build: Build, op: str) -> None:
    fn, expected = VARYING[op]
    graph = build(fn)
    (y,) = evaluate(graph, [])
    assert [shown(graph, s) for s in provenance(graph)[graph.outputs[0]]] == expected
    for axis, source in enumerate(expected):
        assert np.array_equal(y, np.flip(y, axis)) == (source == "")


WITHOUT_A_RULE = {"cond"}  # which branch is taken is not known


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_what_is_said_to_be_stretched_does_not_change(name: str) -> None:
    """Over every op and its gradient: an axis without sources carries one value."""
    for sample in SAMPLES[name]:
        operands = sample.operands()
        graph = op_graph(name, operands, sample.attrs)
        by = tuple(i for i, v in enumerate(graph.inputs) if v.dtype.is_float)
        of = tuple(i for i, v in enumerate(graph.outputs) if v.dtype.is_float)
        graph = Backward(of, by)(graph)
        seeds = [np.ones(graph.inputs[len(operands) + k].shape) for k in range(len(of))]
        found = provenance(graph)
        seen: list[tuple[Node, tuple[Any, ...]]] = []
        evaluate(graph, [*operands, *seeds], trace=lambda *made, seen=seen: seen.append(made))
        for v, array in ((v, x) for n, xs in seen for v, x in zip(n.outputs, xs, strict=True)):
            if v not in found:
                continue  # of a sub-graph
            assert len(found[v]) == array.ndim
            for axis, sources in enumerate(found[v]):
                if not sources and array.shape[axis] > 1:
                    first = np.take(array, [0], axis)
                    np.testing.assert_array_equal(array, np.broadcast_to(first, array.shape))
        unclaimed = {
            n.op.name for n in graph.nodes for v in n.outputs
            if any(UNKNOWN in s for s in found[v])
            and not any(UNKNOWN in s for i in n.inputs for s in found[i])
        }  # fmt: skip
        assert unclaimed <= WITHOUT_A_RULE
