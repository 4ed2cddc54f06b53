"""What planning decided of a recipe, as plain data: made by a search once, valid ever after.

The order of the nodes of each graph, and the places of the buffers at the sizes that the plan was
made for.  Both go with a digest of what they were decided for: where a later compilation comes to
another graph or to other buffers, they do not apply, and are decided anew.  Invariant: what is
taken over is checked first; a decision that is no valid one is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from retrograde.compiler.ir.graph import Graph
from retrograde.compiler.plan.specs import BufferSpec


@dataclass(frozen=True)
class Decided:
    """The decisions about one recipe: `orders` of `graph`, bodies first, and `offsets` of those of
    its `buffers` that are not state, in bytes."""

    recipe: str
    graph: str
    orders: tuple[tuple[int, ...], ...]
    buffers: str
    offsets: tuple[int, ...]


def graph_digest(graph: Graph) -> str:
    """Tells graphs of different text apart."""
    return _digest([graph.text()])


def buffers_digest(buffers: Sequence[BufferSpec]) -> str:
    """Tells apart buffers of different kinds, sizes or lifetimes."""
    return _digest([f"{b.kind} {b.bytes} {b.start} {b.end}" for b in buffers])


def _digest(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()
