"""A product and its cross-entropy become one op, whose logits never exist whole: Graph -> Graph.

`losses.cross_entropy(x @ w, targets)` and the same written by hand (log_softmax and a gather, or
max, exp, sum and log) become `linear_cross_entropy`; smoothing and other sums of logits over the
classes become products with sums of w.  A head that is recomputed for its gradient, as in
`models.GPT`, gives up its product first, as the op computes logits again anyway.

When: a gradient is derived while a model is traced, so a head must be recognised before `Backward`
looks at it; after differentiation the gradient's nodes read the logits too.  Within `chunked()`
every `Backward` applies this pass to the graph that it is given, but for bodies of loops, whose
products other passes take out of the loop whole.  Graphs that are not differentiated get it as a
stage of the pipeline, before `Expand`.

Invariant: same values up to rounding.  What is close and not taken is in `refusals`, with the
reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from retrograde.compiler.ir.builder import Builder
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.graph import Graph, Node, Origin, Value
from retrograde.compiler.ir.location import where
from retrograde.compiler.passes.asked import Asked
from retrograde.compiler.passes.cross_entropy_emit import Emitter
from retrograde.compiler.passes.cross_entropy_match import Head, Matcher, Refused, is_product
from retrograde.compiler.passes.cross_entropy_peel import peeled
from retrograde.compiler.passes.cse import CSE
from retrograde.compiler.passes.dce import DCE

LEAST = 4096  # classes: with fewer, computing logits again costs more than keeping them
WIDER = 4  # how many times as many classes as numbers in a row of x, or the sums of dx are as large


@dataclass(frozen=True)
class ChunkHeads:
    """Rewrites heads with at least `least` classes, and `wider` times as many as the width.

    `elements`: the types of numbers that are taken; `refusals` collects reasons, a line each."""

    least: int = LEAST
    wider: int = WIDER
    elements: tuple[str, ...] = ("f32", "f64")
    refusals: list[str] | None = None

    def __call__(self, graph: Graph) -> Graph:
        graph = DCE()(self._inside(graph))
        if self.refusals is None and not self._wide(graph):
            return graph
        single = CSE()(graph)  # logits that are written down twice are one
        opened, calls = peeled(single)
        found = self._heads(opened)
        if calls:  # only those that a head comes out of are opened
            useful = {calls[h.product] for h in found.values() if h.product in calls}
            opened, _ = peeled(single, useful)
            found = replace(self, refusals=None)._heads(opened)
        return DCE()(_rewritten(opened, found)) if found else graph

    def _wide(self, graph: Graph) -> bool:
        """Whether there is a product that has enough classes."""
        for node in graph.nodes:
            if is_product(node):
                classes = node.output.shape[-1]
                if isinstance(classes, int) and classes >= self.least:
                    return True
            elif any(self._wide(body) for _, body in node.subgraphs()):
                return True
        return False

    def _inside(self, graph: Graph) -> Graph:
        """The graph with its calls done."""
        if not any(n.op.name in ("call", "remat_call") for n in graph.nodes):
            return graph
        nodes = []
        for node in graph.nodes:
            if node.op.name in ("call", "remat_call"):
                node = replace(node, attrs={**node.attrs, "body": self(node.attrs["body"])})
            nodes.append(node)
        return graph.replace(nodes=tuple(nodes))

    def _heads(self, graph: Graph) -> dict[Node, Head]:
        """By the first end of each."""
        found: dict[Node, Head] = {}
        products = [n for n in graph.nodes if is_product(n)]
        if not products:
            return found
        matcher = Matcher(graph)
        for node in products:
            try:
                head = matcher.match(node)
                if head is not None:
                    self._check(head)
            except Refused as reason:
                if self.refusals is not None:
                    self.refusals.append(f"{where(node.loc)}the logits stay whole: {reason}")
                continue
            if head is not None:
                first = next(n for n in graph.nodes if n in head.ends)
                found[first] = head
        return found

    def _check(self, head: Head) -> None:
        dtype, classes = head.x.dtype, head.classes
        width = head.x.shape[head.order[-1]]
        if dtype.name not in self.elements:
            raise Refused(f"logits in tiles are {' or '.join(self.elements)}, not {dtype}")
        if not (isinstance(classes, int) and isinstance(width, int)):
            raise Refused(f"{classes} classes of width {width}: these take static sizes")
        if classes < self.least or classes < self.wider * width:
            least = max(self.least, self.wider * width)
            raise Refused(f"{classes} classes of width {width} save little; {least} would")


def _rewritten(graph: Graph, found: dict[Node, Head]) -> Graph:
    builder = Builder(graph.name, Expr)
    builder.inputs.extend(graph.inputs)
    builder.input_names.extend(graph.input_names)
    with builder:
        made = _Rewriting(builder, graph.producers(), found)
        for node in graph.nodes:
            made.add(node)
    outputs = [made.renamed.get(v, v) for v in graph.outputs]
    return builder.finish(outputs, graph.output_names, graph.aliases)


class _Rewriting:
    """A graph written anew: a head stands where its first end stood, and what it reads before it,
    wherever that stood."""

    def __init__(
        self, builder: Builder, makers: dict[Value, Node], found: dict[Node, Head]
    ) -> None:
        self.builder, self.makers = builder, makers
        self.renamed: dict[Value, Value] = {}
        self.firsts = {head.product: first for first, head in found.items()}
        self.heads = {n: h for h in found.values() for n in (*h.inside, *h.ends)}
        self.done: set[Node] = set()

    def add(self, node: Node) -> None:
        if node in self.done:
            return
        self.done.add(node)
        head = self.heads.get(node)
        if head is None:
            self.builder.append(node.with_inputs(self.renamed.get(v, v) for v in node.inputs))
        elif node is self.firsts[head.product]:
            self._emit(node, head)

    def _emit(self, node: Node, head: Head) -> None:
        emitter = Emitter(head, self.builder, self.renamed)
        self._need(emitter.operands)
        old = node.origin
        origin = Origin(old.role, "heads", (node.id, *old.ancestors[:3]), old.group)
        # A wrong target is told at the loss; time and memory are those of the layer.
        with self.builder.located(node.loc, head.product.scope, origin):
            emitter.emit()

    def _need(self, values: Sequence[Value]) -> None:
        for v in values:
            node = self.makers.get(v)
            if node is None:
                continue
            head = self.heads.get(node)
            if head is not None:
                node = self.firsts[head.product]
            if node not in self.done:
                self._need(node.inputs if head is None else ())
                self.add(node)


_CHUNKED = Asked("retrograde_chunked_heads", ChunkHeads)
chunked, chunked_if_asked = _CHUNKED.around, _CHUNKED.applied
