"""Backward as a graph: what it keeps, what it adds, and what it must not build."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from retrograde.compiler.errors import UnsupportedError
from retrograde.compiler.ir.interpreter import evaluate
from retrograde.compiler.ir.verify import verify
from retrograde.compiler.passes.backward import Backward
from retrograde.compiler.passes.dce import DCE
from retrograde.compiler.passes.simplify import Simplify
from tests.compiler.passes.harness import names, plain, written

Golden = Callable[[str, str], None]

TEXT = """(%0 x: f64[B,4], %1 w: f64[4,3], %2 b: f64[3], %3 n: i32[B], %4 unused: f64[T,7]) {
  %5: f64[B,3] = dot_general %0, %1 {batch=((),()), contract=((1,),(0,))}
  %6: f64[B,3] = add %5, %2
  %7: f64[B,3] = tanh %6
  %8: f64[B,3] = mul %7, %6
  %9: f64[] = sum %8 {axes=(0,1), keepdims=False}
  return %9 loss, %7 y }"""


def test_golden(golden: Golden) -> None:
    """The gradient of a layer: shared values are summed, the bias is summed down to its shape."""
    after = Backward((0,), (0, 1, 2, 4))(written(TEXT))
    verify(after)
    golden("passes/backward.ir", plain(after) + "\n")
    assert after.output_names == ("loss", "y", "d x", "d w", "d b", "d unused")
    assert after.input_names[-1] == "cotangent 0"


def test_against_differences() -> None:
    graph = written(TEXT)
    after = Backward((0,), (0, 1, 2, 4))(graph)
    rng = np.random.default_rng(0)
    at = [rng.standard_normal(s) for s in ((5, 4), (4, 3), (3,))]
    rest = [np.zeros(5, np.int32), rng.standard_normal((6, 7))]
    _, _, *gradients, unused = evaluate(after, [*at, *rest, np.asarray(1.0)])
    assert unused.shape == (6, 7) and not unused.any()
    step = 1e-6
    for i, g in enumerate(gradients):
        direction = rng.standard_normal(at[i].shape)
        ends = []
        for sign in (1, -1):
            moved = [x + sign * step * direction if j == i else x for j, x in enumerate(at)]
            ends.append(float(evaluate(graph, [*moved, *rest])[0]))
        slope = (ends[0] - ends[1]) / (2 * step)
        np.testing.assert_allclose(np.sum(g * direction), slope, rtol=1e-7)


def test_primal_nodes_stay_and_others_say_where_they_are_from() -> None:
    before = written(TEXT)
    after = Backward((0,), (0, 1))(before)
    count = len(before.nodes)
    assert [n.id for n in after.nodes[:count]] == [n.id for n in before.nodes]
    known = {n.id for n in before.nodes}
    for n in after.nodes[count:]:
        assert n.origin.role in ("cotangent", "recompute")
        assert set(n.origin.ancestors) <= known


def test_zeros_are_not_built() -> None:
    """The cotangent of what nothing depends on is a stretched constant."""
    after = DCE()(Simplify()(Backward((0,), (4,))(written(TEXT))))
    made = {n.output: n for n in after.nodes if len(n.outputs) == 1}
    zero = made[after.outputs[-1]]
    assert zero.op.name == "broadcast_to"
    assert made[zero.inputs[0]].attrs["value"] == 0.0
    assert names(after).count("dot_general") == 1


def test_a_value_used_twice_is_summed_once() -> None:
    text = """(%0: f64[B,4]) {
      %1: f64[B,4] = add %0, %0
      %2: f64[B,4] = mul %1, %0
      %3: f64[B,4] = mul %2, %2
      return %3 }"""
    after = Backward((0,), (0,))(written(text))
    x, g = np.random.default_rng(1).standard_normal((2, 3, 4))
    _, found = evaluate(after, [x, g])
    np.testing.assert_allclose(found, 16 * x**3 * g, rtol=1e-12)  # (2 x^2)^2 = 4 x^4


def test_integer_outputs_have_no_gradient() -> None:
    text = """(%0: f64[B,4]) {
      %1: i32[B] = argmax %0 {axis=1, keepdims=False}
      return %1 }"""
    with pytest.raises(UnsupportedError, match="not a float"):
        Backward((0,), (0,))(written(text))


def test_stop_gradient_cuts() -> None:
    text = """(%0: f64[B,4]) {
      %1: f64[B,4] = stop_gradient %0
      %2: f64[B,4] = mul %1, %0
      return %2 }"""
    x, g = np.random.default_rng(1).standard_normal((2, 3, 4))
    _, found = evaluate(Backward((0,), (0,))(written(text)), [x, g])
    np.testing.assert_array_equal(found, x * g)
