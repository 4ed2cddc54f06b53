"""A loop equals its steps one after the other: random cells, values and gradients, every length.

Compared are the compiled program (one for all lengths, and one of a fixed length), the traced graph
in the interpreter, and the unrolled twin, op by op."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import retrograde as rg
import retrograde.numpy as rnp
from retrograde.compiler.ir.interpreter import evaluate
from retrograde.traces import Declared
from tests.frontends.cell_family import (
    Array,
    Cell,
    cells,
    first_carry,
    joined,
    loss_with,
    parted,
    scanned,
    sequence,
    unrolled,
    weights,
)

LENGTHS = 0, 1, 2, 5, 9, 17
EXAMPLES = settings().max_examples  # of the profile: `make fuzz` asks for more
STEPS = rg.dim("T", min=0)


def data(cell: Cell, steps: int) -> Any:
    return parted((weights(), first_carry(cell), sequence(cell, steps)))


def specs(cell: Cell) -> Any:
    """The types of `data` with the number of steps a symbol."""
    floats, others, form = data(cell, 1)
    w, carry, xs = joined(floats, others, form)
    xs = rg.tree.map(lambda x: rg.spec(x.dtype.name, STEPS, *x.shape[1:]), xs)
    leaves = rg.tree.leaves((w, carry, xs))
    types = [x if isinstance(x, rg.Spec) else rg.spec(x.dtype.name, *x.shape) for x in leaves]
    return (
        [t for t, f in zip(types, form[1], strict=True) if f],
        [t for t, f in zip(types, form[1], strict=True) if not f],
        form,
    )


def step_of(loop: Any, cell: Cell) -> Any:
    """(float leaves, other leaves) -> ((loss, results), gradients by every float leaf)."""
    form = data(cell, 1)[2]
    loss = loss_with(loop, cell)
    return rg.value_and_grad(lambda floats, others: loss(floats, others, form), has_aux=True)


def compare(found: Any, wanted: Any) -> None:
    """Values to 1e-12 of the largest of each array; gradients to 1e-12 of the largest of all."""
    (value, results), gradients = found
    (twin, expected), truth = wanted
    assert_close(value, twin)
    last, ys = results
    for a, b in zip(rg.tree.leaves(last), rg.tree.leaves(expected[0]), strict=True):
        assert_close(a, b)
    if expected[1] is None:
        assert all(y.shape[0] == 0 for y in ys)
    else:
        for a, b in zip(ys, expected[1], strict=True):
            assert_close(a, b)
    scale = max((np.abs(g).max() for g in truth if g.size), default=1.0)
    for a, b in zip(gradients, truth, strict=True):
        assert_close(a, b, scale)


def assert_close(a: Array, b: Array, scale: float | None = None) -> None:
    assert a.shape == b.shape and a.dtype == b.dtype
    assert np.isfinite(a).all()
    if scale is None:
        scale = max(1.0, np.abs(b.astype("f8")).max(initial=0.0))
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * scale)


def twin(cell: Cell, steps: int) -> Any:
    floats, others, _ = data(cell, steps)
    with rg.eager():
        found = step_of(unrolled, cell)(floats, others)
        return rg.tree.map(lambda x: None if x is None else np.asarray(x), found)


def check(cell: Cell, lengths: tuple[int, ...]) -> None:
    wanted = {steps: twin(cell, steps) for steps in lengths}
    floats, others, _ = specs(cell)
    step = step_of(scanned, cell)
    compiled = rg.compile(step, floats, others)
    traced, _ = Declared.of(step, (floats, others)).trace()
    for steps in lengths:
        arrays = data(cell, steps)[:2]
        compare(compiled(*arrays), wanted[steps])
        outputs = evaluate(traced.graph, [*arrays[0], *arrays[1], *traced.captured])
        compare(rg.tree.unflatten(traced.structure, outputs), wanted[steps])
    fixed = lengths[-1]
    arrays = data(cell, fixed)[:2]
    compare(rg.compile(step, *arrays)(*arrays), wanted[fixed])


@settings(max_examples=EXAMPLES * 3 // 5)
@given(cells(), st.sampled_from(LENGTHS[:3]), st.sampled_from(LENGTHS[3:]))
def test_any_cell(cell: Cell, few: int, many: int) -> None:
    check(cell, (few, many))


def directions(floats: list[Array]) -> list[Array]:
    draw = np.random.default_rng(5)
    return [np.asarray(draw.normal(size=x.shape)) for x in floats]


def hessian_products(loop: Any, cell: Cell) -> Any:
    """(float leaves, other leaves, directions) -> the Hessian times the directions, twice over."""
    form = data(cell, 1)[2]
    loss = loss_with(loop, cell)

    def gradient(floats: Any, others: Any) -> Any:
        return rg.grad(lambda floats: loss(floats, others, form)[0])(floats)

    def both(floats: Any, others: Any, toward: Any) -> Any:
        value, tangent = rg.jvp(lambda floats: gradient(floats, others), (floats,), (toward,))

        def along(floats: Any) -> Any:
            parts = zip(gradient(floats, others), toward, strict=True)
            return sum((rnp.sum(g * v) for g, v in parts), rnp.zeros((), "f64"))

        return value, tangent, rg.grad(along)(floats)

    return both


@settings(max_examples=EXAMPLES // 4)
@given(cells(longest=4), st.sampled_from((0, 1, 2, 5)))
def test_second_derivatives(cell: Cell, steps: int) -> None:
    floats, others, _ = data(cell, steps)
    toward = directions(floats)
    with rg.eager():
        wanted = rg.tree.map(np.asarray, hessian_products(unrolled, cell)(floats, others, toward))
    declared, rest, _ = specs(cell)
    compiled = rg.compile(hessian_products(scanned, cell), declared, rest, declared)
    for found, truth in zip(compiled(floats, others, toward), wanted, strict=True):
        scale = max(np.abs(g).max(initial=1e-300) for g in truth)
        for a, b in zip(found, truth, strict=True):
            assert_close(a, b, scale)
