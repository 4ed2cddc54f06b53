"""Rules of taking apart: an op over all steps -> the same op of one step.

The rule of an op tells, for a cut of its result, what one step needs of each operand, and emits the
op of one step.  Invariant: the result of a rule is what the op's result holds at that step, up to
the order in which a product sums; at steps that a window leaves out it is any number, and no error.
"""

from __future__ import annotations

from collections.abc import Mapping

from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.graph import Node, Value, same_shape
from retrograde.compiler.ir.registry import Kind, lookup
from retrograde.compiler.passes.cuts import Cut, Makers, Need, Needs, Part, reshaped
from retrograde.compiler.passes.devectorize_layout import (
    ELEMENTWISE,
    LAYOUT,
    LEADS,
    Rule,
    elementwise,
    pull_aligned,
)


def rule_for(node: Node) -> Rule | None:
    """The rule of the node's op, if it has one."""
    if node.op.name == "dot_steps":
        return None  # made of the steps of one loop, it stays in another one
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
    if node.op.name in LEADS:
        candidates = [LEADS[node.op.name](node, first)]
    for candidate in candidates:
        needs = None if candidate is None else rule.pull(node, candidate, makers)
        if needs is not None and all(needs[i] in (c, Need.NOTHING) for i, c in cuts):
            return candidate
    return None


# --- ops along other axes


def _pull_row_dot(node: Node, cut: Cut, makers: Makers) -> Needs | None:
    if cut.axis == node.outputs[0].type.ndim - 1:
        return None
    return pull_aligned(node, cut, makers)


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
    **LAYOUT,
    "row_dot": Rule(_pull_row_dot, elementwise),
    "argmax": _REDUCE,
    "argmin": _REDUCE,
    "sort": _BESIDE,
    "argsort": _BESIDE,
    "top_k": Rule(_pull_beside, _from_last),
    "linear_recurrence": _BESIDE,
    "concatenate": _BESIDE,
    "flip": _BESIDE,
    "gather": Rule(_pull_gather, _indexed),
    "scatter_add": Rule(_pull_scatter, _indexed),
    "scatter_set": Rule(_pull_scatter, _indexed),
}
_BY_KIND: dict[Kind, Rule] = {
    Kind.ELEMENTWISE: ELEMENTWISE,
    Kind.REDUCE: _REDUCE,
    Kind.CUMULATIVE: _BESIDE,
    Kind.CONTRACT: Rule(_pull_dot, step_of_dot),
}
