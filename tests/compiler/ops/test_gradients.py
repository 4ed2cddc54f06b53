"""Every differentiable op against central differences in float64, first and second order.

Driven by the registry: an op with a gradient and no line in `samples.py` fails here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import retrograde.compiler.ops  # noqa: F401  # registers the ops
from retrograde.compiler.ir import dtypes
from retrograde.compiler.ir.builder import Builder
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.graph import Graph
from retrograde.compiler.ir.interpreter import evaluate
from retrograde.compiler.ir.registry import NotDifferentiable, all_ops, lookup
from retrograde.compiler.ir.text import parse
from retrograde.compiler.ir.verify import verify
from retrograde.compiler.passes.backward import Backward
from tests.compiler.ops.harness import build, floats
from tests.compiler.ops.samples import SAMPLES, Sample

Array = npt.NDArray[Any]

TOLERANCE = 1e-6
STEP = 1e-2

DIFFERENTIABLE = [op.name for op in all_ops() if not isinstance(op.vjp, NotDifferentiable)]
CASES = [(name, s) for name in DIFFERENTIABLE for s in SAMPLES.get(name, ())]
IDS = [f"{name}-{i}" for name in DIFFERENTIABLE for i in range(len(SAMPLES.get(name, ())))]


def first_order(graph: Graph) -> Graph:
    """Inputs and cotangents of the float outputs -> outputs and cotangents of the float inputs."""
    return Backward(floats(graph.outputs), floats(graph.inputs))(graph)


def second_order(first: Graph, outputs: int) -> Graph:
    """(inputs, weights, 1) -> s and ds/d input: s weighs and sums the results of `first` from the
    output with that number on."""
    builder = Builder("second", Expr)
    with builder:
        inputs = [builder.input(v.type) for v in first.inputs]
        weights = [builder.input(v.type) for v in first.outputs[outputs:]]
        cotangents = builder.inline(first, inputs)[outputs:]
        total: Any = builder.constant(0.0, dtypes.f64)
        for weight, cotangent in zip(weights, cotangents, strict=True):
            part = weight * cotangent
            total = total + lookup("sum")(part, axes=tuple(range(part.ndim)), keepdims=False)
    graph = builder.finish([total.value])
    return Backward((0,), floats(first.inputs))(graph)


def derivative(f: Callable[[float], float]) -> float:
    """f'(0) by central differences at three steps, extrapolated to order h^6 (Richardson)."""
    d = [(f(h) - f(-h)) / (2 * h) for h in (STEP, STEP / 2, STEP / 4)]
    d = [(4 * fine - coarse) / 3 for coarse, fine in itertools.pairwise(d)]
    return (16 * d[1] - d[0]) / 15


def check(
    f: Callable[[Sequence[Array]], float],
    at: Sequence[Array],
    gradient: Sequence[Array | None],
    rng: np.random.Generator,
) -> None:
    """`gradient` (None for an operand that is held fixed) against differences of `f`."""
    direction = [None if g is None else _direction(g, rng) for g in gradient]

    def moved(t: float) -> float:
        return f([x if v is None else x + t * v for x, v in zip(at, direction, strict=True)])

    pairs = [(g, v) for g, v in zip(gradient, direction, strict=True) if g is not None]
    exact = sum(float(np.sum(g * v)) for g, v in pairs)
    found = derivative(moved)
    assert np.isfinite(exact)
    assert abs(found - exact) <= TOLERANCE * max(abs(exact), 1e-3)


def _direction(gradient: Array, rng: np.random.Generator) -> Array:
    """A random direction that mostly climbs, so that the slope is not a small difference."""
    shape = gradient.shape
    any_way = rng.choice([-1.0, 1.0], shape)
    uphill = np.where((gradient != 0) & (rng.uniform(size=shape) < 0.8), np.sign(gradient), any_way)
    return rng.uniform(0.5, 1.0, shape) * uphill


def test_every_differentiable_op_has_samples() -> None:
    missing = [name for name in DIFFERENTIABLE if not SAMPLES.get(name)]
    assert not missing, f"add operands to tests/compiler/ops/samples.py for {missing}"


def test_every_sample_belongs_to_a_differentiable_op() -> None:
    assert sorted(set(SAMPLES) - set(DIFFERENTIABLE)) == []


@pytest.mark.parametrize(("name", "sample"), CASES, ids=IDS)
def test_gradient(name: str, sample: Sample) -> None:
    rng = np.random.default_rng(7)
    operands = sample.operands()
    graph = build(name, operands, sample.attrs)
    wanted, results = floats(graph.inputs), floats(graph.outputs)
    seeds = [np.asarray(rng.uniform(0.5, 1.5, evaluate(graph, operands)[i].shape)) for i in results]
    first = first_order(graph)

    def weighed(xs: Sequence[Array]) -> float:
        outputs = evaluate(graph, xs)
        return sum(float(np.sum(w * outputs[i])) for i, w in zip(results, seeds, strict=True))

    outputs = evaluate(first, [*operands, *seeds])
    for mine, theirs in zip(outputs, evaluate(graph, operands), strict=False):
        if lookup(name).vjp is None:  # differentiated, and computed, through its decomposition
            np.testing.assert_allclose(mine, theirs, rtol=1e-13, atol=1e-15)
        else:
            np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=1e-14)
    cotangents = dict(zip(wanted, outputs[len(graph.outputs) :], strict=True))
    check(weighed, operands, [cotangents.get(i) for i in range(len(operands))], rng)

    # Second order: the gradient, weighed and summed, as a function of operands and cotangents.
    second = second_order(first, len(graph.outputs))
    at = [*operands, *seeds]
    weights = [np.asarray(rng.uniform(0.5, 1.5, cotangents[i].shape)) for i in wanted]

    def weighed_gradient(xs: Sequence[Array]) -> float:
        found = evaluate(first, xs)[len(graph.outputs) :]
        return sum(float(np.sum(w * d)) for w, d in zip(weights, found, strict=True))

    for made in (graph, first, second):
        verify(made)
        assert parse(made.text()).text() == made.text()
    total, *rest = evaluate(second, [*at, *weights, np.asarray(1.0)])
    np.testing.assert_allclose(total, weighed_gradient(at), rtol=1e-12)
    gradient = dict(zip(floats(first.inputs), rest, strict=True))
    n = len(operands)
    check(weighed_gradient, at, [gradient.get(i) for i in range(len(at))], rng)
    check(weighed_gradient, at, [gradient.get(i) if i < n else None for i in range(len(at))], rng)
