"""Which reverse scan is the gradient of which scan: Graph -> pairs of nodes.

A pair is a scan whose stacked results a scan over as many steps in the other direction reads as
slices: residuals, made by differentiation.  Invariant: each scan is in at most one pair, and a
pair's reverse scan is the only reader of at least one of those results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from retrograde.compiler.ir import dims
from retrograde.compiler.ir.graph import Graph, Node, Value
from retrograde.compiler.passes.regions import is_apart


@dataclass(frozen=True)
class ScanPair:
    """A scan and its reverse scan."""

    forward: Node
    backward: Node
    residuals: frozenset[Value]  # stacked results of `forward` that nothing else reads

    @property
    def read(self) -> tuple[Value, ...]:
        """The stacked results of `forward` among the slices of `backward`, in their order."""
        made = set(self.forward.outputs)
        return tuple(v for v in dict.fromkeys(slices_of(self.backward)) if v in made)


def slices_of(scan: Node) -> Sequence[Value]:
    """The operands that a scan reads step by step."""
    n = scan.attrs["carries"]
    return scan.inputs[n : n + scan.attrs["slices"]]


def constants_of(scan: Node) -> Sequence[Value]:
    """The operands that a scan reads whole at every step."""
    return scan.inputs[scan.attrs["carries"] + scan.attrs["slices"] :]


def find_pairs(graph: Graph) -> list[ScanPair]:
    """The pairs of `graph` itself, in the order of their forward scans; sub-graphs not looked at.

    A scan with residuals that two scans read (second derivatives) is in none."""
    users = graph.users()
    returned = set(graph.outputs)
    pairs: list[ScanPair] = []
    taken: set[Node] = set()
    for node in graph.nodes:
        if node.op.name != "scan" or node in taken or is_apart(node):
            continue
        stacks = node.outputs[node.attrs["carries"] :]
        partners: dict[Node, set[Value]] = {}
        for v in stacks:
            readers = users.get(v, [])
            if v in returned or len(readers) != 1 or not _reverses(readers[0], node, v):
                continue
            partners.setdefault(readers[0], set()).add(v)
        if len(partners) != 1:
            continue
        (backward, residuals) = next(iter(partners.items()))
        if backward not in taken:
            taken |= {node, backward}
            pairs.append(ScanPair(node, backward, frozenset(residuals)))
    return pairs


def _reverses(reader: Node, scan: Node, v: Value) -> bool:
    """Whether `reader` is a scan the other way over the same steps, and slices `v`."""
    if reader.op.name != "scan" or reader.attrs["reverse"] == scan.attrs["reverse"]:
        return False
    if not dims.same(reader.attrs["length"], scan.attrs["length"]):
        return False
    elsewhere = (*reader.inputs[: reader.attrs["carries"]], *constants_of(reader))
    return v in slices_of(reader) and v not in elsewhere
