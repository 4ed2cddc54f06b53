"""Conditions on the places of an element: bands between two axes, equal segments of two axes.

A `Guard` says of the indices of an element: bands low <= p_j - p_i <= high between two axes i < j,
and pairs of axes whose places are of one segment.  Invariant: `both` holds where both do, `either`
wherever one of them does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

INF = math.inf
Band = tuple[float, float]
Pair = tuple[int, int]
Step = tuple[int, float, float]


@dataclass(frozen=True)
class Guard:
    """Bands by pairs of axes (i, j), i < j: of p_j - p_i; pairs of equal segments; `steps` (i, a,
    b): p_i + a and p_i + b are of one segment, if there are both places.  `never`: no element
    satisfies it."""

    bands: Mapping[Pair, Band] = field(default_factory=dict)
    segments: frozenset[Pair] = frozenset()
    steps: frozenset[Step] = frozenset()
    never: bool = False

    def both(self, other: Guard) -> Guard:
        """This and the other."""
        if self.never or other.never:
            return NEVER
        bands = dict(self.bands)
        for pair, (low, high) in other.bands.items():
            a, b = bands.get(pair, (-INF, INF))
            bands[pair] = max(a, low), min(b, high)
        return Guard(bands, self.segments | other.segments, self.steps | other.steps)

    def either(self, other: Guard) -> Guard:
        """What follows from this and from the other."""
        if self.never or other.never:
            return other if self.never else self
        bands = {
            pair: (min(band[0], other.bands[pair][0]), max(band[1], other.bands[pair][1]))
            for pair, band in self.bands.items()
            if pair in other.bands
        }
        return Guard(bands, self.segments & other.segments, self.steps & other.steps)

    def moved(self, labels: Mapping[int, int], shift: Mapping[int, float] | None = None) -> Guard:
        """The same of other axes; old place = new place + shift."""
        if self.never:
            return self
        shift = shift or {}
        bands: dict[Pair, Band] = {}
        for (i, j), (low, high) in self.bands.items():
            if i in labels and j in labels:
                by = shift.get(j, 0) - shift.get(i, 0)
                pair, band = _ordered(labels[i], labels[j], low - by, high - by)
                bands[pair] = band
        straight = {a for a in labels if not shift.get(a)}
        segments = frozenset(
            pair_of(labels[i], labels[j]) for i, j in self.segments if {i, j} <= straight
        )
        steps = frozenset(
            (labels[i], a + shift.get(i, 0), b + shift.get(i, 0))
            for i, a, b in self.steps
            if i in labels
        )
        return Guard(bands, segments, steps)

    def between(self, i: int, j: int) -> Band:
        """The band of p_j - p_i."""
        low, high = self.bands.get(pair_of(i, j), (-INF, INF))
        return (low, high) if i < j else (-high, -low)

    def equal(self, i: int, j: int) -> bool:
        """Whether both places are of one segment."""
        return pair_of(i, j) in self.segments


ALWAYS = Guard()
NEVER = Guard(never=True)


def pair_of(i: int, j: int) -> Pair:
    return (i, j) if i < j else (j, i)


def _ordered(i: int, j: int, low: float, high: float) -> tuple[Pair, Band]:
    return ((i, j), (low, high)) if i < j else ((j, i), (-high, -low))


def band(i: int, j: int, low: float, high: float) -> Guard:
    """low <= p_j - p_i <= high."""
    pair, found = _ordered(i, j, low, high)
    return Guard({pair: found})
