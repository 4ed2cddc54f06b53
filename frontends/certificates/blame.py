"""Which part made a program wrong whose graphs are all right: memory plan, lowering, or code.

The program is compiled again without sharing memory; if it is right then, the plan is at fault.  If
not, every value of the ordered graph is handed out, and the first that is wrong while all that it
was made of is right names the step.  Invariant: this only looks for names; that something is wrong
has been seen before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde.certificates.certificate import Fault
from retrograde.certificates.numbers import Distance, distance, worst
from retrograde.certificates.programs import Made, compiled, in_steps, outputs
from retrograde.certificates.subject import Point, wide
from retrograde.compiler.ir.graph import Graph, Node
from retrograde.compiler.ir.interpreter import evaluate
from retrograde.compiler.ops.region import silent
from retrograde.compiler.passes.widen import widened
from retrograde.compiler.program import Program
from retrograde.runtime.device import get_device
from retrograde.runtime.protocol import Device

Array = npt.NDArray[Any]


def apart(got: Sequence[Array], point: Point) -> Distance:
    """All outputs against those of the traced graph."""
    return worst(
        [distance(x, r, o) for x, r, o in zip(got, point.reference, point.own, strict=True)]
    )


def found(graph: Graph, made: Made, index: int, bound: Mapping[str, int], point: Point) -> Fault:
    """The part at fault in a recipe of a program, bound at sizes (the plan's too)."""
    name = made.recipes[index].recipe.name
    if _right_without_sharing(graph, made, name, point):
        return Fault(
            "memory plan",
            f"{made.named(index)} is right when no two values share a place: in-place use, "
            "lifetimes or places are wrong",
        )
    ordered = made.recipes[index].stages["order"]
    step = _first_wrong(ordered, made, index, bound, point, made.device)
    where = "native kernels" if made.options.native else "numpy code"
    if step is None:
        return Fault(where, f"{made.named(index)} is wrong, and right in single steps")
    if made.options.native:
        plain = replace(made, options=replace(made.options, native=False, threads=1, blas=()))
        graph, device = _ungrouped(made, index), get_device("numpy")
        both = _first_wrong(graph, plain, index, bound, point, device)
        if both is not None and both.place == step.place and both.op.name in label(step):
            where = "lowering"
    return Fault(f"{where} of {label(step)}", f"{step.place or 'the step'} is the first wrong one")


def _right_without_sharing(graph: Graph, made: Made, name: str, point: Point) -> bool:
    options = replace(made.options, reuse=False, dump=None)
    apart_ = compiled(made.label, graph, made.device, options)
    for recipe in apart_.recipes:
        if recipe.recipe.name != name:
            continue
        program = replace(apart_.program, recipes=(recipe.recipe,), budget=None, _chosen={})
        try:
            got = outputs(program, made.device, point.sizes, point.inputs)
        except Exception:
            return False
        return apart(got, point).ok
    return False


def _first_wrong(
    graph: Graph, made: Made, index: int, bound: Mapping[str, int], point: Point, device: Device
) -> Node | None:
    """The first node whose results are wrong when it runs as a step of its own."""
    graph = silent(graph)
    values, program = in_steps(graph, made.recipes[index], bound, device, made.options)
    try:
        got = _run(program, device, bound, point.inputs)
    except Exception:
        return None
    whole = graph.replace(outputs=tuple(values), derivatives=())
    right = evaluate(widened(whole).graph, point.wide, bound)
    own = evaluate(whole, point.inputs, bound)
    wrong = {
        v for v, x, r, o in zip(values, got, right, own, strict=True) if not distance(x, r, o).ok
    }
    for node in graph.nodes:
        if any(v in wrong for v in node.outputs):
            return node
    return None


def _ungrouped(made: Made, index: int) -> Graph:
    """The graph before its steps were made for kernels."""
    stages = made.recipes[index].stages
    names = list(stages)
    return stages[names[names.index("group") - 1]]


def _run(
    program: Program, device: Device, sizes: Mapping[str, int], inputs: Sequence[Array]
) -> list[Array]:
    return outputs(program, device, sizes, inputs)


def label(node: Node) -> str:
    """The op, of a fused one those in it."""
    if node.op.name != "fused":
        return node.op.name
    return "+".join(dict.fromkeys(n.op.name for n in node.attrs["body"].nodes))


def stage_outputs(graph: Graph, point: Point, sizes: Mapping[str, int]) -> list[Array]:
    """What a stage of the pipeline computes, in float64."""
    with np.errstate(all="ignore"):
        return evaluate(widened(silent(graph)).graph, [wide(x) for x in point.inputs], sizes)
