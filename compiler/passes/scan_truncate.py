"""Truncated backpropagation through time in one sweep: scans with a cut gradient -> one loop each.

Graph -> Graph.  Where the gradient is cut every K steps, a run of K steps can be reversed as soon
as it has run: nothing of a later run reaches it.  A scan and its reverse scan become one loop over
runs, each forward with residuals and back, and only the carries pass from run to run.  That takes
what comes back to depend on no later run; `JoinScan` brings the losses of the steps into the loops
first.  Pairs where it does depend are left as they are.  Invariant: same values up to the order of
summation over time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.builder import Builder
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.expr import Expr, zeros
from retrograde.compiler.ir.graph import Graph, Node, Origin, Value
from retrograde.compiler.ir.registry import lookup
from retrograde.compiler.passes.regions import outermost_nodes
from retrograde.compiler.passes.scan_pairs import (
    ScanPair,
    constants_of,
    find_pairs,
    slices_of,
)
from retrograde.compiler.passes.scan_segments import SegmentGraph, region
from retrograde.compiler.passes.scan_sink import is_zero

RUN = "run"  # the plan's symbol for the steps of a run
BORDER = "border"  # the name of the slice that tells where the gradient is cut


def truncation(graph: Graph) -> Iterator[tuple[Dim, int]]:
    """(length, steps of a run) of the scans in `graph` whose gradient may be cut."""
    for node in outermost_nodes(graph):
        steps = node.attrs.get("truncate") if node.op.name == "scan" else None
        if steps is not None and dims.decide_le(node.attrs["length"], steps) is not True:
            yield node.attrs["length"], steps


@dataclass(frozen=True)
class TruncateScans:
    """Turns each truncated pair that allows it into one sweep over runs."""

    run: str = RUN

    def __call__(self, graph: Graph) -> Graph:
        if self.run in graph.symbols():
            return TruncateScans(self.run + "_")(graph)
        pairs = [pair for pair in find_pairs(graph) if pair.forward.attrs.get("truncate")]
        for pair in pairs:
            roles = _roles(pair.backward)
            if roles is None or _depends(graph, pair):
                continue
            graph = self._in_one(graph, pair, roles)
        return graph

    def _in_one(self, graph: Graph, pair: ScanPair, roles: _Roles) -> Graph:
        """The graph with the pair as one loop, at the place of its reverse scan."""
        late: list[Node] = []  # what needs the forward scan, and not the way back
        after = set(pair.forward.outputs)
        nodes: list[Node] = []
        for node in graph.nodes:
            if node is pair.forward:
                continue
            if node is pair.backward:
                nodes += [*self._merged(graph, pair, roles), *late]
                after = set()
            elif any(v in after for v in node.inputs):
                late.append(node)
                after.update(node.outputs)
            else:
                nodes.append(node)
        return graph.replace(nodes=tuple(nodes))

    def _merged(self, graph: Graph, pair: ScanPair, roles: _Roles) -> list[Node]:
        first, last = pair.forward, pair.backward
        n, k = first.attrs["carries"], last.attrs["carries"]
        length, reverse = first.attrs["length"], first.attrs["reverse"]
        makers, used = graph.producers(), _used(graph)
        needed = [v for v in first.outputs[n:] if used.get(v, set()) - {last}]
        seeds = {i: last.inputs[i] for i in roles.cut if not is_zero(last.inputs[i], makers)}
        entering = [i for i in roles.cut if last.outputs[i] in used]  # gradients of first states
        made = set(pair.read)
        given = [v for v in slices_of(last) if v not in made]
        slices = list(dict.fromkeys([*slices_of(first), *given]))
        constants = list(
            dict.fromkeys([*constants_of(first), *constants_of(last), *seeds.values()])
        )
        index = _index(length)
        segment = dims.dim(self.run)

        part = SegmentGraph(f"{first.attrs['body'].name}.run", segment)
        with part.builder:
            states = part.whole([v.type for v in first.inputs[:n]], "carry")
            sums = part.whole([last.inputs[i].type for i in roles.sums], "sum")
            kept = part.whole([last.inputs[i].type for i in entering], "d first carry")
            part.slices([*slices, index.output])
            part.constants(constants)
            steps = part.known[index.output]
            at_start, at_end = _at(steps, 0), _at(steps, segment - 1)
            begins, ends = (at_end, at_start) if reverse else (at_start, at_end)
            total = lookup("dim_value")(size=length, dtype=dtypes.i64)
            is_first = _same(begins, total - 1 if reverse else 0)
            is_last = _same(ends, 0 if reverse else total - 1)
            wanted = [*needed, *(v for v in pair.read if v not in needed)]
            ran = part.scan(first, states, wanted)
            residuals = dict(zip(wanted, ran[n:], strict=True))
            part.known.update((v, residuals[v]) for v in pair.read)
            backs: dict[int, Expr] = dict(zip(roles.sums, sums, strict=True))
            for i in roles.cut:
                type = last.inputs[i].type
                backs[i] = zeros(type)
                if i in seeds:
                    seed = part.fixed[seeds[i]]
                    backs[i] = lookup("select")(is_last, seed, zeros(type))
            back = part.scan(last, [backs[i] for i in range(k)], last.outputs[k:])
            gradients = [
                lookup("select")(is_first, back[i], old)
                for i, old in zip(entering, kept, strict=True)
            ]
            run = part.finish(
                [*ran[:n], *(back[i] for i in roles.sums), *gradients,
                 *(residuals[v] for v in needed), *back[k:]]
            )  # fmt: skip
        return [
            index,
            region(
                last, "scan_sweep",
                (*first.inputs[:n], *(last.inputs[i] for i in (*roles.sums, *entering)), *slices,
                 index.output, *constants),
                (*first.outputs[:n], *(last.outputs[i] for i in (*roles.sums, *entering)),
                 *needed, *last.outputs[k:]),
                {
                    "advance": run, "carries": n + len(roles.sums) + len(entering),
                    "slices": len(slices) + 1, "length": length, "reverse": reverse,
                    "segment": segment, "symbol": self.run, "slots": 1, "kept": 0,
                    "rest_last": True, "truncate": first.attrs["truncate"],
                },
                made_by="truncate",
            ),
        ]  # fmt: skip


@dataclass(frozen=True)
class _Roles:
    """What the carries of a reverse scan are: cotangents that the borders cut, or sums."""

    cut: tuple[int, ...]
    sums: tuple[int, ...]


def _roles(scan: Node) -> _Roles | None:
    """None where a carry is neither."""
    body: Graph = scan.attrs["body"]
    k = scan.attrs["carries"]
    users, makers = body.users(), body.producers()
    names = dict(zip(body.inputs, body.input_names or ("",) * len(body.inputs), strict=True))
    cut, sums = [], []
    for i, carry in enumerate(body.inputs[:k]):
        readers = users.get(carry, [])
        new = makers.get(body.outputs[i])
        if carry not in body.outputs and all(_cuts(r, carry, names, makers) for r in readers):
            cut.append(i)
        elif new is not None and new.op.name == "add" and readers == [new]:
            sums.append(i)
        else:
            return None
    return _Roles(tuple(cut), tuple(sums))


def _cuts(
    node: Node, carry: Value, names: Mapping[Value, str], makers: Mapping[Value, Node]
) -> bool:
    if node.op.name != "select" or node.inputs[2] is not carry:
        return False
    return names.get(node.inputs[0]) == BORDER and is_zero(node.inputs[1], makers)


def _depends(graph: Graph, pair: ScanPair) -> bool:
    """Whether what the reverse scan reads, residuals aside, needs the forward scan as a whole."""
    after = set(pair.forward.outputs)
    for node in graph.nodes:
        if node is not pair.backward and any(v in after for v in node.inputs):
            after.update(node.outputs)
    direct = set(pair.read)
    sliced = set(slices_of(pair.backward))
    whole = (*pair.backward.inputs[: pair.backward.attrs["carries"]], *constants_of(pair.backward))
    return any(v in after for v in whole) or any(v in after and v not in direct for v in sliced)


def _used(graph: Graph) -> dict[Value, set[Node | None]]:
    """The readers of each value; None for the caller."""
    used: dict[Value, set[Node | None]] = {}
    for v, readers in graph.users().items():
        used.setdefault(v, set()).update(readers)
    for v in graph.outputs:
        used.setdefault(v, set()).add(None)
    return used


def _index(length: Dim) -> Node:
    """0, 1, 2 … over the steps."""
    builder = Builder("index", Expr)
    with builder, builder.located(None, "", Origin("primal", "truncate")):
        lookup("iota")(size=length, dtype=dtypes.i64)
    return builder.nodes[-1]


def _at(steps: Expr, place: Dim) -> Expr:
    one = lookup("slice")(steps, start=(place,), stop=(place + 1,), step=(1,))
    out: Expr = lookup("reshape")(one, shape=())
    return out


def _same(a: Expr, b: Expr | int) -> Expr:
    out: Expr = a == b
    return out

