"""Ops that hold sub-graphs: calls, recomputed calls, calls with a custom gradient, and scan.

The region protocol: a region op's operands are what its body takes, captures included, in the
body's input order (`scan`: carries, per-step slices, constants); `evaluate` sees each sub-graph
as a Python callable; `augment` emits the op in a form that saves residuals; `vjp` reads them.
Invariant: a body refers to nothing but its own inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from retrograde.compiler.errors import ShapeError
from retrograde.compiler.ir.builder import Builder, required
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.expr import Expr, zeros
from retrograde.compiler.ir.graph import Attrs, Graph, Node, Origin, TensorType, same_type
from retrograde.compiler.ir.op import Op, VjpContext
from retrograde.compiler.ir.registry import Kind, register


def _graph_cost(graph: Graph) -> Dim:
    total: Dim = 0
    for node in graph.nodes:
        types_in = [v.type for v in node.inputs]
        total = total + node.op.cost(types_in, [v.type for v in node.outputs], node.attrs)
    return total


def _call_infer(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    body: Graph = attrs["body"]
    if len(types) != len(body.inputs):
        raise ShapeError(f"{body.name} takes {len(body.inputs)} operands, got {len(types)}")
    for t, v in zip(types, body.inputs, strict=True):
        if not same_type(t, v.type):
            raise ShapeError(f"{body.name} takes {v.type}, got {t}")
    return tuple(v.type for v in body.outputs)


def _call_evaluate(attrs: Attrs, *arrays: Any) -> Any:
    results = tuple(attrs["body"](*arrays))
    return results if len(results) != 1 else results[0]


def _call_cost(inputs: Any, outputs: Any, attrs: Attrs) -> Dim:
    return _graph_cost(attrs["body"])


def _inline(attrs: Attrs, *operands: Expr) -> tuple[Expr, ...]:
    return tuple(required().inline(attrs["body"], operands))


call = register(
    Op(
        "call",
        Kind.REGION,
        _call_infer,
        _call_evaluate,
        vjp=None,
        doc="the results of the sub-graph `body` on the operands",
        cost=_call_cost,
        decompose=_inline,
        has_regions=True,
    )
)


def _float_indices(values: Sequence[Any]) -> tuple[int, ...]:
    return tuple(i for i, v in enumerate(values) if v.dtype.is_float)


def _seeded(outputs: Sequence[Any], cotangents: Sequence[Expr | None]) -> tuple[int, ...]:
    return tuple(
        i for i, (v, c) in enumerate(zip(outputs, cotangents, strict=True))
        if c is not None and v.dtype.is_float
    )  # fmt: skip


def _silent(graph: Graph) -> Graph:
    """The graph without what it prints: a value that is computed again is not shown again."""
    shown = [n for n in graph.nodes if n.op.effect == "debug"]
    if not shown:
        return graph
    return graph.replace(nodes=tuple(n for n in graph.nodes if n not in shown))


def _remat_vjp(ctx: VjpContext, cotangents: tuple[Expr | None, ...]) -> list[Expr | None]:
    body: Graph = ctx.attrs["body"]
    of = _seeded(body.outputs, cotangents)
    wrt = tuple(i for i, need in enumerate(ctx.needs) if need)
    backward = _silent(ctx.differentiate(body, of, wrt))
    origin = Origin("recompute", "backward", (ctx.node.id,), group=ctx.node.id)
    builder = required()
    seeds = [c for i in of if (c := cotangents[i]) is not None]
    with builder.located(ctx.node.loc, None, origin):
        results = builder.inline(backward, [*ctx.inputs, *seeds])
    out: list[Expr | None] = [None] * len(ctx.inputs)
    for i, g in zip(wrt, results[len(body.outputs) :], strict=True):
        out[i] = g
    return out


remat_call = register(
    Op(
        "remat_call",
        Kind.REGION,
        _call_infer,
        _call_evaluate,
        vjp=_remat_vjp,
        doc="like call, and its gradient recomputes the body from the operands",
        convention="nothing inside the body is kept for the backward pass",
        cost=_call_cost,
        decompose=_inline,
        has_regions=True,
    )
)


def _custom_augment(node: Node, inputs: tuple[Expr, ...]) -> tuple[list[Expr], list[Expr]]:
    results = required().inline(node.attrs["forward"], inputs)
    n = len(node.outputs)
    return results[:n], results[n:]


def _custom_vjp(ctx: VjpContext, cotangents: tuple[Expr | None, ...]) -> list[Expr | None]:
    backward: Graph = ctx.attrs["backward"]
    seeds = [
        zeros(v.type) if c is None else c
        for v, c in zip(ctx.outputs, cotangents, strict=True)
        if v.dtype.is_float
    ]
    results = iter(required().inline(backward, [*ctx.residuals, *seeds]))
    return [next(results) if x.dtype.is_float else None for x in ctx.inputs]


custom_call = register(
    Op(
        "custom_call",
        Kind.REGION,
        _call_infer,
        _call_evaluate,
        vjp=_custom_vjp,
        doc="like call, with the gradient given by the sub-graphs `forward` and `backward`",
        convention="forward: operands -> results, residuals; backward: residuals, cotangents of "
        "the float results -> cotangents of the float operands",
        cost=_call_cost,
        decompose=_inline,
        augment=_custom_augment,
        has_regions=True,
    )
)


fused = register(
    Op(
        "fused",
        Kind.REGION,
        _call_infer,
        _call_evaluate,
        vjp=None,
        doc="elementwise ops and sums along rows that run tile by tile over one iteration space",
        cost=_call_cost,
        decompose=_inline,
        has_regions=True,
    )
)


def _scan_parts(items: Sequence[Any], attrs: Attrs) -> tuple[list[Any], list[Any], list[Any]]:
    """Operands (or body inputs) as carries, per-step values, constants."""
    n, m = attrs["carries"], attrs["carries"] + attrs["slices"]
    return list(items[:n]), list(items[n:m]), list(items[m:])


def _stacked(length: Dim, type: TensorType) -> TensorType:
    return TensorType(type.dtype, (length, *type.shape))


def _scan_infer(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    body: Graph = attrs["body"]
    length = attrs["length"]
    if len(types) != len(body.inputs):
        raise ShapeError(f"the body takes {len(body.inputs)} operands, got {len(types)}")
    init, stacked, constants = _scan_parts(types, attrs)
    carries, slices, captured = _scan_parts([v.type for v in body.inputs], attrs)
    expected = [*carries, *(_stacked(length, t) for t in slices), *captured]
    for i, (got, want) in enumerate(zip([*init, *stacked, *constants], expected, strict=True)):
        if not same_type(got, want):
            raise ShapeError(f"operand {i} is {got}, the body over {length} steps needs {want}")
    outputs = [v.type for v in body.outputs]
    for i, (carry, new) in enumerate(zip(carries, outputs, strict=False)):
        if not same_type(carry, new):
            raise ShapeError(f"carry {i} enters the body as {carry} and leaves it as {new}")
    n = attrs["carries"]
    return (*outputs[:n], *(_stacked(length, t) for t in outputs[n:]))


def _scan_evaluate(attrs: Attrs, *arrays: Any) -> Any:
    carries, stacked, constants = _scan_parts(arrays, attrs)
    length, n = attrs["length"], attrs["carries"]
    types = attrs["body"].output_types[n:]
    ys = [np.empty((length, *shape), dtype) for dtype, shape in types]
    for t in range(length - 1, -1, -1) if attrs["reverse"] else range(length):
        results = tuple(attrs["body"](*carries, *(x[t] for x in stacked), *constants))
        carries = list(results[:n])
        for out, y in zip(ys, results[n:], strict=True):
            out[t] = y
    everything = (*carries, *ys)
    return everything if len(everything) != 1 else everything[0]


def _scan_cost(inputs: Any, outputs: Any, attrs: Attrs) -> Dim:
    length: Dim = attrs["length"]
    return _graph_cost(attrs["body"]) * length


def _scan_augment(node: Node, inputs: tuple[Expr, ...]) -> tuple[list[Expr], list[Expr]]:
    """The same scan, which also stacks the carries that enter each step."""
    body: Graph = node.attrs["body"]
    n = node.attrs["carries"]
    entering = body.inputs[:n]
    longer = body.replace(outputs=(*body.outputs, *entering), output_names=())
    results = scan(*inputs, **{**node.attrs, "body": longer})
    results = results if isinstance(results, tuple) else (results,)
    return list(results[: len(node.outputs)]), list(results[len(node.outputs) :])


def _scan_vjp(ctx: VjpContext, cotangents: tuple[Expr | None, ...]) -> list[Expr | None]:
    """A reverse scan that recomputes each step from its entering carries and pulls back.

    Its carries are the cotangents of the carries and the sums of the constants' cotangents."""
    body: Graph = ctx.attrs["body"]
    n, length = ctx.attrs["carries"], ctx.attrs["length"]
    of = _float_indices(body.outputs)
    wrt = _float_indices(body.inputs)
    backward = _silent(ctx.differentiate(body, of, wrt))
    _, stacked, constants = _scan_parts(ctx.inputs, ctx.attrs)
    carries, slices, captured = _scan_parts(body.inputs, ctx.attrs)

    given = {i: c for i, c in enumerate(cotangents)}
    totals = [zeros(ctx.outputs[i].type) if (c := given[i]) is None else c for i in of]
    carried = [g for i, g in zip(of, totals, strict=True) if i < n]
    stepwise = [g for i, g in zip(of, totals, strict=True) if i >= n]
    sums = [zeros(v.type) for v in captured if v.dtype.is_float]

    inner = Builder(f"{body.name}.backward", Expr)
    with inner:
        d_carries = [inner.input(g.type, "d carry") for g in carried]
        accumulators = [inner.input(g.type, "d constant") for g in sums]
        entering = [inner.input(v.type, "carry") for v in carries]
        xs = [inner.input(v.type, "x") for v in slices]
        d_ys = [inner.input(TensorType(g.dtype, g.shape[1:]), "d y") for g in stepwise]
        fixed = [inner.input(v.type, "constant") for v in captured]
        results = inner.inline(backward, [*entering, *xs, *fixed, *d_carries, *d_ys])
        pulled = dict(zip(wrt, results[len(body.outputs) :], strict=True))
        new_carries = [pulled[i] for i in wrt if i < n]
        d_xs = [pulled[i] for i in wrt if n <= i < n + len(slices)]
        d_constants = [pulled[i] for i in wrt if i >= n + len(slices)]
        new_sums = [a + g for a, g in zip(accumulators, d_constants, strict=True)]
        step = inner.finish([e.value for e in (*new_carries, *new_sums, *d_xs)])
    found = scan(
        *carried, *sums, *ctx.residuals, *stacked, *stepwise, *constants,
        body=step,
        carries=len(carried) + len(sums),
        slices=len(ctx.residuals) + len(stacked) + len(stepwise),
        length=length,
        reverse=not ctx.attrs["reverse"],
    )  # fmt: skip
    summed = found if isinstance(found, tuple) else (found,)
    k, s = len(carried), len(carried) + len(sums)
    ordered = iter([*summed[:k], *summed[s:], *summed[k:s]])  # carries, slices, constants
    return [next(ordered) if v.dtype.is_float else None for v in ctx.inputs]


scan = register(
    Op(
        "scan",
        Kind.REGION,
        _scan_infer,
        _scan_evaluate,
        vjp=_scan_vjp,
        doc="runs `body` over axis 0 of the stacked operands: (carries, slices, constants) -> "
        "(carries, step results); returns the last carries and the stacked step results",
        convention="with length 0 the carries pass through",
        cost=_scan_cost,
        augment=_scan_augment,
        has_regions=True,
        defaults={"reverse": False},
    )
)

