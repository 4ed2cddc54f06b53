"""What an output can see along time: (graph, symbol T) -> relations of places, with the way there.

An abstract interpretation of the graph as it was traced.  For every value and every input with a
time axis it keeps, by time axis, which places of the input an element may depend on: those from
`low` to `high` beside the element's own place, under a `Guard` on the element.  A contraction turns
the places of the axis that it sums over into places beside the axes that are left, by the bands
that masks make.  Invariant: an element depends on no other places, for finite numbers (a weight
of 0 hides no NaN).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from retrograde.compiler.errors import UnsupportedError
from retrograde.compiler.ir.dims import Symbol
from retrograde.compiler.ir.graph import Graph, Node, Value
from retrograde.compiler.passes.guarded import Facts
from retrograde.compiler.passes.guards import ALWAYS, INF, Guard, band
from retrograde.compiler.passes.time_axes import (
    KEYS,
    RUNNING,
    Labels,
    TimeAxes,
    flattened,
    holds,
    mentions,
)

LENGTH = "the number of steps"  # as a source: what depends on how long the sequence is


@dataclass(frozen=True)
class Seen:
    """Places from p + low to p + high, where p is the place along an axis; of the segment of p if
    `own`; seen by the elements that `guard` lets through."""

    low: float = 0
    high: float = 0
    own: bool = True
    guard: Guard = ALWAYS

    def joined(self, other: Seen) -> Seen:
        return Seen(
            min(self.low, other.low), max(self.high, other.high), self.own and other.own,
            self.guard.either(other.guard),
        )  # fmt: skip


ANY = Seen(-INF, INF, False)
FIXED = -1  # as an axis: places counted from the first one, which all elements see
Source = Value | str
Places = dict[int | None, Seen]  # by axis, or FIXED; None: places of which nothing is known
Sees = dict[Source, Places]


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
class Dependence:
    """The relations of one graph; `segments` is the input with the segment of each place."""

    graph: Graph  # flattened
    axes: TimeAxes
    facts: Facts
    sees: dict[Value, Sees] = field(default_factory=dict)

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

    # --- node by node

    def _follow(self, node: Node) -> None:
        name = node.op.name
        for v in node.outputs:
            self.sees[v] = {}
        if any(v in self.axes.strange for v in node.outputs) or name in ("cond", "while"):
            self._mixed(node)
        elif name == "dim_value" and holds(node.attrs["size"], self.axes.name):
            self.sees[node.output] = {LENGTH: {None: ANY}}
        elif name == "scan":
            self._scan(node)
        elif name in ("slice", "pad", "concatenate", "flip", "set_slice"):
            self._window(node)
        elif name in RUNNING:
            self._running(node)
        elif node.inputs:
            self._usual(node)

    def _mixed(self, node: Node) -> None:
        """Every element of every result may see all that any operand sees."""
        sources = {s for x in node.inputs for s, p in self.sees[x].items() if p}
        for v in node.outputs:
            for s in sources:
                self.sees[v][s] = {None: ANY}
        if any(map(self._timed, (*node.inputs, *node.outputs))):
            self._by_length(node)

    def _timed(self, v: Value) -> bool:
        return bool(self.axes.of[v]) or v in self.axes.strange

    def _by_length(self, node: Node) -> None:
        """What the node makes depends on how many steps there are."""
        for v in node.outputs:
            self.sees[v][LENGTH] = {None: ANY}

    def _usual(self, node: Node) -> None:
        labels = self.axes.labels(node)
        guards = self._guards(node, labels)
        rank = node.outputs[0].type.ndim
        for x, own, guard in zip(node.inputs, labels, guards, strict=True):
            for source, places in self.sees[x].items():
                for axis, seen in places.items():
                    out, now = self._placed(axis, seen, own, guard, rank, node)
                    for v in node.outputs:
                        self._see(v, source, out, now)
            for axis in self.axes.of[x]:  # what is summed over all steps tells their number
                out, now = self._placed(axis, Seen(), own, guard, rank, node)
                if out is None or now.high > 0:
                    self._by_length(node)

    def _placed(
        self, axis: int | None, seen: Seen, own: Labels | None, guard: Guard, rank: int, node: Node
    ) -> tuple[int | None, Seen]:
        """The places seen along an axis of an operand, beside an axis of the result."""
        if axis == FIXED:
            return FIXED, seen
        if axis is None or own is None or axis not in own:
            return None, ANY
        within = seen.guard.moved(own).both(guard)
        label = own[axis]
        left = {i: i for i in range(rank)}
        if label < rank:
            return label, replace(seen, guard=within.moved(left))
        best: tuple[int | None, Seen] = (None, ANY)
        for i in range(rank):
            if i not in self.axes.of[node.outputs[0]]:
                continue
            low, high = within.between(i, label)
            equal = within.equal(i, label)
            if (low, high) == (-INF, INF) and not equal:
                continue
            found = Seen(
                seen.low + low, seen.high + high, seen.own and equal, within.moved(left)
            )
            if best[0] is None or (found.high, not found.own) < (best[1].high, not best[1].own):
                best = i, found
        return best

    def _guards(self, node: Node, labels: Sequence[Labels | None]) -> list[Guard]:
        """For each operand: which of its elements count, in labels."""
        name, inputs, facts = node.op.name, node.inputs, self.facts
        guards = [ALWAYS] * len(inputs)
        if name == "select":
            test = inputs[0]
            out = node.output
            guards[1] = facts.guard(facts.true, test, out)
            guards[2] = facts.guard(facts.false, test, out)
        elif name in ("mul", "dot_general", "logical_and"):
            known = facts.true if name == "logical_and" else facts.nonzero
            counts = [
                known.get(x, ALWAYS).moved(own or {})
                for x, own in zip(inputs, labels, strict=True)
            ]
            guards = [counts[0].both(counts[1])] * 2  # what is multiplied by 0 is not seen
        elif name == "softmax":
            guards[0] = facts.open.get(inputs[0], ALWAYS).moved(labels[0] or {})
        elif name in ("sum", "logsumexp", "max", "any"):
            known = {"sum": facts.nonzero, "any": facts.true}.get(name, facts.open)
            guards[0] = known.get(inputs[0], ALWAYS).moved(labels[0] or {})
        elif name == "attention":
            guards = [self._attended(node, labels)] * len(inputs)
            guards[0] = ALWAYS
        elif name == "flash_attention":
            guards = [self._tiled(node, labels)] * len(inputs)
            guards[0] = ALWAYS
        return guards

    def _tiled(self, node: Node, labels: Sequence[Labels | None]) -> Guard:
        """As `_attended`, of tiled attention."""
        low, high = node.attrs["low"], node.attrs["high"]
        guard = band(
            2, KEYS, low if isinstance(low, int) else -INF, high if isinstance(high, int) else INF
        )
        extras = dict(zip(node.attrs["extras"], zip(node.inputs[3:], labels[3:], strict=True),
                          strict=True))  # fmt: skip
        if "mask" in extras:
            mask, own = extras["mask"]
            guard = guard.both(self.facts.true.get(mask, ALWAYS).moved(own or {}))
        pair = [extras[n][0] for n in ("query_segments", "key_segments") if n in extras]
        if len(pair) == 2 and all(map(self.facts.is_segments, pair)):
            guard = guard.both(Guard(segments=frozenset({(2, KEYS)})))
        return guard

    def _attended(self, node: Node, labels: Sequence[Labels | None]) -> Guard:
        q, k, *_ = node.inputs
        rank = q.type.ndim
        guard = ALWAYS
        if node.attrs["causal"]:
            ahead = k.shape[-2] - q.shape[-2]
            if isinstance(ahead, int):
                guard = band(rank - 2, rank, -INF, ahead)
        for mask, own in zip(node.inputs[3:], labels[3:], strict=True):
            guard = guard.both(self.facts.true.get(mask, ALWAYS).moved(own or {}))
        return guard

    def _see(self, v: Value, source: Source, axis: int | None, seen: Seen) -> None:
        if seen.guard.never:
            return
        if axis is None:
            seen = ANY
        elif axis not in self.axes.of[v] and axis != FIXED:
            axis, seen = None, ANY
        places = self.sees[v].setdefault(source, {})
        places[axis] = places[axis].joined(seen) if axis in places else seen

    def _window(self, node: Node) -> None:
        """Elements that move along time: old place = new place + shift."""
        name, out = node.op.name, node.output
        if name == "set_slice":
            return self._mixed(node)
        behind: object = 0
        for x in node.inputs:
            shift = {a: self._shift(node, a, behind) for a in range(x.type.ndim)}
            labels = {a: a for a in range(x.type.ndim)}
            known = {a: s for a, s in shift.items() if s is not None}
            for a in self.axes.of[x]:
                if shift[a] is None or (a not in self.axes.of[out] and not _is_first(node, a)):
                    self._by_length(node)
            for source, places in self.sees[x].items():
                for axis, seen in places.items():
                    if axis == FIXED:
                        self._see(out, source, FIXED, seen)
                        continue
                    if axis is None or shift[axis] is None:
                        self._see(out, source, None, ANY)
                        continue
                    if axis not in self.axes.of[out] and _is_first(node, axis):
                        last = node.attrs["stop"][axis] - 1
                        self._see(out, source, FIXED, Seen(-INF, seen.high + last, False))
                        continue
                    by = known[axis]
                    guard = seen.guard.moved({a: labels[a] for a in known}, known)
                    now = Seen(seen.low + by, seen.high + by, seen.own and by == 0, guard)
                    self._see(out, source, axis, now)
            if name == "concatenate":
                behind = behind + x.shape[node.attrs["axis"]]  # type: ignore[operator]

    def _shift(self, node: Node, axis: int, behind: object) -> int | None:
        name, attrs = node.op.name, node.attrs
        if name == "slice":
            start, step = attrs["start"][axis], attrs["step"][axis]
            if step != 1 or not isinstance(start, int):
                return None
            return start
        if name == "pad":
            low, gap = attrs["low"][axis], attrs["interior"][axis]
            return -low if isinstance(low, int) and gap == 0 else None
        if name == "flip":
            return None if axis in attrs["axes"] else 0
        if axis != attrs["axis"]:
            return 0
        return -behind if isinstance(behind, int) else None

    def _running(self, node: Node) -> None:
        """Running sums and the like along one axis."""
        run, reverse = node.attrs["axis"], bool(node.attrs["reverse"])
        if reverse and run in self.axes.of[node.output]:
            self._by_length(node)
        for x in node.inputs:
            for source, places in self.sees[x].items():
                for axis, seen in places.items():
                    if axis == run:
                        low, high = (seen.low, INF) if reverse else (-INF, seen.high)
                        seen = Seen(low, high, False)
                    elif axis not in (None, FIXED):
                        seen = replace(seen, guard=ALWAYS)
                    self._see(node.output, source, axis, seen)

    def _scan(self, node: Node) -> None:
        """A loop: over time, each step sees what the steps before it saw."""
        n, m = node.attrs["carries"], node.attrs["carries"] + node.attrs["slices"]
        reverse = bool(node.attrs["reverse"])
        over_time = holds(node.attrs["length"], self.axes.name)
        if not over_time or mentions(node.attrs["body"], self.axes.name):
            return self._mixed(node)
        for v in node.outputs[: len(node.outputs) if reverse else n]:
            self.sees[v][LENGTH] = {None: ANY}
        for i, x in enumerate(node.inputs):
            for source, places in self.sees[x].items():
                for axis, seen in places.items():
                    for j, v in enumerate(node.outputs):
                        if axis == FIXED:
                            self._see(v, source, FIXED, seen)
                            continue
                        if not n <= i < m or axis != 0 or j < n:
                            self._see(v, source, None, ANY)
                            continue
                        low, high = (seen.low, INF) if reverse else (-INF, seen.high)
                        self._see(v, source, 0, Seen(low, high, False))
        return None


def _is_first(node: Node, axis: int) -> bool:
    """Whether the node takes so many places from the first on, or behind."""
    if node.op.name != "slice":
        return False
    return isinstance(node.attrs["start"][axis], int) and isinstance(node.attrs["stop"][axis], int)


def refuse(leaks: Iterable[Leak | None], what: str) -> None:
    """UnsupportedError for the first of the leaks."""
    for leak in leaks:
        if leak is not None:
            raise UnsupportedError(
                f"{leak}: {what}; a causal mask, or a loop from the first step on, keeps to what "
                "is before"
            )
