"""Hoisting and sinking: what is left in the loop, what is outside, and that the numbers stay.

The cells are ordinary ones and invented ones; the passes know none of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import retrograde as rg
import retrograde.numpy as rnp
from retrograde.compiler.ir import dims
from retrograde.compiler.ir.graph import Graph, Node
from retrograde.compiler.ir.interpreter import evaluate
from retrograde.compiler.ir.verify import verify
from retrograde.compiler.passes.cse import CSE
from retrograde.compiler.passes.dce import DCE
from retrograde.compiler.passes.expand import Expand
from retrograde.compiler.passes.regions import everywhere
from retrograde.compiler.passes.scan_hoist import HoistScan
from retrograde.compiler.passes.scan_sink import SinkScan
from retrograde.compiler.passes.simplify import Simplify

D, B, V = 3, 2, 7
Cell = Callable[[dict[str, Any], Any, Any], tuple[Any, Any]]


def lstm(w: dict[str, Any], carry: Any, x: Any) -> tuple[Any, Any]:
    h, c = carry
    i, f, g, o = rnp.split(x @ w["x4"] + h @ w["h4"] + w["b4"], 4, axis=-1)
    c = rnp.sigmoid(f) * c + rnp.sigmoid(i) * rnp.tanh(g)
    h = rnp.sigmoid(o) * rnp.tanh(c)
    return (h, c), h


def gru(w: dict[str, Any], carry: Any, x: Any) -> tuple[Any, Any]:
    (h,) = carry
    rx, zx, nx = rnp.split(x @ w["x3"], 3, axis=-1)
    rh, zh, nh = rnp.split(h @ w["h3"], 3, axis=-1)
    r, z = rnp.sigmoid(rx + rh), rnp.sigmoid(zx + zh)
    h = z * h + (1 - z) * rnp.tanh(nx + r * nh)
    return (h,), h


def highway(w: dict[str, Any], carry: Any, x: Any) -> tuple[Any, Any]:
    """Invented: two products of x, a gate by a softmax, a normalised state, a head in the loop."""
    (h,) = carry
    gate = rnp.softmax(x @ w["x"], axis=-1)
    h = gate * rnp.tanh(h @ w["h"] + (x * x) @ w["y"]) + (1 - gate) * h
    return (h,), h @ w["head"]


def counter(w: dict[str, Any], carry: Any, x: Any) -> tuple[Any, Any]:
    """Invented: an integer carry and one that is never used, beside a linear recurrence."""
    y, n, unused = carry
    y = rnp.sigmoid(x @ w["x"]) * y + x
    return (y, n + 1, unused), rnp.where(n % 2 == 0, y, -y)


def attentive(w: dict[str, Any], carry: Any, x: Any) -> tuple[Any, Any]:
    """Invented: looks up a table by a token of the slice and attends over a fixed memory."""
    (h,) = carry
    row = rnp.take(w["table"], rnp.argmax(x, axis=-1), axis=0)
    weights = rnp.softmax((h @ w["h"]) @ w["memory"].T, axis=-1)
    h = rnp.tanh(weights @ w["memory"] + row + h)
    return (h,), rnp.sum(h * h)


# For each cell: initial carries, and the products left inside the forward and backward loops.
# A product of the carry has to stay, and so does the one that pulls its cotangent back.
CASES: dict[str, tuple[Cell, Callable[[], Any], int, int]] = {
    "lstm": (lstm, lambda: (rnp.zeros((B, D)), rnp.zeros((B, D))), 1, 1),
    "gru": (gru, lambda: (rnp.zeros((B, D)),), 1, 1),
    "highway": (highway, lambda: (rnp.zeros((B, D)),), 1, 1),
    "counter": (
        counter, lambda: (rnp.zeros((B, D)), rnp.asarray(0), rnp.ones((B,))), 0, 0,
    ),
    # Backward the row products of the softmax's gradient come on top.
    "attentive": (attentive, lambda: (rnp.zeros((B, D)),), 3, 4),
}  # fmt: skip


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    shapes = {
        "x": (D, D), "y": (D, D), "h": (D, D), "x3": (D, 3 * D), "h3": (D, 3 * D),
        "x4": (D, 4 * D), "h4": (D, 4 * D), "b4": (4 * D,), "head": (D, 5), "table": (V, D),
        "memory": (6, D),
    }  # fmt: skip
    return {name: draw.normal(size=shape) * 0.5 for name, shape in shapes.items()}


def traced(name: str, reverse: bool = False) -> Graph:
    """Loss and gradients of the cell run over xs[T, B, D], with T a symbol."""
    cell, start, _, _ = CASES[name]

    def loss(w: Any, xs: Any) -> Any:
        carry = rg.tree.map(lambda x: x.astype("f64") if x.dtype == "f32" else x, start())
        carry, ys = rg.scan(lambda c, x: cell(w, c, x), carry, xs, reverse=reverse)
        return rnp.sum(rnp.sin(ys)) + sum(rnp.sum(c * c) for c in carry if c.dtype == "f64")

    spec = {k: rg.spec("f64", *v.shape) for k, v in weights().items()}
    steps = rg.dim("T", min=0)
    return rg.trace(rg.value_and_grad(loss, argnums=(0, 1)), spec, rg.spec("f64", steps, B, D))


def prepared(graph: Graph) -> Graph:
    for transform in (DCE(), Expand(), Simplify(), CSE()):
        graph = everywhere(transform, graph)
    return graph


def moved(graph: Graph) -> Graph:
    for transform in (SinkScan(), HoistScan(), CSE(), Simplify(), DCE()):
        graph = everywhere(transform, graph)
        verify(graph, made_by=type(transform).__name__)
    return graph


def inside(graph: Graph) -> Iterator[list[Node]]:
    """The nodes of each loop's body."""
    for node in graph.nodes:
        for _, body in node.subgraphs():
            yield list(body.nodes)


