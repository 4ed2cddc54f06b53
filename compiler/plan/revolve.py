"""Checkpoint schedules for loops: (segments, slots) -> what to store, advance and reverse when.

A loop of `segments` parts is run once forward; then its parts are reversed, last to first, each
from the state that enters it.  At most `slots` of those states are kept.  Invariant: the number of
parts that run forward again is the least possible for that many slots.

Source: Griewank & Walther, "Algorithm 799: revolve", ACM Transactions on Mathematical Software 26
(2000): with `slots` states kept, and r the least number with C(slots + r, slots) >= segments,
reversing takes r * segments - C(slots + r, slots + 1) forward parts, the first sweep included.
Their count of states includes the initial one, and leaves out the state that is at work; so do we.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import comb
from typing import NamedTuple

from retrograde.compiler.errors import DataError


class Action(NamedTuple):
    """One act of a schedule on one segment.

    - store: the state at work, which enters the segment, is kept in `slot`.
    - restore: the state kept in `slot` is at work again.
    - advance: the segment runs forward, and the state at work is the one that leaves it.
    - reverse: the segment is reversed; the state at work, which enters it, stays as it is."""

    kind: str
    segment: int
    slot: int = -1


@dataclass(frozen=True)
class Checkpoints:
    """The two halves of a schedule: the first sweep, and the way back.

    After the sweep the state that enters the last segment is at work.  `segments` may be 0."""

    sweep: tuple[Action, ...]
    back: tuple[Action, ...]

    @property
    def again(self) -> int:
        """How many segments run forward a second time just to get at their states."""
        return sum(action.kind == "advance" for action in self.back)


def advances(segments: int, slots: int) -> int:
    """The least number of forward parts, the first sweep included, in closed form."""
    _check(segments, slots)
    if segments == 0:
        return 0
    r = _repetitions(segments, slots)
    return r * segments - comb(slots + r, slots + 1)


@lru_cache(maxsize=256)
def recomputed(segments: int, slots: int) -> int:
    """How many parts the way back runs forward again; what reversing itself does is not counted."""
    return advances(segments, slots) - max(segments - 1, 0)


@lru_cache(maxsize=64)
def checkpoints(segments: int, slots: int) -> Checkpoints:
    """The schedule for a loop of `segments` parts and `slots` kept states (at least 1)."""
    _check(segments, slots)
    actions = list(_schedule(segments, slots))
    first = next((i for i, a in enumerate(actions) if a.kind == "reverse"), len(actions))
    return Checkpoints(tuple(actions[:first]), tuple(actions[first:]))


def _schedule(segments: int, slots: int) -> Iterator[Action]:
    if segments == 0:
        return
    yield Action("store", 0, 0)
    # Ranges of segments yet to be reversed, each with the slot of the state that enters it: a
    # stack, the last range on top.  The state at work enters `here`.
    ranges = [(0, segments, 0)]
    here = 0
    while ranges:
        begin, end, slot = ranges.pop()
        if here != begin:
            yield Action("restore", begin, slot)
            here = begin
        if end - begin == 1:
            yield Action("reverse", begin)
            continue
        free = slots - slot - 1
        middle = begin + _split(end - begin, free + 1) if free else end - 1
        for index in range(begin, middle):
            yield Action("advance", index)
        here = middle
        ranges.append((begin, middle, slot))
        if free and end - middle > 1:
            yield Action("store", middle, slot + 1)
            ranges.append((middle, end, slot + 1))
        else:  # one segment, with its state at work
            yield Action("reverse", middle)


def _split(length: int, slots: int) -> int:
    """Where to keep the next state: how far to advance from the start of `length` segments.

    With r repetitions, both halves must be reversible within r - 1 and r of them; the furthest such
    place is taken."""
    r = _repetitions(length, slots)
    return min(comb(slots + r - 1, slots), length - comb(slots + r - 2, slots - 1))


def _repetitions(segments: int, slots: int) -> int:
    """The least r with C(slots + r, slots) >= segments."""
    if segments <= 1:
        return 0
    high = 1
    while comb(slots + high, slots) < segments:
        high *= 2
    low = high // 2
    while low < high:  # few slots mean as many repetitions as segments
        middle = (low + high) // 2
        if comb(slots + middle, slots) < segments:
            low = middle + 1
        else:
            high = middle
    return high


def _check(segments: int, slots: int) -> None:
    if segments < 0 or slots < 1:
        raise DataError(f"a loop of {segments} segments and {slots} slots: at least 0 and 1")
