"""Sums over the steps of a loop, outside of it, in the order in which the loop would add them.

Graph -> Graph.  Under a budget the losses of the steps, and the gradients of what makes them, may
be added up in the loops (`passes/scan_join.py`); without one they are sums over all steps at once.
Here the latter get the order of the former, so that both have the same bits.  What is added up
follows from the loops alone (`Facts`), never from a size.  Invariant: same values up to the order
of summation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from retrograde.compiler.ir.builder import Builder
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.graph import Graph, Node, Value
from retrograde.compiler.ir.registry import lookup
from retrograde.compiler.ops.contract import free_axes
from retrograde.compiler.passes.cuts import Cut, ordered, reshaped, stacked_first
from retrograde.compiler.passes.devectorize_sums import SUMS
from retrograde.compiler.passes.join_facts import Facts
from retrograde.compiler.passes.regions import is_apart
from retrograde.compiler.passes.step_sums import from_the_end, is_wide, sum_of_rows, sum_of_steps
from retrograde.compiler.passes.vectorize_rules import spread


@dataclass(frozen=True)
class OverTime:
    """Orders sums over the steps of loops.

    `turns`: how many steps at a time a sum of products takes.  Without `merges` products of which
    the steps are rows are a batch, a product of each step."""

    turns: int = 1
    merges: bool = True

    def __call__(self, graph: Graph) -> Graph:
        loops = [n for n in graph.nodes if n.op.name == "scan" and not is_apart(n)]
        if not any(n.origin.role == "cotangent" for n in loops):
            return graph
        forward = next((n for n in loops if n.origin.role != "cotangent"), loops[0])
        facts = Facts(graph)
        reads = {v for n in loops if n.origin.role == "cotangent" for v in n.inputs}
        sums = set(facts.sums)
        builder = Builder(graph.name, Expr)
        builder.inputs.extend(graph.inputs)
        builder.input_names.extend(graph.input_names)
        renamed: dict[Value, Value] = {}
        with builder:
            for node in graph.nodes:
                back = forward.attrs["reverse"]
                if node in sums and reads.isdisjoint(facts.reached(node.outputs)):
                    back = not back  # the loop that goes back has all that it takes
                found: Expr | None = None
                with builder.located(node.loc, node.scope, node.origin):
                    operands = [Expr(renamed.get(v, v), builder) for v in node.inputs]
                    if node in sums:
                        found = self._sum(node, facts, operands, back)
                    elif not self.merges and node.op.name == "dot_general":
                        found = _by_step(node, facts, operands)
                if found is not None:
                    renamed[node.output] = found.value
                elif any(v in renamed for v in node.inputs):
                    builder.append(node.with_inputs(renamed.get(v, v) for v in node.inputs))
                else:
                    builder.append(node)
        if not renamed:
            return graph
        outputs = [renamed.get(v, v) for v in graph.outputs]
        return builder.finish(outputs, graph.output_names, graph.aliases)

    def _sum(
        self, node: Node, facts: Facts, operands: Sequence[Expr], back: bool
    ) -> Expr | None:
        needs = SUMS[node.op.name].pull(node, facts.cuts, facts.makers)
        cuts = [need for need in needs or () if isinstance(need, Cut)]
        if not is_wide(node.output) or not all(_plain(cut) for cut in cuts):
            return None
        if node.op.name == "sum" and node.inputs[0].dtype is node.output.dtype:
            x, axes = stacked_first(operands[0], cuts[0]), cuts[0].axes(node.attrs["axes"])
            found = sum_of_steps(x, axes, None, self.turns, back, self.merges)
            return reshaped(found, node.output.shape)
        if node.op.name == "scatter_add":
            parts = [stacked_first(x, c) for x, c in zip(operands[1:], cuts, strict=True)]
            if back:
                parts = from_the_end(parts)
            out: Expr = node.op(operands[0], *parts, **node.attrs)
            return out
        if node.op.name != "dot_general" or node.attrs["batch"] != ((), ()):
            return None
        rows = []
        for x, cut, contract in zip(operands, cuts, node.attrs["contract"], strict=True):
            summed = [a + 1 for a in cut.axes(contract)]
            x = stacked_first(x, cut)
            free = [i for i in range(1, x.ndim) if i not in summed]
            if len(free) != 1:
                return None
            rows.append(ordered(x, (0, *summed, *free)))
        return sum_of_rows(rows[0], rows[1], None, self.turns, back)


def _plain(cut: Cut) -> bool:
    return cut.alone and cut.steps.complete


def _by_step(node: Node, facts: Facts, operands: Sequence[Expr]) -> Expr | None:
    """A product, of which the steps are rows of one operand, as a batch of one a step."""
    if node.attrs["batch"] != ((), ()):
        return None
    cuts = [facts.cuts.get(v) for v in node.inputs]
    own = 0 if cuts[1] is None else 1
    cut = cuts[own]
    if cut is None or cuts[1 - own] is not None or not _plain(cut):
        return None
    contract = node.attrs["contract"]
    if cut.axis in contract[own]:
        return None
    free = [free_axes(v.type.ndim, c) for v, c in zip(node.inputs, contract, strict=True)]
    pair = [stacked_first(operands[own], cut), spread(operands[1 - own], cut.steps.length)]
    summed = [
        tuple(a + 1 for a in cut.axes(contract[own])), tuple(a + 1 for a in contract[1 - own])
    ]  # fmt: skip
    if own:
        pair.reverse()
        summed.reverse()
    out: Expr = lookup("dot_general")(*pair, contract=tuple(summed), batch=((0,), (0,)))
    place = free[own].index(cut.axis) + (len(free[0]) if own else 0)
    return ordered(out, (*range(1, place + 1), 0, *range(place + 1, out.ndim)))