def products(nodes: list[Node]) -> int:
    return sum(node.op.name in ("dot_general", "dot_steps") for node in nodes)


@pytest.mark.parametrize("name", CASES)
def test_only_products_of_the_carry_stay_in_the_loop(name: str) -> None:
    _, _, forward, backward = CASES[name]
    before, after = prepared(traced(name)), moved(prepared(traced(name)))
    loops = list(inside(after))
    assert [products(nodes) for nodes in loops] == [forward, backward]
    assert products(list(after.nodes)) > products(list(before.nodes)) or name == "counter"
    for nodes in loops:
        assert not any(node.op.name in ("gather", "scatter_add") for node in nodes)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_the_numbers_stay(name: str, reverse: bool) -> None:
    before = traced(name, reverse)
    after = moved(prepared(before))
    for steps in (0, 1, 2, 5, 9):
        w = weights(steps)
        xs = np.random.default_rng(40 + steps).normal(size=(steps, B, D))
        named = {**{f"w.{k}": v for k, v in w.items()}, "xs": xs}
        arrays = [named[path] for path in before.input_names]
        wanted = evaluate(before, arrays, {"T": steps})
        found = evaluate(after, arrays, {"T": steps})
        for a, b in zip(wanted, found, strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-12, atol=1e-13)


def test_the_number_of_nodes_does_not_depend_on_the_length() -> None:
    def nodes(steps: int) -> int:
        def loss(w: Any, xs: Any) -> Any:
            zeros = (rnp.zeros((B, D), "f64"), rnp.zeros((B, D), "f64"))
            return rnp.sum(rg.scan(lambda c, x: lstm(w, c, x), zeros, xs)[1])

        spec = {k: rg.spec("f64", *v.shape) for k, v in weights().items()}
        graph = rg.trace(rg.grad(loss), spec, rg.spec("f64", steps, B, D))
        graph = moved(prepared(graph))
        return len(graph.nodes) + sum(len(body) for body in inside(graph))

    assert nodes(32) == nodes(4096)


def test_cheap_arithmetic_on_slices_stays_inside() -> None:
    """Hoisting `2 * x` would cost an array over all steps and save nothing."""

    def loss(xs: Any) -> Any:
        return rnp.sum(rg.scan(lambda c, x: (c * 0.5 + 2.0 * x, None), rnp.zeros(D, "f64"), xs)[0])

    graph = moved(prepared(rg.trace(loss, rg.spec("f64", "T", D))))
    (body,) = inside(graph)
    assert sum(node.op.name == "mul" for node in body) == 2


# --- what must not be stacked


def gradient_graph(loss: Any, *specs: Any) -> Graph:
    """Of the gradient by the first argument, moved; and it computes what it did."""
    before = rg.trace(rg.grad(loss), *specs)
    after = moved(prepared(before))
    for steps in (0, 1, 4):
        draw = np.random.default_rng(steps)
        shapes = [[dims.evaluate(d, {"T": steps}) for d in v.shape] for v in before.inputs]
        arrays = [draw.normal(size=shape) for shape in shapes]
        for a, b in zip(evaluate(before, arrays), evaluate(after, arrays), strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-12, atol=1e-13)
    return after


T = rg.dim("T", min=0)
XS, WEIGHT, HEAD = rg.spec("f64", T, B, D), rg.spec("f64", D, D), rg.spec("f64", D, 5)


