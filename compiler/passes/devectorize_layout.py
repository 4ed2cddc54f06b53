"""Rules of taking apart what only lays elements out: broadcasts, transposes, reshapes, windows.

As in `devectorize`: the needs of one step for a cut of the result, and the op of one step; and
where such an op leads the cut of its operand.  Invariant: the steps keep their order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from retrograde.compiler.ir import dims
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.graph import Node, same_shape
from retrograde.compiler.passes.cuts import Cut, Makers, Need, Needs, Part, Steps, ordered, reshaped


class Rule(NamedTuple):
    """`pull`: a node, a cut of its result -> what one step needs; None where it is not a step."""

    pull: Callable[[Node, Cut, Makers], Needs | None]
    step: Callable[[Part], tuple[Expr, ...]]


# --- ops whose operands lie on each other


def pull_aligned(node: Node, cut: Cut, makers: Makers) -> Needs | None:
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


def elementwise(p: Part) -> tuple[Expr, ...]:
    return p.emit(_aligned(p))


def _broadcast_to(p: Part) -> tuple[Expr, ...]:
    assert p.cut is not None
    (x,) = _aligned(p)
    shape = p.cut.shape(p.attrs["shape"])
    return (x,) if same_shape(x.shape, shape) else p.emit([x], shape=shape)


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


ELEMENTWISE = Rule(pull_aligned, elementwise)
LAYOUT: dict[str, Rule] = {
    "transpose": Rule(_pull_transpose, _transpose),
    "reshape": Rule(_pull_reshape, _reshape),
    "broadcast_to": Rule(pull_aligned, _broadcast_to),
    "slice": Rule(_pull_slice, _slice),
    "pad": Rule(_pull_pad, _pad),
    "set_slice": Rule(_pull_set_slice, _set_slice),
}
# Ops that may move the steps within an axis, or to another: where they lead a cut.
LEADS: dict[str, Callable[[Node, Cut], Cut | None]] = {
    "reshape": lambda node, cut: _moved(cut, node.inputs[0].shape, node.output.shape),
    "slice": _slice_leads,
    "pad": _pad_leads,
}
