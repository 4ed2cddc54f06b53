"""The sources of an axis, and how axes are laid on each other: the data of axis provenance.

Input: axes as lists of factors; output: the axes of a result.  Invariant: what is joined here lies
on one another element by element; `axes` holds the rules that decide what does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from retrograde.compiler.ir import dims
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.graph import Node, Value


@dataclass(frozen=True, slots=True)
class AxisSource:
    """Axis `axis` of `value`; `via` is the node id and operand that set two uses of it apart."""

    value: Value | None
    axis: int
    moved: bool = False
    via: tuple[int, int] | None = None

    @property
    def root(self) -> Root:
        return self.value, self.axis


Root = tuple[Value | None, int]
UNKNOWN = AxisSource(None, 0, moved=True)
Sources = frozenset[AxisSource]
NOTHING: Sources = frozenset()

# An axis is a list of factors, major first: several where a reshape merged axes, so that the
# reshape that splits them again finds them as they were.


@dataclass(frozen=True, slots=True)
class Factor:
    """A part of an axis: its size and where it stems from."""

    size: Dim = field(compare=False)  # two sizes may refuse to be compared
    sources: Sources


Axis = tuple[Factor, ...]
Axes = tuple[Axis, ...]


def own_axes(v: Value) -> Axes:
    """The axes of a value that is a source itself."""
    return tuple(
        (Factor(d, frozenset({AxisSource(v, i)})),) for i, d in enumerate(v.shape)
    )


def unknown_axes(v: Value) -> Axes:
    """Axes of which nothing is claimed."""
    return tuple((Factor(d, frozenset({UNKNOWN})),) for d in v.shape)


def moved(sources: Iterable[AxisSource]) -> Sources:
    """The same sources, with nothing said on which index is which."""
    return frozenset(dataclasses.replace(s, moved=True) for s in sources)


def sources_of(axis: Axis) -> Sources:
    """All sources of an axis; merged axes are aligned with none of theirs."""
    if len(axis) == 1:
        return axis[0].sources
    return moved(s for factor in axis for s in factor.sources)


def shifted(axis: Axis, size: Dim) -> Axis:
    """The axis with its elements at other places."""
    return (Factor(size, moved(sources_of(axis))),)


def varying(axes: Axes, v: Value, places: Iterable[int]) -> Axes:
    """The axes of `v`, which changes along `places` even where its operands do not."""
    own = own_axes(v)
    changing = set(places)
    return tuple(
        own[i] if i in changing and not sources_of(axis) else axis for i, axis in enumerate(axes)
    )


def _same_factors(a: Axis, b: Axis) -> bool:
    return len(a) == len(b) and all(dims.same(x.size, y.size) for x, y in zip(a, b, strict=True))


def _absorb(sources: Sources) -> Sources:
    """Beside a source seen through a node, the same one plain adds nothing: it is aligned to it."""
    told = {s.root for s in sources if s.via is not None}
    return frozenset(s for s in sources if s.via is not None or s.root not in told)


def join(parts: Sequence[Axis], size: Dim) -> Axis:
    """One axis from the operands' axes that lie on it, element by element."""
    parts = [p for p in parts if p]
    if not parts:
        return (Factor(size, NOTHING),)
    if all(_same_factors(parts[0], p) for p in parts):
        return tuple(
            Factor(fs[0].size, _absorb(frozenset().union(*(f.sources for f in fs))))
            for fs in zip(*parts, strict=True)
        )
    return (Factor(size, _absorb(frozenset().union(*map(sources_of, parts)))),)


def split_uses(node: Node, axes: Sequence[list[tuple[int, Axis]]], shape: Sequence[Dim]) -> Axes:
    """The axes of a result, given for each the (operand, axis) contributions that lie on it."""
    plain = [join([axis for _, axis in parts], d) for parts, d in zip(axes, shape, strict=True)]
    shared = {root for root, places in _places(plain).items() if len(places) > 1}
    if not shared:
        return simplified(plain)
    out = []
    for parts, d, joined in zip(axes, shape, plain, strict=True):
        told = {s.root for s in _all(axis for _, axis in parts) if s.via is not None}
        if any(s.root in shared - told for s in _all([joined])):
            joined = join([_through(axis, node, k, shared) for k, axis in parts], d)
        out.append(joined)
    return simplified(out)


def told_apart(node: Node, axes: Axes) -> Axes:
    """What is left over: a source that reaches two axes through one operand."""
    shared = {root for root, places in _places(axes, in_place=True).items() if len(places) > 1}
    if not shared:
        return axes
    count = len(node.inputs)
    return tuple(_through(axis, node, count + i, shared) for i, axis in enumerate(axes))


def simplified(axes: Sequence[Axis]) -> Axes:
    """Sources that reach one axis only need not be told apart."""
    places = _places(axes)

    def plain(s: AxisSource) -> AxisSource:
        alone = s.via is not None and len(places[s.root]) == 1
        return dataclasses.replace(s, via=None) if alone else s

    return tuple(
        tuple(Factor(f.size, frozenset(map(plain, f.sources))) for f in axis) for axis in axes
    )


def _places(axes: Iterable[Axis], in_place: bool = False) -> dict[Root, set[tuple[int, int]]]:
    """Where each known source stands: (axis, factor).  `in_place`: as it came, and not moved."""
    places: dict[Root, set[tuple[int, int]]] = {}
    for i, axis in enumerate(axes):
        for k, factor in enumerate(axis):
            for s in factor.sources:
                if s.value is not None and not (in_place and (s.moved or s.via is not None)):
                    places.setdefault(s.root, set()).add((i, k))
    return places


def _all(axes: Iterable[Axis]) -> Iterator[AxisSource]:
    for axis in axes:
        for factor in axis:
            yield from factor.sources


def _through(axis: Axis, node: Node, operand: int, roots: set[Root]) -> Axis:
    """The axis with these sources, where they are plain, marked by the node and the operand."""

    def marked(s: AxisSource) -> AxisSource:
        if s.root not in roots or s.via is not None:
            return s
        return dataclasses.replace(s, via=(node.id, operand))

    return tuple(Factor(f.size, frozenset(map(marked, f.sources))) for f in axis)
