"""The interpreter: what a graph means, and that nothing else than its types say comes out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from retrograde.compiler.errors import DTypeError, ShapeError, VerifyError
from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.builder import Builder, new_value, next_id
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.graph import Graph, Node, TensorType
from retrograde.compiler.ir.interpreter import Body, Watch, evaluate, resolve
from retrograde.compiler.ir.op import Op
from retrograde.compiler.ir.registry import Kind, NotDifferentiable, lookup

B, T = dims.dim("B"), dims.dim("T")
F32 = dtypes.f32
Build = Callable[..., Graph]


def rand(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype("f4")


def test_a_graph_is_its_formula(build: Build) -> None:
    def softmax(x: Any, w: Any) -> Any:
        s = x @ w
        e = lookup("exp")(s - lookup("max")(s, axes=(2,), keepdims=True))
        return e / lookup("sum")(e, axes=(2,), keepdims=True), lookup("sum")(s, axes=(0, 1, 2))

    graph = build(softmax, TensorType(F32, (B, T, 3)), TensorType(F32, (3, 5)))
    for b, t in ((2, 4), (1, 1), (3, 7)):
        x, w = rand(b, t, 3), rand(3, 5, seed=1)
        probabilities, total = evaluate(graph, [x, w])
        e = np.exp(x @ w)
        np.testing.assert_allclose(probabilities, e / e.sum(2, keepdims=True), rtol=1e-5)
        np.testing.assert_allclose(total, (x @ w).sum(), rtol=1e-4)
        assert isinstance(total, np.ndarray)
        assert total.shape == ()


def test_sizes_in_attributes_are_those_of_the_run(build: Build) -> None:
    def scaled(x: Any) -> Any:
        flat = lookup("reshape")(x, shape=(B * T,))
        return flat * T, lookup("iota")(size=T // 2, dtype=dtypes.i64)

    graph = build(scaled, TensorType(F32, (B, T)))
    x = rand(2, 7)
    flat, count = evaluate(graph, [x])
    np.testing.assert_array_equal(flat, x.reshape(14) * np.float32(7))
    assert count.tolist() == [0, 1, 2]


def test_resolve_reaches_into_tuples() -> None:
    attrs = {"shape": (B, (T - 1, 4)), "value": 0.5, "dtype": F32, "name": None}
    assert resolve(attrs, {"B": 3, "T": 7}) == {
        "shape": (3, (6, 4)), "value": 0.5, "dtype": F32, "name": None,
    }  # fmt: skip


def test_sizes_that_no_input_shows_are_given(build: Build) -> None:
    graph = build(lambda: lookup("iota")(size=T, dtype=dtypes.i32))
    assert evaluate(graph, [], {"T": 3})[0].tolist() == [0, 1, 2]
    with pytest.raises(ShapeError, match="T is not given"):
        evaluate(graph, [])


def test_inputs_that_do_not_fit_are_named(build: Build) -> None:
    graph = build(
        lambda x, w: x @ w, TensorType(F32, (B, 3)), TensorType(F32, (3, T)), names=("x", "w")
    )
    with pytest.raises(ShapeError, match="f: expected 2 inputs, got 1"):
        evaluate(graph, [rand(2, 3)])
    with pytest.raises(ShapeError, match=r"x: expected f32\[B,3\], got shape \[2, 4\]: axis 1"):
        evaluate(graph, [rand(2, 4), rand(3, 5)])
    with pytest.raises(DTypeError, match=r"w: expected f32\[3,T\], got float64.*\('float32'\)"):
        evaluate(graph, [rand(2, 3), rand(3, 5).astype("f8")])


def test_several_results(build: Build) -> None:
    graph = build(lambda x: lookup("top_k")(x, k=2), TensorType(F32, (B, 5)))
    x = rand(3, 5)
    values, places = evaluate(graph, [x])
    np.testing.assert_array_equal(places, np.argsort(-x, axis=1)[:, :2])
    np.testing.assert_array_equal(values, np.take_along_axis(x, places, 1))


def step() -> Graph:
    b = Builder("step", Expr)
    with b:
        h = b.input(TensorType(F32, (B, 3)))
        x = b.input(TensorType(F32, (B, 3)))
        w = b.input(TensorType(F32, (3, 3)))
        new = lookup("tanh")(h @ w + x)
        return b.finish([new.value, (new * 2.0).value])


def test_sub_graphs_run_as_functions(build: Build) -> None:
    body = step()
    graph = build(
        lambda h, xs, w: lookup("scan")(h, xs, w, body=body, carries=1, slices=1, length=T),
        TensorType(F32, (B, 3)), TensorType(F32, (T, B, 3)), TensorType(F32, (3, 3)),
    )  # fmt: skip
    h, xs, w = rand(2, 3), rand(5, 2, 3, seed=1), rand(3, 3, seed=2)
    last, ys = evaluate(graph, [h, xs, w])
    for t in range(5):
        h = np.tanh(h @ w + xs[t])
        np.testing.assert_allclose(ys[t], 2 * h, rtol=1e-6)
    np.testing.assert_allclose(last, h, rtol=1e-6)
    assert Body(body, {"B": 2}).output_types == ((np.dtype("f4"), (2, 3)),) * 2


def test_trace_sees_every_node(build: Build) -> None:
    body = step()
    graph = build(
        lambda h, xs, w: lookup("scan")(h, xs, w, body=body, carries=1, slices=1, length=T),
        TensorType(F32, (B, 3)), TensorType(F32, (T, B, 3)), TensorType(F32, (3, 3)),
    )  # fmt: skip
    seen: list[tuple[str, tuple[int, ...]]] = []
    evaluate(
        graph, [rand(2, 3), rand(4, 2, 3), rand(3, 3)],
        trace=lambda node, results: seen.append((node.op.name, results[0].shape)),
    )  # fmt: skip
    assert seen[-1] == ("scan", (2, 3))
    assert seen[:3] == [("dot_general", (2, 3)), ("add", (2, 3)), ("tanh", (2, 3))]
    assert [name for name, _ in seen].count("tanh") == 4


@pytest.mark.parametrize("reverse", [False, True])
def test_a_watch_knows_the_step(build: Build, reverse: bool) -> None:
    body = step()
    graph = build(
        lambda h, xs, w: lookup("scan")(
            h, xs, w, body=body, carries=1, slices=1, length=T, reverse=reverse
        ),
        TensorType(F32, (B, 3)), TensorType(F32, (T, B, 3)), TensorType(F32, (3, 3)),
    )  # fmt: skip
    h, xs, w = rand(2, 3), rand(4, 2, 3), rand(3, 3)
    events: list[Any] = []

    class Seen(Watch):
        def entered(self, body: Body, operands: Any, step: int | None) -> None:
            assert body.place is not None and body.place.key == "body"
            assert [id(x) for x in body.place.operands] == [id(x) for x in (h, xs, w)]
            np.testing.assert_array_equal(operands[1], xs[step])
            events.append(step)

        def left(self, body: Body, results: Any) -> None:
            events.append([x.shape for x in results])

        def ran(self, node: Node, operands: Any, results: Any) -> None:
            events.append((node.op.name, len(operands)))

    evaluate(graph, [h, xs, w], watch=Seen())
    inside = [("dot_general", 2), ("add", 2), ("tanh", 1)]
    turn = len(events) // 4
    for k, t in enumerate(reversed(range(4)) if reverse else range(4)):
        one = events[turn * k : turn * (k + 1)]
        assert one[0] == t and one[1:4] == inside and one[-1] == [(2, 3), (2, 3)]
    assert events[-1] == ("scan", 3)


def test_no_warning_is_given(build: Build) -> None:
    graph = build(lambda x: lookup("log")(x) / x, TensorType(F32, (3,)))
    with np.errstate(all="raise"):
        (y,) = evaluate(graph, [np.array([0.0, -1.0, 1.0], "f4")])
    assert np.isneginf(y[0])
    assert np.isnan(y[1])
    assert y[2] == 0


def lying(result: Any) -> Graph:
    """A node whose reference gives `result` where its type says f32[B]."""
    op = Op(
        "liar", Kind.OPAQUE, lambda types, attrs: types, lambda attrs, x: result,
        NotDifferentiable("a test"),
    )  # fmt: skip
    x, y = new_value(TensorType(F32, (B,))), new_value(TensorType(F32, (B,)))
    return Graph("g", (x,), (Node(next_id(), op, (x,), {}, (y,)),), (y,))


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (np.zeros(3, "f8"), r"liar gave float64\[3\] where its type is f32\[B\], f32\[3\] at"),
        (np.zeros(4, "f4"), r"liar gave float32\[4\]"),
        (np.float32(0), r"liar gave float32\[\]"),
        ((np.zeros(3, "f4"), np.zeros(3, "f4")), r"liar gave 2 results for 1"),
    ],
)
def test_results_have_the_types_that_were_declared(result: Any, message: str) -> None:
    with pytest.raises(VerifyError, match=message):
        evaluate(lying(result), [np.ones(3, "f4")])
