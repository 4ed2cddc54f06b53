"""The graphs that Vectorize makes: as few nodes as the values allow, composites whole, origins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import retrograde.compiler.ops  # noqa: F401  # registers the ops
from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.builder import Builder
from retrograde.compiler.ir.dims import dim
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.graph import Origin, TensorType
from retrograde.compiler.ir.interpreter import evaluate
from retrograde.compiler.ir.location import Loc
from retrograde.compiler.ir.registry import lookup
from retrograde.compiler.passes.vectorize import spread, vectorize
from tests.compiler.ops.harness import build, numpy_dtype
from tests.compiler.ops.samples import body
from tests.compiler.passes.stepwise import body_of, names, vectorized


def made_of(name: str, stacked: Sequence[bool], *shapes: Any, **attrs: Any) -> list[str]:
    types = [s if isinstance(s, TensorType) else TensorType(dtypes.f64, s) for s in shapes]
    builder = Builder("step", Expr)
    with builder:
        results = lookup(name)(*(builder.input(t) for t in types), **attrs)
    results = results if isinstance(results, tuple) else (results,)
    return names(vectorized(builder.finish([e.value for e in results]), stacked, dim("T"))[0])


def test_elementwise_reshapes_only_where_ranks_differ() -> None:
    assert made_of("add", (True, False), (3, 4), (4,)) == ["add"]
    assert made_of("add", (True, True), (3, 4), (3, 4)) == ["add"]
    assert made_of("add", (False, True), (3, 4), (3, 4)) == ["add"]
    assert made_of("add", (False, True), (3, 4), (4,)) == ["reshape", "add"]


B = dim("B")


@pytest.mark.parametrize(
    ("stacked", "left", "right", "contract", "batch", "made"),
    [
        # a projection of the inputs: one product, in order
        ("10", (B, 3), (3, 4), ((1,), (0,)), ((), ()), []),
        ("10", (3,), (3, 4), ((0,), (0,)), ((), ()), []),
        ("10", (3, B), (3, 4), ((0,), (0,)), ((), ()), []),
        # a matrix and the vector of each step: swapped, in order
        ("01", (4, 3), (3,), ((1,), (0,)), ((), ()), []),
        ("01", (4, 3), (3, 1), ((1,), (0,)), ((), ()), ["transpose"]),
        # the rows of each step against a matrix from the left
        ("01", (4, 3), (B, 3), ((1,), (1,)), ((), ()), ["transpose"]),
        # columns: rows of one product only by a copy
        ("01", (4, 3), (3, B), ((1,), (0,)), ((), ()), ["broadcast_to"]),
        # one query a step and batch row: all of them against that row's keys
        ("10", (B, 3), (B, 5, 3), ((1,), (2,)), ((0,), (0,)), ["transpose"]),
        ("01", (B, 5, 3), (B, 3), ((2,), (1,)), ((0,), (0,)), ["transpose"]),
        # many of them: products enough by themselves
        ("10", (B, 7, 3), (B, 5, 3), ((2,), (2,)), ((0,), (0,)), ["broadcast_to"]),
        # products of rows
        ("10", (B, 3), (B, 3), ((1,), (1,)), ((0,), (0,)), ["broadcast_to"]),
        ("11", (B, 3), (3, 4), ((1,), (0,)), ((), ()), []),
        ("11", (B, 7, 3), (B, 5, 3), ((2,), (2,)), ((0,), (0,)), []),
    ],
)
def test_contractions(
    stacked: str, left: Any, right: Any, contract: Any, batch: Any, made: list[str]
) -> None:
    flags = [flag == "1" for flag in stacked]
    found = made_of("dot_general", flags, left, right, contract=contract, batch=batch)
    assert sorted(found) == sorted([*made, "dot_general"])


def test_gather_of_a_shared_table_is_one_gather() -> None:
    index = TensorType(dtypes.i32, (B,))
    assert made_of("gather", (False, True), (9, 4), index, axes=(0,)) == ["gather"]
    found = made_of("gather", (True, False), (9, 4), index, axes=(0,))
    assert found == ["gather", "transpose"]
    found = made_of("gather", (True, False), (9, 4), TensorType(dtypes.i32, ()), axes=(0,))
    assert found == ["gather"]


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_gains_of_each_step_are_rounded_once(dtype: str) -> None:
    """As the op rounds: behind gain and bias, not between."""
    kind = numpy_dtype(dtype)
    rng = np.random.default_rng(0)
    x, gain, bias = rng.normal(size=(4, 3, 5)), rng.normal(size=(4, 5)), rng.normal(size=(4, 5))
    steps = [[a.astype(kind) for a in parts] for parts in zip(x, gain, bias, strict=True)]
    step = build("layer_norm", steps[0], {})
    made, _ = vectorized(step, (True, True, True), 4)
    found = evaluate(made, [np.stack(parts) for parts in zip(*steps, strict=True)])
    wanted = [np.stack(parts) for parts in zip(*(evaluate(step, s) for s in steps), strict=True)]
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(mine.astype(np.float32), theirs.astype(np.float32))


# --- a whole step


def cell(x: Any, w: Any, gain: Any, n: Any) -> tuple[Any, ...]:
    """What a loop body has that needs no carry, in symbolic sizes."""
    dot, total = lookup("dot_general"), lookup("sum")
    projected = dot(x, w, contract=((1,), (0,)), batch=((), ()))
    normed, mean, _ = lookup("layer_norm")(projected, gain)
    weights = lookup("softmax")(normed * total(w, axes=(0,)), axis=1)
    row = lookup("gather")(weights, n, axes=(0,))
    return weights, mean, row, w * 2.0, x


def test_a_step_of_many_nodes() -> None:
    rng = np.random.default_rng(3)
    types = [(dtypes.f64, B, 3), (dtypes.f64, 3, 5), (dtypes.f64, 5), (dtypes.i32,)]
    step = body_of(cell, *types)
    made, found = vectorized(step, (True, False, False, True), dim("T", min=0))
    outputs = [v in found.stacked for v in step.outputs]
    assert outputs == [True, True, True, False, True]
    assert names(made).count("dot_general") == 1
    for length in (4, 0):
        x, n = rng.normal(size=(length, 2, 3)), rng.integers(0, 2, length).astype(np.int32)
        w, gain = rng.normal(size=(3, 5)), rng.normal(size=5)
        results = evaluate(made, [x, w, gain, n], {"B": 2})
        assert results[0].shape == (length, 2, 5)
        for t in range(length):
            each = evaluate(step, [x[t], w, gain, np.asarray(n[t])])
            for mine, theirs in zip(results, each, strict=True):
                np.testing.assert_allclose(mine[t], theirs, rtol=1e-12)


def test_nodes_say_where_they_come_from() -> None:
    place = Loc("cell.py", 12)
    builder = Builder("step", Expr)
    with builder, builder.located(place, "model.cell", Origin("cotangent", "backward", (7,), 5)):
        x, y = (builder.input(TensorType(dtypes.f64, s)) for s in ((3,), (2, 3)))
        inner = body(lambda a: (lookup("tanh")(a),), (2, 3))
        out = lookup("call")(x * y, body=inner)
    step = builder.finish([out.value])
    outer = Builder("steps", Expr)
    with outer:
        stacked = {step.inputs[0]: outer.input(TensorType(dtypes.f64, (4, 3)))}
        shared = {step.inputs[1]: outer.input(step.inputs[1].type)}
        vectorize(step.nodes, stacked, shared, 4, made_by="hoist")
    assert [n.op.name for n in outer.nodes] == ["reshape", "mul", "tanh"]
    product, _ = step.nodes
    for node in outer.nodes:
        assert node.origin.made_by == "hoist"
        assert node.loc is not None
    for node in outer.nodes[:2]:
        assert (node.loc, node.scope) == (place, "model.cell")
        assert node.origin == Origin("cotangent", "hoist", (product.id, 7), 5)
    assert outer.nodes[2].origin.ancestors[0] == inner.nodes[0].id


def test_a_shared_value_stretched() -> None:
    builder = Builder("f", Expr)
    with builder:
        out = spread(builder.input(TensorType(dtypes.f32, (2, 3))), dim("T", min=0))
    assert dims.same(out.shape[0], dim("T", min=0))
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    (found,) = evaluate(builder.finish([out.value]), [x], {"T": 4})
    np.testing.assert_array_equal(found, np.stack([x] * 4))
