"""Fewer residuals: what a reverse scan reads is computed again in it from the states of the steps.

Graph -> Graph.  Differentiation keeps, of each step, what is costly to compute again.  Here only
the states that enter the steps are kept, and with `products` the results of matrix products and
the like; everything else is computed again, in the step that goes back, from those and from the
slices.  For cells that are wide inside.  Invariant: same values; a recomputation is never merged
with what it repeats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from retrograde.compiler.ir.builder import Builder, new_value, next_id
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.graph import Graph, Node, Origin, TensorType, Value
from retrograde.compiler.ir.registry import Kind
from retrograde.compiler.ops.region import effects_of
from retrograde.compiler.passes.dce import DCE
from retrograde.compiler.passes.scan_pairs import ScanPair, constants_of, find_pairs, slices_of

_CHEAP = frozenset({Kind.ELEMENTWISE, Kind.MOVE, Kind.CREATE})


@dataclass(frozen=True)
class LeanScans:
    """Keeps the states of the steps, and with `products` what is more than elementwise."""

    products: bool = False

    def __call__(self, graph: Graph) -> Graph:
        for pair in find_pairs(graph):
            made = _Lean(graph, pair, self.products)
            if made.saves:
                changed = {pair.forward: made.forward(), pair.backward: made.backward()}
                graph = graph.replace(nodes=tuple(changed.get(n, n) for n in graph.nodes))
        return graph


class _Lean:
    """One pair with fewer residuals."""

    def __init__(self, graph: Graph, pair: ScanPair, products: bool) -> None:
        self.pair = pair
        self.products = products
        self.n = pair.forward.attrs["carries"]
        self.body: Graph = pair.forward.attrs["body"]
        self.makers = self.body.producers()
        outside = set(graph.outputs)
        for v, readers in graph.users().items():
            if any(reader is not pair.backward for reader in readers):
                outside.add(v)
        stacks = pair.forward.outputs[self.n :]
        inner = dict(zip(stacks, self.body.outputs[self.n :], strict=True))
        self.staying = [v for v in stacks if v in outside]  # they are there anyway
        self.given = {inner[v]: v for v in self.staying}
        self.wanted = {v: inner[v] for v in pair.read if v not in outside}
        self.kept: dict[Value, None] = {}
        self.again: dict[Node, None] = {}
        self.free: dict[Value, None] = {}  # slices and constants of the body that are read
        for v in self.wanted.values():
            self._provide(v)
        self.new = {
            v: new_value(TensorType(v.dtype, (pair.forward.attrs["length"], *v.shape)))
            for v in self.kept
        }

    @property
    def saves(self) -> bool:
        """Whether something is computed again."""
        return bool(self.again)

    def _provide(self, v: Value) -> None:
        if v in self.given or v in self.kept or v in self.free:
            return
        node = self.makers.get(v)
        if node is None:
            (self.kept if v in self.body.inputs[: self.n] else self.free)[v] = None
        elif self._stays(node):
            self.kept[v] = None
        elif node not in self.again:
            self.again[node] = None
            for u in node.inputs:
                self._provide(u)

    def _stays(self, node: Node) -> bool:
        """Whether the node is not to run again."""
        if node.op.kind in (Kind.RANDOM, Kind.OPAQUE) or effects_of(node):
            return True
        return self.products and node.op.kind not in _CHEAP

    def forward(self) -> Node:
        """The scan that stacks what is kept."""
        node = self.pair.forward
        places = [node.outputs.index(v) for v in self.staying]
        outputs = (
            *self.body.outputs[: self.n], *(self.body.outputs[i] for i in places), *self.kept
        )  # fmt: skip
        body = DCE()(self.body.replace(outputs=outputs, output_names=()))
        return replace(
            node,
            outputs=(*node.outputs[: self.n], *self.staying, *self.new.values()),
            attrs={**node.attrs, "body": body},
        )

    def backward(self) -> Node:
        """The reverse scan that computes the rest again."""
        first, last = self.pair.forward, self.pair.backward
        k = last.attrs["carries"]
        body: Graph = last.attrs["body"]
        outer = dict(zip(self.body.inputs, first.inputs, strict=True))
        sliced = set(self.body.inputs[self.n : self.n + first.attrs["slices"]])
        own_slices = [
            (v, b) for v, b in zip(slices_of(last), body.inputs[k:], strict=False)
            if v not in self.wanted
        ]  # fmt: skip
        known: dict[Value, Value] = {}
        inner = Builder(body.name, Expr)

        def enter(pairs: Sequence[tuple[Value, Value]], name: str) -> list[Value]:
            for _, b in pairs:
                known[b] = inner.input(b.type, name).value
            return [v for v, _ in pairs]

        names = body.input_names or ("",) * len(body.inputs)
        with inner:
            for b, name in zip(body.inputs[:k], names, strict=False):
                known[b] = inner.input(b.type, name).value
            slices = enter([(self.new[v], v) for v in self.kept], "kept")
            slices += enter([(v, b) for b, v in self._read_given()], "kept")
            slices += enter([(outer[b], b) for b in self.free if b in sliced], "x")
            for v, b in own_slices:
                known[b] = inner.input(b.type, names[body.inputs.index(b)]).value
                slices.append(v)
            constants = enter([(outer[b], b) for b in self.free if b not in sliced], "constant")
            rest = body.inputs[k + last.attrs["slices"] :]
            constants += enter(list(zip(constants_of(last), rest, strict=True)), "constant")
            for node in self.body.nodes:
                if node in self.again:
                    _repeat(inner, node, known, first)
            for v, b in zip(slices_of(last), body.inputs[k:], strict=False):
                if v in self.wanted:
                    known[b] = known[self.wanted[v]]
            for node in body.nodes:
                inner.append(node.with_inputs(known.get(v, v) for v in node.inputs))
            step = inner.finish([known.get(v, v) for v in body.outputs])
        return replace(
            last,
            inputs=(*last.inputs[:k], *slices, *constants),
            attrs={**last.attrs, "body": step, "slices": len(slices), **self._live(slices)},
        )

    def _live(self, slices: Sequence[Value]) -> dict[str, int]:
        """Where the mask of a ragged loop is among the new slices."""
        live = self.pair.backward.attrs.get("live")
        return {} if live is None else {"live": slices.index(slices_of(self.pair.backward)[live])}

    def _read_given(self) -> list[tuple[Value, Value]]:
        """Results that are there anyway and that the repeated nodes read."""
        read = {v for node in self.again for v in node.inputs} | set(self.wanted.values())
        return [(b, v) for b, v in self.given.items() if b in read]


def _repeat(inner: Builder, node: Node, known: dict[Value, Value], scan: Node) -> None:
    """Emits `node` as a recomputation."""
    copies = tuple(new_value(v.type) for v in node.outputs)
    origin = Origin("recompute", "lean", (node.id, *node.origin.ancestors[:3]), group=scan.id)
    inner.append(
        Node(
            next_id(), node.op, tuple(known[v] for v in node.inputs), node.attrs, copies,
            node.loc, node.scope, origin,
        )
    )  # fmt: skip
    known.update(zip(node.outputs, copies, strict=True))
