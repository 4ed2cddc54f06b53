"""A graph over T steps -> a graph over the steps that are new, with state: cached keys, carries.

The roles of all values are worked out from the logits backwards (`incremental_roles`), then the
nodes are written down for them (`incremental_emit`).  Caches are written in place at the step at
hand; loops and running sums go on from their carry.  What does not depend on time is computed once,
by the graph `first`.  Masks are comparisons of places, which stay right.  Invariant: the results
are those of the whole sequence.
"""

from __future__ import annotations

from collections.abc import Sequence

from retrograde.compiler.errors import UnsupportedError
from retrograde.compiler.ir.dims import Dim, Symbol
from retrograde.compiler.ir.graph import Graph
from retrograde.compiler.passes.dependence import Dependence, refuse
from retrograde.compiler.passes.incremental_emit import Incremental, State, emitted
from retrograde.compiler.passes.incremental_roles import CAPACITY, NEW, Roled
from retrograde.compiler.passes.time_axes import holds

__all__ = ["CAPACITY", "NEW", "Incremental", "State", "incremental"]


def incremental(
    graph: Graph,
    time: Symbol,
    tokens: int,
    batch: Dim,
    *,
    beams: bool = False,
    known: Sequence[int] = (),
) -> Incremental:
    """The incremental program of a graph whose input `tokens` is [B, T] and whose output is
    [B, T, ...].  The inputs `known` are [B, T, ...] as well, and fed with the tokens.  With
    `beams`, rows go on from the rows that an input `parents` names.

    UnsupportedError, naming the line, where an output depends on later steps, or no rule is known
    that makes it step by step."""
    seen = Dependence.of(graph, time)
    flat = seen.graph
    (logits,) = flat.outputs
    fed = (tokens, *known)
    for i, v in enumerate(flat.inputs):
        if i not in fed and holds(v.shape, time.name):
            raise UnsupportedError(
                f"the input {flat.input_names[i] or i} has as many steps as there will be tokens: "
                "what grows with the text is fed with it, step by step; give it by known="
            )
    refuse([seen.leak(logits)], "so it cannot be computed one step at a time")
    axes = seen.axes.of[logits]
    if logits in seen.axes.strange or len(axes) != 1 or not next(iter(axes.values())).plain:
        raise UnsupportedError(
            f"{graph.name} returns {logits.type}: one step at a time it makes one time axis, as in "
            "logits [B, T, V]"
        )
    roled = Roled(seen, tuple(flat.inputs[i] for i in fed), time)
    roled.want(logits, {a: 0 for a in axes})
    for node in reversed(flat.nodes):
        roled.follow(node)
    return emitted(roled, logits, batch, beams)
