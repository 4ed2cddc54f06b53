"""Cheapest recomputation by search over what is needed: a small DAG -> an order and a bound.

Invariant: the bound is below every order there is within the budget, in whatever order nodes run
first and however often, and `exhausted` is claimed only when nothing is left to try.

The search goes backwards.  A state is a set of values that have to be there, one bit each, first
the outputs.  Whichever value of the set came last, its node ran, and before it the rest of the set
was there together with what the node reads: that is the next state, and the empty one is the goal.
Every order is one path, that of what it needs, so there is nothing else to decide: a value is
dropped where it is not needed, and one that is taken out and needed again is recomputed.

Three things keep this small.
- What remains to be paid is at least the cost of all ancestors of the set, each once.  The estimate
  never falls by more than a run's cost, so best-first search by paid + estimate (A*; Hart, Nilsson
  & Raphael, 1968) is exact.  Weights on the estimate that shrink towards 1 find good orders early
  (Likhachev, Gordon & Thrun, "ARA*: Anytime A* with provable bounds on sub-optimality", 2003).
- A move is forced if its node is no ancestor of the rest, what it reads and is not yet in the set
  is no larger than its value, and it fits.  For take any path from there on, in which it is taken
  out only at some later step k.  Take it out first, add its reads at once, and leave them until k:
  up to k every set is at most as large as it was, from k on it is the same, and no run is added.
- Thousands of states are taken at once, as arrays.  A state that is reached more cheaply later on
  is opened again, so that this loses nothing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde.compiler.plan.dag import Dag, replay

Array = npt.NDArray[Any]
FAR = 2**62
MOST_NODES = 62  # one bit each in 64, and shifts stay clear of the sign
_WEIGHTS = (4.0, 2.0, 1.4, 1.15, 1.05, 1.02, 1.0)
_ROUND = 1e-11  # sums of costs may be off by this part


@dataclass(frozen=True)
class Found:
    """The best order seen, if any; a bound on the cost; whether the search came to its end."""

    order: tuple[int, ...] | None
    cost: float
    lower_bound: float
    exhausted: bool
    states: int = 0
    blocked: int = FAR  # the least peak of a move that did not fit


class _Bits:
    """The needed nodes of a DAG as bits, in topological order, under a budget."""

    def __init__(self, dag: Dag, budget: int, any_cost: bool) -> None:
        self.budget, self.any_cost = budget, any_cost
        self.nodes = [i for i in dag.topological if i in dag.needed]
        place = {node: bit for bit, node in enumerate(self.nodes)}
        self.bit = [1 << b for b in range(len(self.nodes))]
        self.reads = [sum(1 << place[p] for p in dag.predecessors[i]) for i in self.nodes]
        self.above = list(self.bit)  # the node and its ancestors
        self.below = list(self.bit)
        for i, node in enumerate(self.nodes):
            for p in dag.predecessors[node]:
                self.above[i] |= self.above[place[p]]
        for i in range(len(self.nodes) - 1, -1, -1):
            for p in dag.predecessors[self.nodes[i]]:
                self.below[place[p]] |= self.below[i]
        self.outputs = sum(1 << place[o] for o in dag.outputs)
        self.size = [dag.size[i] for i in self.nodes]
        self.cost = [0.0 if any_cost else float(dag.cost[i]) for i in self.nodes]
        self.size_of = _Sums(self.size, np.int64)
        self.guide_of = _Sums([1.0] * len(self.nodes) if any_cost else self.cost, np.float64)

    def ahead(self, sets: Array) -> Array:
        """By state: the least that its values cost together (with any cost: how many runs)."""
        found = np.zeros_like(sets)
        for bit, above in zip(self.bit, self.above, strict=True):
            found |= np.where((sets & np.uint64(bit)) != 0, np.uint64(above), np.uint64(0))
        return self.guide_of(found)

    def settle(self, sets: Array, paid: Array, runs: list[int] | None = None) -> None:
        """Makes all forced moves, in place; `runs` gets them if there is but one state."""
        moved = True
        while moved:
            moved = False
            for i in range(len(self.nodes) - 1, -1, -1):
                bit, reads, below = map(np.uint64, (self.bit[i], self.reads[i], self.below[i]))
                there = np.flatnonzero((sets & bit) != 0)
                if not len(there):
                    continue
                now = sets[there]
                grown = self.size_of(reads & ~now)
                can = (grown <= self.size[i]) & ((now & below) == bit)
                if self.any_cost:  # then recomputing what another one needs is free
                    can |= (now & reads) == reads
                can &= self.size_of(now) + grown <= self.budget
                if can.any():
                    at = there[can]
                    sets[at] = (now[can] & ~bit) | reads
                    paid[at] += self.cost[i]
                    moved = True
                    if runs is not None:
                        runs.append(i)


class _Sums:
    """Sums of weights over the bits of many masks, by tables of 11 bits."""

    def __init__(self, weights: Sequence[float], kind: type) -> None:
        self.tables = []
        for begin in range(0, max(len(weights), 1), 11):
            table: Array = np.zeros(1, kind)
            for weight in weights[begin : begin + 11]:
                table = np.concatenate((table, table + kind(weight)))
            self.tables.append(np.pad(table, (0, 2048 - len(table))))

    def __call__(self, masks: Array) -> Array:
        found: Array = self.tables[0][masks & np.uint64(2047)]
        for shift, table in enumerate(self.tables[1:], 1):
            found = found + table[(masks >> np.uint64(11 * shift)) & np.uint64(2047)]
        return found


class _Seen:
    """The states met so far, in the order they came, and an index of them by mask."""

    def __init__(self) -> None:
        self.count = 0
        self.blocked = FAR
        self.columns: dict[str, Array] = {
            "mask": np.zeros(1024, np.uint64), "paid": np.zeros(1024), "ahead": np.zeros(1024),
            "parent": np.zeros(1024, np.int64), "node": np.zeros(1024, np.int8),
            "open": np.zeros(1024, np.bool_),
        }  # fmt: skip
        # Sorted masks and where their newest entry is: one large table and one of late comers.
        self.tables = [(np.zeros(0, np.uint64), np.zeros(0, np.int64)) for _ in range(2)]

    def find(self, masks: Array) -> Array:
        """By mask: where its newest entry is, or -1."""
        found = np.full(len(masks), -1, np.int64)
        for keys, where in self.tables:  # what is in the later table is newer
            if len(keys):
                at = np.minimum(np.searchsorted(keys, masks), len(keys) - 1)
                found = np.where(keys[at] == masks, where[at], found)
        return found

    def add(self, masks: Array, **columns: Array) -> None:
        """Masks are sorted and distinct."""
        begin, self.count = self.count, self.count + len(masks)
        columns |= {"mask": masks, "open": np.ones(len(masks), np.bool_)}
        for name, values in columns.items():
            column = self.columns[name]
            if self.count > len(column):
                column = np.concatenate((column, np.zeros(self.count, column.dtype)))
                self.columns[name] = column
            column[begin : self.count] = values
        new = masks, np.arange(begin, self.count)
        self.tables[1] = _merged(self.tables[1], new)
        if len(self.tables[1][0]) * 8 > len(self.tables[0][0]):
            self.tables[0] = _merged(self.tables[0], self.tables[1])
            self.tables[1] = (np.zeros(0, np.uint64), np.zeros(0, np.int64))

    def get(self, name: str) -> Array:
        return self.columns[name][: self.count]


def _merged(old: tuple[Array, Array], new: tuple[Array, Array]) -> tuple[Array, Array]:
    keys = np.concatenate((old[0], new[0]))
    where = np.concatenate((old[1], new[1]))
    sort = np.argsort(keys, kind="stable")  # of equal keys the newer one is last
    keys, where = keys[sort], where[sort]
    last = np.append(keys[1:] != keys[:-1], True) if len(keys) else np.zeros(0, np.bool_)
    return keys[last], where[last]


def cheapest(
    dag: Dag,
    budget: int,
    *,
    best: Sequence[int] | None = None,
    effort: int = 300_000,
    deadline: float | None = None,
    any_cost: bool = False,
) -> Found:
    """The cheapest order within `budget`, or the best and a bound when `effort` states are met.

    `best` is an order known to fit.  With `any_cost` the first order found is enough, and that
    there is none is what gets proven.  Raises nothing: `order` is None if none was found.
    """
    bits = _Bits(dag, budget, any_cost)
    price = np.inf if best is None else sum(float(dag.cost[i]) for i in best)
    found = None if best is None else tuple(best)
    seen = _Seen()
    start = np.array([bits.outputs], np.uint64)
    paid = np.zeros(1)
    if int(bits.size_of(start)[0]) > budget:
        return Found(None, np.inf, np.inf, True, blocked=int(bits.size_of(start)[0]))
    bits.settle(start, paid)
    seen.add(start, paid=paid, ahead=bits.ahead(start), parent=np.full(1, -1), node=np.full(1, -1))
    if not start[0]:
        return Found(_trace(bits, seen, 0), paid[0], paid[0], True, 1)
    for weight in (1.0,) if any_cost else _WEIGHTS:
        while True:
            opened = np.flatnonzero(seen.get("open"))
            paid, ahead = seen.get("paid")[opened], seen.get("ahead")[opened]
            if not any_cost:
                hopeless = paid + ahead >= price * (1 - _ROUND)
                seen.columns["open"][opened[hopeless]] = False
                opened, paid, ahead = opened[~hopeless], paid[~hopeless], ahead[~hopeless]
            if not len(opened):
                bound = np.inf if found is None else price
                return Found(found, price, bound, True, seen.count, seen.blocked)
            least = float((paid + ahead).min())
            if weight > 1 and least * weight >= price:
                break  # what is known is within this weight of the best
            late = deadline is not None and time.perf_counter() > deadline
            if seen.count >= effort or late:
                bound = 0.0 if any_cost else min(least, price)
                return Found(found, price, bound * (1 - _ROUND), False, seen.count)
            rank = ahead if any_cost else paid + weight * ahead
            take = 128 if weight > 1 or any_cost else max(128, len(opened) // 8)
            if take < len(opened):
                opened = opened[np.argpartition(rank, take)[:take]]
            seen.columns["open"][opened] = False
            goal = _expand(bits, seen, opened, price)
            if goal >= 0:
                price = float(seen.get("paid")[goal])
                found = _trace(bits, seen, goal)
                if any_cost:
                    return Found(found, price, 0.0, False, seen.count)
    raise AssertionError("the last weight is 1, and ends by itself")


def _expand(bits: _Bits, seen: _Seen, opened: Array, price: float) -> int:
    """Adds the states one move away from those `opened`; where the goal is, if it was reached more
    cheaply than before, or -1."""
    sets, paid = seen.get("mask")[opened], seen.get("paid")[opened]
    sizes = bits.size_of(sets)
    parts = []
    for i, (bit, reads) in enumerate(zip(bits.bit, bits.reads, strict=True)):
        there = np.flatnonzero((sets & np.uint64(bit)) != 0)
        peak = sizes[there] + bits.size_of(np.uint64(reads) & ~sets[there])
        fits = peak <= bits.budget
        if not fits.all():
            seen.blocked = min(seen.blocked, int(peak[~fits].min()))
        at = there[fits]
        if len(at):
            after = (sets[at] & ~np.uint64(bit)) | np.uint64(reads)
            parts.append((after, paid[at] + bits.cost[i], opened[at], np.full(len(at), i)))
    if not parts:
        return -1
    sets, paid, source, node = map(np.concatenate, zip(*parts, strict=True))
    bits.settle(sets, paid)
    sort = np.lexsort((paid, sets))
    at = sort[np.append(True, sets[sort][1:] != sets[sort][:-1])]
    sets, paid, source, node = (a[at] for a in (sets, paid, source, node))
    known = seen.find(sets)
    better = known < 0
    if not bits.any_cost:
        better |= paid < seen.columns["paid"][known] * (1 - _ROUND)
    sets, paid, source, node = (a[better] for a in (sets, paid, source, node))
    ahead = bits.ahead(sets)
    if not bits.any_cost:
        good = paid + ahead < price * (1 - _ROUND)
        sets, paid, source, node, ahead = (a[good] for a in (sets, paid, source, node, ahead))
    stale = seen.find(sets)
    seen.columns["open"][stale[stale >= 0]] = False
    begin = seen.count
    seen.add(sets, paid=paid, ahead=ahead, parent=source, node=node)
    if not len(sets) or sets[0]:
        return -1
    seen.columns["open"][begin] = False
    return begin  # sets are sorted, so the empty one is first


def _trace(bits: _Bits, seen: _Seen, state: int) -> tuple[int, ...]:
    """The runs from the empty set up to the outputs, on the way to a state."""
    states = []
    while state >= 0:
        states.append(state)
        state = int(seen.columns["parent"][state])
    runs: list[int] = []
    sets, paid = np.array([bits.outputs], np.uint64), np.zeros(1)
    for state in states[::-1]:
        node = int(seen.columns["node"][state])
        if node >= 0:
            runs.append(node)
            sets = (sets & ~np.uint64(bits.bit[node])) | np.uint64(bits.reads[node])
        bits.settle(sets, paid, runs)
    return tuple(bits.nodes[i] for i in runs[::-1])


def least_peak(
    dag: Dag, high: int, *, effort: int = 300_000, deadline: float | None = None
) -> tuple[int, tuple[int, ...] | None, int]:
    """The least peak there is, if it is below `high`: one that can be had, with its order if the
    search found it, and a bound.  The two are equal unless the effort was spent."""
    order: tuple[int, ...] | None = None
    low = probe = min(dag.floor[0], high)  # the bound is often met
    while low < high:
        found = cheapest(dag, probe, effort=effort, deadline=deadline, any_cost=True)
        effort -= found.states
        if found.order is not None:
            order = found.order
            high = replay(dag, order)[0]
        elif found.exhausted:
            low = min(found.blocked, high)  # with less than this, nothing else can be done
        else:
            break
        probe = (low + high) // 2
    return high, order, low
