"""What a boolean says of queries and keys: Value -> bands, lengths, segments, and the rest.

Comparisons of places, made with `arange`, `tril` and the like, become bounds on j - i; those of a
place with a number of each batch row become lengths; equal numbers of query and key are segments.
Invariant: a pair is open where every predicate and every value of `rest` holds, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.graph import Node, Value

Place = int | None  # an axis of the scores counted from the last: 0 keys, 1 queries; None: size 1


@dataclass(frozen=True)
class Side:
    """One side of a comparison: queries * i + keys * j + number (+ a value, whose axes lie so)."""

    queries: int = 0
    keys: int = 0
    number: Dim = 0
    value: Value | None = None
    places: tuple[Place, ...] = ()

    def minus(self, other: Side) -> Side | None:
        """The difference, where at most the first holds a value."""
        if other.value is not None:
            return None
        return Side(
            self.queries - other.queries, self.keys - other.keys, self.number - other.number,
            self.value, self.places,
        )  # fmt: skip

    def plus(self, other: Side) -> Side | None:
        if self.value is not None and other.value is not None:
            return None
        held = other if self.value is None else self
        return Side(
            self.queries + other.queries, self.keys + other.keys, self.number + other.number,
            held.value, held.places,
        )  # fmt: skip


@dataclass
class Predicates:
    """`low` <= j - i <= `high`; j < value + number for each of `lengths`; equal `segments`, of the
    query and of the key; and booleans that stretch to the scores, to be negated where False."""

    low: Dim | None = None
    high: Dim | None = None
    lengths: list[Side] = field(default_factory=list)
    segments: tuple[Side, Side] | None = None
    rest: list[tuple[Value, bool]] = field(default_factory=list)

    def at_most(self, bound: Dim) -> None:
        self.high = bound if self.high is None else dims.dim_min(self.high, bound)

    def at_least(self, bound: Dim) -> None:
        self.low = bound if self.low is None else dims.dim_max(self.low, bound)

    def never_empty(self, queries: Dim, keys: Dim) -> bool:
        """Whether every query provably has an open key (segments: that of its own place)."""
        if self.lengths or self.rest:
            return False
        if dims.decide_le(1, keys) is not True:
            return False
        if self.low is None and self.high is None and self.segments is None:
            return True
        if self.segments is not None:
            own, other = self.segments
            if own.value is not other.value or not dims.same(queries, keys):
                return False
        # The key of the query's own place, or the last one.
        back = self.low is None or dims.decide_le(self.low, 0) is True
        ahead = self.high is None or dims.decide_le(0, self.high) is True
        there = dims.decide_le(queries, keys) is True
        return back and ahead and (there or (self.low is None and self.segments is None))


_ORDER = {"less": (False, 1), "less_equal": (False, 0), "greater": (True, 1),
          "greater_equal": (True, 0)}  # fmt: skip


@dataclass
class MaskReader:
    """Reads booleans that stretch to scores of `rank` axes; `batch`: whether axis 0 is that of
    k and v too."""

    producers: dict[Value, Node]
    rank: int
    batch: bool
    found: Predicates = field(default_factory=Predicates)

    def read(self, v: Value, truth: bool = True) -> None:
        """Takes in that `v` is `truth` where a pair is open."""
        node = self.producers.get(v)
        if node is None or not self._read(node, truth):
            self.found.rest.append((v, truth))

    def _read(self, node: Node, truth: bool) -> bool:
        name, inputs = node.op.name, node.inputs
        if name == ("logical_and" if truth else "logical_or"):
            for v in inputs:
                self.read(v, truth)
            return True
        if name == "logical_not":
            self.read(inputs[0], not truth)
            return True
        if name == "constant":
            return node.attrs["value"] is truth
        if name in ("broadcast_to", "reshape"):
            if not _aligned(inputs[0].shape, node.output.shape):
                return False
            self.read(inputs[0], truth)
            return True
        if name == "select" and node.output.dtype is dtypes.bool_:
            return self._select(inputs, truth)
        if not all(v.dtype.is_integer for v in inputs):
            return False
        if name in _ORDER:
            swapped, strict = _ORDER[name]
            a, b = inputs[::-1] if swapped else inputs
            if not truth:  # not a < b: b <= a
                a, b, strict = b, a, 1 - strict
            return self._ordered(a, b, strict)
        if name == ("equal" if truth else "not_equal"):
            return self._equal(*inputs)
        return False

    def _select(self, inputs: Sequence[Value], truth: bool) -> bool:
        """`tril` of ones: where the test holds, one thing, else False."""
        test, a, b = inputs
        if constant_of(b, self.producers) is not False or not truth:
            return False
        self.read(test)
        self.read(a)
        return True

    def _ordered(self, a: Value, b: Value, strict: int) -> bool:
        """a + strict <= b."""
        left, right = self._side(a), self._side(b)
        gap = right.minus(left)
        if gap is None:
            return False
        bound, found = gap.number - strict, self.found
        if gap.value is None:
            if (gap.queries, gap.keys) == (1, -1):  # 0 <= bound + i - j
                found.at_most(bound)
                return True
            if (gap.queries, gap.keys) == (-1, 1):
                found.at_least(-bound)
                return True
            return False
        if (gap.queries, gap.keys) != (0, -1) or not self._within(gap, ()):
            return False
        found.lengths.append(Side(number=bound + 1, value=gap.value, places=gap.places))
        return True

    def _equal(self, a: Value, b: Value) -> bool:
        sides = [self._side(a), self._side(b)]
        plain = all(
            s.value is not None and not s.queries and not s.keys and dims.same(s.number, 0)
            and s.value.dtype.bytes <= 4 and s.value.dtype is not dtypes.u32
            for s in sides
        )  # fmt: skip
        if not plain or self.found.segments is not None:
            return False
        for own, other in (sides, sides[::-1]):
            if not (1 in own.places and 0 in other.places):
                continue
            if self._within(own, (1,)) and self._within(other, (0,)):
                self.found.segments = (own, other)
                return True
        return False

    def _within(self, side: Side, places: tuple[int, ...]) -> bool:
        """Whether the value differs along these places and the batch alone."""
        allowed = {None, *places, *([self.rank - 1] if self.batch else [])}
        return all(p in allowed for p in side.places)

    def _side(self, v: Value) -> Side:
        rank = v.type.ndim
        places = tuple(rank - 1 - i for i in range(rank))
        return self._affine(v, _known(v.shape, places))

    def _affine(self, v: Value, places: tuple[Place, ...]) -> Side:
        """`v`, whose axes lie at these places of the scores."""
        node = self.producers.get(v)
        whole = Side(value=v, places=places)
        if node is None:
            return whole
        name, inputs = node.op.name, node.inputs
        if name == "constant":
            value = node.attrs["value"]
            return Side(number=int(value)) if isinstance(value, int) else whole
        if name == "dim_value":
            return Side(number=node.attrs["size"])
        if name == "iota" and places in ((0,), (1,), (None,)):
            return Side(queries=int(places == (1,)), keys=int(places == (0,)))
        if name == "cast" and inputs[0].dtype.is_integer and v.dtype.bytes >= 4:
            inner = self._affine(inputs[0], places)
            return whole if inner.value is not None else inner
        if name in ("add", "sub"):
            parts = [self._affine(x, _known(x.shape, places[len(places) - x.type.ndim :]))
                     for x in inputs]  # fmt: skip
            made = parts[0].plus(parts[1]) if name == "add" else parts[0].minus(parts[1])
            return whole if made is None else made
        inner_places = _moved(node, places)
        return whole if inner_places is None else self._affine(inputs[0], inner_places)


def _known(shape: Sequence[Dim], places: Sequence[Place]) -> tuple[Place, ...]:
    """Axes of size 1 lie nowhere."""
    pairs = zip(shape, places, strict=True)
    return tuple(None if dims.same(d, 1) else p for d, p in pairs)


def _moved(node: Node, places: tuple[Place, ...]) -> tuple[Place, ...] | None:
    """Where the axes of the operand of a node lie that only moves axes or stretches them."""
    if node.op.name not in ("reshape", "broadcast_to", "transpose"):
        return None
    shape = node.inputs[0].shape
    if node.op.name == "transpose":
        perm = node.attrs["perm"]
        return tuple(places[perm.index(i)] for i in range(len(perm)))
    if node.op.name == "broadcast_to":
        return _known(shape, places[len(places) - len(shape) :])
    there = [(d, p) for d, p in zip(node.output.shape, places, strict=True) if not dims.same(d, 1)]
    left = iter(there)
    out: list[Place] = []
    for d in shape:
        if dims.same(d, 1):
            out.append(None)
            continue
        size, place = next(left, (0, None))
        if not dims.same(size, d):
            return None
        out.append(place)
    return tuple(out) if next(left, None) is None else None


def _aligned(inner: Sequence[Dim], outer: Sequence[Dim]) -> bool:
    """Whether an array of one shape stretches to what it was made into: axes were put in front."""
    return len(inner) <= len(outer) and all(
        dims.same(a, b) or dims.same(a, 1)
        for a, b in zip(reversed(inner), reversed(outer), strict=False)
    )


def constant_of(v: Value, producers: dict[Value, Node]) -> Any:
    """The one number (or boolean) that `v` holds everywhere; None where that is not known."""
    node = producers.get(v)
    while node is not None and node.op.name in ("broadcast_to", "reshape"):
        node = producers.get(node.inputs[0])
    return node.attrs["value"] if node is not None and node.op.name == "constant" else None
