"""The ladder: what may be done about loops over time when memory is short -> recipes to be.

Each rung is a way to compile the same graph.  Invariant: the first rung is the program as it is
without a budget.  The factors are estimates: they only tell apart recipes that do the same work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from retrograde.compiler.ir.graph import Graph
from retrograde.compiler.passes.scan_join import JoinScan
from retrograde.compiler.passes.scan_lean import LeanScans
from retrograde.compiler.passes.scan_segments import EACH, SegmentScans
from retrograde.compiler.passes.scan_truncate import TruncateScans

Stage = tuple[str, Callable[[Graph], Graph]]

JOIN: Stage = ("join", JoinScan(merge=False))
MERGE: Stage = ("join", JoinScan())
LEAN: Stage = ("lean", LeanScans())
PRODUCTS: Stage = ("lean", LeanScans(products=True))
TRUNCATE: Stage = ("truncate", TruncateScans())
SEGMENTS: Stage = ("segments", SegmentScans())
ASKED: Stage = ("segments", SegmentScans(segment=EACH, asked=True))


@dataclass(frozen=True)
class Rung:
    """A recipe to be: its name, its passes on the outermost loops, and by about what factor its
    operations take longer than those of the first one."""

    name: str
    passes: tuple[Stage, ...] = ()
    slower: float = 1.0


def ladder(truncated: bool, budget: bool, asked: bool = False) -> Iterator[Rung]:
    """What binding sizes may choose from; the first is taken wherever it serves and fits.

    `truncated`: there are loops whose gradient is cut; `asked`: loops that say how many states to
    keep, which a budget overrules."""
    if asked and not budget:
        yield Rung("keep the states asked for", (ASKED,))
        return
    yield Rung("keep everything")
    if truncated:
        yield Rung("run by run", (MERGE, TRUNCATE, SEGMENTS))
    if not budget:
        return
    yield Rung("keep products and states", (PRODUCTS,))
    yield Rung("keep all states", (LEAN,))
    yield Rung("keep some states", (SEGMENTS,))
    yield Rung("keep some states, losses in the loops", (JOIN, SEGMENTS), 1.02)
    yield Rung("keep some states, losses in lean loops", (JOIN, PRODUCTS, SEGMENTS), 1.02)
    # In a loop over all layers the products of upper layers with their inputs are a step's.
    yield Rung("keep some states, layers in one loop", (MERGE, SEGMENTS), 1.1)
    yield Rung("keep some states, layers in one lean loop", (MERGE, PRODUCTS, SEGMENTS), 1.1)
