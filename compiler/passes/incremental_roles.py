"""In which roles values are wanted, from the logits backwards: new steps, or all steps.

Every time axis of every value is wanted as the new steps, moved by some places (an int), or as ALL
steps up to a capacity.  Where all steps are wanted of what depends on the text, a cache holds
them; earlier places come from the last few steps; running sums go on from the last one.  What no
rule is known for is computed from all steps again.  Invariant: what is cached was proven to depend
on the steps up to its own alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from retrograde.compiler.errors import UnsupportedError
from retrograde.compiler.ir import dims
from retrograde.compiler.ir.dims import Dim, Symbol
from retrograde.compiler.ir.graph import Node, Value
from retrograde.compiler.ops.region import effects_of
from retrograde.compiler.passes.dependence import Dependence
from retrograde.compiler.passes.time_axes import RUNNING, holds, mentions

NEW, CAPACITY = "N", "C"  # sizes of the graph that is made: new steps, steps in a cache
ALL = "all"
Role = int | str  # new steps, so many places later; or ALL
Roles = tuple[tuple[int, Role], ...]  # by time axis, rising

_ACTING = frozenset({"softmax", "log_softmax", "sort", "argsort"})
_MOVING = frozenset({"reshape", "transpose"})


@dataclass
class Wanted:
    """How a value is made in some roles: "node", "cache", "tail", "run", "pick" (of all steps)."""

    how: str
    axis: int = 0


@dataclass
class Roled:
    """The flattened graph, and in which roles its values are wanted."""

    seen: Dependence
    fed: tuple[Value, ...]  # the inputs that grow with the text, tokens first
    time: Symbol
    wanted: dict[Value, dict[Roles, Wanted]] = field(default_factory=dict)
    timed: set[Value] = field(default_factory=set)
    nodes_of: dict[Value, Node] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.timed = set(self.fed)
        for node in self.seen.graph.nodes:
            attrs = (x for x in node.attrs.values())
            if (
                any(v in self.timed for v in node.inputs)
                or any(holds(v.shape, self.time.name) for v in node.outputs)
                or any(holds(x, self.time.name) for x in attrs)
            ):
                self.timed.update(node.outputs)
        self.nodes_of = self.seen.graph.producers()

    def axes(self, v: Value) -> list[int]:
        return sorted(self.seen.axes.of[v])

    def on_text(self, v: Value) -> bool:
        """Whether the value depends on what is fed."""
        return any(x in self.seen.sees[v] for x in self.fed)

    # --- the way back

    def want(self, v: Value, roles: Mapping[int, Role]) -> None:
        """Notes that `v` is wanted in these roles, and how it will be made."""
        if v not in self.timed:
            return
        if v in self.seen.axes.strange:
            raise self.refused(v, "cuts or joins time axes")
        key = tuple((a, roles[a]) for a in self.axes(v))
        known = self.wanted.setdefault(v, {})
        if key in known:
            return
        made = known[key] = self._how(v, dict(key))
        if made.how in ("cache", "tail"):
            self.want(v, {made.axis: 0})
        elif made.how == "pick":
            self.want(v, {**dict(key), made.axis: ALL})

    def _how(self, v: Value, roles: dict[int, Role]) -> Wanted:
        node = self.nodes_of.get(v)
        if len(roles) == 1 and self.on_text(v):
            ((axis, role),) = roles.items()
            time = self.seen.axes.of[v][axis]
            keeps = time.plain and time.extra == 0 and self.seen.causal(v)
            if keeps and role == ALL and not self._stretched(v):
                return Wanted("cache", axis)
            if keeps and isinstance(role, int) and role < 0:
                return Wanted("tail", axis)
            if keeps and role == 0 and node is not None and self._runs(node, axis):
                return Wanted("run", axis)
        if node is None:
            if any(role != 0 for role in roles.values()):
                raise self.refused(v, "is read at other places than the new ones")
            return Wanted("node")
        acting = self._acts_on(node)
        for axis, role in roles.items():
            if axis in acting and role != ALL:
                return Wanted("pick", axis)
        return Wanted("node")

    def _runs(self, node: Node, axis: int) -> bool:
        if node.op.name not in RUNNING or node.attrs["axis"] != axis:
            return False
        return not node.attrs["reverse"]

    def _acts_on(self, node: Node) -> set[int]:
        if node.op.name in _ACTING or node.op.name in RUNNING:
            return {node.attrs["axis"]}
        return set(node.attrs["axes"]) if node.op.name == "flip" else set()

    def _stretched(self, v: Value) -> bool:
        """Whether the value is another one repeated, which takes less to keep."""
        node = self.nodes_of.get(v)
        while node is not None and node.op.name in _MOVING:
            node = self.nodes_of.get(node.inputs[0])
        return node is not None and node.op.name == "broadcast_to"

    def refused(self, v: Value, why: str) -> UnsupportedError:
        node = self.nodes_of.get(v)
        place = "an input" if node is None else f"{node.place}: {node.op.name}"
        return UnsupportedError(
            f"{place} {why}: no program for one step at a time is known for that; the sequence can "
            "still be computed whole"
        )

    def follow(self, node: Node) -> None:
        """What a node's operands are wanted as."""
        for v in node.outputs:
            for roles, made in list(self.wanted.get(v, {}).items()):
                if made.how in ("node", "run"):
                    self._operands(node, v, dict(roles), made)

    def _operands(self, node: Node, v: Value, roles: dict[int, Role], made: Wanted) -> None:
        name = node.op.name
        if effects_of(node):
            raise self.refused(v, "acts on something outside")
        if name == "scan":
            self._scan(node, roles)
        elif name == "iota":
            if not self.seen.axes.of[v][0].plain:
                raise self.refused(v, "counts several places a step")
        elif name == "dim_value":
            raise self.refused(v, "is the number of steps")
        elif name == "slice":
            self._slice(node, roles)
        elif name == "pad":
            self._pad(node, roles)
        elif name == "concatenate":
            self._concatenate(node, roles)
        elif made.how == "run":
            for x in node.inputs:
                self.want(x, roles)
        else:
            self._usual(node, v, roles)

    def _usual(self, node: Node, v: Value, roles: dict[int, Role]) -> None:
        labels = self.seen.axes.labels(node)
        rank = v.type.ndim
        if not node.inputs or len(labels) != len(node.inputs):
            raise self.refused(v, "has as many elements as there are steps")
        for x, own in zip(node.inputs, labels, strict=True):
            if x not in self.timed:
                continue
            if own is None:
                raise self.refused(v, "has no rule")
            found: dict[int, Role] = {}
            for a in self.axes(x):
                if a not in own:
                    raise self.refused(v, "moves a time axis")
                label = own[a]
                found[a] = ALL if label >= rank else roles[label]
            self.want(x, found)

    def _scan(self, node: Node, roles: dict[int, Role]) -> None:
        n, m = node.attrs["carries"], node.attrs["carries"] + node.attrs["slices"]
        v = node.outputs[0]
        if (
            roles != {0: 0}
            or node.attrs["reverse"]
            or not holds(node.attrs["length"], self.time.name)
            or mentions(node.attrs["body"], self.time.name)
        ):
            raise self.refused(v, "is a loop that does not go along time, over what does")
        for i, x in enumerate(node.inputs):
            if n <= i < m:
                self.want(x, {0: 0})
            elif x in self.timed:
                raise self.refused(v, "is a loop that begins with, or captures, what has time")

    def _slice(self, node: Node, roles: dict[int, Role]) -> None:
        x = node.inputs[0]
        found: dict[int, Role] = {}
        for a in self.axes(x):
            start, step = node.attrs["start"][a], node.attrs["step"][a]
            role = roles.get(a)
            if role is None or role == ALL:
                if holds(start, self.time.name) or step != 1:
                    raise self.refused(node.output, "starts at a place that depends on the steps")
                found[a] = ALL
            elif step == 1 and isinstance(start, int) and isinstance(role, int):
                found[a] = role + start
            else:
                raise self.refused(node.output, "leaves steps out")
        self.want(x, found)

    def _pad(self, node: Node, roles: dict[int, Role]) -> None:
        x = node.inputs[0]
        found: dict[int, Role] = {}
        for a in self.axes(x):
            low, gap, role = node.attrs["low"][a], node.attrs["interior"][a], roles[a]
            if gap or not isinstance(low, int):
                raise self.refused(node.output, "puts something between steps")
            found[a] = role if isinstance(role, str) else role - low
            if isinstance(role, int) and role - low > self.seen.axes.of[x][a].extra:
                raise self.refused(node.output, "reads what is behind the last step")
        self.want(x, found)

    def _concatenate(self, node: Node, roles: dict[int, Role]) -> None:
        axis, behind = node.attrs["axis"], 0
        last: Role | None = None
        at: Dim = behind
        for x in node.inputs:
            found: dict[int, Role] = {a: roles[a] for a in self.axes(x)}
            role = roles.get(axis)
            if axis in found and isinstance(role, int):
                if not isinstance(at, int) or last is not None:
                    raise self.refused(node.output, "joins two sequences one behind the other")
                last = role - at
                if last > self.seen.axes.of[x][axis].extra:
                    raise self.refused(node.output, "reads what is behind the last step")
                found[axis] = last
            self.want(x, found)
            at = at + x.shape[axis]


def size_of(axis: int, d: Dim, role: Role, roled: Roled, v: Value) -> Dim:
    """The size of a time axis in a role."""
    if role == ALL:
        return dims.substitute(d, {roled.time.name: dims.dim(CAPACITY)})
    return roled.seen.axes.of[v][axis].sized(dims.dim(NEW))
