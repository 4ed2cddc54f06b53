"""When an element counts: values of a graph -> guards on the places of an element.

`Facts` finds under which `Guard` a boolean may be true or false, a number may differ from 0 or from
minus infinity.  Comparisons of places (`arange`, `tril`) make bands, equality of one array at two
places makes segments.  A score that a mask sets to -1e9 or less counts as minus infinity: its
softmax weight is 0 in f32 beside any open one.  Invariant: where a guard does not hold, the element
is what the fact says, for all numbers that are finite.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.graph import Node, Value
from retrograde.compiler.passes.guards import ALWAYS, INF, NEVER, Guard, Pair, Step, band, pair_of
from retrograde.compiler.passes.time_axes import Labels, TimeAxes, aligned

CLOSED = -1e9  # a score of at most that is closed

# f(0) = 0
_KEEP_ZERO = frozenset(
    {"neg", "abs", "relu", "sqrt", "sign", "tanh", "sin", "tan", "arctan", "sinh", "expm1", "log1p",
     "erf", "gelu", "silu", "cast", "stop_gradient", "floor", "ceil", "round", "trunc"}
)  # fmt: skip
_MOVES = frozenset({"broadcast_to", "reshape", "transpose", "slice", "cast", "stop_gradient"})


@dataclass(frozen=True)
class Affine:
    """The number that stands at a place: the sum of factor * place, plus a number."""

    factors: Mapping[int, int]
    number: Dim = 0

    def combined(self, other: Affine, sign: int) -> Affine:
        factors = dict(self.factors)
        for axis, factor in other.factors.items():
            factors[axis] = factors.get(axis, 0) + sign * factor
        kept = {axis: factor for axis, factor in factors.items() if factor}
        return Affine(kept, self.number + sign * other.number)


@dataclass(frozen=True)
class Moved:
    """A value that holds elements of another: the axis of the result that each axis of it goes
    along, and by how much the place is shifted."""

    root: Value
    axes: Mapping[int, int]
    shift: Mapping[int, int] = field(default_factory=dict)


class Facts:
    """What is known of the values of a flattened graph; `segments` is the array of segment ids."""

    def __init__(self, axes: TimeAxes, segments: Value | None = None) -> None:
        self.axes = axes
        self.segments = segments
        self.true: dict[Value, Guard] = {}
        self.false: dict[Value, Guard] = {}
        self.nonzero: dict[Value, Guard] = {}
        self.open: dict[Value, Guard] = {}  # not minus infinity
        self.affine: dict[Value, Affine] = {}
        self.constant: dict[Value, Any] = {}
        self.moved: dict[Value, Moved] = {}
        for v in axes.graph.inputs:
            self.moved[v] = Moved(v, {a: a for a in range(v.type.ndim)})

    def learn(self, node: Node) -> None:
        """Takes in what a node makes; its operands come first."""
        if not node.outputs:
            return
        out, name = node.outputs[0], node.op.name
        if name == "constant":
            self._constant(out, node.attrs["value"])
        elif name == "iota":
            self.affine[out] = Affine({0: 1})
        elif name == "dim_value":
            self.affine[out] = Affine({}, node.attrs["size"])
        elif name in _MOVES:
            self._move(node, out)
        elif name in ("pad", "concatenate", "flip"):
            self._window(node, out)
        elif name in ("less", "less_equal", "equal", "not_equal"):
            self._compared(node, out)
        elif name in ("logical_and", "logical_or", "logical_not"):
            self._logic(node, out)
        elif name == "select":
            self._select(node, out)
        else:
            self._number(node, out)

    def _constant(self, out: Value, value: Any) -> None:
        self.constant[out] = value
        if isinstance(value, bool):
            self.true[out], self.false[out] = (ALWAYS, NEVER) if value else (NEVER, ALWAYS)
        elif isinstance(value, int):
            self.affine[out] = Affine({}, value)
        if not isinstance(value, bool) and value == 0:
            self.nonzero[out] = NEVER
        if isinstance(value, float) and value <= CLOSED:
            self.open[out] = NEVER

    def _move(self, node: Node, out: Value) -> None:
        x = node.inputs[0]
        labels, shift = self._moving(node)
        for known in (self.true, self.false, self.nonzero, self.open):
            if x in known:
                known[out] = known[x].moved(labels, shift)
        if node.op.name == "cast":
            if x.dtype is dtypes.bool_:
                self.nonzero[out] = self.true.get(x, ALWAYS)
            if not (x.dtype.is_integer and out.dtype.is_integer):
                return
        if x in self.constant:
            self.constant[out] = self.constant[x]
        if x in self.affine and set(self.affine[x].factors) <= set(labels):
            old = self.affine[x]
            more = sum(f * shift.get(a, 0) for a, f in old.factors.items())
            factors = {labels[a]: f for a, f in old.factors.items()}
            self.affine[out] = Affine(factors, old.number + more)
        if x in self.moved and self._whole(x, labels):
            old_move = self.moved[x]
            self.moved[out] = Moved(
                old_move.root,
                {a: labels[i] for a, i in old_move.axes.items() if i in labels},
                {a: old_move.shift.get(a, 0) + shift.get(i, 0) for a, i in old_move.axes.items()},
            )
        elif node.op.name == "reshape":
            self._stretched(node, x, out)

    def _stretched(self, node: Node, x: Value, out: Value) -> None:
        """Segments whose steps are each there several times, one behind the other."""
        old = self.moved.get(x)
        if old is None or old.root is not self.segments or any(old.shift.values()):
            return
        labels, axes = _reshaped(x, out), dict[int, int]()
        for a, i in old.axes.items():
            k = labels.get(i, self.axes.along(node, i))
            if k is None:
                return
            axes[a] = k
        self.moved[out] = Moved(old.root, axes)

    def _whole(self, x: Value, labels: Labels) -> bool:
        """Whether every axis of x that has a size goes along."""
        return all(a in labels or dims.same(d, 1) for a, d in enumerate(x.shape))

    def _moving(self, node: Node) -> tuple[Labels, dict[int, int]]:
        """Where the axes go, and how places shift: old = new + shift."""
        x, out, name = node.inputs[0], node.outputs[0], node.op.name
        if name in ("broadcast_to", "cast", "stop_gradient"):
            return aligned(x, out), {}
        if name == "transpose":
            return {a: i for i, a in enumerate(node.attrs["perm"])}, {}
        if name == "reshape":
            return _reshaped(x, out), {}
        labels, shift = {}, {}
        for a, (start, step) in enumerate(
            zip(node.attrs["start"], node.attrs["step"], strict=True)
        ):
            if step == 1 and isinstance(start, int):
                labels[a], shift[a] = a, start
        return labels, shift

    def _window(self, node: Node, out: Value) -> None:
        """Something around what is known: zeros, or places that there are not."""
        if node.op.name == "concatenate":
            self._joined(node, out)
        if node.op.name != "pad":
            return
        x, low = node.inputs[0], node.attrs["low"]
        if not all(isinstance(n, int) for n in low) or any(node.attrs["interior"]):
            return
        plain, shift = {a: a for a in range(x.type.ndim)}, {a: -n for a, n in enumerate(low)}
        if x in self.nonzero and node.attrs["value"] == 0:
            self.nonzero[out] = self.nonzero[x].moved(plain, shift)
        if x in self.moved and self.moved[x].root is self.segments:
            old = self.moved[x]
            more = {a: old.shift.get(a, 0) + shift[i] for a, i in old.axes.items()}
            self.moved[out] = Moved(old.root, old.axes, more)

    def _joined(self, node: Node, out: Value) -> None:
        """Of a boolean behind so many others: steps back to where there is no place."""
        axis = node.attrs["axis"]
        before: Dim = 0
        for x in node.inputs:
            if axis in self.axes.of[x]:
                break
            before = before + x.shape[axis]
        else:
            return
        if not isinstance(before, int) or (before and x is not node.inputs[-1]):
            return
        for known in (self.true, self.false):
            moved = known.get(x, ALWAYS).moved(
                {a: a for a in range(x.type.ndim)}, {axis: -before}
            )
            known[out] = Guard(steps=frozenset(
                (i, a, b) for i, a, b in moved.steps
                if i == axis and (min(a, b) <= -before or max(a, b) >= self._behind(node, x, axis))
            ))  # fmt: skip

    def _behind(self, node: Node, x: Value, axis: int) -> float:
        """How many places come behind `x`; none that steps could reach where that is unknown."""
        at = node.inputs.index(x)
        after = sum((y.shape[axis] for y in node.inputs[at + 1 :]), start=0)
        if at or not isinstance(after, int) or not after:
            return INF
        return after

    def _compared(self, node: Node, out: Value) -> None:
        a, b = node.inputs
        name = node.op.name
        if name in ("equal", "not_equal") and self._same_segment(a, b, out):
            known = self.true if name == "equal" else self.false
            known[out] = self._segments_of(a, b, out)
            return
        if name in ("equal", "not_equal") and (steps := self._steps_of(a, b, out)):
            known = self.true if name == "equal" else self.false
            known[out] = Guard(steps=steps)
            return
        left, right = self._affine(a, out), self._affine(b, out)
        if left is None or right is None:
            return
        gap = right.combined(left, -1)  # b - a
        factors = sorted(gap.factors.items(), key=lambda item: item[1])
        if not isinstance(gap.number, int) or [f for _, f in factors] != [-1, 1]:
            return
        (i, _), (j, _) = factors  # b - a = p_j - p_i + number
        n = gap.number
        if name == "less":  # 1 <= b - a
            self.true[out], self.false[out] = band(i, j, 1 - n, INF), band(i, j, -INF, -n)
        elif name == "less_equal":
            self.true[out], self.false[out] = band(i, j, -n, INF), band(i, j, -INF, -n - 1)
        elif name == "equal":
            self.true[out] = band(i, j, -n, -n)
        else:
            self.false[out] = band(i, j, -n, -n)

    def _affine(self, v: Value, out: Value) -> Affine | None:
        found = self.affine.get(v)
        labels = aligned(v, out)
        if found is None or not set(found.factors) <= set(labels):
            return None
        return Affine({labels[a]: f for a, f in found.factors.items()}, found.number)

    def _steps_of(self, a: Value, b: Value, out: Value) -> frozenset[Step]:
        """Two places of the segments, so many steps apart, that are compared."""
        one, other = self.moved.get(a), self.moved.get(b)
        if one is None or other is None or not one.root is other.root is self.segments:
            return frozenset()
        if self._apart(a, b, out):
            return frozenset()
        axes = aligned(a, out)
        found: set[Step] = set()
        for axis, i in one.axes.items():
            if axis in self.axes.of[one.root] and i in axes:
                low, high = sorted((one.shift.get(axis, 0), other.shift.get(axis, 0)))
                found.add((axes[i], low, high))
        return frozenset(found)

    def is_segments(self, v: Value) -> bool:
        """Whether the value is the array of segment ids as it is."""
        moved = self.moved.get(v)
        return (
            moved is not None
            and moved.root is self.segments
            and not any(moved.shift.values())
            and all(moved.axes.get(a) == a for a in range(v.type.ndim))
        )

    def _same_segment(self, a: Value, b: Value, out: Value) -> bool:
        one, other = self.moved.get(a), self.moved.get(b)
        return (
            one is not None
            and other is not None
            and one.root is other.root is self.segments
            and not any(one.shift.values())
            and not any(other.shift.values())
            and len(self._apart(a, b, out)) == 1
        )

    def _apart(self, a: Value, b: Value, out: Value) -> list[tuple[int, Pair]]:
        """The axes of the common root that lie apart in the comparison."""
        one, other = self.moved[a], self.moved[b]
        left, right = aligned(a, out), aligned(b, out)
        found = []
        for axis, d in enumerate(one.root.shape):
            i = left.get(one.axes.get(axis, -1))
            j = right.get(other.axes.get(axis, -1))
            if i != j or (i is None and not dims.same(d, 1)):
                found.append((axis, (-1 if i is None else i, -1 if j is None else j)))
        return found

    def _segments_of(self, a: Value, b: Value, out: Value) -> Guard:
        ((_, (i, j)),) = self._apart(a, b, out)
        return ALWAYS if -1 in (i, j) else Guard(segments=frozenset({pair_of(i, j)}))

    def _logic(self, node: Node, out: Value) -> None:
        parts = [
            (self.guard(self.true, x, out), self.guard(self.false, x, out)) for x in node.inputs
        ]
        if node.op.name == "logical_not":
            ((true, false),) = parts
            self.true[out], self.false[out] = false, true
            return
        (a, not_a), (b, not_b) = parts
        if node.op.name == "logical_and":
            self.true[out], self.false[out] = a.both(b), not_a.either(not_b)
        else:
            self.true[out], self.false[out] = a.either(b), not_a.both(not_b)

    def _select(self, node: Node, out: Value) -> None:
        test, a, b = node.inputs
        true, false = self.guard(self.true, test, out), self.guard(self.false, test, out)
        for known in (self.true, self.false, self.nonzero, self.open):
            first = true.both(self.guard(known, a, out))
            known[out] = first.either(false.both(self.guard(known, b, out)))

    def _number(self, node: Node, out: Value) -> None:
        name, inputs = node.op.name, node.inputs
        zero = [self.guard(self.nonzero, x, out) for x in inputs]
        shut = [self.guard(self.open, x, out) for x in inputs]
        if name in ("add", "sub", "mul") and len(inputs) == 2:
            a, b = (self._affine(x, out) for x in inputs)
            if name != "mul" and a is not None and b is not None:
                self.affine[out] = a.combined(b, 1 if name == "add" else -1)
            elif name == "mul" and a is not None and b is not None:
                self._scaled(out, a, b)
        if name == "add":
            self.nonzero[out], self.open[out] = zero[0].either(zero[1]), shut[0].both(shut[1])
        elif name == "sub":
            self.nonzero[out], self.open[out] = zero[0].either(zero[1]), shut[0]
        elif name == "mul":
            self.nonzero[out] = zero[0].both(zero[1])
            for x, other in ((0, 1), (1, 0)):
                factor = self.constant.get(inputs[other])
                if isinstance(factor, (int, float)) and factor > 0:
                    self.open[out] = shut[x]
        elif name == "div":
            self.nonzero[out] = zero[0]
            factor = self.constant.get(inputs[1])
            if isinstance(factor, (int, float)) and factor > 0:
                self.open[out] = shut[0]
        elif name == "dot_general":
            self.nonzero[out] = self._product(node, out.type.ndim)
        elif name == "exp":
            self.nonzero[out] = shut[0]
        elif name == "softmax":
            self.nonzero[out] = self.open.get(inputs[0], ALWAYS)
        elif name in _KEEP_ZERO:
            self.nonzero[out] = zero[0]

    def _product(self, node: Node, rank: int) -> Guard:
        """Where a product may differ from 0: bands through the axes that are summed over."""
        both = ALWAYS
        for x, labels in zip(node.inputs, self.axes.labels(node), strict=True):
            both = both.both(self.nonzero.get(x, ALWAYS).moved(labels or {}))
        bands = dict(both.bands)
        summed = {a for pair in bands for a in pair if a >= rank}
        for i in range(rank):
            for j in range(i + 1, rank):
                for middle in summed:
                    a, b = both.between(i, middle), both.between(middle, j)
                    low, high = bands.get((i, j), (-INF, INF))
                    bands[i, j] = max(low, a[0] + b[0]), min(high, a[1] + b[1])
        return Guard(bands, both.segments, never=both.never).moved({a: a for a in range(rank)})

    def _scaled(self, out: Value, a: Affine, b: Affine) -> None:
        for one, other in ((a, b), (b, a)):
            if not other.factors and isinstance(other.number, int):
                k = other.number
                factors = {axis: f * k for axis, f in one.factors.items() if f * k}
                self.affine[out] = Affine(factors, one.number * k)
                return

    def guard(self, known: Mapping[Value, Guard], v: Value, out: Value) -> Guard:
        """What is known of an operand that broadcasts to `out`, in the axes of that."""
        found = known.get(v, ALWAYS)
        return found if found.never else found.moved(aligned(v, out))


def _reshaped(x: Value, out: Value) -> Labels:
    """The axes that a reshape leaves as they are: as many elements before and behind them."""
    labels: Labels = {}
    for a, d in enumerate(x.shape):
        if dims.same(d, 1):
            continue
        before = dims.product(x.shape[:a])
        for k, e in enumerate(out.shape):
            if dims.same(d, e) and dims.same(dims.product(out.shape[:k]), before):
                labels[a] = k
                break
    return labels
