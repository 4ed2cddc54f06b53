"""The rules of taking apart, for every op: each step's result is that step of the op's result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import retrograde.compiler.ops  # noqa: F401  # registers the ops
from retrograde.compiler.ir import dtypes
from retrograde.compiler.ir.builder import Builder
from retrograde.compiler.ir.expr import Expr, cast
from retrograde.compiler.ir.graph import Graph, Node, TensorType, Value
from retrograde.compiler.ir.interpreter import evaluate
from retrograde.compiler.ir.registry import Kind, all_ops, lookup
from retrograde.compiler.passes.cuts import Cut, Need, Needs, Part, Steps, over_all, stacked_first
from retrograde.compiler.passes.devectorize import pushed, rule_for
from retrograde.compiler.passes.devectorize_sums import SUMS
from tests.compiler.ops.harness import build
from tests.compiler.ops.samples import Sample, integers, normal, sample
from tests.device.op_samples import calls

Array = npt.NDArray[Any]

# No rule by reason: they make one value, hold sub-graphs, act, or are expanded before; attention
# and heads go through their keys and rows some at a time by themselves; a sum over steps is made
# after loops and what is around them have joined.
WITHOUT_RULE = {Kind.CREATE, Kind.REGION, Kind.RANDOM, Kind.COMPOSITE}
TILED = ("flash_attention", "linear_cross_entropy")
WHOLE = ("debug_print", "dot_steps", *TILED, *(f"{name}_grad" for name in TILED))
SAMPLED = [op.name for op in all_ops() if op.kind not in WITHOUT_RULE and op.name not in WHOLE]
# Beside the samples of the ops: steps that share their axis, and rows that look into themselves.
MORE = {
    "reshape": [
        sample(normal(2, 5, 3), shape=(10, 3)), sample(normal(10, 3), shape=(2, 5, 3)),
        sample(normal(2, 5, 3), shape=(2, 15)), sample(normal(4, 5, 6), shape=(2, 2, 15, 2)),
    ],
    "gather": [
        sample(normal(5, 7), integers(0, 7, 5, 2), axes=(1,), wrap=False),
        sample(normal(4, 6, 7), integers(0, 6, 2, 3), integers(0, 7, 2, 3), axes=(1, 2)),
    ],
    "scatter_add": [sample(normal(5, 7), normal(2, 5), integers(0, 7, 2), axes=(1,))],
    "set_slice": [sample(normal(5, 7), normal(5, 2), start=(0, 3), step=(1, 1))],
    "slice": [sample(normal(5, 4, 7), start=(0, 2, 1), stop=(5, 3, 6), step=(1, 1, 2))],
}  # fmt: skip


def samples_of(name: str) -> list[Sample]:
    return [given for op, given in calls() if op == name] + MORE.get(name, [])


def cuts_of(shape: Sequence[int]) -> Iterator[Cut]:
    """Every way in which an axis can hold two steps or more."""
    for axis, size in enumerate(shape):
        for count in range(2, size + 1):
            for outer in range(1, size + 1):
                if size % (count * outer) == 0:
                    inner = size // (count * outer)
                    yield Cut(axis, outer, inner, Steps.all(count))


def step_of(x: Array, cut: Cut, t: int) -> Array:
    """Step `t` of an array, by the definition of a cut; outside of its window, some step."""
    outer, count, inner = int(cut.outer), int(cut.steps.count), int(cut.inner)
    split = x.reshape((*x.shape[: cut.axis], outer, count, inner, *x.shape[cut.axis + 1 :]))
    taken = np.take(split, t - int(cut.steps.start), axis=cut.axis + 1, mode="clip")
    return taken.reshape(tuple(int(d) for d in cut.shape(x.shape)))


def one_step(
    graph: Graph, arrays: Sequence[Array], cut: Cut | None, needs: Needs, t: int
) -> list[Array]:
    """What the rule emits for step `t`."""
    (node,) = graph.nodes
    builder = Builder("step", Expr)
    given: list[Array] = [np.asarray(t, np.int64)]
    with builder:
        number = builder.input(TensorType(dtypes.i64))
        operands: list[Expr | None] = []
        for x, need in zip(arrays, needs, strict=True):
            if need is Need.NOTHING:
                operands.append(None)
                continue
            given.append(step_of(x, need, t) if isinstance(need, Cut) else x)
            dtype = dtypes.dtype(x.dtype)
            operands.append(builder.input(TensorType(dtype, given[-1].shape)))
        part = Part(node, cut, needs, tuple(operands), lambda: number)
        if cut is None:
            results: tuple[Expr, ...] = (SUMS[node.op.name].part(part),)
        else:
            rule = rule_for(node)
            assert rule is not None
            results = rule.step(part)
    return evaluate(builder.finish([e.value for e in results]), given)


@pytest.mark.parametrize("name", SAMPLED)
def test_each_step_is_that_step_of_the_result(name: str) -> None:
    taken = 0
    for given in samples_of(name):
        arrays = given.operands()
        graph = build(name, arrays, given.attrs)
        if len(graph.nodes) != 1:  # operands were promoted first
            continue
        (node,) = graph.nodes
        wanted = evaluate(graph, arrays)
        rule = rule_for(node)
        assert rule is not None, f"{name} has no rule, and no reason not to have one"
        for cut in cuts_of([int(d) for d in node.outputs[0].shape]):
            needs = rule.pull(node, cut, {})
            if needs is None:
                continue
            for t in range(int(cut.steps.count)):
                found = one_step(graph, arrays, cut, needs, t)
                for x, y in zip(found, wanted, strict=True):
                    np.testing.assert_allclose(
                        x, step_of(y, cut, t), rtol=1e-12, atol=1e-13, strict=True
                    )
            taken += 1
            known = {
                v: need for v, need in zip(node.inputs, needs, strict=True) if isinstance(need, Cut)
            }
            if len(known) == len(node.inputs) and len(set(node.inputs)) == len(node.inputs):
                again = pushed(node, known, {})
                assert again is not None
                assert rule.pull(node, again, {}) == needs
    assert taken, f"no sample of {name} was taken apart"


@pytest.mark.parametrize("name", SUMS)
def test_the_parts_of_all_steps_add_up(name: str) -> None:
    taken = 0
    for given in samples_of(name):
        arrays = given.operands()
        graph = build(name, arrays, given.attrs)
        if len(graph.nodes) != 1:
            continue
        (node,) = graph.nodes
        makers: Mapping[Value, Node] = {}
        if name == "scatter_add":  # into zeros: those that the graph makes itself
            arrays[0] = np.zeros_like(arrays[0])
            makers = _zero_maker(node.inputs[0])
        (wanted,) = evaluate(graph, arrays)
        for i, v in enumerate(node.inputs):
            for cut in cuts_of([int(d) for d in v.shape]):
                needs = SUMS[name].pull(node, {v: cut}, makers)
                if needs is None or needs[i] != cut:
                    continue
                parts = [
                    one_step(graph, arrays, None, needs, t)[0]
                    for t in range(int(cut.steps.count))
                ]
                np.testing.assert_allclose(np.sum(parts, axis=0), wanted, rtol=1e-12, atol=1e-12)
                taken += 1
    assert taken


def _zero_maker(v: Value) -> dict[Value, Node]:
    builder = Builder("zeros", Expr)
    with builder:
        lookup("constant")(value=0.0, dtype=v.dtype)
    return {v: builder.nodes[0]}


def test_half_precision_adds_up_in_f32() -> None:
    x = np.ones((4, 3), np.float16)
    graph = build("sum", [x], {"axes": (0, 1), "keepdims": False})
    (node,) = graph.nodes
    needs = SUMS["sum"].pull(node, {node.inputs[0]: over_all(4)}, {})
    assert needs is not None
    (part,) = one_step(graph, [x], None, needs, 2)
    assert part.dtype == np.float32 and part == 3.0


# --- rows that look into themselves, windows


def test_a_row_that_looks_into_itself_does_so_in_one_step() -> None:
    """As the log likelihood of targets is picked: [B*T, V] at (row, target of the row)."""
    rows, count, width = 2, 5, 7
    builder = Builder("pick", Expr)
    with builder:
        x = builder.input(TensorType(dtypes.f64, (rows * count, width)))
        at = builder.input(TensorType(dtypes.i32, (rows * count,)))
        number = lookup("iota")(size=rows * count, dtype=dtypes.i32)
        picked = lookup("gather")(x, number, at, axes=(0, 1), wrap=False)
        lookup("scatter_add")(x, picked, number, at, axes=(0, 1), wrap=False)
    nodes = builder.nodes
    makers = {v: node for node in nodes for v in node.outputs}
    cut = Cut(0, rows, 1, Steps.all(count))
    assert pushed(nodes[1], {x.value: cut}, makers) == cut
    assert pushed(nodes[2], {x.value: cut}, makers) == cut
    draw = np.random.default_rng(0)
    data = draw.normal(size=(rows * count, width))
    places = draw.integers(0, width, rows * count).astype(np.int32)
    wanted = data[np.arange(rows * count), places]
    added = data.copy()
    added[np.arange(rows * count), places] += wanted
    for t in range(count):
        for node, arrays, result in (
            (nodes[1], [data, places, places], wanted),
            (nodes[2], [data, wanted, places, places], added),
        ):
            rule = rule_for(node)
            assert rule is not None
            needs = rule.pull(node, cut, makers)
            assert needs is not None and Need.NOTHING in needs
            alone = Graph("one", node.inputs, (node,), node.outputs)
            (found,) = one_step(alone, arrays, cut, needs, t)
            np.testing.assert_array_equal(found, step_of(result, cut, t))


def test_windows_say_which_steps_there_are() -> None:
    builder = Builder("window", Expr)
    with builder:
        x = builder.input(TensorType(dtypes.f64, (2, 6, 3)))
        most = lookup("slice")(x, start=(0, 1, 0), stop=(2, 6, 3), step=(1, 1, 1))
        lookup("pad")(most, low=(0, 1, 0), high=(0, 0, 0), interior=(0, 0, 0), value=-1.0)
    cut = Cut(1, 1, 1, Steps.all(6))
    window = Cut(1, 1, 1, Steps(6, 1, 5))
    cutting, padding = builder.nodes
    assert pushed(cutting, {x.value: cut}, {}) == window
    assert pushed(padding, {most.value: window}, {}) == cut
    data = np.random.default_rng(1).normal(size=(2, 6, 3))
    padded = np.concatenate([np.full((2, 1, 3), -1.0), data[:, 1:]], axis=1)
    rule = rule_for(padding)
    assert rule is not None
    needs = rule.pull(padding, cut, {})
    assert needs == (window,)
    graph = Graph("pad", padding.inputs, (padding,), padding.outputs)
    for t in range(1, 6):
        (found,) = one_step(graph, [data[:, 1:]], cut, needs, t)
        np.testing.assert_array_equal(found, padded[:, t])


def test_a_long_gap_is_no_window() -> None:
    """Most steps would be computed for nothing."""
    builder = Builder("window", Expr)
    with builder:
        x = builder.input(TensorType(dtypes.f64, (100, 3)))
        lookup("slice")(x, start=(50, 0), stop=(100, 3), step=(1, 1))
    assert pushed(builder.nodes[0], {x.value: over_all(100)}, {}) is None


def test_steps_are_laid_out_in_front() -> None:
    x = np.arange(2 * 12 * 3.0).reshape(2, 12, 3)
    two = Steps.all(2)
    for cut in (Cut(1, 1, 1, Steps.all(12)), Cut(1, 2, 3, two), Cut(0, 1, 1, two)):
        builder = Builder("front", Expr)
        with builder:
            out = stacked_first(builder.input(TensorType(dtypes.f64, x.shape)), cut)
        (found,) = evaluate(builder.finish([out.value]), [x])
        for t in range(int(cut.steps.count)):
            np.testing.assert_array_equal(found[t], step_of(x, cut, t))


def test_steps_outside_of_a_window_are_zeros() -> None:
    x = np.ones((2, 3), np.float32)
    builder = Builder("front", Expr)
    with builder:
        given = builder.input(TensorType(dtypes.f32, x.shape))
        out = cast(stacked_first(given, Cut(1, 1, 1, Steps(5, 1, 3))), dtypes.f32)
    (found,) = evaluate(builder.finish([out.value]), [x])
    np.testing.assert_array_equal(found[:, 0], [0, 1, 1, 1, 0])
