"""Rules of taking apart: an op over all steps -> the same op of one step.

A `Cut` says where a value has the steps: on an axis that they have alone (one step is then without
it), or on one that they share, as in a reshape of [B, T, D] to [B*T, D] (it is then smaller).  The
rule of an op tells, for a cut of its result, what it needs of each operand, and emits the op of one
step.  `sums` holds the ops that add over the steps: there, the step's part is emitted.
Invariant: the result of a rule is what the op's result holds at that step, bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

from retrograde.compiler.ir import dims
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.expr import Expr, cast
from retrograde.compiler.ir.graph import Attrs, Node, Value, same_shape
from retrograde.compiler.ir.registry import Kind, lookup
from retrograde.compiler.ops.declare import wide
from retrograde.compiler.passes.scan_sink import is_zero
from retrograde.compiler.passes.vectorize_rules import emit

Axes = tuple[int, ...]
Makers = Mapping[Value, Node]


@dataclass(frozen=True, eq=False)
class Cut:
    """The steps lie on `axis`, whose size is outer * length * inner."""

    axis: int
    outer: Dim
    inner: Dim
    length: Dim

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Cut) or self.axis != other.axis:
            return False
        mine, others = (self.outer, self.inner, self.length), (other.outer, other.inner, other.length)
        return same_shape(mine, others)

    def __hash__(self) -> int:
        return hash((self.axis, self.outer, self.inner, self.length))

    @property
    def size(self) -> Dim:
        return self.outer * self.length * self.inner

    @property
    def rest(self) -> Dim:
        """What the axis has in one step."""
        return self.outer * self.inner

    @property
    def alone(self) -> bool:
        """Whether the axis holds the steps and nothing else, so that one step has no such axis."""
        return dims.same(self.rest, 1)

    def at(self, axis: int) -> Cut:
        return Cut(axis, self.outer, self.inner, self.length)

    def fits(self, shape: Sequence[Dim], axis: int) -> bool:
        """Whether an axis of another value can hold the same steps."""
        return dims.same(shape[axis], self.size)

    def shape(self, shape: Sequence[Dim]) -> tuple[Dim, ...]:
        """The shape of one step."""
        return tuple(self.each([self.rest if i == self.axis else d for i, d in enumerate(shape)]))

    def each(self, entries: Sequence[Any]) -> tuple[Any, ...]:
        """Of entries that there is one of for each axis, those of one step."""
        return tuple(x for i, x in enumerate(entries) if i != self.axis or not self.alone)

    def axes(self, axes: Sequence[int]) -> Axes:
        """The axes as one step counts them, without the one that it does not have."""
        if not self.alone:
            return tuple(axes)
        return tuple(a - (a > self.axis) for a in axes if a != self.axis)


class Need(Enum):
    """What a step takes of an operand of which it does not take a step."""

    WHOLE = "whole"  # all of it: it is the same in every step
    NOTHING = "nothing"  # the rule does without


Needs = tuple["Cut | Need", ...]


@dataclass(frozen=True)
class Part:
    """One step of a node: what is asked for of its result, and its operands in that step."""

    node: Node
    cut: Cut | None  # None where the result is a sum over the steps
    needs: Needs
    operands: tuple[Expr | None, ...]

    @property
    def attrs(self) -> Attrs:
        return self.node.attrs

    def cut_of(self, i: int) -> Cut:
        need = self.needs[i]
        assert isinstance(need, Cut)
        return need

    def operand(self, i: int) -> Expr:
        x = self.operands[i]
        assert x is not None
        return x

    def all(self) -> list[Expr]:
        return [self.operand(i) for i in range(len(self.operands))]

    def emit(self, operands: Sequence[Expr], **changed: Any) -> tuple[Expr, ...]:
        return emit(self.node.op, operands, {**self.attrs, **changed})


class Rule(NamedTuple):
    """`pull`: a node, a cut of its result -> what one step needs; None where it is not a step."""

    pull: Callable[[Node, Cut, Makers], Needs | None]
    step: Callable[[Part], tuple[Expr, ...]]


class SumRule(NamedTuple):
    """`pull`: a node, the known cuts of values -> what a part of the sum needs, or None."""

    pull: Callable[[Node, Mapping[Value, Cut], Makers], Needs | None]
    part: Callable[[Part], Expr]


def rule_for(node: Node) -> Rule | None:
    """The rule of the node's op, if it has one."""
    return _BY_NAME.get(node.op.name) or _BY_KIND.get(node.op.kind)


