"""Reverse-mode differentiation: Graph -> Graph.

Input: a graph, the outputs to differentiate and the inputs to differentiate by.  Output: a graph
that takes one more input per differentiated output (its cotangent) and returns the original
outputs followed by the cotangents of the chosen inputs.  Invariant: the primal nodes stay as they
are (same ids); every new node carries the id, line and scope of the node it is a derivative of.

Cotangents of shared values are summed in one place, and so is the reduction of a cotangent to the
shape of a broadcast operand.  Source: Griewank & Walther, Evaluating Derivatives, 2nd ed., ch. 3.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from retrograde.compiler.errors import UnsupportedError, VerifyError
from retrograde.compiler.ir.builder import Builder
from retrograde.compiler.ir.expr import Expr, cast, zeros
from retrograde.compiler.ir.graph import (
    Derivative,
    Graph,
    Node,
    Origin,
    Rule,
    TensorType,
    Value,
    same_type,
)
from retrograde.compiler.ir.location import where
from retrograde.compiler.ir.op import VjpContext, unbroadcast
from retrograde.compiler.ir.registry import Kind, NotDifferentiable
from retrograde.compiler.passes.attention import tiled_if_asked
from retrograde.compiler.passes.cross_entropy import chunked_if_asked
from retrograde.compiler.passes.expand import Expand
from retrograde.compiler.passes.notices import notice_unguarded_selects
from retrograde.compiler.passes.shifts import without_shift_gradients


@dataclass(frozen=True)
class Backward:
    """Differentiates the outputs `of` by the inputs `wrt` (indices into the graph's)."""

    of: tuple[int, ...]
    wrt: tuple[int, ...]
    in_loop: bool = False  # what is differentiated is the body of a loop

    def __call__(self, graph: Graph) -> Graph:
        given = graph
        if not self.in_loop:
            graph = chunked_if_asked(graph)
        graph = without_shift_gradients(tiled_if_asked(graph))
        graph = Expand(differentiable=True)(graph)
        for i in (*self.of,):
            if not graph.outputs[i].dtype.is_float:
                raise UnsupportedError(f"output {i} ({graph.outputs[i].type}) is not a float")
        active = _depends_on(graph, [graph.inputs[i] for i in self.wrt])
        notice_unguarded_selects(graph, active)
        builder = Builder(graph.name, Expr)
        builder.inputs.extend(graph.inputs)
        builder.input_names.extend(graph.input_names or ("",) * len(graph.inputs))
        seeds = [builder.input(graph.outputs[i].type, f"cotangent {i}") for i in self.of]
        with builder:
            trail = _Trail(builder, active, self.in_loop)
            trail.run(graph, [(graph.outputs[i], s) for i, s in zip(self.of, seeds, strict=True)])
            cotangents = [trail.result(graph.inputs[i]).value for i in self.wrt]
        outputs = tuple(trail.primal(v) for v in graph.outputs)
        names = graph.output_names or tuple(f"out{i}" for i in range(len(outputs)))
        gradient_names = [f"d {builder.input_names[i] or i}" for i in self.wrt]
        made = builder.finish([*outputs, *cotangents], [*names, *gradient_names])
        own = Derivative(
            tuple(outputs[i] for i in self.of),
            tuple(s.value for s in seeds),
            tuple(graph.inputs[i] for i in self.wrt),
            tuple(cotangents),
            tuple(trail.rules),
            tuple(trail.totals.items()),
            given.replace(outputs=tuple(given.outputs[i] for i in self.of), derivatives=()),
            given.inputs,
        )
        return made.replace(derivatives=(*_inner(given, trail, made), own))


def _inner(given: Graph, trail: _Trail, made: Graph) -> list[Derivative]:
    """What was known of derivatives in the graph that is differentiated, where it still holds."""
    if not given.derivatives:
        return []
    known = set(made.values())
    found = [d.renamed(trail.renamed) for d in given.derivatives]
    return [d for d in found if known.issuperset(d.values())]


def _depends_on(graph: Graph, sources: Iterable[Value]) -> set[Value]:
    """The float values that a derivative path connects to `sources`."""
    active = {v for v in sources if v.dtype.is_float}
    for node in graph.nodes:
        if isinstance(node.op.vjp, NotDifferentiable) and not node.op.vjp.refuses:
            continue
        if any(v in active for v in node.inputs):
            active.update(v for v in node.outputs if v.dtype.is_float)
    return active


class _Trail:
    """One reverse sweep: the primal nodes re-emitted, then the cotangents, last node first."""

    def __init__(self, builder: Builder, active: set[Value], in_loop: bool) -> None:
        self.builder = builder
        self.active = active
        self.in_loop = in_loop
        self.parts: dict[Value, list[Expr]] = {}
        self.residuals: dict[Node, tuple[Any, ...]] = {}
        self.renamed: dict[Value, Value] = {}  # outputs of augmented nodes
        self.rules: list[Rule] = []
        self.totals: dict[Value, Value] = {}  # cotangents

    def primal(self, v: Value) -> Value:
        return self.renamed.get(v, v)

    def expr(self, v: Value) -> Expr:
        return Expr(self.primal(v), self.builder)

    def run(self, graph: Graph, seeds: Sequence[tuple[Value, Expr]]) -> None:
        for node in graph.nodes:
            self._emit_primal(node)
        for value, seed in seeds:
            self.parts.setdefault(value, []).append(seed)
        for node in reversed(graph.nodes):
            self._reverse(node)

    def _emit_primal(self, node: Node) -> None:
        op = node.op
        if op.augment is None or not any(v in self.active for v in node.inputs):
            if any(v in self.renamed for v in node.inputs):
                node = node.with_inputs(self.primal(v) for v in node.inputs)
            self.builder.append(node)
            return
        with self.builder.located(node.loc, node.scope, Origin("primal", "backward", (node.id,))):
            outputs, residuals = op.augment(self._context(node, ()))
        self.renamed.update(
            (old, new.value) for old, new in zip(node.outputs, outputs, strict=True)
        )
        self.residuals[node] = tuple(residuals)

    def _reverse(self, node: Node) -> None:
        rule = node.op.vjp
        if rule is None or (isinstance(rule, NotDifferentiable) and not rule.refuses):
            return
        needs = tuple(v in self.active for v in node.inputs)
        if not any(needs) or not any(v in self.parts for v in node.outputs):
            return
        if isinstance(rule, NotDifferentiable):
            raise UnsupportedError(
                f"{where(node.loc)}{node.op.name} has no derivative: {rule.reason}"
            )
        origin = Origin("cotangent", "backward", (node.id,))
        with self.builder.located(node.loc, node.scope, origin):
            cotangents = tuple(self._total(v) for v in node.outputs)
            results = rule(self._context(node, node.outputs), cotangents)
            if len(results) != len(node.inputs):
                raise VerifyError(
                    f"the gradient of {node.op.name} returns {len(results)} cotangents for "
                    f"{len(node.inputs)} inputs"
                )
            added: list[Value | None] = []
            for v, need, part in zip(node.inputs, needs, results, strict=True):
                if not need or part is None:
                    added.append(None)
                    continue
                fitting = _fit(part, v.type, node)
                self.parts.setdefault(v, []).append(fitting)
                added.append(fitting.value)
            inputs, outputs = (tuple(map(self.primal, vs)) for vs in (node.inputs, node.outputs))
            self.rules.append(Rule(node, inputs, outputs, tuple(added)))

    def _context(self, node: Node, outputs: Sequence[Value]) -> VjpContext:
        in_loop = self.in_loop or node.op.name == "scan"
        return VjpContext(
            node,
            tuple(self.expr(v) for v in node.inputs),
            tuple(self.expr(v) for v in outputs),
            tuple(v in self.active for v in node.inputs),
            self.residuals.get(node, ()),
            lambda inner, of, wrt: Backward(of, wrt, in_loop)(inner),
        )

    def _total(self, v: Value) -> Expr | None:
        """The sum of the cotangents that reached `v`."""
        parts = self.parts.get(v)
        if not parts:
            return None
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        self.parts[v] = [total]
        self.totals[self.primal(v)] = total.value
        return total

    def result(self, v: Value) -> Expr:
        """The cotangent of `v`; zeros where nothing depends on it."""
        with self.builder.located(None, "", Origin("cotangent", "backward")):
            total = self._total(v)
            return zeros(v.type) if total is None else total


def _fit(part: Expr, type: TensorType, node: Node) -> Expr:
    """`part` summed down to the operand's shape (broadcasting's adjoint) and cast to its dtype."""
    if node.op.kind is Kind.ELEMENTWISE:
        part = unbroadcast(cast(part, type.dtype), type)
    if not same_type(part.type, type):
        raise VerifyError(
            f"the gradient of {node.op.name} ({node.place}) is {part.type}, its operand {type}"
        )
    return part
