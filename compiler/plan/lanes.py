"""Which axes of a step go together: a step -> lanes, each an axis of the step in its operands and
results.

Invariant: along a lane that keeps elements apart, what stands at one place of the results depends
on what stands at that place of the operands alone; an axis that is in no such lane may be mixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from retrograde.compiler.ir.dims import same
from retrograde.compiler.ir.graph import Attrs, Graph, Node
from retrograde.compiler.ir.registry import Kind
from retrograde.compiler.passes.spaces import gathers, left_axes, sums_rows
from retrograde.compiler.plan.steps import FusedStep, MatmulStep, OpStep
from retrograde.compiler.plan.views import Literal, Operand, View


class Lane(NamedTuple):
    """(index among operands and results, axis of that) for each that has the axis."""

    axes: tuple[tuple[int, int], ...]
    apart: bool = True  # false where elements along it meet


def lanes(step: OpStep | MatmulStep | FusedStep) -> list[Lane]:
    """The lanes of one step; none for an op of which nothing is known."""
    views = [*step.operands, *step.results]
    if isinstance(step, MatmulStep):
        return _products(views)
    if isinstance(step, FusedStep):
        nodes = [s.node for s in step.statements]
        meet = {-1} if any(n.op.kind is Kind.REDUCE for n in nodes) else set()
        if any(map(sums_rows, nodes)):  # its parts are of all rows and columns
            meet = {-1 - k for k in range(len(step.shape))}
        return _around_gathers(step, meet)
    op, attrs = step.node.op, step.node.attrs
    if op.kind is Kind.ELEMENTWISE:
        return aligned(views)
    if op.name == "row_dot":
        return aligned(views, {-1})
    if op.kind is Kind.REDUCE:
        return _reduced(views, attrs)
    if op.kind is Kind.CUMULATIVE or op.name in ("sort", "argsort", "top_k"):
        return _along(views, attrs)
    rule = {
        "dot_general": _contracted, "gather": _gathered, "scatter_add": _scattered,
        "scatter_set": _scattered, "pad": _padded, "set_slice": _set_slice,
        "argmax": _reduced, "argmin": _reduced,
    }.get(op.name)  # fmt: skip
    return [] if rule is None else rule(views, attrs)


def _around_gathers(step: FusedStep, meet: set[int]) -> list[Lane]:
    """The lanes of a region: an index array of rows has all axes but the last, and along what it
    leads to elements meet.  None are known where an operand is read in two ways."""
    body: Graph = step.node.attrs["body"]
    place = {v: i for i, v in enumerate(body.inputs)}
    views: list[Operand] = [*step.operands, *step.results]
    plain = {v for n in body.nodes if not gathers(n) for v in n.inputs}
    indices: dict[int, int] = {}  # by operand: the axes of the space after its last
    sources: dict[int, Node] = {}
    for node in filter(gathers, body.nodes):
        source, *given = node.inputs
        after = len(left_axes(node))
        if source in plain or any(v in plain for v in given) or place[source] in sources:
            return []
        sources[place[source]] = node
        if any(indices.setdefault(place[v], after) != after for v in given):
            return []
    if not sources.keys().isdisjoint(indices):
        return []
    hidden = sources.keys() | indices.keys()
    spread = [Literal(0, v.dtype) if i in hidden else v for i, v in enumerate(views)]
    found = aligned(spread, meet, len(step.shape))
    for i, after in indices.items():
        rank = len(views[i].shape)
        for a in range(rank):
            at = rank - 1 - a + after
            found[at] = found[at]._replace(axes=((i, a), *found[at].axes))
    for i, node in sources.items():
        for a in left_axes(node):
            found[0] = found[0]._replace(axes=((i, a), *found[0].axes))
        found += [Lane(((i, a),), apart=False) for a in node.attrs["axes"]]
    return found


def aligned(
    views: Sequence[Operand], meet: set[int] | frozenset[int] = frozenset(), rank: int = 0
) -> list[Lane]:
    """Elementwise, with NumPy's broadcasting: lane k is the axis -1 - k of everything.

    `meet` holds the axes, counted from the end, along which elements meet."""
    rank = max([rank, *(len(v.shape) for v in views if isinstance(v, View))])
    return [
        Lane(
            tuple(
                (i, len(v.shape) - 1 - k)
                for i, v in enumerate(views)
                if isinstance(v, View) and len(v.shape) > k
            ),
            -1 - k not in meet,
        )
        for k in range(rank)
    ]


def shifted(whole: View, part: View, stacked: int) -> list[Lane]:
    """A step of `whole`, whose axis 0 is the steps; `stacked` is the index of `whole`."""
    first = Lane(((stacked, 0),), apart=False)
    both = (Lane(((stacked, a + 1), (1 - stacked, a))) for a in range(len(part.shape)))
    return [first, *both]


def _products(views: Sequence[Operand]) -> list[Lane]:
    """(batch…, m, k) by (batch…, k, n) is (batch…, m, n)."""
    left, right, result = (len(v.shape) for v in views)
    batch = aligned(views)[2:]
    return [
        Lane(((0, left - 2), (2, result - 2))),
        Lane(((1, right - 1), (2, result - 1))),
        Lane(((0, left - 1), (1, right - 2)), apart=False),
        *batch,
    ]


def _reduced(views: Sequence[Operand], attrs: Attrs) -> list[Lane]:
    axes = attrs["axes"] if "axes" in attrs else (attrs["axis"],)
    x, *results = views
    found, kept = [], 0
    for a in range(len(x.shape)):
        if a in axes:
            found.append(Lane(((0, a),), apart=False))
            kept += bool(attrs["keepdims"])
        else:
            found.append(Lane(((0, a), *((1 + j, kept) for j in range(len(results))))))
            kept += 1
    return found


def _along(views: Sequence[Operand], attrs: Attrs) -> list[Lane]:
    rank = len(views[-1].shape)
    if any(isinstance(v, Literal) or len(v.shape) != rank for v in views):
        return []
    return aligned(views, {attrs["axis"] - rank})


def _contracted(views: Sequence[Operand], attrs: Attrs) -> list[Lane]:
    (lc, rc), (lb, rb) = attrs["contract"], attrs["batch"]
    left, right, _ = views
    found = [Lane(((0, a), (1, b)), apart=False) for a, b in zip(lc, rc, strict=True)]
    found += [Lane(((0, a), (1, b), (2, i))) for i, (a, b) in enumerate(zip(lb, rb, strict=True))]
    at = len(lb)
    for k, (v, taken) in enumerate(((left, (*lc, *lb)), (right, (*rc, *rb)))):
        for a in range(len(v.shape)):
            if a not in taken:
                found.append(Lane(((k, a), (2, at))))
                at += 1
    return found


def _gathered(views: Sequence[Operand], attrs: Attrs) -> list[Lane]:
    x, *indices, _ = views
    out, axes = len(views) - 1, attrs["axes"]
    rank = len(indices[0].shape)
    places = range(1, out)
    found = [Lane((*((i, a) for i in places), (out, a))) for a in range(rank)]
    found += [Lane(((0, a),), apart=False) for a in axes]
    rest = [a for a in range(len(x.shape)) if a not in axes]
    return found + [Lane(((0, a), (out, rank + j))) for j, a in enumerate(rest)]


def _scattered(views: Sequence[Operand], attrs: Attrs) -> list[Lane]:
    x, _, *indices, _ = views
    out, axes = len(views) - 1, attrs["axes"]
    rank = len(indices[0].shape)
    found = [
        Lane(((1, a), *((2 + i, a) for i in range(len(indices)))), apart=False)
        for a in range(rank)
    ]
    found += [Lane(((0, a), (out, a)), apart=False) for a in axes]
    rest = [a for a in range(len(x.shape)) if a not in axes]
    return found + [Lane(((0, a), (1, rank + j), (out, a))) for j, a in enumerate(rest)]


def _padded(views: Sequence[Operand], attrs: Attrs) -> list[Lane]:
    edges = zip(attrs["low"], attrs["high"], attrs["interior"], strict=True)
    return [
        Lane(((0, a), (1, a)), all(same(n, 0) for n in added)) for a, added in enumerate(edges)
    ]


def _set_slice(views: Sequence[Operand], attrs: Attrs) -> list[Lane]:
    x, y, _ = views
    places = zip(attrs["start"], attrs["step"], x.shape, y.shape, strict=True)
    return [
        Lane(((0, a), (1, a), (2, a)), same(start, 0) and step == 1 and same(n, m))
        for a, (start, step, n, m) in enumerate(places)
    ]
