"""Planted faults: each rule of the IR broken once, and named by the verifier."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from retrograde.compiler.errors import UnsupportedError, VerifyError
from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.builder import Builder, new_value, next_id
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.graph import Graph, Node, Origin, TensorType
from retrograde.compiler.ir.location import Loc
from retrograde.compiler.ir.op import Op
from retrograde.compiler.ir.registry import Kind, NotDifferentiable, lookup
from retrograde.compiler.ir.verify import verify

B, T = dims.dim("B"), dims.dim("T")
F32 = dtypes.f32


def same_as_first(types: Any, attrs: Any) -> Any:
    return (types[0],)


WHOLE = Op(
    "whole", Kind.COMPOSITE, same_as_first, lambda attrs, x: x, None,
    decompose=lambda attrs, x: x,
)  # fmt: skip
EFFECT = Op(
    "note", Kind.OPAQUE, same_as_first, lambda attrs, x: x, NotDifferentiable("a test"),
    effect="print",
)  # fmt: skip


def chain() -> Graph:
    """x -> neg -> exp -> mul by w -> sum -> sqrt -> tanh, lines 11 to 16 of model.py."""
    b = Builder("model", Expr)
    with b:
        x = b.input(TensorType(F32, (B, T, 4)), "x")
        w = b.input(TensorType(F32, (4,)), "w")

        def line(n: int) -> Any:
            return b.located(Loc("/home/me/model.py", n), "blocks.0", Origin())

        with line(11):
            y = -x
        with line(12):
            y = lookup("exp")(y)
        with line(13):
            y = y * w
        with line(14):
            y = lookup("sum")(y, axes=(0, 1))
        with line(15):
            y = lookup("sqrt")(y)
        with line(16):
            y = lookup("tanh")(y)
    return b.finish([y.value], ["loss"])


def changed(graph: Graph, index: int, **changes: Any) -> Graph:
    nodes = list(graph.nodes)
    nodes[index] = dataclasses.replace(nodes[index], **changes)
    return graph.replace(nodes=tuple(nodes))



def moved_up(g: Graph) -> Graph:
    nodes = list(g.nodes)
    nodes.insert(1, nodes.pop(2))
    return g.replace(nodes=tuple(nodes))


def swapped_value(g: Graph) -> Graph:
    return changed(g, 2, inputs=(new_value(g.nodes[1].output.type), g.inputs[1]))


def redefined(g: Graph) -> Graph:
    return changed(g, 1, outputs=g.nodes[0].outputs)


def wrong_result(g: Graph) -> Graph:
    """The sum says [5]; what follows agrees with it."""
    out = new_value(TensorType(F32, (5,)))
    g = changed(g, 3, outputs=(out,))
    return changed(g, 4, inputs=(out,))


def wrong_dtype(g: Graph) -> Graph:
    return changed(g, 1, outputs=(new_value(TensorType(dtypes.f64, (B, T, 4))),))


def mixed_operands(g: Graph) -> Graph:
    w = new_value(TensorType(dtypes.f64, (4,)))
    g = g.replace(inputs=(g.inputs[0], w))
    return changed(g, 2, inputs=(g.nodes[1].output, w))


def two_symbols(g: Graph) -> Graph:
    other = new_value(TensorType(F32, (dims.dim("T", min=3),)))
    return g.replace(inputs=(*g.inputs, other), input_names=("x", "w", "v"))


def twice_donated(g: Graph) -> Graph:
    w = g.inputs[1]
    return g.replace(outputs=(w, w), output_names=(), aliases=((0, 1), (1, 1)))


FAULTS: dict[str, tuple[Callable[[Graph], Graph], str]] = {
    "used before": (moved_up, r"node 1 \(mul .*operand 0 .*is used before it is defined"),
    "undefined": (swapped_value, r"node 2 \(mul .*operand 0 \(f32\[B,T,4\]\) is defined nowhere"),
    "redefined": (redefined, r"node 1 \(exp .*defines a value that is defined already"),
    "same id": (
        lambda g: changed(g, 3, id=g.nodes[0].id), r"node 3 \(sum .*its id is that of an earlier",
    ),
    "wrong shape": (wrong_result, r"node 3 \(sum .*0 is f32\[5\], its shape rule gives f32\[4\]"),
    "wrong dtype": (wrong_dtype, r"node 1 \(exp .*result 0 is f64\[B,T,4\].*gives f32"),
    "refused": (mixed_operands, r"node 2 \(mul .*its shape rule refuses it: operands of unequal"),
    "bad axis": (
        lambda g: changed(g, 3, attrs={"axes": (0, 7), "keepdims": False}),
        r"node 3 \(sum .*its shape rule refuses it: axes \(0, 7\)",
    ),
    "missing attribute": (
        lambda g: changed(g, 3, attrs={"keepdims": False}),
        r"node 3 \(sum .*its shape rule raised KeyError: 'axes'",
    ),
    "results": (
        lambda g: changed(g, 5, outputs=(g.nodes[5].output, new_value(TensorType(F32)))),
        r"node 5 \(tanh .*it has 2 results, its shape rule gives 1",
    ),
    "list": (
        lambda g: changed(g, 3, attrs={"axes": [0, 1], "keepdims": False}),
        r"node 3 \(sum .*attribute axes holds a builtins.list",
    ),
    "numpy scalar": (
        lambda g: changed(g, 3, attrs={"axes": (np.int64(0), 1), "keepdims": False}),
        r"node 3 \(sum .*attribute axes holds a numpy.int64",
    ),
    "graph": (
        lambda g: changed(g, 0, attrs={"body": chain()}),
        r"node 0 \(neg .*attribute body holds a .*Graph, which",
    ),
    "two symbols": (two_symbols, r"the size T stands for two symbols, with bounds 1\.\.None and 3"),
    "input twice": (lambda g: g.replace(inputs=g.inputs[:1] * 2), r"one value stands twice among"),
    "input names": (lambda g: g.replace(input_names=("x",)), r"1 names for 2 inputs"),
    "output names": (lambda g: g.replace(output_names=("a", "b")), r"2 names for 1 outputs"),
    "output": (
        lambda g: g.replace(outputs=(new_value(TensorType(F32)),)),
        r"output 0 \(f32\[\]\) is not defined",
    ),
    "alias range": (lambda g: g.replace(aliases=((0, 2),)), r"output 0 to input 2 is out of range"),
    "alias type": (
        lambda g: g.replace(aliases=((0, 0),)),
        r"output 0 \(f32\[4\]\) cannot replace input 0 \(f32\[B,T,4\]\)",
    ),
    "donated twice": (twice_donated, r"input 1 is donated to two outputs"),
    "replaced twice": (
        lambda g: g.replace(aliases=((0, 1), (0, 0))), r"output 0 takes the place of two inputs",
    ),
}  # fmt: skip


def test_the_chain_is_whole() -> None:
    verify(chain())
    verify(chain().replace(aliases=((0, 1),)), stage="expanded")


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_named(fault: str) -> None:
    plant, message = FAULTS[fault]
    with pytest.raises(VerifyError, match=message) as error:
        verify(plant(chain()), made_by="Careless")
    assert str(error.value).startswith("Careless made an invalid graph: model")
    if "node" in message:
        assert "from /home/me/model.py:1" in str(error.value)
        assert "in blocks.0" in str(error.value)


def test_the_five_nodes_around_the_fault_are_shown() -> None:
    with pytest.raises(VerifyError) as error:
        verify(wrong_result(chain()), made_by="Careless")
    assert str(error.value) == (
        "Careless made an invalid graph: model, node 3 (sum from /home/me/model.py:14 in blocks.0):"
        " result 0 is f32[5], its shape rule gives f32[4]\n"
        "    %3: f32[B,T,4] = exp %2   # model.py:12 @ blocks.0\n"
        "    %4: f32[B,T,4] = mul %3, %1   # model.py:13 @ blocks.0\n"
        ">   %5: f32[5] = sum %4 {axes=(0,1), keepdims=False}   # model.py:14 @ blocks.0\n"
        "    %6: f32[4] = sqrt %5   # model.py:15 @ blocks.0\n"
        "    %7: f32[4] = tanh %6   # model.py:16 @ blocks.0"
    )


# --- sub-graphs


def calling(body: Graph, *types: TensorType) -> Graph:
    """A graph that calls `body`, whatever the rules say."""
    inputs = tuple(map(new_value, types))
    outputs = tuple(new_value(v.type) for v in body.outputs)
    node = Node(next_id(), lookup("call"), inputs, {"body": body}, outputs)
    return Graph("outer", inputs, (node,), outputs)


def test_a_sub_graph_is_verified_too() -> None:
    good = chain()
    types = tuple(v.type for v in good.inputs)
    verify(calling(good, *types))
    with pytest.raises(VerifyError, match=r"Careless .*: body of call, model, node 3 .*f32\[5\]"):
        verify(calling(wrong_result(good), *types), made_by="Careless")


def test_a_sub_graph_sees_only_its_inputs() -> None:
    good = chain()
    leaky = good.replace(inputs=good.inputs[:1], input_names=("x",))
    with pytest.raises(VerifyError, match=r"body of call, model, node 2 .*sees only its own"):
        verify(calling(leaky, good.inputs[0].type))


def test_operands_fit_the_inputs_of_the_sub_graph() -> None:
    good = chain()
    x = good.inputs[0].type
    with pytest.raises(VerifyError, match=r"outer, node 0 \(call\): .*takes 2 operands, got 1"):
        verify(calling(good, x))
    with pytest.raises(VerifyError, match=r"refuses it: model takes f32\[4\], got f32\[B,T,4\]"):
        verify(calling(good, x, x))


# --- stages


def test_expanded_graphs_hold_no_composites_or_calls() -> None:
    x = new_value(TensorType(F32, (3,)))
    y = new_value(TensorType(F32, (3,)))
    composite = Graph("g", (x,), (Node(next_id(), WHOLE, (x,), {}, (y,)),), (y,))
    verify(composite)
    with pytest.raises(VerifyError, match=r"Expand .*composite ops are not legal at stage"):
        verify(composite, stage="expanded", made_by="Expand")
    called = calling(chain(), *(v.type for v in chain().inputs))
    with pytest.raises(VerifyError, match=r"call should have been expanded before stage"):
        verify(called, stage="expanded")


def test_an_unknown_stage_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="unknown stage 'lowered': one of trace, expanded"):
        verify(chain(), stage="lowered")


# --- effects


def noted() -> Graph:
    """Three effects on one channel, one value each."""
    x = new_value(TensorType(F32, (3,)))
    nodes = tuple(
        Node(next_id(), EFFECT, (x,), {}, (new_value(x.type),), Loc("m.py", k)) for k in range(3)
    )
    return Graph("g", (x,), nodes, (nodes[2].output,))


def test_effects_stay_in_their_order() -> None:
    before = noted()
    verify(before, before=before)
    turned = before.replace(nodes=(before.nodes[1], before.nodes[0], before.nodes[2]))
    verify(turned)  # a graph alone does not tell
    with pytest.raises(VerifyError, match=r"Careless .*note \(m\.py:1\) now comes before"):
        verify(turned, made_by="Careless", before=before)


def test_effects_are_not_dropped() -> None:
    before = noted()
    short = before.replace(nodes=before.nodes[1:])
    with pytest.raises(VerifyError, match=r"note \(m\.py:0\), an effect .*'print', is gone"):
        verify(short, before=before)


def test_an_effect_may_be_made_anew() -> None:
    before = noted()
    origin = Origin(ancestors=(before.nodes[0].id,))
    verify(changed(before, 0, id=next_id(), origin=origin), before=before)