def pushed(node: Node, known: Mapping[Value, Cut], makers: Makers) -> Cut | None:
    """The cut of the node's results that the known cuts of its operands lead to."""
    rule = rule_for(node)
    cuts = [(i, c) for i, v in enumerate(node.inputs) if (c := known.get(v)) is not None]
    if rule is None or not cuts:
        return None
    _, first = cuts[0]
    shape = node.outputs[0].shape
    if node.op.name == "reshape":
        candidates = [found] if (found := _moved(first, node.inputs[0].shape, shape)) else []
    else:
        candidates = [first.at(a) for a in range(len(shape)) if first.fits(shape, a)]
    for candidate in candidates:
        needs = rule.pull(node, candidate, makers)
        if needs is not None and all(needs[i] in (c, Need.NOTHING) for i, c in cuts):
            return candidate
    return None


# --- ops whose operands lie on each other


def _pull_aligned(node: Node, cut: Cut, makers: Makers) -> Needs | None:
    """Axes are aligned from the last; an axis of one, or none, is the same in every step."""
    shape = node.outputs[0].shape
    needs: list[Cut | Need] = []
    for v in node.inputs:
        axis = cut.axis - (len(shape) - v.type.ndim)
        if axis < 0 or dims.same(v.shape[axis], 1):
            needs.append(Need.WHOLE)
        elif cut.fits(v.shape, axis):
            needs.append(cut.at(axis))
        else:
            return None
    return tuple(needs) if cut.fits(shape, cut.axis) else None


def _aligned(p: Part) -> list[Expr]:
    """The operands, those that are the same in every step without their axis for the steps."""
    assert p.cut is not None
    rank = p.node.outputs[0].type.ndim
    out: list[Expr] = []
    for i, need in enumerate(p.needs):
        x = p.operand(i)
        axis = p.cut.axis - (rank - p.node.inputs[i].type.ndim)
        if need is Need.WHOLE and axis >= 0 and p.cut.alone:
            x = reshaped(x, (*x.shape[:axis], *x.shape[axis + 1 :]))
        out.append(x)
    return out


def _elementwise(p: Part) -> tuple[Expr, ...]:
    return p.emit(_aligned(p))


def _pull_row_dot(node: Node, cut: Cut, makers: Makers) -> Needs | None:
    if cut.axis == node.outputs[0].type.ndim - 1:
        return None
    return _pull_aligned(node, cut, makers)


def _broadcast_to(p: Part) -> tuple[Expr, ...]:
    assert p.cut is not None
    (x,) = _aligned(p)
    shape = p.cut.shape(p.attrs["shape"])
    return (x,) if same_shape(x.shape, shape) else p.emit([x], shape=shape)


# --- ops along other axes


def _pull_reduce(node: Node, cut: Cut, makers: Makers) -> Needs | None:
    x = node.inputs[0]
    gone = node.attrs["axes"] if "axes" in node.attrs else (node.attrs["axis"],)
    kept = list(range(x.type.ndim))
    if not node.attrs["keepdims"]:
        kept = [a for a in kept if a not in gone]
    axis = kept[cut.axis]
    return (cut.at(axis),) if axis not in gone and cut.fits(x.shape, axis) else None


def _along(p: Part) -> tuple[Expr, ...]:
    """`axis` or `axes` of the first operand, as one step counts them."""
    cut = p.cut_of(0)
    if "axes" in p.attrs:
        return p.emit(p.all(), axes=cut.axes(p.attrs["axes"]))
    (axis,) = cut.axes((p.attrs["axis"],))
    return p.emit(p.all(), axis=axis)


def _pull_beside(node: Node, cut: Cut, makers: Makers) -> Needs | None:
    """Operands of the result's layout, which the op takes along some other axis."""
    attrs = node.attrs
    along = attrs["axes"] if "axes" in attrs else (attrs.get("axis", node.inputs[0].type.ndim - 1),)
    if cut.axis in along or not all(cut.fits(v.shape, cut.axis) for v in node.inputs):
        return None
    return (cut,) * len(node.inputs)


def _from_last(p: Part) -> tuple[Expr, ...]:
    return p.emit(p.all())


# --- moves


def _pull_transpose(node: Node, cut: Cut, makers: Makers) -> Needs | None:
    return (cut.at(node.attrs["perm"][cut.axis]),)


