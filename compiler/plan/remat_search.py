"""Recomputation on demand within a budget, for graphs of any size: a DAG -> good orders.

Invariant: every order returned keeps to the budget it was asked for; nothing depends on a clock
unless a deadline is given.

A base order is run from front to back.  When room is needed, the value goes whose recomputation
costs least for the bytes and the time until it is read again, with what it takes to make the
values that it needs and that are gone already; when one is needed that is gone, it is made again,
and so on down.  That is the policy of Kirisame et al., "Dynamic tensor rematerialization" (ICLR
2021), but with the future known, as in Belady's rule.  `trim` then takes back every recomputation
for whose value there was room after all.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from retrograde.compiler.plan.dag import Dag, profile

_NEVER = 2**62
_BEAM = 12_000  # nodes times ends that are followed at a time


def base_orders(dag: Dag) -> list[list[int]]:
    """Orders worth starting from, each needed node once: as given, and found from both ends."""
    given = [i for i in dag.topological if i in dag.needed]
    found = [given, _backward(dag), _forward(dag, given)]
    return [list(order) for order in dict.fromkeys(map(tuple, found))]


def _forward(dag: Dag, given: Sequence[int]) -> list[int]:
    """At each turn the ready node after which least is live."""
    place = {node: at for at, node in enumerate(given)}
    waiting = {i: len(dag.predecessors[i]) for i in given}
    left = {i: sum(s in place for s in dag.successors[i]) + (i in dag.outputs) for i in given}
    left |= {i: left[i] + 1 for i in dag.outputs}
    ready = {i for i in given if not waiting[i]}
    order: list[int] = []
    while ready:
        node = min(
            ready,
            key=lambda i: (
                dag.size[i] - sum(dag.size[p] for p in dag.predecessors[i] if left[p] == 1),
                place[i],
            ),
        )
        ready.discard(node)
        order.append(node)
        for p in dag.predecessors[node]:
            left[p] -= 1
        for s in dag.successors[node]:
            if s in place:
                waiting[s] -= 1
                if not waiting[s]:
                    ready.add(s)
    return order


@dataclass
class _Partial:
    """The end of an order: what it needs, and what may come right before it."""

    peak: int
    bytes: int
    live: set[int]
    waiting: list[int]  # by node: readers that are not in it yet
    ready: set[int]
    key: int
    node: int = -1  # the first of it, and the rest
    rest: _Partial | None = None


def _backward(dag: Dag) -> list[int]:
    """From the end, several ends at a time, those of low peaks that need few bytes.

    A node is put in front at once if nothing in the end reads it, it frees at least what it asks
    for, and the peak stays: that cannot be worse than putting it there later on.
    """
    place = {node: at for at, node in enumerate(dag.topological)}
    waiting = [sum(s in dag.needed for s in after) for after in dag.successors]
    ready = {i for i in dag.needed if not waiting[i]}
    least = sum(dag.size[o] for o in dag.outputs)
    ends = [_Partial(least, least, set(dag.outputs), waiting, ready, 0)]
    width = max(4, min(64, _BEAM // max(len(dag.needed), 1)))
    for _ in range(len(dag.needed)):
        found: dict[int, tuple[int, int, int, int, int]] = {}
        for at, end in enumerate(ends):
            for offer in _offers(dag, end, at, place):
                key = end.key ^ (1 << offer[4])
                if key not in found or offer < found[key]:
                    found[key] = offer
        ends = [_extended(dag, ends, offer) for offer in sorted(found.values())[:width]]
    order: list[int] = []
    best: _Partial | None = ends[0]
    while best is not None and best.node >= 0:
        order.append(best.node)
        best = best.rest
    return order


def _offers(
    dag: Dag, end: _Partial, at: int, place: dict[int, int]
) -> list[tuple[int, int, int, int, int]]:
    """What may come before an end: the peak and the bytes then, and what tells it from others."""
    offers = []
    for node in sorted(end.ready, key=place.__getitem__, reverse=True):
        more = sum(dag.size[p] for p in dag.predecessors[node] if p not in end.live)
        peak = max(end.peak, end.bytes + more)
        offer = peak, end.bytes + more - dag.size[node], -place[node], at, node
        if more <= dag.size[node] and peak == end.peak:
            return [offer]
        offers.append(offer)
    return offers


def _extended(dag: Dag, ends: list[_Partial], offer: tuple[int, int, int, int, int]) -> _Partial:
    peak, size, _, at, node = offer
    end = ends[at]
    live, ready, waiting = end.live - {node}, end.ready - {node}, end.waiting.copy()
    live.update(dag.predecessors[node])
    for p in dag.predecessors[node]:
        waiting[p] -= 1
        if not waiting[p]:
            ready.add(p)
    return _Partial(peak, size, live, waiting, ready, end.key ^ (1 << node), node, end)


class OnDemand:
    """One run through a base order; `cost_power`, `time_power` shape what is dropped first."""

    def __init__(
        self, dag: Dag, base: Sequence[int], budget: int, cost_power: float, time_power: float
    ) -> None:
        self.dag, self.base, self.budget = dag, base, budget
        self.cost_power, self.time_power = cost_power, time_power
        uses: list[list[int]] = [[] for _ in range(len(dag))]
        for slot, node in enumerate(base):
            for p in dag.predecessors[node]:
                uses[p].append(slot)
        for node in dag.outputs:
            uses[node].append(len(base))
        self.uses = [found[::-1] for found in uses]  # the next one is last
        self.asked = [_NEVER] * len(dag)  # when a value that is gone will ask for this one
        self.live: set[int] = set()
        self.held = [0] * len(dag)
        self.bytes = 0
        self.slot = 0
        self.again: dict[int, float] = {}  # by live value: what making it again would cost
        self.order: list[int] = []
        self.work = 0  # looks at a value; what effort is counted in

    def run(self, most: int, deadline: float | None = None) -> list[int] | None:
        """The order, or None if it got stuck, took `most` work, or too long."""
        for slot, node in enumerate(self.base):
            self.slot = slot
            if node not in self.live and not self._make(node, most, deadline):
                return None
        self.slot = len(self.base)
        for node in self.dag.outputs:
            self.held[node] += 1
        for _ in range(3):  # making one that was dropped on the way may push out another
            missing = [i for i in self.dag.outputs if i not in self.live]
            if not missing:
                return self.order
            for node in sorted(missing, key=lambda i: (-self._closure(i)[1], i)):
                if node not in self.live and not self._make(node, most, deadline):
                    return None
        return None

    def _make(self, wanted: int, most: int, deadline: float | None) -> bool:
        before, size = self.dag.predecessors, self.dag.size
        stack = [wanted]
        entered = {wanted}
        for p in before[wanted]:
            self.held[p] += 1
        while stack:
            node = stack[-1]
            missing = [p for p in before[node] if p not in self.live]
            if missing:
                # The one that takes most comes first, while there is the most room.
                deep = max(missing, key=lambda p: (self._closure(p)[1], p))
                if deep in entered:
                    return False
                stack.append(deep)
                entered.add(deep)
                for p in before[deep]:
                    self.held[p] += 1
                continue
            self.held[node] += 1
            room = self._room(size[node], stack)
            self.held[node] -= 1
            if not room:
                return False
            if any(p not in self.live for p in before[node]):
                continue  # something had to go that was held; it comes again
            late = deadline is not None and time.perf_counter() > deadline
            if self.work > most or late:
                return False
            self.work += 4
            stack.pop()
            entered.discard(node)
            for p in before[node]:
                self.held[p] -= 1
            self.order.append(node)
            self.live.add(node)
            self.bytes += size[node]
            self._changed(node)
        return True

    def _room(self, size: int, stack: Sequence[int]) -> bool:
        """Drops values until `size` bytes fit."""
        while self.bytes + size > self.budget:
            free = [v for v in self.live if not self.held[v] and self.dag.size[v]]
            if not free:  # let go of what is held for those that have to wait anyway
                now = set(self.dag.predecessors[stack[-1]])
                free = [v for v in self.live if v not in now and self.dag.size[v]]
                if len(stack) < 2 or not free:
                    return False
            self.work += len(free)
            victim = min(free, key=self._worth)
            self.live.discard(victim)
            self.again.pop(victim, None)
            self.bytes -= self.dag.size[victim]
            when = self._next(victim)
            self._changed(victim)
            if when < _NEVER:
                self._ask(victim, when)
        return True

    def _next(self, node: int) -> int:
        """The slot that reads a value next, be it for a recomputation."""
        uses = self.uses[node]
        while uses and uses[-1] < self.slot:
            uses.pop()
        when = uses[-1] if uses else _NEVER
        return min(when, self.asked[node]) if self.asked[node] >= self.slot else when

    def _ask(self, node: int, when: int) -> None:
        """What is gone now reads its predecessors at `when`, and so do they if they are gone."""
        work = [node]
        while work:
            for p in self.dag.predecessors[work.pop()]:
                if not self.slot <= self.asked[p] <= when:
                    self.asked[p] = when
                    if p not in self.live:
                        work.append(p)

    def _worth(self, node: int) -> tuple[float, int, int]:
        when = self._next(node)
        size = self.dag.size[node]
        if when >= _NEVER:
            return 0.0, -size, node
        cost = self.again.get(node)
        if cost is None:
            cost = self.again[node] = self._closure(node)[0]
        wait = (when - self.slot + 1) ** self.time_power
        return (cost**self.cost_power + 1e-9) / (size * wait), -size, node

    def _closure(self, node: int) -> tuple[float, int]:
        """Cost, and number, of the runs that make `node` from what is there (at most a hundred)."""
        cost, seen, work = 0.0, {node}, [node]
        while work and len(seen) < 100:
            run = work.pop()
            cost += self.dag.cost[run]
            for p in self.dag.predecessors[run]:
                if p not in self.live and p not in seen:
                    seen.add(p)
                    work.append(p)
        self.work += 2 * len(seen)
        return cost, len(seen)

    def _changed(self, node: int) -> None:
        """Forgets costs that counted on `node` being there, or on its not being there."""
        seen, work = {node}, [node]
        while work:
            for s in self.dag.successors[work.pop()]:
                if s in seen:
                    continue
                seen.add(s)
                if s in self.live:
                    self.again.pop(s, None)
                elif len(seen) < 200:
                    work.append(s)


def trim(dag: Dag, order: Sequence[int], budget: int) -> list[int]:
    """`order` without recomputations whose value could be kept all along, the dearest first."""
    memory = np.array(profile(dag, order), np.int64)
    made: dict[int, int] = {}
    previous = [-1] * len(order)
    sources: list[list[int]] = []
    readers: list[set[int]] = [set() for _ in order]
    for now, node in enumerate(order):
        sources.append([made[p] for p in dag.predecessors[node]])
        for source in sources[-1]:
            readers[source].add(now)
        previous[now] = made.get(node, -1)
        made[node] = now
    final = {made[o] for o in dag.outputs}
    gone = [False] * len(order)

    def end(run: int) -> int:
        return len(order) - 1 if run in final else max(readers[run], default=run)

    def forget(run: int) -> None:
        """Takes out a run that nobody reads; its own place is taken care of by the caller."""
        work = [run]
        while work:
            now = work.pop()
            gone[now] = True
            memory[now] = -_NEVER
            for source in sources[now]:
                was = end(source)
                readers[source].discard(now)
                memory[end(source) + 1 : was + 1] -= dag.size[order[source]]
                if not readers[source] and source not in final and not gone[source]:
                    memory[source] = -_NEVER
                    work.append(source)

    repeats = [run for run in range(len(order)) if previous[run] >= 0]
    for run in sorted(repeats, key=lambda run: (-dag.cost[order[run]], run)):
        if gone[run]:
            continue
        kept = previous[run]
        while kept >= 0 and gone[kept]:
            kept = previous[kept]
        if kept < 0:
            continue
        size, begin = dag.size[order[run]], end(kept) + 1
        if int(memory[begin:run].max(initial=-_NEVER)) + size > budget:
            continue
        memory[begin:run] += size
        for reader in readers[run]:
            sources[reader] = [kept if s == run else s for s in sources[reader]]
        readers[kept] |= readers[run]
        readers[run] = set()
        if run in final:
            final.discard(run)
            final.add(kept)
        forget(run)
    return [node for now, node in enumerate(order) if not gone[now]]


_POWERS = ((1.0, 1.0), (1.0, 0.5), (0.5, 1.0), (1.0, 0.0), (1.0, 2.0), (0.3, 0.3))


def orders_within(
    dag: Dag,
    budget: int,
    bases: Sequence[Sequence[int]],
    *,
    effort: int,
    deadline: float | None = None,
) -> Iterator[list[int]]:
    """Orders that keep to the budget, until `effort` values were looked at."""
    for powers in _POWERS:
        for base in bases:
            run = OnDemand(dag, base, budget, *powers)
            order = run.run(effort, deadline)
            effort -= run.work
            if order is not None:
                yield trim(dag, order, budget)
            late = deadline is not None and time.perf_counter() > deadline
            if effort <= 0 or late:
                return
