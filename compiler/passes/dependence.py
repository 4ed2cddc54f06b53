"""What an output can see along time: (graph, symbol T) -> relations of places, with the way there.

An abstract interpretation of the graph as it was traced.  For every value and every input with a
time axis it keeps, by time axis, which places of the input an element may depend on: those from
`low` to `high` beside the element's own place, under a `Guard` on the element.  A contraction turns
the places of the axis that it sums over into places beside the axes that are left, by the bands
that masks make.  Invariant: an element depends on no other places, for finite numbers (a weight
of 0 hides no NaN).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from retrograde.compiler.errors import UnsupportedError
from retrograde.compiler.ir.dims import Symbol
from retrograde.compiler.ir.graph import Graph, Node, Value
from retrograde.compiler.passes.dependence_rules import (
    ANY,
    LENGTH,
    Places,
    Rules,
    Seen,
    Sees,
    Source,
)
from retrograde.compiler.passes.guarded import Facts
from retrograde.compiler.passes.time_axes import TimeAxes, flattened

__all__ = ["LENGTH", "Dependence", "Leak", "refuse"]


@dataclass(frozen=True)
class Leak:
    """Why a claim does not hold: the input that is seen, the nodes from the one at fault to the
    output, and what is wrong there."""

    source: str
    path: tuple[Node, ...]
    relation: str
    about: str = "causality"

    @property
    def node(self) -> Node:
        """Where it comes in."""
        return self.path[0]

    def __str__(self) -> str:
        way = " -> ".join(dict.fromkeys(n.place or n.op.name for n in self.path))
        node = self.node
        seen = {
            "any": f"later places of {self.source}", ">=": f"later places of {self.source}",
            "length": self.source,
        }.get(self.relation, f"other segments of {self.source}")  # fmt: skip
        return f"{node.place or 'the graph'}: through {node.op.name} a place sees {seen} ({way})"


@dataclass
class Dependence(Rules):
    """The relations of one flattened graph, whose nodes are followed in their order."""

    @classmethod
    def of(cls, graph: Graph, symbol: Symbol, segments: int | None = None) -> Dependence:
        """Of a graph that is not flattened yet; `segments`: the index of an input."""
        return cls.of_flat(flattened(graph, symbol), symbol, segments)

    @classmethod
    def of_flat(cls, graph: Graph, symbol: Symbol, segments: int | None = None) -> Dependence:
        axes = TimeAxes(graph, symbol)
        facts = Facts(axes, None if segments is None else graph.inputs[segments])
        found = cls(graph, axes, facts)
        for v in graph.inputs:
            own: Places = {a: Seen() for a, t in axes.of[v].items() if t.extra == 0}
            if v in axes.strange or len(own) < len(axes.of[v]):
                own = {None: ANY}
            found.sees[v] = {v: own} if own else {}
        for node in graph.nodes:
            facts.learn(node)
            found._follow(node)
        return found

    # --- what is asked

    def relation(self, v: Value, source: Source) -> str:
        """"none", "=", "<=", ">=" or "any": which places of `source` an element of `v` sees, by its
        own place along each of its time axes."""
        places = self.sees.get(v, {}).get(source, {})
        if not places:
            return "none"
        if None in places:
            return "any"
        low, high = min(s.low for s in places.values()), max(s.high for s in places.values())
        if low == high == 0:
            return "="
        return "<=" if high <= 0 else ">=" if low >= 0 else "any"

    def causal(self, v: Value) -> bool:
        """Whether no element sees behind its own place, or how long the sequence is."""
        return not any(self._ahead(places) for places in self.sees[v].values())

    def isolated(self, v: Value) -> bool:
        """Whether no element sees another segment."""
        return not any(map(self._outside, self._data(v).values()))

    def _data(self, v: Value) -> Sees:
        """What is seen of the inputs beside the segments themselves."""
        aside = (LENGTH, self.facts.segments)
        return {s: p for s, p in self.sees[v].items() if s not in aside}

    def depends(self, v: Value) -> bool:
        """Whether an element depends on any input along time."""
        return bool(self.sees[v])

    def sources(self) -> list[Value]:
        """The inputs with a time axis."""
        return [v for v in self.graph.inputs if self.sees[v]]

    def leak(self, output: Value) -> Leak | None:
        """Where the output begins to see what is behind its place."""
        return self._leak(output, self._ahead, "causality")

    def segment_leak(self, output: Value) -> Leak | None:
        """Where the output begins to see another segment."""
        return self._leak(output, self._outside, "segment isolation")

    def _leak(self, v: Value, bad: Callable[[Places], bool], about: str) -> Leak | None:
        makers = self.graph.producers()
        seen = self.sees[v] if about == "causality" else self._data(v)
        found = [s for s, p in seen.items() if bad(p)]
        if not found:
            return None
        source = min(found, key=lambda s: s == LENGTH)
        relation = "length" if source == LENGTH else self.relation(v, source)
        path: list[Node] = []
        while v in makers:
            node = makers[v]
            path.append(node)
            before = [x for x in node.inputs if bad(self.sees[x].get(source, {}))]
            if not before:
                break
            v = before[0]
        if not path:
            return None
        if about != "causality":
            relation = "segments"
        return Leak(self._name(source), tuple(reversed(path)), relation, about)

    def _name(self, source: Source) -> str:
        if isinstance(source, str):
            return source
        i = self.graph.inputs.index(source)
        names = self.graph.input_names
        return (names[i] if i < len(names) else "") or f"input {i}"

    def _ahead(self, places: Places) -> bool:
        return any(a is None or s.high > 0 for a, s in places.items())

    def _outside(self, places: Places) -> bool:
        return any(a is None or not s.own for a, s in places.items())


def refuse(leaks: Iterable[Leak | None], what: str) -> None:
    """UnsupportedError for the first of the leaks."""
    for leak in leaks:
        if leak is not None:
            raise UnsupportedError(
                f"{leak}: {what}; a causal mask, or a loop from the first step on, keeps to what "
                "is before"
            )
