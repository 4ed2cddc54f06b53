"""Writing an incremental program down: values in the roles that they are wanted in -> two graphs.

Invariant: state is read once, and what replaces it is written once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.builder import Builder
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.expr import Expr, cast, dim_number
from retrograde.compiler.ir.graph import Graph, Node, TensorType, Value
from retrograde.compiler.ir.registry import Kind, lookup
from retrograde.compiler.passes.dce import DCE
from retrograde.compiler.passes.incremental_nodes import NodeRules
from retrograde.compiler.passes.incremental_roles import (
    ALL,
    CAPACITY,
    NEW,
    Role,
    Roled,
    Roles,
    Wanted,
)


@dataclass(frozen=True)
class State:
    """One array that goes from step to step.

    `kind`: "start" (how many steps there were), "cache", "tail" (the last few steps), "run" and
    "carry" (of sums and loops), "held" (what does not depend on time), "given" (an input).  At the
    beginning it is input `first` of the original graph where it is given, else output `first` of
    the graph of that name, else filled with `fill`.  `batch`: its axis of rows."""

    kind: str
    name: str
    type: TensorType
    first: int | None = None
    fill: float = 0.0
    batch: int | None = None


@dataclass(frozen=True)
class Incremental:
    """`step`: (state, tokens [B, N], what is known with them [B, N, ...], maybe parents [B]) ->
    (new state, logits [B, N, ...]); output i replaces input i of the state.  `first`: (inputs of
    the original graph, those at `first_given`, then rows [B], whose numbers do not matter) -> what
    state begins with; None where no state needs it."""

    step: Graph
    first: Graph | None
    state: tuple[State, ...]
    first_given: tuple[int, ...]

    @property
    def caches(self) -> list[State]:
        return [s for s in self.state if s.kind == "cache"]


def emitted(roled: Roled, logits: Value, batch: Dim, beams: bool) -> Incremental:
    """The graphs of `incremental`."""
    return _Emitter(roled, batch, beams).run(logits)


class _Emitter(NodeRules):
    def __init__(self, roled: Roled, batch: Dim, beams: bool) -> None:
        self.roled = roled
        self.flat = roled.seen.graph
        self.batch = batch
        self.b = Builder(self.flat.name, Expr)
        self.made: dict[tuple[Value, Roles], Expr] = {}
        self.fixed: dict[Value, Expr] = {}  # what does not depend on time
        self.state: list[State] = []
        self.old: list[Expr] = []
        self.new: list[Expr] = []
        self.firsts: list[Value] = []  # of the flat graph
        self.given: dict[Value, Expr] = {}
        self.beams = beams
        self.fed: list[Expr] = []
        self.parents: Expr | None = None
        self.start: Expr

    def run(self, logits: Value) -> Incremental:
        with self.b:
            for v in self.roled.fed:
                type = TensorType(v.dtype, self._new_steps(v))
                self.fed.append(self.b.input(type, self._input_name(v)))
            given = list(zip(self.roled.fed, self.fed, strict=True))
            if self.beams:
                self.parents = self.b.input(TensorType(dtypes.i64, (self.batch,)), "parents")
                self.fed.append(self.parents)
            self.start = self._state("start", "start", TensorType(dtypes.i64))
            self.new[0] = self.start + cast(dim_number(dims.dim(NEW)), dtypes.i64)
            for v, x in given:
                self._value(v, None, x)
            for node in self.flat.nodes:
                if any(v in self.roled.wanted for v in node.outputs):
                    with self.b.located(node.loc, node.scope, node.origin):
                        self._node(node)
            axis = next(iter(self.roled.seen.axes.of[logits]))
            out = self.made[logits, ((axis, 0),)]
        return self._finished(out)

    def _new_steps(self, v: Value) -> tuple[Dim, ...]:
        times = self.roled.seen.axes.of[v]
        return tuple(dims.dim(NEW) if a in times else d for a, d in enumerate(v.shape))

    def _input_name(self, v: Value) -> str:
        return self.flat.input_names[self.flat.inputs.index(v)]

    def _named(self, kind: str, v: Value, node: Node | None) -> str:
        return self._label(kind, node, "" if node is not None else self._input_name(v))

    def _finished(self, out: Expr) -> Incremental:
        names = dict(zip((id(v) for v in self.b.inputs), self.b.input_names, strict=True))
        states = [e.value for e in self.old]
        fed = [e.value for e in self.fed]
        inputs = [*states, *fed]
        count = len(states)
        step = Graph(
            self.flat.name, tuple(inputs), tuple(self.b.nodes),
            (*(e.value for e in self.new), out.value),
            tuple(names[id(v)] for v in inputs),
            (*(s.name for s in self.state), "logits"),
            tuple((i, i) for i in range(count)),
        )  # fmt: skip
        first, first_given = self._first()
        return Incremental(DCE()(step), first, tuple(self.state), first_given)

    def _first(self) -> tuple[Graph | None, tuple[int, ...]]:
        if not self.firsts:
            return None, ()
        whole = DCE()(
            Graph(
                f"{self.flat.name}.first", self.flat.inputs, self.flat.nodes, tuple(self.firsts),
                self.flat.input_names, tuple(f"first.{i}" for i in range(len(self.firsts))),
            )
        )  # fmt: skip
        read = {v for node in whole.nodes for v in node.inputs} | set(whole.outputs)
        kept = [i for i, v in enumerate(whole.inputs) if v in read]
        rows = Builder("rows", Expr).input(TensorType(dtypes.i32, (self.batch,))).value
        graph = whole.replace(
            inputs=(*(whole.inputs[i] for i in kept), rows),
            input_names=(*(whole.input_names[i] for i in kept), "rows"),
        )
        return graph, tuple(kept)

    # --- state

    def _state(
        self, kind: str, name: str, type: TensorType, first: Value | None = None,
        fill: float = 0.0, at: int | None = None,
    ) -> Expr:  # fmt: skip
        """One more array of state; what replaces it is itself, until that is known."""
        index = at
        if first is not None:
            if first not in self.firsts:
                self.firsts.append(first)
            index = self.firsts.index(first)
        batch = next((a for a, d in enumerate(type.shape) if dims.same(d, self.batch)), None)
        self.state.append(State(kind, name, type, index, fill, batch))
        x = self.b.input(type, name)
        self.old.append(x)
        if self.parents is not None and batch is not None and kind not in ("held", "given"):
            x = self._along(x, self.parents, batch)
        self.new.append(x)
        return x

    # --- what does not depend on time

    def _plain(self, v: Value) -> Expr:
        """A value without time: given, made again if that costs nothing, else held as state."""
        found = self.fixed.get(v)
        if found is not None:
            return found
        node = self.roled.nodes_of.get(v)
        if node is None:
            if v not in self.given:
                at = self.flat.inputs.index(v)
                self.given[v] = self._state("given", self.flat.input_names[at], v.type, at=at)
            found = self.given[v]
        elif self._costs(v):
            found = self._state("held", node.place or node.op.name, v.type, v)
        else:
            results = self._apply(node, [self._plain(x) for x in node.inputs], node.attrs)
            self.fixed.update(zip(node.outputs, results, strict=True))
            found = self.fixed[v]
        self.fixed[v] = found
        return found

    def _costs(self, v: Value) -> bool:
        """Whether a value without time is more than numbers and moved inputs."""
        seen: dict[Value, bool] = {}

        def reads(x: Value) -> bool:  # whether inputs are behind it
            if x not in seen:
                node = self.roled.nodes_of.get(x)
                seen[x] = node is None or any(map(reads, node.inputs))
            return seen[x]

        work = [v]
        while work:
            node = self.roled.nodes_of.get(work.pop())
            if node is None:
                continue
            if any(map(reads, node.inputs)):
                if node.op.kind is not Kind.MOVE or node.op.name == "concatenate":
                    return True
                work.extend(node.inputs)
            elif node.op.kind not in (Kind.CREATE, Kind.MOVE, Kind.ELEMENTWISE):
                return True
        return False

    # --- values in their roles

    def _node(self, node: Node) -> None:
        done: dict[tuple[Any, ...], list[Expr]] = {}
        for k, v in enumerate(node.outputs):
            for roles, made in self.roled.wanted.get(v, {}).items():
                if made.how not in ("node", "run"):
                    continue
                if roles not in done:
                    done[roles] = self._results(node, v, dict(roles), made)
                self.made[v, roles] = done[roles][k]
        for v in node.outputs:
            self._value(v, node, None)

    def _value(self, v: Value, node: Node | None, fed: Expr | None) -> None:
        """The other roles of a value, from its new steps or from all of them."""
        wanted = self.roled.wanted.get(v, {})
        if fed is not None:
            for roles, made in wanted.items():
                if made.how == "node":
                    self.made[v, roles] = fed
        tails = [(a, int(r), key) for key, made in wanted.items() if made.how == "tail"
                 for a, r in key]  # fmt: skip
        for key, made in wanted.items():
            if made.how == "cache":
                self.made[v, key] = self._cached(v, made.axis, node)
        if tails:
            self._tailed(v, node, tails)
        for key, made in wanted.items():
            if made.how == "pick":
                self.made[v, key] = self._picked(v, dict(key), made)

    def _cached(self, v: Value, axis: int, node: Node | None) -> Expr:
        """All steps: those before, with the new ones written behind them."""
        new = self.made[v, ((axis, 0),)]
        shape = tuple(dims.dim(CAPACITY) if a == axis else d for a, d in enumerate(v.shape))
        at = len(self.state)
        old = self._state("cache", self._named("cache", v, node), TensorType(v.dtype, shape))
        first = (axis, *(a for a in range(new.ndim) if a != axis))
        rows = lookup("transpose")(new, perm=first) if axis else new
        out: Expr = lookup("scatter_set")(
            old, rows, self._places(0), axes=(axis,), wrap=False, within=True
        )
        self.new[at] = out
        return out

    def _tailed(self, v: Value, node: Node | None, tails: list[tuple[int, int, Roles]]) -> None:
        """Earlier places, from the last steps of before and the new ones."""
        axis, most = tails[0][0], max(-by for _, by, _ in tails)
        new = self.made[v, ((axis, 0),)]
        shape = tuple(most if a == axis else d for a, d in enumerate(v.shape))
        at = len(self.state)
        old = self._state("tail", self._named("last steps of", v, node), TensorType(v.dtype, shape))
        both = lookup("concatenate")(old, new, axis=axis)
        count = dims.dim(NEW)
        self.new[at] = self._cut(both, axis, count, count + most)
        for _, by, key in tails:
            self.made[v, key] = self._cut(both, axis, most + by, count + most + by)

    def _picked(self, v: Value, roles: dict[int, Role], made: Wanted) -> Expr:
        """The new steps of what was made for all."""
        whole = {**roles, made.axis: ALL}
        key = tuple((a, whole[a]) for a in sorted(whole))
        if (v, key) not in self.made and self.roled.wanted[v][key].how == "pick":
            inner = self.roled.wanted[v][key]
            self.made[v, key] = self._picked(v, whole, inner)
        by = roles[made.axis]
        assert isinstance(by, int)
        return self._along(self.made[v, key], self._places(by), made.axis)
