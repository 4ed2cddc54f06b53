"""Peak against cost, from keeping everything down: a DAG and a base order -> recipes.

Invariant: recipes fall in peak and rise in cost, strictly; each runs the nodes in the base order,
with recomputations inserted right before the first run that needs them, each node at most twice.

What is dropped is a set of values, each with the base run after which it goes.  Greedily, those
values come first that cost the least time for the memory they free where it is scarce: bytes times
the runs near the peak for which nobody reads them.  What a recomputation reads has to be there, so
a candidate brings along what it takes: an input that is gone is kept longer, or is recomputed too,
whichever is cheaper at the price of memory paid so far.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde.compiler.errors import DataError
from retrograde.compiler.plan.dag import Dag, Recipe, total

Array = npt.NDArray[Any]
_STEPS = 100  # about so many simulations; each moves several values if there are many
_DEEP = 24  # recomputations that one candidate may bring along


@dataclass(frozen=True)
class _Played:
    """An order and what it takes; slots are the positions in the base order that runs belong to."""

    order: Array
    slots: Array  # by run
    memory: Array  # by run
    ends: list[int]  # by node: the slot of the last reader of its first run
    again: dict[int, int]  # by node that runs twice: the slot of its second run
    gaps: tuple[Array, Array, Array]  # node, slot of one read of its first run, slot of the next

    @property
    def peak(self) -> int:
        return int(self.memory.max(initial=0))


def frontier(
    dag: Dag,
    *,
    given_order: Sequence[int] | None = None,
    scratch: Sequence[int] | None = None,
    groups: Iterable[Sequence[int]] = (),
    pinned: Collection[int] = (),
) -> list[Recipe]:
    """Recipes from the cheapest, which runs every node once, to that of the lowest peak found.

    `given_order` runs each needed node once, after its predecessors (it may run others as well);
    without it the nodes run by rising index or as `Dag.topological` has them.  `scratch[i]`: bytes
    that are there only while node i runs.  `groups`: lists of nodes that do the same in repeated
    blocks; they are also moved together, and their first few.  `pinned` nodes run once only.

    Heuristic; the bound of each recipe is the cost of running everything once.
    """
    base = _base(dag, given_order)
    if not base:
        return [Recipe((), 0, 0, 0)]
    simulation = _Simulation(dag, base, scratch)
    once = total(dag.cost[i] for i in base)
    fixed = set(pinned)
    slot = {node: at for at, node in enumerate(base)}
    together = [sorted({i for i in group if i in slot} - fixed, key=slot.__getitem__)
                for group in groups]  # fmt: skip
    dropped: dict[int, int] = {}
    played = simulation.play(dropped)
    best = [Recipe(tuple(played.order.tolist()), played.peak, once, once)]
    floor = max((simulation.working[i] for i in base), default=0)
    step = max(1, (played.peak - floor) // _STEPS)
    chooser = _Chooser(dag, fixed, together)
    tried = 0
    while played.peak > floor and tried < 3 * _STEPS:
        tried += 1
        # Where nothing helps right at the peak, more of what is nearly as high may go together.
        widths = (step, 4 * step, 16 * step)
        more = next(filter(None, (chooser.choose(played, dropped, w) for w in widths)), None)
        if more is None:
            break
        dropped |= more
        played = simulation.play(dropped)
        cost = total(dag.cost[i] for i in played.order.tolist())
        best.append(Recipe(tuple(played.order.tolist()), played.peak, cost, once))
    return pareto(best)


def pareto(recipes: Iterable[Recipe]) -> list[Recipe]:
    """Those that no other one beats in both peak and cost, by rising cost."""
    found: list[Recipe] = []
    for recipe in sorted(recipes, key=lambda r: (r.cost, r.peak)):
        if not found or recipe.peak < found[-1].peak:
            found.append(recipe)
    return found


def _base(dag: Dag, given: Sequence[int] | None) -> list[int]:
    if given is None:
        return [i for i in dag.topological if i in dag.needed]
    done: set[int] = set()
    for i in given:
        if not 0 <= i < len(dag) or i in done or not done.issuperset(dag.predecessors[i]):
            raise DataError(f"the given order runs node {i} where it cannot")
        done.add(i)
    if missing := dag.needed - done:
        raise DataError(f"the given order leaves out node {min(missing)}")
    return list(given)


class _Simulation:
    """Plays the base order with some values dropped and made again on demand."""

    def __init__(self, dag: Dag, base: list[int], scratch: Sequence[int] | None) -> None:
        self.dag, self.base = dag, base
        extra = scratch if scratch is not None else [0] * len(dag)
        self.working = [dag.working(i) + extra[i] for i in range(len(dag))]
        self.extra = np.array(extra, np.int64)
        self.sizes = np.array(dag.size, np.int64)
        self.runs = np.array(base, np.int64)
        self.slot = np.zeros(len(dag), np.int64)
        self.slot[self.runs] = np.arange(len(base))
        pairs = [(p, slot) for slot, i in enumerate(base) for p in dag.predecessors[i]]
        self.read, self.reader = np.array(pairs, np.int64).reshape(-1, 2).T
        self.outputs = np.array(dag.outputs, np.int64)
        self.readers: list[list[int]] = [[] for _ in range(len(dag))]
        for p, slot in pairs:
            self.readers[p].append(slot)

    def play(self, dropped: Mapping[int, int]) -> _Played:
        """`dropped`: by node the slot after which its first value goes."""
        again, extra, slots_of_extra = self._inserted(dropped)
        count, more = len(self.base), len(extra)
        # A recomputation comes right before the base run of its slot, in the order of demand.
        inserted = np.array(slots_of_extra, np.int64)
        nodes = np.concatenate((self.runs, np.array(extra, np.int64)))
        keys = np.concatenate((np.arange(count) * 2 + 1, inserted * 2))
        sort = np.argsort(keys, kind="stable")
        order, slots = nodes[sort], keys[sort] // 2
        where = np.empty(count + more, np.int64)
        where[sort] = np.arange(count + more)
        first = where[:count][self.slot]  # by node: its first run, and its second
        second = np.full(len(self.dag), count + more)
        second[nodes[count:]] = where[count:]
        # Reads, of base runs and of recomputations: which node, and by which run.
        also = [(p, count + k) for k, i in enumerate(extra) for p in self.dag.predecessors[i]]
        there = np.array(also, np.int64).reshape(-1, 2).T
        read = np.concatenate((self.read, there[0], self.outputs))
        by = np.concatenate(
            (where[self.reader], where[there[1]], np.full(len(self.outputs), count + more))
        )
        source = np.where(second[read] < by, second[read], first[read])
        ends = np.arange(count + more)
        np.maximum.at(ends, source, np.minimum(by, count + more - 1))
        change = np.zeros(count + more + 1, np.int64)
        change[:-1] = self.sizes[order]
        np.subtract.at(change, ends + 1, self.sizes[order])
        memory = np.cumsum(change[:-1]) + self.extra[order]

        of_first = source == first[read]
        begins = np.append(slots, count)
        owner = np.concatenate((read[of_first], self.runs))
        when = np.concatenate((begins[by[of_first]], np.arange(count)))
        sort = np.lexsort((when, owner))
        owner, when = owner[sort], when[sort]
        pairs = np.flatnonzero((owner[1:] == owner[:-1]) & (when[1:] > when[:-1] + 1))
        last = np.zeros(len(self.dag), np.int64)
        last[owner] = when  # of several, the last one stays
        gaps = owner[pairs], when[pairs], when[pairs + 1]
        return _Played(order, slots, memory, last.tolist(), again, gaps)

    def _inserted(self, dropped: Mapping[int, int]) -> tuple[dict[int, int], list[int], list[int]]:
        """Slots of second runs, by node, and these runs with their slots in the order of demand."""
        demand = {
            slot for node, begin in dropped.items() for slot in self.readers[node] if slot > begin
        }
        if any(node in dropped for node in self.dag.outputs):
            demand.add(len(self.base))
        again: dict[int, int] = {}
        runs: list[int] = []
        for slot in sorted(demand):
            end = slot == len(self.base)
            asked = self.dag.outputs if end else self.dag.predecessors[self.base[slot]]
            stack = [p for p in asked if dropped.get(p, slot) < slot and p not in again][::-1]
            while stack:
                node = stack[-1]
                missing = [
                    p
                    for p in self.dag.predecessors[node]
                    if dropped.get(p, slot) < slot and p not in again
                ]
                if missing:
                    stack.append(missing[0])
                    continue
                stack.pop()
                if node not in again:
                    again[node] = slot
                    runs.append(node)
        return again, runs, [again[node] for node in runs]


class _Chooser:
    """Picks what to drop next."""

    def __init__(self, dag: Dag, pinned: Collection[int], groups: list[list[int]]) -> None:
        self.dag, self.pinned, self.groups = dag, pinned, groups
        self.sizes = np.array(dag.size, np.float64)
        self.costs = np.array(dag.cost, np.float64)
        self.free = np.ones(len(dag), np.bool_)
        self.free[list(pinned)] = False
        self.price = 0.0  # the most that was paid for a byte near the peak

    def choose(self, played: _Played, dropped: Mapping[int, int], step: int) -> dict[int, int]:
        """About `step` bytes near the peak, or one whole group, at the lowest price there is."""
        near = played.memory > played.peak - step
        count = np.zeros(len(self.dag) + 3, np.int64)
        np.add.at(count, played.slots[near] + 1, 1)
        crowd = np.cumsum(count)  # crowd[b] - crowd[a + 1]: runs near the peak strictly between
        everything = int(crowd[-1])
        nodes, begins, ends = played.gaps
        inside = crowd[ends] - crowd[np.minimum(begins + 1, ends)]
        gains = self.sizes[nodes] * inside
        useful = np.flatnonzero((gains > 0) & self.free[nodes])
        least = self.costs[nodes[useful]] / gains[useful]  # what it may bring along adds to it
        scarce = crowd.tolist()
        found: dict[int, tuple[float, float, dict[int, int]]] = {}
        best = np.inf
        sort = np.argsort(least, kind="stable")
        for at, bound in zip(useful[sort].tolist(), least[sort].tolist(), strict=True):
            if bound > best * 1.1:
                break
            node = int(nodes[at])
            if node in dropped:
                continue
            offer = self._offer(
                node, int(begins[at]), int(ends[at]), int(inside[at]), played, dropped, scarce
            )
            if offer and (node not in found or offer[0] / offer[1] < found[node][0]):
                cost, gain, moves = offer
                found[node] = cost / gain, gain, moves
                best = min(best, cost / gain)
        if not found:
            return {}
        order = sorted(found, key=lambda i: (found[i][0], -found[i][2][i], i))
        more: dict[int, int] = {}
        gained, cost = 0.0, 0.0
        for i in self._together(order, found):
            ratio, gain, moves = found[i]
            if more and (gained >= step * everything or ratio > 1.05 * (cost / gained) + 1e-300):
                break
            more |= {k: v for k, v in moves.items() if k not in more}
            gained += gain
            cost += ratio * gain
        self.price = max(self.price, cost / gained if gained else 0.0)
        return more

    def _together(
        self, order: list[int], found: Mapping[int, tuple[float, float, dict[int, int]]]
    ) -> list[int]:
        """The candidates by price; after the first one those of its group, in their order."""
        group = next((g for g in self.groups if order[0] in g), [])
        first = [i for i in group if i in found and found[i][0] <= 1.05 * found[order[0]][0]]
        return first + [i for i in order if i not in set(first)]

    def _offer(
        self,
        node: int,
        begin: int,
        end: int,
        inside: int,
        played: _Played,
        dropped: Mapping[int, int],
        scarce: list[int],
    ) -> tuple[float, float, dict[int, int]] | None:
        """Cost, bytes times runs near the peak, and what is dropped; None if it is in vain."""
        dag = self.dag
        gain = float(dag.size[node]) * inside
        price = max(self.price, dag.cost[node] / gain)
        cost = 0.0
        moves = {node: begin}
        work = [node]
        while work:
            run = work.pop()
            cost += dag.cost[run]
            for p in dag.predecessors[run]:
                if p in moves or played.ends[p] >= end:
                    continue
                if p in dropped:
                    if end < played.again.get(p, -1):  # its second run moves ahead to here
                        gain -= dag.size[p] * (scarce[played.again[p]] - scarce[end])
                    continue
                kept = dag.size[p] * (scarce[end] - scarce[min(played.ends[p] + 1, end)])
                if not kept:
                    continue
                runs_again = p not in self.pinned and len(moves) < _DEEP
                if runs_again and self._again(p, end, played, dropped) < price * kept:
                    moves[p] = played.ends[p]
                    work.append(p)
                else:
                    gain -= kept
            if gain <= 0:
                return None
        return cost, gain, moves

    def _again(
        self, node: int, end: int, played: _Played, dropped: Mapping[int, int], depth: int = 2
    ) -> float:
        """About what running `node` once more costs, with what it reads that is gone by then."""
        cost = self.dag.cost[node]
        if depth:
            for p in self.dag.predecessors[node]:
                if played.ends[p] < end and p not in dropped:
                    cost += self._again(p, end, played, dropped, depth - 1)
        return cost
