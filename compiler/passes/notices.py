"""Notices about code that differentiates to NaN by the formula: Graph -> warnings.

`where(x > 0, log(x), 0)` has the derivative 0 * (1/x) at x = 0, which is NaN: the rule of `select`
multiplies what was not selected by zero.  The formula is followed; this pass says where that can
happen and what to write.  Invariant: the graph is not changed.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from retrograde.compiler.errors import Notice
from retrograde.compiler.ir.graph import Graph, Node, Value
from retrograde.compiler.ir.registry import Kind

_GUARDS = frozenset({"select", "maximum", "minimum", "abs"})
_DEPTH = 6  # elementwise ops that are looked through


def notice_unguarded_selects(graph: Graph, active: Iterable[Value]) -> None:
    """Warns of each `select` whose branch is singular in a value that its condition tests."""
    producers = graph.producers()
    wanted = set(active)
    for node in graph.nodes:
        written = node.origin.role == "primal"  # not by a gradient rule, which guards on purpose
        if node.op.name != "select" or not written or node.output not in wanted:
            continue
        tested = _sources(node.inputs[0], producers)
        for branch in node.inputs[1:]:
            culprit = _singular(branch, producers, tested, _DEPTH) if branch in wanted else None
            if culprit is not None:
                where = node.loc.full + ": " if node.loc else ""
                warnings.warn(
                    f"{where}where(…) selects against {culprit.op.name} of a value that its "
                    f"condition tests: the derivative of what is not selected is multiplied by 0, "
                    f"and 0 times inf is NaN. Guard the operand too: "
                    f"where(ok, {culprit.op.name}(where(ok, x, 1)), other)",
                    Notice,
                    stacklevel=2,
                )
                break


def _sources(v: Value, producers: dict[Value, Node]) -> set[Value]:
    """The values that `v` is computed from by a few elementwise ops, itself included."""
    found = {v}
    front = [v]
    for _ in range(_DEPTH):
        nodes = [n for u in front if (n := producers.get(u)) and n.op.kind is Kind.ELEMENTWISE]
        front = [u for n in nodes for u in n.inputs if u not in found and u.shape]
        found.update(front)
    return found


def _singular(
    v: Value, producers: dict[Value, Node], tested: set[Value], depth: int
) -> Node | None:
    """A singular op on the way up from `v` whose operand comes, unguarded, from a tested value."""
    node = producers.get(v)
    if node is None or depth == 0 or node.op.kind is not Kind.ELEMENTWISE:
        return None
    if node.op.name in _GUARDS:
        return None
    operands = node.inputs[1:] if node.op.name == "div" else node.inputs
    if node.op.singular and any(_reaches(u, producers, tested, depth) for u in operands):
        return node
    for u in node.inputs:
        found = _singular(u, producers, tested, depth - 1)
        if found is not None:
            return found
    return None


def _reaches(v: Value, producers: dict[Value, Node], tested: set[Value], depth: int) -> bool:
    """Whether `v` is a tested value, or computed from one without a guard."""
    if v in tested:
        return True
    node = producers.get(v)
    if node is None or depth == 0 or node.op.kind is not Kind.ELEMENTWISE:
        return False
    if node.op.name in _GUARDS:
        return False
    return any(_reaches(u, producers, tested, depth - 1) for u in node.inputs)
