"""How places are seen through each node: the rules of `dependence`.

Invariant: an element depends on no other places than those noted, for finite numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from retrograde.compiler.ir.graph import Graph, Node, Value
from retrograde.compiler.passes.dependence_loops import MOVED, begun
from retrograde.compiler.passes.guarded import Facts
from retrograde.compiler.passes.guards import ALWAYS, INF, Guard, band
from retrograde.compiler.passes.time_axes import (
    KEYS,
    RUNNING,
    Labels,
    TimeAxes,
    holds,
    mentions,
)

_NEAR = 16  # places that are looked at one by one
LENGTH = "the number of steps"  # as a source: what depends on how long the sequence is


@dataclass(frozen=True)
class Seen:
    """Places from p + low to p + high, where p is the place along an axis; of the segment of place
    p + at (None: of any); seen by the elements that `guard` lets through."""

    low: float = 0
    high: float = 0
    at: float | None = 0
    guard: Guard = ALWAYS

    @property
    def own(self) -> bool:
        """Whether all of them are of the segment of p."""
        return self.at == 0

    def joined(self, other: Seen) -> Seen:
        return Seen(
            min(self.low, other.low), max(self.high, other.high),
            self.at if self.at == other.at else None, self.guard.either(other.guard),
        )  # fmt: skip


ANY = Seen(-INF, INF, None)
FIXED = -1  # as an axis: places counted from the first one, which all elements see
Source = Value | str
Places = dict[int | None, Seen]  # by axis, or FIXED; None: places of which nothing is known
Sees = dict[Source, Places]


@dataclass
class Rules:
    """What has been found of the values of a flattened graph so far."""

    graph: Graph
    axes: TimeAxes
    facts: Facts
    sees: dict[Value, Sees] = field(default_factory=dict)

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
        for x, own, guard in zip(node.inputs, labels, guards, strict=True):
            for source, places in self.sees[x].items():
                for axis, seen in places.items():
                    out, now = self._placed(x, axis, seen, own, guard, node)
                    for v in node.outputs:
                        self._see(v, source, out, now)
            for axis in self.axes.of[x]:  # what is summed over all steps tells their number
                out, now = self._placed(x, axis, Seen(), own, guard, node)
                if out is None or now.high > 0:
                    self._by_length(node)

    def _placed(
        self, x: Value, axis: int | None, seen: Seen, own: Labels | None, guard: Guard, node: Node
    ) -> tuple[int | None, Seen]:
        """The places seen along an axis of an operand, beside an axis of the result."""
        if axis == FIXED:
            return FIXED, replace(seen, guard=guard) if guard.never else seen
        if axis is None or own is None or axis not in own:
            return None, ANY
        within = seen.guard.moved(own).both(guard)
        label = own[axis]
        out, times = node.outputs[0], self.axes.of[node.outputs[0]]
        time, rank = self.axes.of[x][axis], out.type.ndim
        left = {i: i for i in range(rank)}
        if label < rank and label in times and not time.alike(times[label]):
            if node.op.name != "reshape":  # two ways to hold time meet
                return None, ANY
            return label, replace(seen, at=0 if seen.own else None, guard=ALWAYS)
        if label < rank:
            guard = within.moved(left)
            at = 0 if _stays(seen, guard, label) else seen.at
            return label, replace(seen, at=at, guard=guard)
        best: tuple[int | None, Seen] = (None, ANY)
        for i in range(rank):
            if i not in times or not time.alike(times[i]):
                continue
            low, high = time.moved(*within.between(i, label))
            equal = within.equal(i, label)
            if (low, high) == (-INF, INF) and not equal:
                continue
            found = Seen(
                seen.low + low, seen.high + high, 0 if seen.own and equal else None,
                within.moved(left),
            )  # fmt: skip
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
                        self._see(out, source, FIXED, Seen(-INF, seen.high + last, None))
                        continue
                    by = known[axis]
                    low, high = self.axes.of[x][axis].moved(by, by)
                    guard = seen.guard.moved({a: labels[a] for a in known}, known)
                    at = None if seen.at is None else seen.at + by
                    now = Seen(seen.low + low, seen.high + high, at, guard)
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
                        before, behind = self.axes.of[x][run].moved(-INF, 0)
                        if reverse:
                            before, behind = -behind, -before
                        seen = Seen(seen.low + before, seen.high + behind, None)
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
        resets = self._resets(node)
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
                        before, behind = self.axes.of[x][0].moved(-INF, 0)
                        if reverse:
                            before, behind = -behind, -before
                        low, high = seen.low + before, seen.high + behind
                        own = 0 if resets and seen.own else None
                        self._see(v, source, 0, Seen(low, high, own))
        return None

    def _resets(self, node: Node) -> bool:
        """Whether all carries begin anew where the segment is another than the step before: what
        they hold reaches a result only where a slice says that it is not.  Rows that have ended may
        hand their carry on, which no result shows and no later step takes up."""
        body: Graph = node.attrs["body"]
        n, m = node.attrs["carries"], node.attrs["carries"] + node.attrs["slices"]
        step = (0, 0.0, 1.0) if node.attrs["reverse"] else (0, -1.0, 0.0)
        branch: dict[Value, int] = {}  # the operand of a select that is taken within a segment
        for v, x in zip(body.inputs[n:m], node.inputs[n:m], strict=True):
            for known, place in ((self.facts.true, 1), (self.facts.false, 2)):
                if step in known.get(x, ALWAYS).steps:
                    branch[v] = place
        live = self._ends_once(node)
        ways = (True,) if live is None else (True, False)
        return all(begun(body, n, branch, live, alive) for alive in ways)

    def _ends_once(self, node: Node) -> Value | None:
        """The input of a loop's body that says which rows have the step, where that is those whose
        number is below one of the row's own: a row that has ended stays so."""
        at, makers = node.attrs.get("live"), self.graph.producers()
        if at is None:
            return None
        at += node.attrs["carries"]
        made = makers.get(node.inputs[at])
        while made is not None and made.op.name in MOVED:
            made = makers.get(made.inputs[0])
        if made is None or made.op.name != "less":
            return None
        place, end = made.inputs
        affine = self.facts.affine.get(place)
        rises = affine is not None and list(affine.factors.values()) == [1]
        if not rises or self._timed(end) or self.sees[end]:
            return None
        body: Graph = node.attrs["body"]
        return body.inputs[at]


def _stays(seen: Seen, guard: Guard, axis: int) -> bool:
    """Whether the guard says that the places which are seen are of the element's own segment."""
    if seen.at is not None:
        return (axis, *sorted((seen.at, 0))) in guard.steps
    if seen.high - seen.low > _NEAR:
        return False
    places = range(int(seen.low), int(seen.high) + 1)
    return all(not p or (axis, *sorted((p, 0))) in guard.steps for p in places)


def _is_first(node: Node, axis: int) -> bool:
    """Whether the node takes so many places from the first on, or behind."""
    if node.op.name != "slice":
        return False
    return isinstance(node.attrs["start"][axis], int) and isinstance(node.attrs["stop"][axis], int)
