"""Rules of taking apart: an op over all steps -> the same op of one step.

The rule of an op tells, for a cut of its result, what one step needs of each operand, and emits the
op of one step.  Invariant: the result of a rule is what the op's result holds at that step, bit by
bit; at steps that a window leaves out it is any number, and no error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from retrograde.compiler.ir import dims
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.graph import Node, Value, same_shape
from retrograde.compiler.ir.registry import Kind, lookup
from retrograde.compiler.passes.cuts import Cut, Makers, Need, Needs, Part, Steps, ordered, reshaped


class Rule(NamedTuple):
    """`pull`: a node, a cut of its result -> what one step needs; None where it is not a step."""

    pull: Callable[[Node, Cut, Makers], Needs | None]
    step: Callable[[Part], tuple[Expr, ...]]


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
    candidates: list[Cut | None] = [first.at(a) for a in range(len(shape)) if first.fits(shape, a)]
    if node.op.name in _LEADS:
        candidates = [_LEADS[node.op.name](node, first)]
    for candidate in candidates:
        needs = None if candidate is None else rule.pull(node, candidate, makers)
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
        found = Cut(axis, outer, inner, cut.steps)
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
    a, i, x = node.attrs, cut.axis, node.inputs[0]
    if a["step"][i] != 1:
        return None
    if dims.same(a["start"][i], 0) and cut.fits(x.shape, i):
        return (cut,)
    return _windowed(cut, cut.steps.start - a["start"][i], x.shape[i])


def _windowed(cut: Cut, start: Dim, count: Dim) -> tuple[Cut] | None:
    """The cut along the same axis of an operand that has other steps."""
    steps = cut.steps.window(start, count) if cut.alone else None
    return None if steps is None else (Cut(cut.axis, 1, 1, steps),)


def _slice_leads(node: Node, cut: Cut) -> Cut | None:
    i = cut.axis
    if cut.fits(node.output.shape, i):
        return cut
    found = _windowed(cut, cut.steps.start + node.attrs["start"][i], node.output.shape[i])
    return found and found[0]


def _slice(p: Part) -> tuple[Expr, ...]:
    (x,), cut = p.all(), p.cut_of(0)
    start, step = cut.each(p.attrs["start"]), cut.each(p.attrs["step"])
    stop = cut.shape(p.attrs["stop"])
    whole = all(dims.same(d, 0) for d in start) and same_shape(stop, x.shape)
    return (x,) if whole and set(step) <= {1} else p.emit([x], start=start, stop=stop, step=step)


def _pull_pad(node: Node, cut: Cut, makers: Makers) -> Needs | None:
    low, high, interior = (node.attrs[name][cut.axis] for name in ("low", "high", "interior"))
    if interior:
        return None
    if dims.same(low, 0) and dims.same(high, 0):
        return (cut,)
    count = node.inputs[0].shape[cut.axis]
    if cut.alone and dims.same(count, 1):  # one step is put among others: it is a constant
        return (Need.WHOLE,)
    return _windowed(cut, cut.steps.start + low, count)


def _pad_leads(node: Node, cut: Cut) -> Cut | None:
    i = cut.axis
    if cut.fits(node.output.shape, i):
        return cut
    found = _windowed(cut, cut.steps.start - node.attrs["low"][i], node.output.shape[i])
    return found and found[0]


def _pad(p: Part) -> tuple[Expr, ...]:
    (x,), cut = p.all(), p.cut
    assert cut is not None
    steps = cut.steps
    if p.needs[0] is Need.WHOLE:
        steps = Steps(steps.length, steps.start + p.attrs["low"][cut.axis], 1)
        x = reshaped(x, cut.each(x.shape))
    else:
        steps = p.cut_of(0).steps
    windows = {name: cut.each(p.attrs[name]) for name in ("low", "high", "interior")}
    if any(not dims.same(n, 0) for name in windows for n in windows[name]):
        (x,) = p.emit([x], **windows)
    if steps == cut.steps:
        return (x,)
    return (p.within(steps, x, p.attrs["value"]),)


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
    axes, indices = list(p.attrs["axes"]), cleared(p, first)
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


def cleared(p: Part, first: int) -> list[Expr | None]:
    """The indices, which are 0 at steps that are none of theirs."""
    return [
        p.within(need.steps, x) if x is not None and isinstance(need, Cut) else x
        for x, need in zip(p.operands[first:], p.needs[first:], strict=True)
    ]


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


def step_of_dot(p: Part) -> tuple[Expr, ...]:
    """Without the steps among the contracted, batch or free axes."""
    contract, batch = (
        tuple(
            need.axes(axes) if isinstance(need, Cut) else tuple(axes)
            for need, axes in zip(p.needs, p.attrs[name], strict=True)
        )
        for name in ("contract", "batch")
    )
    return p.emit(p.all(), contract=contract, batch=batch)


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
    Kind.CONTRACT: Rule(_pull_dot, step_of_dot),
}
# Ops that may move the steps within an axis, or to another: where they lead a cut.
_LEADS: dict[str, Callable[[Node, Cut], Cut | None]] = {
    "reshape": lambda node, cut: _moved(cut, node.inputs[0].shape, node.output.shape),
    "slice": _slice_leads,
    "pad": _pad_leads,
}