def over_steps(graph: Graph) -> list[tuple[Any, ...]]:
    """The shapes, without the steps, of all that there is for every step at once."""
    return [
        v.shape[1:] for node in graph.nodes for v in node.outputs
        if v.shape and str(v.shape[0]) == "T"
    ]  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_no_weight_is_there_for_every_step(name: str) -> None:
    """The gradient of a head is one contraction, and not a stack of those of the steps."""
    shapes = over_steps(moved(prepared(traced(name))))
    assert shapes and not {w.shape for w in weights().values()} & set(shapes)


def test_weights_that_the_body_changes_first() -> None:
    """Scaled, masked, joined, cut, padded: once before the loop, and the gradient once behind."""

    def loss(w: Any, head: Any, xs: Any) -> Any:
        def body(h: Any, x: Any) -> Any:
            both = rnp.concatenate([0.5 * w, rnp.tanh(w)], axis=1)
            a, b = rnp.split(h @ both + x @ rnp.pad(w[:, 1:], ((0, 0), (0, 4))), 2, axis=1)
            h = rnp.tanh(a) * b + h @ rnp.where(rnp.eye(D) == 0, w / 3, 0)
            return h, h @ (head * 2)

        h, ys = rg.scan(body, rnp.zeros((B, D), "f64"), xs)
        return rnp.sum(h) + rnp.sum(rnp.sin(ys))

    def both(given: Any, xs: Any) -> Any:
        return loss(given[0], given[1], xs)

    graph = gradient_graph(both, (WEIGHT, HEAD), XS)
    of_weights = {(D, D), (D, 2 * D), (D, 5)}
    for nodes in inside(graph):
        assert [n.op.name for n in nodes if n.outputs[0].shape in of_weights] == []
    assert not of_weights & set(over_steps(graph))


def test_a_weight_that_the_recurrence_needs_changed_is_not_stacked() -> None:
    """`tanh(w)` is needed in the loop and behind it, for the gradient of xs."""

    def loss(given: Any) -> Any:
        w, xs = given

        def body(h: Any, x: Any) -> Any:
            return rnp.tanh((h + x) @ rnp.tanh(w)), None

        return rnp.sum(rg.scan(body, rnp.zeros((B, D), "f64"), xs)[0])

    graph = gradient_graph(loss, (WEIGHT, XS))
    assert (D, D) not in over_steps(graph)
    assert [node.op.name for node in graph.nodes].count("tanh") == 1


def test_a_loss_added_up_in_the_carry_leaves_the_loop() -> None:
    """Its cotangent is a carry that never changes: what it multiplies needs no carry."""

    def loss(given: Any, xs: Any) -> Any:
        w, head = given

        def body(carry: Any, x: Any) -> Any:
            h, total = carry
            h = rnp.tanh(h @ w + x)
            return (h, total + rnp.sum(rnp.sin(h @ head))), None

        return rg.scan(body, (rnp.zeros((B, D), "f64"), rnp.zeros((), "f64")), xs)[0][1]

    graph = gradient_graph(loss, (WEIGHT, HEAD), XS)
    assert [products(nodes) for nodes in inside(graph)] == [1, 1]
    assert not {(D, 5), (D, D)} & set(over_steps(graph))


def test_what_a_step_passes_on_is_not_stacked_again() -> None:
    """A slice that is returned is the operand; a result that is returned twice is stacked once."""

    def run(h: Any, xs: Any) -> Any:
        def body(h: Any, x: Any) -> Any:
            h = rnp.tanh(h + x)
            return h, (x, h, h, x)

        return rg.scan(body, h, xs)

    before = rg.trace(run, rg.spec("f64", B, D), XS)
    graph = moved(prepared(before))
    (scan,) = (node for node in graph.nodes if node.op.name == "scan")
    assert len(scan.outputs) == 2
    _, a, b, c, d = graph.outputs
    assert a is d is graph.inputs[1] and b is c is scan.outputs[1]
    draw = np.random.default_rng(0)
    arrays = [draw.normal(size=(B, D)), draw.normal(size=(4, B, D))]
    for x, y in zip(evaluate(before, arrays), evaluate(graph, arrays), strict=True):
        np.testing.assert_array_equal(x, y)


def test_chains_of_diamonds_are_walked_once() -> None:
    """Forty doublings in a body have 2**40 paths."""

    def loss(w: Any, xs: Any) -> Any:
        def body(h: Any, x: Any) -> Any:
            a, b = w, x
            for _ in range(40):
                a, b = rnp.sin(a * a + a), rnp.sin(b * b + b)
            return rnp.tanh(h @ a + b), None

        return rnp.sum(rg.scan(body, rnp.zeros((B, D), "f64"), xs)[0])

    graph = moved(prepared(rg.trace(rg.grad(loss, argnums=(0, 1)), WEIGHT, XS)))
    assert (D, D) not in over_steps(graph)