def _transpose(p: Part) -> tuple[Expr, ...]:
    x, old = p.operand(0), p.cut_of(0)
    kept = [a for a in p.attrs["perm"] if a != old.axis or not old.alone]
    return (ordered(x, old.axes(kept)),)


def _moved(cut: Cut, old: Sequence[Dim], new: Sequence[Dim]) -> Cut | None:
    """Where a reshape from `old` to `new` puts the steps: what lies before and behind stays."""
    before = dims.product(old[: cut.axis]) * cut.outer
    behind = cut.inner * dims.product(old[cut.axis + 1 :])
    if any(dims.same(d, 0) for d in (before, behind)):
        return None
    for axis, size in enumerate(new):
        outer = dims.divide_exact(before, dims.product(new[:axis]))
        inner = dims.divide_exact(behind, dims.product(new[axis + 1 :]))
        if outer is None or inner is None:
            continue
        found = Cut(axis, outer, inner, cut.length)
        if dims.same(found.size, size):
            return found
    return None


def _pull_reshape(node: Node, cut: Cut, makers: Makers) -> Needs | None:
    found = _moved(cut, node.output.shape, node.inputs[0].shape)
    return None if found is None else (found,)


def _reshape(p: Part) -> tuple[Expr, ...]:
    assert p.cut is not None
    return (reshaped(p.operand(0), p.cut.shape(p.attrs["shape"])),)


def _pull_slice(node: Node, cut: Cut, makers: Makers) -> Needs | None:
    a, i = node.attrs, cut.axis
    whole = dims.same(a["start"][i], 0) and cut.fits(a["stop"], i) and a["step"][i] == 1
    return (cut,) if whole and cut.fits(node.inputs[0].shape, i) else None


def _slice(p: Part) -> tuple[Expr, ...]:
    cut = p.cut_of(0)
    start, step = cut.each(p.attrs["start"]), cut.each(p.attrs["step"])
    return p.emit(p.all(), start=start, stop=cut.shape(p.attrs["stop"]), step=step)


def _pull_pad(node: Node, cut: Cut, makers: Makers) -> Needs | None:
    padding = [node.attrs[name][cut.axis] for name in ("low", "high", "interior")]
    return (cut,) if all(dims.same(n, 0) for n in padding) else None


def _pad(p: Part) -> tuple[Expr, ...]:
    windows = {name: p.cut_of(0).each(p.attrs[name]) for name in ("low", "high", "interior")}
    return p.emit(p.all(), **windows)


def _pull_set_slice(node: Node, cut: Cut, makers: Makers) -> Needs | None:
    a, i = node.attrs, cut.axis
    whole = dims.same(a["start"][i], 0) and a["step"][i] == 1
    return (cut, cut) if whole and cut.fits(node.inputs[1].shape, i) else None


def _set_slice(p: Part) -> tuple[Expr, ...]:
    cut = p.cut_of(0)
    return p.emit(p.all(), start=cut.each(p.attrs["start"]), step=cut.each(p.attrs["step"]))


# --- places from data


def counts(v: Value, cut: Cut, makers: Makers) -> bool:
    """Whether each element of `v` is its place along the axis of the cut."""
    made = makers.get(v)
    if made is None:
        return False
    if made.op.name == "iota":
        return cut.axis == 0 and cut.fits(v.shape, 0)
    if made.op.name not in ("reshape", "transpose", "broadcast_to"):
        return False
    rule = rule_for(made)
    assert rule is not None
    needs = rule.pull(made, cut, makers)
    if needs is None or not isinstance(needs[0], Cut) or not same_shape(
        (needs[0].outer, needs[0].inner), (cut.outer, cut.inner)
    ):
        return False
    return counts(made.inputs[0], needs[0], makers)


def _rests(node: Node) -> list[int]:
    """The axes of operand 0 that are not indexed."""
    return [a for a in range(node.inputs[0].type.ndim) if a not in node.attrs["axes"]]


def _by_row(node: Node, first: int, k: int, place: Cut) -> tuple[Cut | Need, ...] | None:
    """The needs of the index operands where the k-th numbers the steps' axis."""
    if place.alone and len(node.attrs["axes"]) == 1:
        return None
    return tuple(
        Need.NOTHING if j == k else place for j in range(len(node.inputs) - first)
    )


