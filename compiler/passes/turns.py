"""How many steps of a loop a sum of products over time takes at a time: (Graph, sizes) -> steps.

The order in which a gradient is added up over time is the program's: chunks of so many steps.  It
is the same in all recipes, so their results have the same bits; what follows is that a segment of a
checkpointed loop is some chunks long.  So chunks are long enough for products to be efficient, and
no longer than the square root of the loop, about which segments pay.  Invariant: a power of two.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from retrograde.compiler.ir import dims
from retrograde.compiler.ir.graph import Graph, Node
from retrograde.compiler.passes.regions import outermost_nodes

ROWS = 256  # of a chunk: a block of k of long products (csource/gemm.h)


def turns_at_a_time(graph: Graph, sizes: Mapping[str, int]) -> int:
    """The steps of a chunk, for all loops of `graph`, as they are at the reference `sizes`."""
    loops = [node for node in outermost_nodes(graph) if node.op.name == "scan"]
    if any(node.attrs.get("slots") is not None for node in loops):
        return 1  # a segment is a step there
    longest = rows = 0
    for node in loops:
        found = [dims.evaluate(d, sizes) for d in _summed(node)]
        if not found:
            continue
        longest = max(longest, dims.evaluate(node.attrs["length"], sizes))
        rows = min(rows or ROWS, *found)
        if (steps := node.attrs.get("truncate")) is not None:
            longest = min(longest, (steps // 2) ** 2)  # a segment is within one cut
    return min(_power(math.isqrt(longest)), _power(ROWS // max(1, rows)))


def _summed(node: Node) -> Iterator[dims.Dim]:
    """The rows a step of the products that carries of a loop add up."""
    body: Graph = node.attrs["body"]
    makers = body.producers()
    carries = set(body.inputs[: node.attrs["carries"]])
    for v in body.outputs[: node.attrs["carries"]]:
        made = makers.get(v)
        if made is None or made.op.name != "add" or carries.isdisjoint(made.inputs):
            continue
        for part in (makers.get(u) for u in made.inputs):
            if part is not None and part.op.name == "dot_general":
                yield dims.product(part.inputs[0].shape[i] for i in part.attrs["contract"][0])


def _power(n: int) -> int:
    return 1 << max(0, n.bit_length() - 1)
