"""Builders: what is captured from where, how graphs are put into graphs, where nodes come from."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from retrograde.compiler.errors import ShapeError, TraceError
from retrograde.compiler.ir import dtypes
from retrograde.compiler.ir.builder import Builder, current, required
from retrograde.compiler.ir.expr import Expr, as_expr
from retrograde.compiler.ir.graph import Graph, Origin, TensorType
from retrograde.compiler.ir.interpreter import evaluate
from retrograde.compiler.ir.location import Loc, current_scope, scope
from retrograde.compiler.ir.registry import lookup
from retrograde.compiler.ir.verify import verify

VECTOR = TensorType(dtypes.f32, (3,))
Build = Callable[..., Graph]


def named(graph: Graph, op: str) -> list[Any]:
    return [n for n in graph.nodes if n.op.name == op]


def test_the_innermost_builder_is_the_target() -> None:
    assert current() is None
    with pytest.raises(TraceError, match="used outside"):
        required()
    with Builder("outer", Expr) as outer:
        assert required() is outer
        with Builder("inner", Expr, outer) as inner:
            assert required() is inner
        assert required() is outer
    assert current() is None


def test_a_failed_trace_leaves_no_builder_behind() -> None:
    with pytest.raises(ShapeError), Builder("f", Expr) as b:
        b.input(VECTOR) + b.input(TensorType(dtypes.f32, (4,)))
    assert current() is None


def test_outer_values_are_captured_once() -> None:
    with Builder("outer", Expr) as outer:
        x = outer.input(VECTOR, "x")
        y = x * 3.0
        with Builder("inner", Expr, outer) as inner:
            h = inner.input(VECTOR, "h")
            z = (h + y) * y - x
            body = inner.finish([z.value])
        assert [c.value for c in inner.captured] == [y.value, x.value]
        assert body.input_names == ("h", "<capture 0>", "<capture 1>")
        result = lookup("call")(x, *inner.captured, body=body)
        graph = outer.finish([result.value])
    verify(graph)
    a = np.array([1.0, 2.0, -3.0], "f4")
    np.testing.assert_allclose(evaluate(graph, [a])[0], (a + 3 * a) * 3 * a - a)


def test_captures_pass_through_every_builder_between() -> None:
    with Builder("outer", Expr) as outer:
        x = outer.input(VECTOR)
        with Builder("middle", Expr, outer) as middle, Builder("inner", Expr, middle) as inner:
            y = x + 1.0
            assert y.builder is inner
            assert inner.captured[0].builder in (outer, middle)
        assert len(inner.inputs) == 1


def test_arrays_are_captured_by_identity_and_read_again() -> None:
    table = np.array([1.0, 2.0, 4.0], "f4")
    equal = table.copy()
    with Builder("f", Expr) as b:
        x = b.input(VECTOR, "x")
        y = x * table + table * x + equal
        graph = b.finish([y.value])
    assert graph.input_names == ("x", "<array 0>", "<array 1>")
    assert b.captured[0] is table
    assert b.captured[1] is equal
    a = np.array([1.0, 1.0, 2.0], "f4")
    table *= 10
    (got,) = evaluate(graph, [a, *b.captured])
    np.testing.assert_array_equal(got, 2 * a * table + equal)


def test_arrays_of_nested_builders_reach_the_root() -> None:
    table = np.array([1.0, 2.0, 4.0], "f4")
    with Builder("outer", Expr) as outer:
        x = outer.input(VECTOR)
        with Builder("inner", Expr, outer) as inner:
            h = inner.input(VECTOR)
            body = inner.finish([(h * table).value])
        assert isinstance(inner.captured[0], Expr)
        assert inner.captured[0].builder is outer
        y = lookup("call")(x, *inner.captured, body=body) + table
        graph = outer.finish([y.value])
    assert outer.captured == [table]
    assert len(graph.inputs) == 2
    verify(graph)
    a = np.array([3.0, 1.0, 2.0], "f4")
    np.testing.assert_array_equal(evaluate(graph, [a, table])[0], a * table + table)


def test_inner_values_do_not_reach_out() -> None:
    with Builder("outer", Expr) as outer:
        x = outer.input(VECTOR)
        with Builder("inner", Expr, outer) as inner:
            leaked = inner.input(VECTOR) * 2.0
        with pytest.raises(TraceError, match=r"test_builder\.py:\d+: .*escaped.*\(inner\)"):
            x + leaked
        with (
            Builder("sibling", Expr, outer),
            pytest.raises(TraceError, match=r"escaped.*\(inner\)"),
        ):
            as_expr(leaked)


def test_values_of_an_unrelated_builder_are_refused() -> None:
    with Builder("one", Expr) as one:
        x = one.input(VECTOR)
        with Builder("two", Expr), pytest.raises(TraceError, match=r"escaped.*\(one\)"):
            x + 1.0


def test_equal_constants_are_made_once(build: Build) -> None:
    graph = build(lambda x: (x * 2.0 + 2.0) * 2 + 0.0 - (x * -0.0), VECTOR)
    values = [repr(n.attrs["value"]) for n in named(graph, "constant")]
    assert values == ["2.0", "0.0", "-0.0"]


def test_defaults_are_filled_in(build: Build) -> None:
    graph = build(lambda x: lookup("sum")(x, axes=(0,)), VECTOR)
    assert graph.nodes[0].attrs == {"axes": (0,), "keepdims": False}


def test_nodes_know_their_line_and_scope() -> None:
    frame = inspect.currentframe()
    assert frame is not None
    with Builder("f", Expr) as b:
        x = b.input(VECTOR)
        with scope("blocks"), scope("0"):
            assert current_scope() == "blocks.0"
            line = frame.f_lineno + 1
            x = -x
        x = -x
        with b.located(Loc("/home/me/m.py", 5), "head", Origin("cotangent", "backward", (1,))):
            x = -x
        x = -x
        first, second, third, fourth = b.finish([x.value]).nodes
    assert (first.loc, first.scope) == (Loc(__file__, line), "blocks.0")
    assert first.place == f"test_builder.py:{line} @ blocks.0"
    assert (second.scope, second.origin) == ("", Origin())
    assert third.place == "m.py:5 @ head"
    assert third.origin == Origin("cotangent", "backward", (1,))
    assert fourth.origin == Origin()


def test_inlining_copies_nodes_and_keeps_where_they_come_from() -> None:
    with Builder("inner", Expr) as inner:
        h = inner.input(VECTOR)
        body = inner.finish([(h * 2.0).value, h.value])
    with Builder("outer", Expr) as outer:
        x = outer.input(VECTOR)
        doubled, same = outer.inline(body, [x])
        again, _ = outer.inline(body, [doubled])
        graph = outer.finish([again.value, same.value])
    verify(graph)
    assert same.value is x.value
    assert len({n.id for n in (*graph.nodes, *body.nodes)}) == len(graph.nodes) + len(body.nodes)
    assert [n.origin.ancestors for n in graph.nodes] == [(n.id,) for n in body.nodes] * 2
    assert graph.nodes[0].loc == body.nodes[0].loc
    a = np.array([1.0, 2.0, 4.0], "f4")
    np.testing.assert_array_equal(evaluate(graph, [a])[0], 4 * a)


def test_inlining_inside_a_recomputation_makes_recomputations() -> None:
    with Builder("inner", Expr) as inner:
        body = inner.finish([(-inner.input(VECTOR)).value])
    with Builder("outer", Expr) as outer:
        x = outer.input(VECTOR)
        with outer.located(None, None, Origin("recompute", "remat", (), group=7)):
            (y,) = outer.inline(body, [x])
        (node,) = outer.finish([y.value]).nodes
    assert (node.origin.role, node.origin.group) == ("recompute", 7)
    assert node.origin.ancestors == (body.nodes[0].id,)


def test_a_misfit_is_told_once_with_the_line() -> None:
    with Builder("f", Expr) as b:
        x = b.input(TensorType(dtypes.f32, (2, 3)))
        with pytest.raises(ShapeError) as error:
            x @ x
    message = str(error.value)
    assert message.count("dot_general") == 1
    assert message.startswith(f"{__file__}:")
    assert "3 on axis 1" in message