def _pull_gather(node: Node, cut: Cut, makers: Makers) -> Needs | None:
    x, *indices = node.inputs
    lead, axes = indices[0].type.ndim, node.attrs["axes"]
    if cut.axis >= lead:
        return (cut.at(_rests(node)[cut.axis - lead]), *(Need.WHOLE for _ in indices))
    if not cut.fits(indices[0].shape, cut.axis):
        return None
    for k, v in enumerate(indices):  # each row looks into its own row
        if cut.fits(x.shape, axes[k]) and counts(v, cut, makers):
            places = _by_row(node, 1, k, cut)
            if places is not None:
                return (cut.at(axes[k]), *places)
    return (Need.WHOLE, *(cut for _ in indices))


def _pull_scatter(node: Node, cut: Cut, makers: Makers) -> Needs | None:
    _, _, *indices = node.inputs
    lead, axes = indices[0].type.ndim, node.attrs["axes"]
    if cut.axis not in axes:
        behind = cut.at(lead + _rests(node).index(cut.axis))
        return (cut, behind, *(Need.WHOLE for _ in indices))
    k = axes.index(cut.axis)
    for a in range(lead):
        place = cut.at(a)
        if place.fits(indices[k].shape, a) and counts(indices[k], place, makers):
            places = _by_row(node, 2, k, place)
            return None if places is None else (cut, place, *places)
    return None


def _indexed(p: Part) -> tuple[Expr, ...]:
    """A gather or scatter of one step."""
    first = len(p.operands) - len(p.attrs["axes"])
    places = p.needs[first:]
    axes, indices = list(p.attrs["axes"]), list(p.operands[first:])
    if Need.NOTHING in places:
        k = places.index(Need.NOTHING)
        place = p.cut_of(1) if first == 2 else p.cut
        assert place is not None
        if place.alone:
            del axes[k], indices[k]
        else:
            indices[k] = _numbers(p.node.inputs[first + k], place)
    target = p.needs[0]
    numbered = target.axes(axes) if isinstance(target, Cut) else tuple(axes)
    operands = [*(p.operand(i) for i in range(first)), *(x for x in indices if x is not None)]
    return p.emit(operands, axes=numbered)


def _numbers(v: Value, place: Cut) -> Expr:
    """The places along the axis of the cut, in the shape that the index `v` has in one step."""
    shape = place.shape(v.shape)
    count: Expr = lookup("iota")(size=place.rest, dtype=v.dtype)
    column = reshaped(count, tuple(place.rest if i == place.axis else 1 for i in range(len(shape))))
    if same_shape(column.shape, shape):
        return column
    out: Expr = lookup("broadcast_to")(column, shape=shape)
    return out


# --- contractions


def _pull_dot(node: Node, cut: Cut, makers: Makers) -> Needs | None:
    contract, batch = node.attrs["contract"], node.attrs["batch"]
    if cut.axis < len(batch[0]):
        return cut.at(batch[0][cut.axis]), cut.at(batch[1][cut.axis])
    free = [
        (i, a)
        for i, v in enumerate(node.inputs)
        for a in range(v.type.ndim)
        if a not in (*contract[i], *batch[i])
    ]
    i, a = free[cut.axis - len(batch[0])]
    return (cut.at(a), Need.WHOLE) if i == 0 else (Need.WHOLE, cut.at(a))


def _dot(p: Part) -> tuple[Expr, ...]:
    contract, batch = (
        tuple(
            need.axes(axes) if isinstance(need, Cut) else tuple(axes)
            for need, axes in zip(p.needs, p.attrs[name], strict=True)
        )
        for name in ("contract", "batch")
    )
    return p.emit(p.all(), contract=contract, batch=batch)


# --- sums over the steps.  f16 and bf16 are summed in f32, as over all steps at once


def _pull_sum(node: Node, known: Mapping[Value, Cut], makers: Makers) -> Needs | None:
    cut = known.get(node.inputs[0])
    return (cut,) if cut is not None and cut.axis in node.attrs["axes"] else None


def _sum(p: Part) -> Expr:
    x = cast(p.operand(0), wide(p.node.inputs[0].dtype))
    axes = p.cut_of(0).axes(p.attrs["axes"])
    if axes:
        x = lookup("sum")(x, axes=axes, keepdims=False)
    return reshaped(cast(x, wide(p.node.output.dtype)), p.node.output.shape)


