"""Sums over the steps of a loop: an op over all steps -> what one step adds to its result.

f16 and bf16 are added up in f32, as they are over all steps at once.  Invariant: the parts of all
steps add up to the op's result, in `wide` of its dtype; a step that has no part adds zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

from retrograde.compiler.ir import dims
from retrograde.compiler.ir.expr import Expr, cast
from retrograde.compiler.ir.graph import Node, Value
from retrograde.compiler.ir.registry import lookup
from retrograde.compiler.ops.declare import wide
from retrograde.compiler.passes.cuts import Cut, Makers, Need, Needs, Part, Steps, reshaped
from retrograde.compiler.passes.devectorize import cleared, step_of_dot
from retrograde.compiler.passes.scan_sink import is_zero


class SumRule(NamedTuple):
    """`pull`: a node, the known cuts of values -> what a part of the sum needs, or None."""

    pull: Callable[[Node, Mapping[Value, Cut], Makers], Needs | None]
    part: Callable[[Part], Expr]


def _pull_sum(node: Node, known: Mapping[Value, Cut], makers: Makers) -> Needs | None:
    cut = known.get(node.inputs[0])
    return (cut,) if cut is not None and cut.axis in node.attrs["axes"] else None


def _sum(p: Part) -> Expr:
    cut = p.cut_of(0)
    x = p.within(cut.steps, cast(p.operand(0), wide(p.node.output.dtype)))
    axes = cut.axes(p.attrs["axes"])
    if axes:
        x = lookup("sum")(x, axes=axes, keepdims=False)
    return reshaped(x, p.node.output.shape)


def _pull_summed_dot(node: Node, known: Mapping[Value, Cut], makers: Makers) -> Needs | None:
    contract = node.attrs["contract"]
    for i, v in enumerate(node.inputs):
        cut = known.get(v)
        if cut is None or cut.axis not in contract[i]:
            continue
        partner = cut.at(contract[1 - i][contract[i].index(cut.axis)])
        if known.get(node.inputs[1 - i], partner) != partner:
            return None
        return (cut, partner) if i == 0 else (partner, cut)
    return None


def _summed_dot(p: Part) -> Expr:
    operands = [cast(x, wide(x.dtype)) for x in p.all()]
    operands = [p.within(p.cut_of(i).steps, x) for i, x in enumerate(operands)]
    (out,) = step_of_dot(replace(p, operands=tuple(operands)))
    return out


def _pull_summed_scatter(node: Node, known: Mapping[Value, Cut], makers: Makers) -> Needs | None:
    into, updates, *indices = node.inputs
    cut = next((c for v in (updates, *indices) if (c := known.get(v)) is not None), None)
    if cut is None or cut.axis >= indices[0].type.ndim or not is_zero(into, makers):
        return None
    if any(known.get(v, cut) != cut for v in (updates, *indices)):
        return None
    return (Need.NOTHING, *(cut for _ in node.inputs[1:]))


def _summed_scatter(p: Part) -> Expr:
    updates = p.within(p.cut_of(1).steps, cast(p.operand(1), wide(p.node.output.dtype)))
    zero = lookup("constant")(value=0.0, dtype=updates.dtype)
    into = lookup("broadcast_to")(zero, shape=p.node.output.shape)
    (out,) = p.emit([into, updates, *(x for x in cleared(p, 2) if x is not None)])
    return out


def _pull_one_step(node: Node, known: Mapping[Value, Cut], makers: Makers) -> Needs | None:
    """A slice of one step: all others add nothing."""
    cut = known.get(node.inputs[0])
    if cut is None or not cut.alone or not dims.same(node.output.shape[cut.axis], 1):
        return None
    return (cut,)


def _one_step(p: Part) -> Expr:
    cut, x = p.cut_of(0), p.operand(0)
    steps = Steps(cut.steps.length, cut.steps.start + p.attrs["start"][cut.axis], 1)
    start, stop, step = (cut.each(p.attrs[name]) for name in ("start", "stop", "step"))
    (x,) = p.emit([x], start=start, stop=stop, step=step)
    return reshaped(p.within(steps, cast(x, wide(x.dtype))), p.node.output.shape)


SUMS: dict[str, SumRule] = {
    "sum": SumRule(_pull_sum, _sum),
    "dot_general": SumRule(_pull_summed_dot, _summed_dot),
    "scatter_add": SumRule(_pull_summed_scatter, _summed_scatter),
    "slice": SumRule(_pull_one_step, _one_step),
}
