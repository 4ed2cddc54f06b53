"""The rules of single nodes in an incremental program: (node, roles) -> what it becomes.

Invariant: a node is written for new steps or for all steps with the attributes it had, but for
sizes; what it reads before the first step is what it reads there in the whole sequence.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.builder import Builder
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.dtypes import DType
from retrograde.compiler.ir.expr import Expr, cast
from retrograde.compiler.ir.graph import Node, TensorType, Value
from retrograde.compiler.ir.registry import lookup
from retrograde.compiler.passes.incremental_roles import (
    ALL,
    CAPACITY,
    NEW,
    Role,
    Roled,
    Roles,
    Wanted,
    size_of,
)

# What a running op has before its first step.
_EMPTY = {"cumsum": 0.0, "cumprod": 1.0, "cummax": -math.inf, "cummin": math.inf,
          "linear_recurrence": 0.0}  # fmt: skip


class NodeRules(ABC):
    """Writes nodes into `b`; what it reads is in `made`, by value and roles."""

    roled: Roled
    b: Builder
    start: Expr  # how many steps there were
    state: list[Any]
    new: list[Expr]  # what replaces the state
    made: dict[tuple[Value, Roles], Expr]

    @abstractmethod
    def _state(
        self, kind: str, name: str, type: TensorType, first: Value | None = None,
        fill: float = 0.0, at: int | None = None,
    ) -> Expr:  # fmt: skip
        """One more array of state."""

    @abstractmethod
    def _plain(self, v: Value) -> Expr:
        """A value without time."""

    def _label(self, kind: str, node: Node | None, of: str = "") -> str:
        return f"{kind} {of if node is None else node.place or node.op.name}"

    def _along(self, x: Expr, places: Expr, axis: int) -> Expr:
        """The elements at `places` [n] along an axis."""
        found = lookup("gather")(x, places, axes=(axis,), wrap=False, within=True)
        back = (*range(1, axis + 1), 0, *range(axis + 1, x.ndim))
        out: Expr = lookup("transpose")(found, perm=back) if axis else found
        return out

    def _places(self, by: int, dtype: DType = dtypes.i64) -> Expr:
        """The places of the new steps, moved."""
        rows = lookup("iota")(size=dims.dim(NEW), dtype=dtype)
        out: Expr = rows + (cast(self.start, dtype) + by if by else cast(self.start, dtype))
        return out

    def _cut(self, x: Expr, axis: int, start: Dim, stop: Dim) -> Expr:
        starts = tuple(start if a == axis else 0 for a in range(x.ndim))
        stops = tuple(stop if a == axis else d for a, d in enumerate(x.shape))
        out: Expr = lookup("slice")(x, start=starts, stop=stops, step=(1,) * x.ndim)
        return out

    def _apply(self, node: Node, operands: Sequence[Expr], attrs: Any) -> list[Expr]:
        values = self.b.emit(node.op, [self.b.lift(x).value for x in operands], attrs)
        return [Expr(v, self.b) for v in values]

    def _shape(self, v: Value, roles: dict[int, Role]) -> tuple[Dim, ...]:
        return tuple(
            size_of(a, d, roles[a], self.roled, v) if a in roles else d
            for a, d in enumerate(v.shape)
        )

    def _operand(self, x: Value, roles: dict[int, Role]) -> Expr:
        if x not in self.roled.timed:
            return self._plain(x)
        return self.made[x, tuple((a, roles[a]) for a in sorted(self.roled.axes(x)))]

    def _results(self, node: Node, v: Value, roles: dict[int, Role], made: Wanted) -> list[Expr]:
        name = node.op.name
        if made.how == "run":
            return [self._running(node, made.axis)]
        if name == "iota":
            return [self._iota(node, roles[0])]
        if name == "scan":
            return self._scan(node)
        if name == "slice":
            return [self._slice(node, v, roles)]
        if name == "pad":
            return [self._pad(node, v, roles)]
        if name == "concatenate":
            return [self._concatenate(node, v, roles)]
        operands = self._usual_operands(node, v, roles)
        if name == "attention" and node.attrs["causal"]:
            return [self._attention(node, roles, operands)]
        attrs = dict(node.attrs)
        if name in ("broadcast_to", "reshape"):
            attrs["shape"] = self._shape(v, roles)
        return self._apply(node, operands, attrs)

    def _usual_operands(self, node: Node, v: Value, roles: dict[int, Role]) -> list[Expr]:
        labels = self.roled.seen.axes.labels(node)
        rank = v.type.ndim
        operands = []
        for x, own in zip(node.inputs, labels, strict=True):
            found: dict[int, Role] = {}
            for a in self.roled.axes(x):
                label = (own or {})[a]
                found[a] = ALL if label >= rank else roles[label]
            operands.append(self._operand(x, found))
        return operands

    def _iota(self, node: Node, role: Role) -> Expr:
        dtype = node.attrs["dtype"]
        if isinstance(role, int):
            return self._places(role, dtype)
        size = dims.substitute(
            node.attrs["size"], {self.roled.time.name: dims.dim(CAPACITY)}
        )
        out: Expr = lookup("iota")(size=size, dtype=dtype)
        return out

    def _attention(self, node: Node, roles: dict[int, Role], operands: list[Expr]) -> Expr:
        """Attention to the keys up to the query's own place."""
        q, k, v, *masks = operands
        ahead = node.inputs[1].shape[-2] - node.inputs[0].shape[-2]
        role = roles.get(q.ndim - 2)
        if role is None or role == ALL or not isinstance(ahead, int):
            return self._apply(node, operands, node.attrs)[0]
        assert isinstance(role, int)
        rows = lookup("reshape")(self._places(role + ahead, dtypes.i32), shape=(q.shape[-2], 1))
        columns = lookup("iota")(size=k.shape[-2], dtype=dtypes.i32)
        columns = lookup("reshape")(columns, shape=(1, k.shape[-2]))
        mask = lookup("less_equal")(columns, rows)
        for other in masks:
            mask = lookup("logical_and")(mask, other)
        attrs = {**node.attrs, "causal": False}
        return self._apply(node, [q, k, v, mask], attrs)[0]

    def _slice(self, node: Node, v: Value, roles: dict[int, Role]) -> Expr:
        x = node.inputs[0]
        starts, stops = list(node.attrs["start"]), list(node.attrs["stop"])
        found: dict[int, Role] = {}
        rows: list[tuple[int, int]] = []
        times = self.roled.axes(x)
        for a in range(x.type.ndim):
            role = roles.get(a)
            if a in times and isinstance(role, int):
                found[a] = role + starts[a]
                starts[a], stops[a] = 0, dims.dim(NEW)
            elif a in times:
                found[a] = ALL
                stops[a] = self._of_capacity(stops[a])
            elif isinstance(role, int):  # so many rows of a table
                rows.append((a, role + starts[a]))
                starts[a], stops[a] = 0, x.shape[a]
            elif role == ALL:
                stops[a] = self._of_capacity(stops[a])
        out = self._operand(x, found)
        for a, by in rows:
            out = self._along(out, self._places(by), a)
            stops[a] = dims.dim(NEW)
        attrs = {**node.attrs, "start": tuple(starts), "stop": tuple(stops)}
        return self._apply(node, [out], attrs)[0]

    def _of_capacity(self, d: Dim) -> Dim:
        return dims.substitute(d, {self.roled.time.name: dims.dim(CAPACITY)})

    def _pad(self, node: Node, v: Value, roles: dict[int, Role]) -> Expr:
        x = node.inputs[0]
        low, high = list(node.attrs["low"]), list(node.attrs["high"])
        found: dict[int, Role] = {}
        before: list[tuple[int, int]] = []
        for a in self.roled.axes(x):
            role = roles[a]
            if isinstance(role, int):
                found[a] = role - low[a]
                if low[a] > 0:
                    before.append((a, role - low[a]))
                low[a] = high[a] = 0
            else:
                found[a] = ALL
                high[a] = self._of_capacity(high[a])
        out = self._operand(x, found)
        for a, by in before:  # the places before the first step
            inside = lookup("less_equal")(self.b.constant(0, dtypes.i64), self._places(by))
            shape = tuple(dims.dim(NEW) if i == a else 1 for i in range(out.ndim))
            fill = self.b.constant(node.attrs["value"], out.dtype)
            out = lookup("select")(lookup("reshape")(inside, shape=shape), out, fill)
        attrs = {**node.attrs, "low": tuple(low), "high": tuple(high)}
        return self._apply(node, [out], attrs)[0]

    def _concatenate(self, node: Node, v: Value, roles: dict[int, Role]) -> Expr:
        axis = node.attrs["axis"]
        role = roles.get(axis)
        if not isinstance(role, int):
            parts = [
                self._operand(x, {a: roles[a] for a in self.roled.axes(x)}) for x in node.inputs
            ]
            return self._apply(node, parts, node.attrs)[0]
        out: Expr | None = None
        at: Dim = 0
        shape = tuple(dims.dim(NEW) if i == axis else 1 for i in range(v.type.ndim))
        ends: list[tuple[int, Expr]] = []
        for x in node.inputs:
            found: dict[int, Role] = {a: roles[a] for a in self.roled.axes(x)}
            if axis in found and isinstance(at, int):
                found[axis] = role - at
                out = self._operand(x, found)
                break  # what comes behind the last step is not reached
            assert isinstance(at, int)
            length = x.shape[axis]
            assert isinstance(length, int)
            part = self._operand(x, found)
            places = lookup("minimum")(lookup("maximum")(self._places(role - at), 0), length - 1)
            if length:
                ends.append((at + length, self._along(part, places, axis)))
            at = at + length
        assert out is not None
        for end, part in reversed(ends):
            inside = lookup("less")(self._places(role), self.b.constant(end, dtypes.i64))
            out = lookup("select")(lookup("reshape")(inside, shape=shape), part, out)
        return out

    def _running(self, node: Node, axis: int) -> Expr:
        """A running sum that goes on: the last of it stands before the new steps."""
        v = node.output
        shape = tuple(1 if a == axis else d for a, d in enumerate(v.shape))
        at = len(self.state)
        last = self._state(
            "run", self._label("last of", node), TensorType(v.dtype, shape),
            fill=_EMPTY[node.op.name],
        )  # fmt: skip
        operands = [self._operand(x, {axis: 0}) for x in node.inputs]
        longer = [
            lookup("concatenate")(cast(last, x.dtype), x, axis=axis) for x in operands
        ]
        out = self._apply(node, longer, node.attrs)[0]
        count = dims.dim(NEW)
        self.new[at] = self._cut(out, axis, count, count + 1)
        return self._cut(out, axis, 1, count + 1)

    def _scan(self, node: Node) -> list[Expr]:
        """A loop that goes on from its carry."""
        n, m = node.attrs["carries"], node.attrs["carries"] + node.attrs["slices"]
        carries, at = [], []
        names = node.attrs["body"].input_names or ("",) * len(node.inputs)
        for x, name in zip(node.inputs[:n], names, strict=False):
            at.append(len(self.state))
            label = f"{name or 'carry'} {node.place}"
            carries.append(self._state("carry", label, x.type, x))
        rest = [
            self._operand(x, {0: 0}) if i < m - n else self._plain(x)
            for i, x in enumerate(node.inputs[n:])
        ]
        attrs = {**node.attrs, "length": dims.dim(NEW)}
        results = self._apply(node, [*carries, *rest], attrs)
        for i, e in zip(at, results, strict=False):
            self.new[i] = e
        return results
