"""Attention becomes `flash_attention`, which takes its keys a tile at a time: Graph -> Graph.

Taken are the `attention` op, which `nn.MultiHeadAttention` makes, and plain code: a product of
queries and keys, scaled, masked by `where` or by adding, with the softmax op or one written with
exp, max and sum, maybe dropout, then a product with values.  Comparisons of places, lengths and
segments become predicates of the op, so that no array of the size queries x keys is left; other
masks and biases go along as they are.

When: a gradient is derived while a model is traced, so what is to have a tiled gradient must be
recognised before `Backward` looks at it; after differentiation the weights are read by the
gradient's nodes too.  Within `tiled()` every `Backward` (also those of loop bodies and of
recomputed calls) applies this pass to the graph that it is given, and the gradient rule of
`flash_attention` does the rest.  Graphs that are not differentiated get it as a stage of the
pipeline, before `Expand`.  Without either, nothing changes.

Invariant: same values up to rounding.  A query without open keys keeps what its spelling gave:
zeros for the ops; NaN where exp(x - max) / sum was written and -inf masked; the mean of the values
where a finite number masked.  What is close and not taken is in `Refusals`, with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from retrograde.compiler.ir import dims
from retrograde.compiler.ir.builder import Builder
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.graph import Graph, Node, Origin, Value
from retrograde.compiler.ir.location import where
from retrograde.compiler.passes.asked import Asked
from retrograde.compiler.passes.attention_emit import Emitter
from retrograde.compiler.passes.attention_match import Match, Matcher, Refused
from retrograde.compiler.passes.dce import DCE


@dataclass
class Refusals:
    """What was close to attention and is left as it is: a line each, with the place."""

    lines: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class TileAttention:
    """Rewrites attention to its tiled op.

    `elements`: the types of numbers that are taken; `refusals` collects reasons."""

    elements: tuple[str, ...] = ("f32", "bf16", "f16")
    refusals: Refusals | None = None

    def __call__(self, graph: Graph) -> Graph:
        ends = [n for n in graph.nodes if n.op.name in ("attention", "dot_general")]
        if not ends:
            return graph
        matcher = Matcher(graph)
        found = {n: m for n in ends if (m := self._match(matcher, n)) is not None}
        if not found:
            return graph
        builder = Builder(graph.name, Expr)
        builder.inputs.extend(graph.inputs)
        builder.input_names.extend(graph.input_names)
        renamed: dict[Value, Value] = {}
        with builder:
            for node in graph.nodes:
                match = found.get(node)
                if match is None:
                    if any(v in renamed for v in node.inputs):
                        node = node.with_inputs(renamed.get(v, v) for v in node.inputs)
                    builder.append(node)
                    continue
                old = node.origin
                origin = Origin(old.role, "attention", (node.id, *old.ancestors[:3]), old.group)
                with builder.located(node.loc, node.scope, origin):
                    result = Emitter(match, builder, renamed).result(node.output.shape)
                renamed[node.output] = result.value
        outputs = [renamed.get(v, v) for v in graph.outputs]
        return DCE()(builder.finish(outputs, graph.output_names, graph.aliases))

    def _match(self, matcher: Matcher, node: Node) -> Match | None:
        try:
            match = matcher.match(node)
            if match is not None:
                self._check(match)
        except Refused as reason:
            if self.refusals is not None:
                self.refusals.lines.append(f"{where(node.loc)}{node.op.name}: {reason}")
            return None
        return match

    def _check(self, match: Match) -> None:
        dtype = match.q.value.dtype
        if dtype.name not in self.elements:
            raise Refused(f"tiles are of {' or '.join(self.elements)}, not {dtype}")
        if match.dropout is not None and match.batch == 0:
            raise Refused("weights without a batch axis are dropped by row")
        first = min(1, match.batch)
        heads = dims.product(match.q.shape[first:-2])
        shared = dims.product(match.k.shape[first:-2])
        if dims.same(heads, shared):
            return
        if not (isinstance(heads, int) and isinstance(shared, int)):
            raise Refused(f"{heads} heads of queries share {shared} of keys: give static numbers")


_TILED = Asked("retrograde_tiled_attention", TileAttention)
tiled, tiled_if_asked = _TILED.around, _TILED.applied
