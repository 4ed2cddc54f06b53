"""A computation of one step -> the same computation of all steps at once.

Input: the nodes of a loop body, in order, and what their operands are over all steps: stacked (one
slice a step along a new axis 0 of size `length`) or shared (the same in every step).  Output: the
results, likewise.  Invariant: slice t of a stacked result is the result of step t; a node that no
stacked operand reaches is computed once.

The rules are those of values, not of derivatives: differentiate first.  A call is inlined here, and
its gradient would be that of its body; a stretched operand would get its cotangent of every step
before they are summed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from retrograde.compiler.errors import VerifyError
from retrograde.compiler.ir.builder import Builder, required
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.graph import Graph, Node, Origin, Value
from retrograde.compiler.ir.registry import Kind
from retrograde.compiler.passes.dce import has_effect
from retrograde.compiler.passes.vectorize_rules import Step, emit, rule_for
from retrograde.compiler.passes.vectorize_rules import spread as spread

_CALLS = frozenset({"call", "remat_call", "custom_call"})


class Vectorized(NamedTuple):
    """Values of one step as expressions over all of them: each value is in one of the two."""

    stacked: dict[Value, Expr]  # of shape (length, *shape)
    shared: dict[Value, Expr]  # of the value's own shape
    length: Dim

    def over_steps(self, v: Value) -> Expr:
        """`v` over all steps; a shared value is stretched."""
        found = self.stacked.get(v)
        return found if found is not None else spread(self.shared[v], self.length)


def vectorize(
    nodes: Sequence[Node],
    stacked: Mapping[Value, Expr],
    shared: Mapping[Value, Expr],
    length: Dim,
    made_by: str = "vectorize",
    merges: bool = True,
) -> Vectorized:
    """Emits `nodes` over all steps into the current builder.

    Returns what was given and every result of the nodes.  New nodes have the location and scope of
    the node they compute, which is their ancestor, and `made_by` as the pass that made them.
    VerifyError for a node that `can_vectorize` refuses.  Without `merges` a product of each step
    stays one of its own, in a batch."""
    run = _Run(length, made_by, dict(stacked), dict(shared), merges)
    for node in nodes:
        run.emit(node, _origin(node, made_by))
    return Vectorized(run.stacked, run.shared, length)


def can_vectorize(node: Node, stacked: Sequence[bool]) -> bool:
    """Whether `vectorize` takes `node` when the operands that `stacked` marks are stacked.

    With none of them stacked, every pure node: it is computed once.  Note that it is then computed
    for a length of 0 as well, where a check of its operands' values can raise a DataError."""
    if has_effect(node):
        return False
    if not any(stacked):
        return True
    if not _expands(node, stacked):
        return rule_for(node) is not None
    graph = _expansion(node)
    varying = {v for v, flag in zip(graph.inputs, stacked, strict=True) if flag}
    for inner in graph.nodes:
        flags = [v in varying for v in inner.inputs]
        if not can_vectorize(inner, flags):
            return False
        if any(flags):
            varying.update(inner.outputs)
    return True


def _expands(node: Node, stacked: Sequence[bool]) -> bool:
    """Whether what the node is made of is vectorized in its place."""
    name = node.op.name
    if name == "token_nll":  # of shared logits one logsumexp serves all steps
        return not stacked[0]
    return name in _CALLS or (node.op.kind is Kind.COMPOSITE and rule_for(node) is None)


def _expansion(node: Node, made_by: str = "vectorize") -> Graph:
    """What the node is made of, as a graph of its operands."""
    assert node.op.decompose is not None
    builder = Builder(node.op.name, Expr)
    with builder:
        inputs = [builder.input(v.type) for v in node.inputs]
        with builder.located(node.loc, node.scope, _origin(node, made_by)):
            made = node.op.decompose(node.attrs, *inputs)
    results = (made,) if isinstance(made, Expr) else made
    return builder.finish([e.value for e in results])


def _origin(node: Node, made_by: str) -> Origin:
    old = node.origin
    return Origin(old.role, made_by, (node.id, *old.ancestors[:3]), old.group)


@dataclass
class _Run:
    """What is known of each value so far."""

    length: Dim
    made_by: str
    stacked: dict[Value, Expr]
    shared: dict[Value, Expr]
    merges: bool = True

    def emit(self, node: Node, origin: Origin) -> None:
        flags = tuple(v in self.stacked for v in node.inputs)
        if not can_vectorize(node, flags):
            which = ", ".join(str(i) for i, flag in enumerate(flags) if flag) or "none"
            place = f" ({node.place})" if node.place else ""
            raise VerifyError(f"no rule for {node.op.name}{place} with operands {which} stacked")
        operands = tuple(
            (self.stacked if v in self.stacked else self.shared)[v] for v in node.inputs
        )
        if any(flags) and _expands(node, flags):
            self._expanded(node, operands, flags)
            return
        with required().located(node.loc, node.scope, origin):
            if not any(flags):
                results = emit(node.op, operands, node.attrs)
            else:
                rule = rule_for(node)
                assert rule is not None
                results = rule(Step(node, operands, flags, self.length, self.merges))
        found = self.stacked if any(flags) else self.shared
        found.update(zip(node.outputs, results, strict=True))

    def _expanded(self, node: Node, operands: Sequence[Expr], flags: Sequence[bool]) -> None:
        """The parts of the node in its place; a result that no stacked operand reaches is shared.

        Their ancestors are already said: the nodes of the expansion themselves are nobody's."""
        graph = _expansion(node, self.made_by)
        inner = _Run(self.length, self.made_by, {}, {}, self.merges)
        for v, e, flag in zip(graph.inputs, operands, flags, strict=True):
            (inner.stacked if flag else inner.shared)[v] = e
        for part in graph.nodes:
            inner.emit(part, replace(part.origin, made_by=self.made_by))
        for v, result in zip(node.outputs, graph.outputs, strict=True):
            if result in inner.stacked:
                self.stacked[v] = inner.stacked[result]
            else:
                self.shared[v] = inner.shared[result]
