"""Which recomputations become recipes: a graph before it is grouped -> passes, by name.

Without a budget there is one, which computes light values again and keeps the rest, as long as that
costs next to nothing.  With a budget there are some, spread over the frontier of peak against cost,
so that at every size the cheapest that fits can be taken.  Invariant: they do not depend on the
budget, so that what is chosen under a smaller one never has a higher peak.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from retrograde.compiler.ir.graph import Graph
from retrograde.compiler.passes.remat import Remat
from retrograde.compiler.plan.dag import Dag, replay
from retrograde.compiler.plan.frontier import frontier
from retrograde.compiler.plan.save_sets import keeping, least
from retrograde.compiler.plan.units import Units, find_units

MOST, FEWEST = 8, 3  # recipes of one rung beside the first
_TOGETHER = 12000  # units of all of them: each is lowered, placed and printed on its own
UNNOTICED = 0.03  # of the time of a step, as it is estimated: what the default may cost


@dataclass(frozen=True)
class Again:
    """A way to run a graph: its name, the pass that makes it so, its peak in bytes and its cost in
    ns as units count them."""

    name: str
    transform: Remat
    peak: int
    cost: float


class Recomputing:
    """The ways to run `graph`, whose steps are those of `ordered` as it is."""

    def __init__(
        self, graph: Graph, ordered: Graph, sizes: Mapping[str, int], native: bool
    ) -> None:
        self.units = find_units(graph, ordered, sizes, native)
        self.dag = _dag(self.units)

    def usual(self) -> Again | None:
        """What is computed again without being asked to; None where there is nothing to gain."""
        if not any(self.units.light):
            return None
        found = self._again(keeping(self.units, least(self.units)))
        most, total = replay(self.dag, range(len(self.dag)), self.units.scratch)
        return found if found.peak < most and found.cost <= (1 + UNNOTICED) * total else None

    def under_budget(self, most: int | None) -> list[Again]:
        """From what costs least to what takes least memory, as far as that is below `most`."""
        u = self.units
        kinds: dict[object, list[int]] = {}
        for i, fixed in enumerate(u.fixed):
            if not fixed:
                kinds.setdefault(u.kinds[i], []).append(i)
        found = frontier(
            self.dag,
            given_order=range(len(self.dag)),
            scratch=u.scratch,
            groups=list(kinds.values()),
            pinned=[i for i, fixed in enumerate(u.fixed) if fixed],
        )
        first = found[0].peak if most is None else most
        found = [r for r in found if r.peak < first]
        if not found:
            return []
        chosen: dict[tuple[int, ...], None] = {}
        most_ways = max(FEWEST, min(MOST, _TOGETHER // len(self.dag)))
        for n in range(1, most_ways + 1):
            aim = first * (found[-1].peak / first) ** (n / most_ways)
            chosen[next((r for r in found if r.peak <= aim), found[-1]).order] = None
        return [self._again(order) for order in chosen]

    def _again(self, order: Sequence[int]) -> Again:
        total = sum(self.units.cost) or 1.0
        peak, cost = replay(self.dag, order, self.units.scratch)
        name = f"{len(order) - len(self.dag)} again, {cost / total - 1:.1%}"
        return Again(name, Remat(self.units.units, order), peak, cost)


def _dag(units: Units) -> Dag:
    edges = [(r, i) for i, reads in enumerate(units.reads) for r in reads]
    read = {r for r, _ in edges}
    # What nobody reads runs for its effect.
    wanted = (*units.outputs, *(i for i in range(len(units.units)) if i not in read))
    return Dag(units.cost, units.bytes, edges, wanted)
