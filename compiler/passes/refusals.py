"""What is not fused, and why: a clustered graph -> the pairs of nodes that an array goes between.

Invariant: every array that one step hands to another, or that two of them read, has a reason, if
one of them runs over a space.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.graph import Graph, Node, Value
from retrograde.compiler.ir.registry import Kind
from retrograde.compiler.passes.clustering import Cluster, Clustering

_NAMES = {
    "dot_general": "a matrix product", "scan": "a loop", "while": "a loop", "cond": "a branch",
    "scan_sweep": "a loop", "scan_replay": "a loop",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Refusal:
    """An array that goes through memory: from a maker to a reader, or with `sibling` to two."""

    reason: str
    bytes: Dim
    maker: str  # source lines
    reader: str
    sibling: bool = False


@dataclass(frozen=True, eq=False)
class Grouped(Graph):
    """A graph whose nodes are grouped, with what was not."""

    refusals: tuple[Refusal, ...] = ()


def refusals(
    graph: Graph, clustering: Clustering, siblings: Mapping[tuple[Value, Node, Node], str]
) -> Iterator[Refusal]:
    """Each array once for each step that reads it."""
    makers = graph.producers()
    reader: dict[Node, Cluster] = {n: c for c in clustering.clusters for n in c.members}
    for v, users in graph.users().items():
        maker = makers.get(v)
        if maker is None or maker.op.name == "constant":
            continue
        found: dict[Cluster, str] = {}
        lines: dict[Cluster, str] = {}
        home = reader[maker]
        for node in users:
            c = reader[node]
            if c is home or (home.shape is None and c.shape is None):
                continue
            why = clustering.apart.get((v, node)) or _why(maker, home, node, c)
            if found.get(c, _OTHER) == _OTHER:
                found[c], lines[c] = why, node.place
        for c, why in found.items():
            yield Refusal(why, v.type.bytes, maker.place, lines[c])
    for (v, first, second), why in siblings.items():
        if reader[first] is not reader[second]:
            yield Refusal(why, v.type.bytes, first.place, second.place, sibling=True)


_OTHER = "its reader joined another group"


def _why(maker: Node, home: Cluster, node: Node, c: Cluster) -> str:
    """The reason, where nothing was tried."""
    for found, verb in ((node, "read by"), (maker, "made by")):
        name = found.op.name
        if (c if found is node else home).shape is not None:
            continue
        if not any(v.shape for v in found.outputs) and found.op.kind is Kind.ELEMENTWISE:
            return "a single number"
        if found.op.effect is not None:
            return f"{name} has an effect"
        if name.startswith("scatter"):
            return f"{name} takes places in the order of its indices"
        if found.op.kind is Kind.MOVE:
            return f"{verb} {name}"
        return f"{verb} {_NAMES.get(name, name)}"
    return _OTHER
