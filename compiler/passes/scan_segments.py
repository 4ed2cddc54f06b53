"""Checkpointing over time: scans and their reverse scans -> sweeps and replays in segments.

Graph -> Graph.  The scan no longer stacks the residuals of all steps: it keeps those of the last
segment, and the states that enter some of the segments.  The reverse scan runs each of the other
segments forward again, with residuals, before it goes back through it.  Hoisting and sinking then
act on one segment at a time.  How many steps a segment has and how many states are kept are
symbols, bound when sizes are.  Invariant: same values up to the order of summation over time.

Source: Griewank & Walther 2000 for the schedule; Gruslys et al., "Memory-efficient backpropagation
through time" (2016) for its use on recurrent networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from retrograde.compiler.ir import dims
from retrograde.compiler.ir.builder import Builder, next_id
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.graph import Graph, Node, Origin, TensorType, Value
from retrograde.compiler.ir.registry import lookup
from retrograde.compiler.ops.scan import scan
from retrograde.compiler.ops.segments import snapshots
from retrograde.compiler.passes.dce import DCE
from retrograde.compiler.passes.scan_pairs import (
    ScanPair,
    constants_of,
    find_pairs,
    slices_of,
)

SEGMENT, SLOTS = "segment", "slots"  # the plan's symbols: steps of a segment, states kept
EACH = "each"  # the symbol for segments of one step, where a scan says how many states to keep


@dataclass(frozen=True)
class SegmentScans:
    """Turns each pair of a scan and its reverse scan into a sweep and a replay.

    With `asked`, only those whose scan has the attribute `slots`: it keeps so many states, and a
    segment is one step."""

    segment: str = SEGMENT
    slots: str = SLOTS
    asked: bool = False

    def __call__(self, graph: Graph) -> Graph:
        pairs = find_pairs(graph)
        if self.asked:
            pairs = [pair for pair in pairs if pair.forward.attrs.get("slots") is not None]
        if not pairs:
            return graph
        taken = graph.symbols()
        if self.segment in taken or self.slots in taken:  # the user's names stay the user's
            other = replace(self, segment=self.segment + "_", slots=self.slots + "_")
            return other(graph)
        forward = {pair.forward: pair for pair in pairs}
        backward = {pair.backward: pair for pair in pairs}
        returned = set(graph.outputs)
        users = graph.users()
        nodes: list[Node] = []
        swept: dict[ScanPair, Node] = {}
        for node in graph.nodes:
            if node in forward:
                pair = forward[node]
                stacks = node.outputs[node.attrs["carries"] :]
                needed = [
                    v for v in stacks
                    if v in returned or any(user is not pair.backward for user in users.get(v, ()))
                ]  # fmt: skip
                swept[pair] = self._sweep(pair, needed)
                nodes.append(swept[pair])
            elif node in backward:
                nodes.append(self._replay(backward[node], swept[backward[node]]))
            else:
                nodes.append(node)
        return graph.replace(nodes=tuple(nodes))

    def _sizes(self, pair: ScanPair) -> tuple[Dim, Dim]:
        slots: Dim = pair.forward.attrs["slots"] if self.asked else dims.dim(self.slots)
        return dims.dim(self.segment), slots

    def _forward(
        self, name: str, pair: ScanPair, slices: Sequence[Value], constants: Sequence[Value],
        wanted: Sequence[Value],
    ) -> Graph:  # fmt: skip
        """The forward scan over one segment: the last carries, then the stacks `wanted`."""
        node = pair.forward
        types = [v.type for v in node.inputs[: node.attrs["carries"]]]
        part = SegmentGraph(f"{node.attrs['body'].name}.{name}", dims.dim(self.segment))
        with part.builder:
            states = part.whole(types, "carry")
            part.slices(slices)
            part.constants(constants)
            return part.finish(part.scan(node, states, wanted))

    def _sweep(self, pair: ScanPair, needed: Sequence[Value]) -> Node:
        """The forward scan, which returns the last carries, `needed`, the kept states and the
        residuals of the last segment."""
        node, (segment, slots) = pair.forward, self._sizes(pair)
        n = node.attrs["carries"]
        carries = node.inputs[:n]
        slices = list(dict.fromkeys(slices_of(node)))
        constants = list(dict.fromkeys(constants_of(node)))
        kept = [Value(next_id(), snapshots(v.type, slots)) for v in carries]
        residuals = [
            Value(next_id(), TensorType(v.dtype, (segment, *v.shape[1:]))) for v in pair.read
        ]
        return region(
            node, "scan_sweep",
            (*carries, *slices, *constants),
            (*node.outputs[:n], *needed, *kept, *residuals),
            {
                "advance": self._forward("advance", pair, slices, constants, needed),
                "ahead": self._forward("ahead", pair, slices, constants, [*needed, *pair.read]),
                "carries": n, "slices": len(slices),
                "length": node.attrs["length"], "reverse": node.attrs["reverse"],
                "segment": segment, "symbol": self.segment, "slots": slots, "kept": n,
                "rest_last": False,
            },
        )  # fmt: skip

    def _replay(self, pair: ScanPair, swept: Node) -> Node:
        """The reverse scan from what the sweep kept."""
        first, last, (segment, slots) = pair.forward, pair.backward, self._sizes(pair)
        n, k, r = first.attrs["carries"], last.attrs["carries"], len(pair.read)
        made = set(pair.read)
        given = [v for v in slices_of(last) if v not in made]
        slices = list(dict.fromkeys([*slices_of(first), *given]))
        constants = list(dict.fromkeys([*constants_of(first), *constants_of(last)]))
        again = self._forward("again", pair, slices, constants, pair.read)
        part = SegmentGraph(f"{last.attrs['body'].name}.retreat", segment)
        with part.builder:
            residuals = part.over_segment(pair.read, "residual")
            backs = part.whole([v.type for v in last.inputs[:k]], "d carry")
            part.slices(slices)
            part.constants(constants)
            part.known.update(zip(pair.read, residuals, strict=True))
            retreat = part.finish(part.scan(last, backs, last.outputs[k:]))
        return region(
            last, "scan_replay",
            (*swept.outputs[len(swept.outputs) - n - r :], *last.inputs[:k], *slices, *constants),
            last.outputs,
            {
                "advance": self._forward("advance", pair, slices, constants, ()),
                "again": again.replace(outputs=again.outputs[n:]), "retreat": retreat,
                "states": n, "residuals": r, "carries": k,
                "slices": len(slices), "length": first.attrs["length"],
                "reverse": first.attrs["reverse"], "segment": segment, "symbol": self.segment,
                "slots": slots, "rest_last": False, **_truncated(first),
            },
        )  # fmt: skip


class SegmentGraph:
    """A graph over one segment in the making.  `known`: outer values as they are in it."""

    def __init__(self, name: str, segment: Dim) -> None:
        self.builder = Builder(name, Expr)
        self.segment = segment
        self.known: dict[Value, Expr] = {}
        self.fixed: dict[Value, Expr] = {}  # those that are read whole

    def whole(self, types: Sequence[TensorType], name: str) -> list[Expr]:
        return [self.builder.input(t, name) for t in types]

    def over_segment(self, values: Sequence[Value], name: str) -> list[Expr]:
        """Inputs that are over one segment what `values` are over all steps."""
        types = [TensorType(v.dtype, (self.segment, *v.shape[1:])) for v in values]
        return self.whole(types, name)

    def slices(self, values: Sequence[Value]) -> None:
        self.known.update(zip(values, self.over_segment(values, "slice"), strict=True))

    def constants(self, values: Sequence[Value]) -> None:
        # A value may be sliced by one scan and read whole by the other: then it has two inputs,
        # and the later one is what the constants of `scan` find.
        self.fixed = {v: self.builder.input(v.type, "constant") for v in values}

    def scan(self, node: Node, carries: Sequence[Expr], wanted: Sequence[Value]) -> list[Expr]:
        """`node` over one segment: its last carries, then the stacked results `wanted`."""
        n = node.attrs["carries"]
        body: Graph = node.attrs["body"]
        places = [node.outputs.index(v) for v in wanted]
        body = body.replace(
            outputs=(*body.outputs[:n], *(body.outputs[i] for i in places)), output_names=()
        )
        operands = [
            *carries,
            *(self.known[v] for v in slices_of(node)),
            *(self.fixed[v] for v in constants_of(node)),
        ]
        attrs = {**node.attrs, "body": DCE()(body), "length": self.segment}
        with self.builder.located(node.loc, node.scope, node.origin):
            results = scan(*operands, **attrs)
        return list(results) if isinstance(results, tuple) else [results]

    def finish(self, results: Sequence[Expr]) -> Graph:
        return self.builder.finish([e.value for e in results])


def _truncated(node: Node) -> dict[str, object]:
    return {"truncate": steps} if (steps := node.attrs.get("truncate")) else {}


def region(
    node: Node, op: str, inputs: Sequence[Value], outputs: Sequence[Value],
    attrs: dict[str, object], made_by: str = "segments",
) -> Node:  # fmt: skip
    """The region op that takes the place of the scan `node`."""
    return Node(
        next_id(), lookup(op), tuple(inputs), attrs, tuple(outputs), node.loc, node.scope,
        Origin(node.origin.role, made_by, (node.id, *node.origin.ancestors[:3])),
    )  # fmt: skip
