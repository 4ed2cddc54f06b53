"""Ops that hold sub-graphs: calls, recomputed calls, calls with a custom gradient.

The region protocol: a region op's operands are what its body takes, captures included, in the
body's input order (see `scan` for loops); `evaluate` sees each sub-graph as a Python callable;
`augment` emits the op in a form that saves residuals; `vjp` reads them.
Invariant: a body refers to nothing but its own inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from retrograde.compiler.errors import ShapeError
from retrograde.compiler.ir.builder import required
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.expr import Expr, zeros
from retrograde.compiler.ir.graph import Attrs, Graph, Node, Origin, TensorType, same_type
from retrograde.compiler.ir.op import Op, VjpContext
from retrograde.compiler.ir.registry import Kind, register


def graph_cost(graph: Graph) -> Dim:
    """The operations of all nodes of a graph."""
    fixed = 0
    counts: dict[int, tuple[Dim, int]] = {}  # of costs that are no numbers, by identity
    for node in graph.nodes:
        types_in = [v.type for v in node.inputs]
        cost = node.op.cost(types_in, [v.type for v in node.outputs], node.attrs)
        if isinstance(cost, int):
            fixed += cost
        else:
            counts[id(cost)] = cost, counts.get(id(cost), (cost, 0))[1] + 1
    total: Dim = fixed
    for cost, count in counts.values():
        total = total + cost * count
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
    return graph_cost(attrs["body"])


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


def seeded(outputs: Sequence[Any], cotangents: Sequence[Expr | None]) -> tuple[int, ...]:
    """The float results that a cotangent reached."""
    return tuple(
        i for i, (v, c) in enumerate(zip(outputs, cotangents, strict=True))
        if c is not None and v.dtype.is_float
    )  # fmt: skip


def nested(node: Node) -> Iterator[Node]:
    """The node and all nodes of its sub-graphs."""
    yield node
    for _, body in node.subgraphs():
        for inner in body.nodes:
            yield from nested(inner)


def effects_of(node: Node) -> set[str]:
    """The channels that the node, or a node of its sub-graphs, acts on."""
    if not node.op.has_regions:
        return set() if node.op.effect is None else {node.op.effect}
    return {n.op.effect for n in nested(node) if n.op.effect is not None}


def silent(graph: Graph) -> Graph:
    """The graph without what it prints: a value that is computed again is not shown again."""
    if not any("debug" in effects_of(n) for n in graph.nodes):
        return graph
    kept = []
    for node in graph.nodes:
        if node.op.effect == "debug":
            continue
        bodies = {key: silent(body) for key, body in node.subgraphs()}
        kept.append(replace(node, attrs={**node.attrs, **bodies}) if bodies else node)
    return graph.replace(nodes=tuple(kept))


def _remat_vjp(ctx: VjpContext, cotangents: tuple[Expr | None, ...]) -> list[Expr | None]:
    body: Graph = ctx.attrs["body"]
    of = seeded(body.outputs, cotangents)
    wrt = tuple(i for i, need in enumerate(ctx.needs) if need)
    backward = silent(ctx.differentiate(body, of, wrt))
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


def _custom_augment(ctx: VjpContext) -> tuple[list[Expr], list[Expr]]:
    results = required().inline(ctx.attrs["forward"], ctx.inputs)
    n = len(ctx.node.outputs)
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
