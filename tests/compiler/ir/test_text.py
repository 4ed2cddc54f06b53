"""Graphs print as text that reads back: by example, by generated graphs, by golden files."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrograde.compiler.errors import DataError
from retrograde.compiler.ir import dims, dtypes, parse
from retrograde.compiler.ir.builder import Builder, new_value, next_id
from retrograde.compiler.ir.expr import Expr, apply
from retrograde.compiler.ir.graph import Graph, Node, Origin, TensorType
from retrograde.compiler.ir.interpreter import evaluate
from retrograde.compiler.ir.location import Loc
from retrograde.compiler.ir.registry import lookup
from retrograde.compiler.ir.verify import verify
from retrograde.compiler.passes.backward import Backward

F32 = dtypes.f32
B, T = dims.dim("B"), dims.dim("T", max=64)
GOLDENS = Path(__file__).parents[2] / "goldens" / "ir"
Golden = Callable[[str, str], None]


def everything() -> Graph:
    """One of each: bounds, names, aliases, several results, sub-graphs, attributes, origins."""
    body = Builder("step", Expr)
    with body, body.located(Loc("/home/me/cell.py", 3), "cell", Origin()):
        h = body.input(TensorType(F32, (B, 5)), "h")
        x = body.input(TensorType(F32, (B, 5)), "x")
        new = apply(lookup("tanh"), (h + x,))
        step = body.finish([new.value, (new * 2.0).value])
    b = Builder("every thing", Expr)
    with b:
        w = b.input(TensorType(F32, (B, 5)), "model.cells[0].w")
        xs = b.input(TensorType(F32, (T + 1, B, 5)), "<array 0>")
        with b.located(Loc("/home/me/my model.py", 7), "blocks.0", Origin()):
            last, ys = lookup("scan")(w, xs, body=step, carries=1, slices=1, length=T + 1)
            first = b.nodes[-1].id
        with b.located(Loc("m.py", 8), "", Origin("recompute", "remat", (first,), group=first)):
            values, places = lookup("top_k")(ys, k=2)
        with b.located(Loc("m.py", 9), "", Origin("cotangent", "backward", (b.nodes[-1].id,))):
            padded = lookup("pad")(
                last, low=(0, T), high=(0, 0), interior=(0, 0), value=-math.inf
            )
        with b.located(Loc("m.py", 10), "", Origin("primal", "expand all")):
            size = lookup("dim_value")(size=B * T + T // 2, dtype=dtypes.i64)
        return b.finish(
            [padded.value, last.value, places.value, values.value, size.value],
            ["loss", "into", "", "it's", "n"],
            [(1, 0)],
        )


def attention(build: Callable[..., Graph]) -> Graph:
    def scores(x: Any, wq: Any, wk: Any, wv: Any) -> Any:
        def heads(w: Any) -> Any:
            split = lookup("reshape")(x @ w, shape=(B, T, 2, 3))
            return lookup("transpose")(split, perm=(0, 2, 1, 3))

        at = {"batch": ((0, 1), (0, 1))}
        s = lookup("dot_general")(heads(wq), heads(wk), contract=((3,), (3,)), **at)
        e = lookup("exp")(s - lookup("max")(s, axes=(3,), keepdims=True))
        p = e / lookup("sum")(e, axes=(3,), keepdims=True)
        return lookup("dot_general")(p, heads(wv), contract=((3,), (2,)), **at)

    square = TensorType(F32, (6, 6))
    types = (TensorType(F32, (B, T, 6)), square, square, square)
    graph = build(scores, *types, names=("x", "q", "k", "v"), outputs=("context",))
    return without_lines(graph)


def without_lines(graph: Graph) -> Graph:
    """The graph without the lines of this file, which editing it would change."""
    nodes = (
        Node(n.id, n.op, n.inputs, n.attrs, n.outputs, None, n.scope, n.origin)
        for n in graph.nodes
    )
    return graph.replace(nodes=tuple(nodes))


def assert_round_trip(graph: Graph) -> Graph:
    text = graph.text()
    again = parse(text)
    assert again.text() == text
    return again


def test_everything_reads_back() -> None:
    graph = everything()
    verify(graph)
    again = assert_round_trip(graph)
    verify(again)
    assert again.name == "every thing"
    assert again.input_names == graph.input_names
    assert again.output_names == graph.output_names
    assert again.aliases == ((1, 0),)
    assert again.symbols() == graph.symbols()
    scan, top_k, pad, size = (n for n in again.nodes if n.op.kind.value != "elementwise")
    assert (str(scan.loc), scan.scope) == ("my model.py:7", "blocks.0")
    assert scan.attrs["length"] is T + 1
    assert scan.attrs["body"].nodes[0].scope == "cell"
    assert [v.type for v in top_k.outputs] == [v.type for v in graph.nodes[1].outputs]
    assert top_k.origin.role == "recompute"
    # An id of its own: a pass that makes recomputations numbers them by ids of nodes.
    assert top_k.origin.group not in {0, *(node.id for node in again.nodes)}
    assert top_k.origin.ancestors == (scan.id,)
    assert pad.attrs["value"] == -math.inf
    assert pad.origin == Origin("cotangent", "backward", (top_k.id,))
    assert size.origin.made_by == "expand all"
    assert size.attrs == {"size": B * T + T // 2, "dtype": dtypes.i64}


def test_goldens(build: Callable[..., Graph], golden: Golden) -> None:
    golden("ir/everything.ir", everything().text())
    golden("ir/attention.ir", attention(build).text())


@pytest.mark.parametrize("path", sorted(GOLDENS.glob("*.ir")), ids=lambda p: p.stem)
def test_golden_files_read_back(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    graph = parse(text)
    verify(graph)
    assert graph.text() == text


def test_text_says_what_the_graph_computes(build: Callable[..., Graph]) -> None:
    graph = attention(build)
    rng = np.random.default_rng(0)
    shapes = [(2, 5, 6), (6, 6), (6, 6), (6, 6)]
    inputs = [rng.standard_normal(s).astype("f4") for s in shapes]
    (expected,), (got,) = evaluate(graph, inputs), evaluate(parse(graph.text()), inputs)
    np.testing.assert_array_equal(got, expected)


def test_backward_reads_back_with_its_ancestors(build: Callable[..., Graph]) -> None:
    def loss(x: Any) -> Any:
        return lookup("sum")(x * x, axes=(0, 1))

    graph = Backward((0,), (0,))(build(loss, TensorType(F32, (B, T)), names=("x",)))
    again = assert_round_trip(graph)
    names = {n.id: n.op.name for n in again.nodes}
    of = [names[i] for n in again.nodes if n.origin.role == "cotangent" for i in n.origin.ancestors]
    assert set(of) == {"sum", "mul"}


PROGRAM = """
import sys
sys.path.insert(0, {folder!r})
from retrograde.compiler import ops
from test_text import everything
sys.stdout.write(everything().text())
"""


def test_text_is_the_same_in_every_process() -> None:
    code = PROGRAM.format(folder=str(Path(__file__).parent))
    texts = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert texts[0] == texts[1] == everything().text()


# --- generated attributes, names and graphs

SIZES = st.sampled_from(
    [B, T, B * T + 2 * T - 1, T // 2, (T + 63) // 64 * B, T % 4, 2 * (T % 4) + B, dims.dim("K", 0)]
    + [dims.dim_min(T, B), dims.dim_max(T - 8, 0)]
    + [dims.dim(name) for name in ("f32", "inf", "nan", "graph", "into", "größe")]
)
LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | SIZES
    | st.sampled_from(dtypes.ALL)
)  # fmt: skip
ATTRS = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=8)
KEYS = st.from_regex(r"[a-z_][a-z0-9_]*", fullmatch=True)


def same_attr(a: Any, b: Any) -> bool:
    if isinstance(a, tuple):
        return isinstance(b, tuple) and len(a) == len(b) and all(map(same_attr, a, b))
    if isinstance(a, float):  # the sign of zero and NaN count
        return type(b) is float and repr(a) == repr(b)
    if isinstance(a, dims.Poly):
        return a is b
    return type(a) is type(b) and bool(a == b)


@given(st.dictionaries(KEYS, ATTRS, max_size=4))
def test_attributes_read_back_exactly(attrs: dict[str, Any]) -> None:
    x = new_value(TensorType(F32, (3,)))
    y = new_value(TensorType(F32, (3,)))
    graph = Graph("g", (x,), (Node(next_id(), lookup("neg"), (x,), attrs, (y,)),), (y,))
    again = assert_round_trip(graph).nodes[0].attrs
    assert again.keys() == attrs.keys()
    for key in attrs:
        assert same_attr(attrs[key], again[key]), key


@given(
    names=st.lists(st.text(min_size=1), min_size=4, max_size=4),
    loc=st.none() | st.builds(Loc, st.text(min_size=1).filter(lambda s: "/" not in s),
                              st.integers(1, 10**6)),
    role=st.sampled_from(["primal", "cotangent", "recompute", "update"]),
    maker=st.text(min_size=1),
    group=st.integers(0, 3),
)  # fmt: skip
def test_names_and_places_read_back(
    names: list[str], loc: Loc | None, role: str, maker: str, group: int
) -> None:
    x = new_value(TensorType(F32, (3,)))
    y = new_value(TensorType(F32, (3,)))
    origin = Origin(role, maker, (), group)
    node = Node(next_id(), lookup("neg"), (x,), {}, (y,), loc, names[3], origin)
    again = assert_round_trip(Graph(names[0], (x,), (node,), (y,), (names[1],), (names[2],)))
    assert (again.name, again.input_names, again.output_names) == (
        names[0], (names[1],), (names[2],),
    )  # fmt: skip
    found = again.nodes[0]
    assert (found.loc, found.scope) == (loc, names[3])
    assert (found.origin.role, found.origin.made_by) == (role, maker)
    assert (found.origin.group > 0) == (group > 0)


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """A graph of a few ops over [B, T, 3] and [T, 3] operands."""
    builder = Builder(draw(st.sampled_from(["f", "<lambda>", "g.h"])), Expr)
    with builder:
        pool = [
            builder.input(TensorType(F32, (B, T, 3)), "x"),
            builder.input(TensorType(F32, (T, 3)), "w"),
        ]
        for _ in range(draw(st.integers(1, 9))):
            a = draw(st.sampled_from(pool))
            match draw(st.integers(0, 6)):
                case 0:
                    made = a * draw(st.sampled_from(pool))
                case 1:
                    made = a + draw(st.floats(width=32))
                case 2:
                    made = apply(lookup("tanh"), (a,))
                case 3:
                    axes = (a.ndim - 1,)
                    total = lookup("sum")(a, axes=axes, keepdims=True)
                    made = lookup("broadcast_to")(total, shape=a.shape)
                case 4:
                    made = lookup("flip")(a, axes=(draw(st.integers(0, a.ndim - 1)),))
                case 5:
                    made = lookup("select")(a > 0.5, a, 0.0)
                case _:
                    made = a * T
            pool.append(made)
        return builder.finish([pool[-1].value, pool[2].value], ["y", ""])


@given(graph=graphs(), b=st.integers(1, 3), t=st.integers(1, 4))
def test_generated_graphs_read_back_and_compute_the_same(graph: Graph, b: int, t: int) -> None:
    again = assert_round_trip(graph)
    verify(again)
    rng = np.random.default_rng(b * 10 + t)
    inputs = [rng.standard_normal(s).astype("f4") for s in ((b, t, 3), (t, 3))]
    for expected, got in zip(evaluate(graph, inputs), evaluate(again, inputs), strict=True):
        np.testing.assert_array_equal(got, expected)


# --- reading


def test_white_space_and_comments_are_free() -> None:
    graph = parse("""
    # an odd layout
    dims T in 1..9,
         B>=2
    graph f(%7 x:f32[ B , 2*T ],  # the input
            %1: f32[]) { %3: f32[B,2*T] = mul
        %7, %1   # a remark that is no place
      # another
      return %3 y into %7, }
    """)
    assert graph.text() == (
        "dims B>=2, T in 1..9\n"
        "graph f(%0 x: f32[B,2*T], %1: f32[]) {\n"
        "  %2: f32[B,2*T] = mul %0, %1\n"
        "  return %2 y into %0\n"
        "}\n"
    )


def test_a_graph_without_outputs_or_inputs() -> None:
    text = "graph f() {\n  %0: i32[3] = iota {dtype=i32, size=3}\n  return\n}\n"
    assert parse(text).text() == text


@pytest.mark.parametrize(
    ("text", "line", "column", "message"),
    [
        ("", 1, 1, "expected 'graph', found the end"),
        ("graph f(%0: f32[2]) {\n  return %1\n}", 2, 10, "%1 is not defined before"),
        ("graph f(%0: f33[2]) {", 1, 13, "unknown dtype 'f33'"),
        ("graph f(%0: f32[2], %0: f32[3]) {", 1, 21, "%0 is defined twice"),
        ("graph f(%0: f32[T]) {", 1, 17, "size T is not declared"),
        ("graph f(%0: f32[2**]) {", 1, 17, "no size expression"),
        ("dims T>=1, T>=2\ngraph", 1, 12, "T is declared twice"),
        ("dims T in 4..2\ngraph", 1, 6, "max"),
        ("dims T<1\ngraph", 1, 7, "expected '>=' or 'in' after T"),
        ("graph f(%0: f32[2]) {\n  %1: f32[2] = frob %0", 2, 16, "unknown op 'frob'"),
        ("graph f(%0: f32[2]) {\n  %1: f32[2] = neg %0 {k}", 2, 25, "expected '='"),
        ("graph f(%0: f32[2]) {\n  %1: f32[2] = neg %0 {k=}", 2, 26, "expected a size or a value"),
        ("graph f(%0: f32[2]) {\n  %1: f32[2] = neg %0 {k=(1,2}", 2, 26, "never closed"),
        ('graph f(%0: f32[2]) {\n  %1: f32[2] = neg %0 {k="\\x"}', 2, 26, "malformed string"),
        ("graph f(%0: f32[2]) {\n  %1: f32[2] neg %0", 2, 14, "expected '=', found 'neg'"),
        ("graph f(%0: f32[2]) {\n  return %0\n}\nx", 4, 1, "expected the end, found 'x'"),
        ("graph f(%0: f32[2]) {\n  %1: f32[2] = neg %0\n  return %1 into %1\n}", 3, 17, "an input"),
        ("graph f(%0: f32[2]) {\n  return %0", 2, 12, "expected '}', found the end"),
    ],
)
def test_errors_name_line_and_column(text: str, line: int, column: int, message: str) -> None:
    with pytest.raises(DataError) as error:
        parse(text)
    assert str(error.value).startswith(f"graph text, line {line}, column {column}: ")
    assert message in str(error.value)
