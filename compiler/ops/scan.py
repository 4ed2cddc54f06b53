"""scan: one node for a loop over time, and its gradient as a reverse scan.

Operands: the initial carries, what is stacked along the steps (axis 0), constants; `body` takes
them in that order, one step's slice at a time, and returns the new carries and the step's results.

The gradient saves, stacked over the steps, only what the backward body reads and what is costly to
compute again from the rest: of an LSTM the gates and tanh(c), not their sums or products.  What
depends on the slices and constants alone is computed in the backward body from them, where
hoisting finds it.  Invariant: the forward scan with residuals computes the same bits as without.

An attribute `truncate` of K steps cuts the gradient: none flows through the carries from a run of K
steps into the one before it (truncated backpropagation through time: Williams & Peng, "An efficient
gradient-based algorithm for on-line training of recurrent network trajectories", 1990).

A ragged scan has the attribute `live`: the place among the slices of a mask, bool [B], of the rows
that have the step.  The body itself leaves the carries of the other rows as they are and gives
zeros for their step results; so a step without a live row may be left out, and where no row of the
body depends on another, the rows behind the last live one.  What a device leaves out is zero in the
stacked results.

A scan with the attribute `apart` works on the parts of something too large to be worked on whole:
nothing goes over its border (`passes/regions.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from retrograde.compiler.errors import ShapeError
from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.builder import Builder
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.dtypes import i64
from retrograde.compiler.ir.expr import Expr, as_expr, zeros
from retrograde.compiler.ir.graph import Attrs, Graph, Node, TensorType, Value, same_type
from retrograde.compiler.ir.op import Op, VjpContext
from retrograde.compiler.ir.registry import Kind, lookup, register
from retrograde.compiler.ops.region import effects_of, graph_cost, silent


def parts(items: Sequence[Any], attrs: Attrs) -> tuple[list[Any], list[Any], list[Any]]:
    """Operands (or body inputs) as carries, per-step values, constants."""
    n, m = attrs["carries"], attrs["carries"] + attrs["slices"]
    return list(items[:n]), list(items[n:m]), list(items[m:])


def stacked(length: Dim, type: TensorType) -> TensorType:
    """`type` with one more axis in front, the steps."""
    return TensorType(type.dtype, (length, *type.shape))


def _infer(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    body: Graph = attrs["body"]
    length = attrs["length"]
    if len(types) != len(body.inputs):
        raise ShapeError(f"the body takes {len(body.inputs)} operands, got {len(types)}")
    init, sliced, constants = parts(types, attrs)
    carries, slices, captured = parts([v.type for v in body.inputs], attrs)
    expected = [*carries, *(stacked(length, t) for t in slices), *captured]
    for i, (got, want) in enumerate(zip([*init, *sliced, *constants], expected, strict=True)):
        if not same_type(got, want):
            raise ShapeError(f"operand {i} is {got}, the body over {length} steps needs {want}")
    live = attrs.get("live")
    if live is not None:
        mask = slices[live] if 0 <= live < len(slices) else None
        if mask is None or mask.dtype is not dtypes.bool_ or mask.ndim != 1:
            raise ShapeError(f"live = {live} is no slice that says of each row if it has the step")
    outputs = [v.type for v in body.outputs]
    for i, (carry, new) in enumerate(zip(carries, outputs, strict=False)):
        if not same_type(carry, new):
            raise ShapeError(f"carry {i} enters the body as {carry} and leaves it as {new}")
    n = attrs["carries"]
    return (*outputs[:n], *(stacked(length, t) for t in outputs[n:]))


def _evaluate(attrs: Attrs, *arrays: Any) -> Any:
    carries, sliced, constants = parts(arrays, attrs)
    length, n = attrs["length"], attrs["carries"]
    types = attrs["body"].output_types[n:]
    ys = [np.empty((length, *shape), dtype) for dtype, shape in types]
    for t in range(length - 1, -1, -1) if attrs["reverse"] else range(length):
        results = tuple(attrs["body"](*carries, *(x[t] for x in sliced), *constants, step=t))
        carries = list(results[:n])
        for out, y in zip(ys, results[n:], strict=True):
            out[t] = y
    everything = (*carries, *ys)
    return everything if len(everything) != 1 else everything[0]


def _cost(inputs: Any, outputs: Any, attrs: Attrs) -> Dim:
    length: Dim = attrs["length"]
    return graph_cost(attrs["body"]) * length


# --- the gradient


@dataclass(frozen=True)
class _Split:
    """A differentiated body in two: what runs forward, and what runs backward from residuals."""

    forward: Graph  # the body, returning the residuals too
    backward: Graph  # (kept residuals, slices, constants, cotangents) -> cotangents of `wrt`
    kept: int  # how many residuals there are
    of: tuple[int, ...]  # the differentiated outputs of the body
    wrt: tuple[int, ...]  # the inputs of the body that have cotangents


def _split(ctx: VjpContext) -> _Split:
    body: Graph = ctx.attrs["body"]
    n = ctx.attrs["carries"]
    of = tuple(i for i, v in enumerate(body.outputs) if v.dtype.is_float)
    wrt = tuple(
        i for i, v in enumerate(body.inputs) if v.dtype.is_float and (i < n or ctx.needs[i])
    )
    whole = ctx.differentiate(body, of, wrt)
    primal, gradients = whole.outputs[: len(body.outputs)], whole.outputs[len(body.outputs) :]
    ahead = _needed(whole, primal)
    behind = [node for node in whole.nodes if node not in ahead]
    again, kept = _residuals(whole, ahead, behind, n, gradients)
    seeds = whole.inputs[len(body.inputs) :]
    forward = Graph(
        body.name,
        body.inputs,
        tuple(node for node in whole.nodes if node in ahead),
        (*primal, *kept),
        body.input_names,
    )
    backward = Graph(
        f"{body.name}.backward",
        (*kept, *body.inputs[n:], *seeds),
        (*again, *behind),
        tuple(gradients),
        ("",) * (len(kept) + len(body.inputs) - n + len(seeds)),
    )
    return _Split(forward, silent(backward), len(kept), of, wrt)


def _needed(graph: Graph, outputs: Sequence[Value]) -> set[Node]:
    """The nodes that `outputs` need, and all that have an effect."""
    live = set(outputs)
    found: set[Node] = set()
    for node in reversed(graph.nodes):
        if effects_of(node) or any(v in live for v in node.outputs):
            found.add(node)
            live.update(node.inputs)
    return found


def _residuals(
    graph: Graph, ahead: set[Node], behind: Sequence[Node], n: int, gradients: Sequence[Value]
) -> tuple[list[Node], list[Value]]:
    """(forward nodes to run again in the backward body, values to keep for it)."""
    carried = set(graph.inputs[:n])
    maker: dict[Value, Node] = {}
    for node in graph.nodes:
        if node in ahead:
            maker.update((v, node) for v in node.outputs)
            if any(v in carried for v in node.inputs):
                carried.update(node.outputs)
    wanted = [v for node in behind for v in node.inputs] + list(gradients)
    kept: dict[Value, None] = {}
    again: dict[Node, None] = {}

    def provide(v: Value) -> None:
        node = maker.get(v)
        if v in kept or (node is None and v not in carried):
            return  # a slice, a constant, a cotangent, or something that `behind` makes
        if node is None:
            kept[v] = None  # a carry as it enters the step
            return
        if node in again:
            return
        if v in carried and not _cheap(node, carried):
            kept[v] = None
            return
        again[node] = None
        for u in node.inputs:
            provide(u)

    costly = [v for v in wanted if (m := maker.get(v)) and v in carried and not _cheap(m, carried)]
    for v in (*costly, *wanted):  # the costly first: the cheap may then be made from them
        provide(v)
    for v in list(kept):  # what turned out to be made from kept values anyway needs no place
        if maker.get(v) in again:
            del kept[v]
    return [node for node in graph.nodes if node in again], list(kept)


def _cheap(node: Node, carried: set[Value]) -> bool:
    """Whether running `node` again costs less than keeping its results for every step."""
    if node.op.kind is Kind.MOVE or node.op.kind is Kind.CREATE:
        return True
    if node.op.kind is not Kind.ELEMENTWISE:
        return False
    return node.op.name in ARITHMETIC


# Ops that cost less to run again than their results cost to keep.
ARITHMETIC = frozenset(
    {"add", "sub", "mul", "neg", "select", "cast", "maximum", "minimum", "relu", "abs", "sign",
     "equal", "not_equal", "less", "less_equal", "logical_not", "logical_and", "logical_or",
     "stop_gradient"}
)  # fmt: skip


def _augment(ctx: VjpContext) -> tuple[list[Expr], list[Any]]:
    """The same scan, which also stacks the residuals of each step."""
    split = _split(ctx)
    results = scan(*ctx.inputs, **{**ctx.attrs, "body": split.forward})
    results = results if isinstance(results, tuple) else (results,)
    count = len(ctx.node.outputs)
    return list(results[:count]), [split, *results[count:]]


def _vjp(ctx: VjpContext, cotangents: tuple[Expr | None, ...]) -> list[Expr | None]:
    """A reverse scan.  Its carries: cotangents of the carries, sums of those of the constants."""
    body: Graph = ctx.attrs["body"]
    split: _Split
    split, *residuals = ctx.residuals
    n, m = ctx.attrs["carries"], ctx.attrs["carries"] + ctx.attrs["slices"]
    _, sliced, constants = parts(ctx.inputs, ctx.attrs)
    _, slices, captured = parts(body.inputs, ctx.attrs)
    totals = [
        zeros(ctx.outputs[i].type) if (g := cotangents[i]) is None else g for i in split.of
    ]
    carried = [g for i, g in zip(split.of, totals, strict=True) if i < n]
    stepwise = [g for i, g in zip(split.of, totals, strict=True) if i >= n]
    sums = [zeros(body.inputs[i].type) for i in split.wrt if i >= m]
    live = ctx.attrs.get("live")
    borders = _borders(ctx.attrs, None if live is None else sliced[live])

    inner = Builder(split.backward.name, Expr)
    with inner:
        d_carries = [inner.input(g.type, "d carry") for g in carried]
        accumulators = [inner.input(g.type, "d constant") for g in sums]
        kept = [inner.input(v.type, "kept") for v in split.backward.inputs[: split.kept]]
        xs = [inner.input(v.type, "x") for v in slices]
        d_ys = [inner.input(TensorType(g.dtype, g.shape[1:]), "d y") for g in stepwise]
        cuts = [inner.input(TensorType(b.dtype, b.shape[1:]), "border") for b in borders]
        fixed = [inner.input(v.type, "constant") for v in captured]
        for border in cuts:
            d_carries = [
                lookup("select")(_rows(border, g.ndim), zeros(g.type), g) for g in d_carries
            ]
        results = inner.inline(split.backward, [*kept, *xs, *fixed, *d_carries, *d_ys])
        pulled = dict(zip(split.wrt, results, strict=True))
        d_xs = [pulled[i] for i in split.wrt if n <= i < m]
        new_sums = [
            a + pulled[i]
            for a, i in zip(accumulators, (i for i in split.wrt if i >= m), strict=True)
        ]
        new_carries = [pulled[i] for i in split.wrt if i < n]
        step = inner.finish([e.value for e in (*new_carries, *new_sums, *d_xs)])
    found = scan(
        *carried, *sums, *residuals, *sliced, *stepwise, *borders, *constants,
        body=step,
        carries=len(carried) + len(sums),
        slices=len(residuals) + len(sliced) + len(stepwise) + len(borders),
        length=ctx.attrs["length"],
        reverse=not ctx.attrs["reverse"],
        **({} if live is None else {"live": len(residuals) + live}),
    )  # fmt: skip
    summed = found if isinstance(found, tuple) else (found,)
    k, s = len(carried), len(carried) + len(sums)
    ordered = [*summed[:k], *summed[s:], *summed[k:s]]  # carries, slices, constants
    out: list[Expr | None] = [None] * len(ctx.inputs)
    for i, g in zip(split.wrt, ordered, strict=True):
        out[i] = g
    return out


def _rows(flags: Expr, rank: int) -> Expr:
    """Flags for the rows of a batch (or one for all) as they go with an array of `rank` axes."""
    if not flags.ndim:
        return flags
    out: Expr = lookup("reshape")(flags, shape=(*flags.shape, *(1,) * (rank - 1)))
    return out


def _borders(attrs: Attrs, mask: Expr | None) -> list[Expr]:
    """Over the steps: whether the gradient that comes back to a step's results is cut, because the
    next step begins another run of `truncate` steps.  Nothing where it never is.

    With the mask of a ragged loop, for each row: one that has both steps."""
    steps, length = attrs.get("truncate"), attrs["length"]
    if steps is None or dims.decide_le(length, steps) is True:
        return []
    index = lookup("iota")(size=length, dtype=i64)
    done = length - index if attrs["reverse"] else index + 1  # steps up to here, in their order
    more: Expr = lookup("less")(done, length)
    cut = lookup("logical_and")(lookup("equal")(done % steps, 0), more)
    if mask is None:
        return [cut]
    # Beside the last step there is none, and no border.
    after = index - 1 if attrs["reverse"] else index + 1
    after = lookup("minimum")(lookup("maximum")(after, 0), as_expr(length, i64) - 1)
    both = lookup("logical_and")(mask, lookup("gather")(mask, after, axes=(0,)))
    return [lookup("logical_and")(lookup("reshape")(cut, shape=(length, 1)), both)]


scan = register(
    Op(
        "scan",
        Kind.REGION,
        _infer,
        _evaluate,
        vjp=_vjp,
        doc="runs `body` over axis 0 of the stacked operands: (carries, slices, constants) -> "
        "(carries, step results); returns the last carries and the stacked step results",
        convention="with length 0 the carries pass through",
        cost=_cost,
        augment=_augment,
        has_regions=True,
        defaults={"reverse": False},
    )
)