def _pull_summed_dot(node: Node, known: Mapping[Value, Cut], makers: Makers) -> Needs | None:
    contract = node.attrs["contract"]
    for i, v in enumerate(node.inputs):
        cut = known.get(v)
        if cut is None or cut.axis not in contract[i]:
            continue
        partner = cut.at(contract[1 - i][contract[i].index(cut.axis)])
        if known.get(node.inputs[1 - i], partner) != partner:
            return None
        return (cut, partner) if i == 0 else (partner, cut)
    return None


def _summed_dot(p: Part) -> Expr:
    operands = tuple(cast(x, wide(x.dtype)) for x in p.all())
    (out,) = _dot(Part(p.node, None, p.needs, operands))
    return out


def _pull_summed_scatter(node: Node, known: Mapping[Value, Cut], makers: Makers) -> Needs | None:
    into, updates, *indices = node.inputs
    cut = next((c for v in (updates, *indices) if (c := known.get(v)) is not None), None)
    if cut is None or cut.axis >= indices[0].type.ndim or not is_zero(into, makers):
        return None
    if any(known.get(v, cut) != cut for v in (updates, *indices)):
        return None
    return (Need.NOTHING, *(cut for _ in node.inputs[1:]))


def _summed_scatter(p: Part) -> Expr:
    updates = cast(p.operand(1), wide(p.node.output.dtype))
    zero = lookup("constant")(value=0.0, dtype=updates.dtype)
    into = lookup("broadcast_to")(zero, shape=p.node.output.shape)
    (out,) = p.emit([into, updates, *(p.operand(i) for i in range(2, len(p.operands)))])
    return out


# --- small helpers


def reshaped(x: Expr, shape: Sequence[Dim]) -> Expr:
    if same_shape(x.shape, shape):
        return x
    out: Expr = lookup("reshape")(x, shape=tuple(shape))
    return out


def ordered(x: Expr, perm: Axes) -> Expr:
    if perm == tuple(range(len(perm))):
        return x
    out: Expr = lookup("transpose")(x, perm=perm)
    return out


def stacked_first(x: Expr, cut: Cut) -> Expr:
    """`x` over all steps, the steps on axis 0, each laid out as one step is."""
    shape, a = x.shape, cut.axis
    outer = () if dims.same(cut.outer, 1) else (cut.outer,)
    inner = () if dims.same(cut.inner, 1) else (cut.inner,)
    at = a + len(outer)
    x = reshaped(x, (*shape[:a], *outer, cut.length, *inner, *shape[a + 1 :]))
    x = ordered(x, (at, *(i for i in range(x.ndim) if i != at)))
    return reshaped(x, (cut.length, *cut.shape(shape)))


_BESIDE = Rule(_pull_beside, _along)
_REDUCE = Rule(_pull_reduce, _along)
_BY_NAME: dict[str, Rule] = {
    "row_dot": Rule(_pull_row_dot, _elementwise),
    "argmax": _REDUCE,
    "argmin": _REDUCE,
    "sort": _BESIDE,
    "argsort": _BESIDE,
    "top_k": Rule(_pull_beside, _from_last),
    "linear_recurrence": _BESIDE,
    "concatenate": _BESIDE,
    "flip": _BESIDE,
    "transpose": Rule(_pull_transpose, _transpose),
    "reshape": Rule(_pull_reshape, _reshape),
    "broadcast_to": Rule(_pull_aligned, _broadcast_to),
    "slice": Rule(_pull_slice, _slice),
    "pad": Rule(_pull_pad, _pad),
    "set_slice": Rule(_pull_set_slice, _set_slice),
    "gather": Rule(_pull_gather, _indexed),
    "scatter_add": Rule(_pull_scatter, _indexed),
    "scatter_set": Rule(_pull_scatter, _indexed),
}
_BY_KIND: dict[Kind, Rule] = {
    Kind.ELEMENTWISE: Rule(_pull_aligned, _elementwise),
    Kind.REDUCE: _REDUCE,
    Kind.CUMULATIVE: _BESIDE,
    Kind.CONTRACT: Rule(_pull_dot, _dot),
}
sums: dict[str, SumRule] = {
    "sum": SumRule(_pull_sum, _sum),
    "dot_general": SumRule(_pull_summed_dot, _summed_dot),
    "scatter_add": SumRule(_pull_summed_scatter, _summed_scatter),
}
