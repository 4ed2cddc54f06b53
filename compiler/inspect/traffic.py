"""How many bytes a program reads and writes, and what is not fused: grouped graph -> numbers.

An array counts once for each step that reads or writes it, as far as it is read: of what is
gathered from the rows that are taken, of what is broadcast the part that lies in memory.  The
packing of operands and other working memory is left out.  Invariant: fused or not, the same steps
are counted; only what goes between the members of a group differs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from retrograde.compiler.ir import dims
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.graph import Graph, Node, Value
from retrograde.compiler.ops.branch import BRANCHES
from retrograde.compiler.passes.refusals import Grouped, Refusal
from retrograde.compiler.plan.schedule import ALIASING

_STILL = ALIASING | {"constant"}


@dataclass(frozen=True)
class Traffic:
    """Bytes that the steps of one run move: `unfused` if each op were a step of its own, `fused`
    as it is."""

    unfused: Dim
    fused: Dim

    def at(self, sizes: Mapping[str, int]) -> Traffic:
        """The numbers at these sizes."""
        return Traffic(dims.evaluate(self.unfused, sizes), dims.evaluate(self.fused, sizes))


def traffic(graph: Graph) -> Traffic:
    """That of a graph whose nodes are grouped.  Of a loop whose number of turns only the data
    tells, one turn counts; of a branch the larger side."""
    return Traffic(_moved(graph, whole=False), _moved(graph, whole=True))


def _moved(graph: Graph, whole: bool) -> Dim:
    makers = graph.producers()
    total: Dim = 0
    for node in graph.nodes:
        if node.op.name not in _STILL:
            total = total + _step(node, makers, whole)
    return total


def _step(node: Node, makers: Mapping[Value, Node], whole: bool) -> Dim:
    name, attrs = node.op.name, node.attrs
    if name == "scan":
        length: Dim = attrs["length"]
        return length * _moved(attrs["body"], whole)
    if name in ("scan_sweep", "scan_replay"):
        (symbol,) = dims.symbols(attrs["segment"])
        run = attrs["advance" if name == "scan_sweep" else "retreat"]
        return dims.substitute(_moved(run, whole), {symbol.name: attrs["length"]})
    if name == "while":
        return _moved(attrs["condition"], whole) + _moved(attrs["body"], whole)
    if name == "cond":
        a, b = (_moved(attrs[side], whole) for side in BRANCHES)
        return a if dims.dominates(a, b) else b if dims.dominates(b, a) else a + b
    if name != "fused":
        return _sum(node.outputs) + _read([node], {v: v for v in node.inputs}, makers)
    body: Graph = attrs["body"]
    origin = dict(zip(body.inputs, node.inputs, strict=True))
    if whole:
        return _sum(node.outputs) + _read(body.nodes, origin, makers)
    return _within(body, origin, makers)


def _read(
    nodes: Sequence[Node], origin: Mapping[Value, Value], makers: Mapping[Value, Node]
) -> Dim:
    """What the members of one step read of what is made outside of it."""
    read: dict[Value, None] = {}
    total: Dim = 0
    for node in nodes:
        taken = node.inputs
        if node.op.name == "gather":
            taken, total = taken[1:], total + node.output.type.bytes
        elif node.op.name.startswith("scatter"):  # the places that are written are read as well
            total = total + node.inputs[1].type.bytes
        read.update(dict.fromkeys(_lying(origin[v], makers) for v in taken if v in origin))
    return total + _sum(v for v in read if not _constant(v, makers))


def _within(body: Graph, origin: Mapping[Value, Value], makers: Mapping[Value, Node]) -> Dim:
    """What the members of a group would move as steps."""
    total: Dim = 0
    for node in body.nodes:
        renamed = node.with_inputs(origin.get(v, v) for v in node.inputs)
        total = total + _step(renamed, makers, whole=False)
    return total


def _lying(v: Value, makers: Mapping[Value, Node]) -> Value:
    """What lies in memory where `v` is read."""
    while (maker := makers.get(v)) is not None and maker.op.name in (
        "reshape", "transpose", "broadcast_to", "flip",
    ):  # fmt: skip
        v = maker.inputs[0]
    return v


def _constant(v: Value, makers: Mapping[Value, Node]) -> bool:
    maker = makers.get(v)
    return maker is not None and maker.op.name == "constant"


def _sum(values: Iterable[Value]) -> Dim:
    total: Dim = 0
    for v in values:
        total = total + v.type.bytes
    return total


def all_refusals(graph: Graph) -> Iterator[Refusal]:
    """What is not fused in a graph and in all of its sub-graphs."""
    if isinstance(graph, Grouped):
        yield from graph.refusals
    for node in graph.nodes:
        for _, body in node.subgraphs():
            yield from all_refusals(body)


@dataclass(frozen=True)
class Apart:
    """The arrays that are not fused for one reason: how many, how large, and the largest pair."""

    reason: str
    count: int
    bytes: int
    places: tuple[str, str]


def apart(graph: Graph, sizes: Mapping[str, int]) -> list[Apart]:
    """By reason, the most bytes first."""
    found: dict[str, list[tuple[int, Refusal]]] = defaultdict(list)
    for r in all_refusals(graph):
        reason = f"two readers, {r.reason}" if r.sibling else r.reason
        found[reason].append((dims.evaluate(r.bytes, sizes), r))
    rows = []
    for reason, pairs in found.items():
        _, largest = max(pairs, key=lambda pair: pair[0])
        total = sum(size for size, _ in pairs)
        rows.append(Apart(reason, len(pairs), total, (largest.maker, largest.reader)))
    return sorted(rows, key=lambda row: (-row.bytes, row.reason))
