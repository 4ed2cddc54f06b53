"""cond and while: what runs is decided by a value.

`cond`: a boolean, then the operands that both sub-graphs take -> the results of `then` or of
`otherwise`.  Its gradient is a cond of the branches' gradients, which computes the branch again
from the operands.  `while`: carries, then constants, for both `condition` and `body`.  Invariant:
what is not taken is not run, forward or backward, so that no NaN of it reaches a result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from retrograde.compiler.errors import DTypeError, ShapeError
from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.builder import Builder, required
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.expr import Expr, apply
from retrograde.compiler.ir.graph import Attrs, Graph, TensorType, same_type
from retrograde.compiler.ir.op import Op, VjpContext, recomputing
from retrograde.compiler.ir.registry import Kind, NotDifferentiable, register
from retrograde.compiler.ops.region import graph_cost, seeded, silent

BRANCHES = ("then", "otherwise")


def _check_flag(type: TensorType, what: str) -> None:
    if type.shape:
        raise ShapeError(f"{what} is {type}, and one boolean decides")
    if type.dtype is not dtypes.bool_:
        raise DTypeError(f"{what} is {type}, not a boolean")


def _check_operands(types: Sequence[TensorType], graph: Graph, what: str) -> None:
    if len(types) != len(graph.inputs):
        raise ShapeError(f"{what} takes {len(graph.inputs)} operands, got {len(types)}")
    for i, (t, v) in enumerate(zip(types, graph.inputs, strict=True)):
        if not same_type(t, v.type):
            raise ShapeError(f"{what} takes {v.type} as operand {i}, got {t}")


def _cond_infer(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    if not types:
        raise ShapeError("a boolean must come first")
    _check_flag(types[0], "the condition")
    for name in BRANCHES:
        _check_operands(types[1:], attrs[name], name)
    a, b = ([v.type for v in attrs[name].outputs] for name in BRANCHES)
    if len(a) != len(b):
        raise ShapeError(f"then returns {len(a)} values, otherwise {len(b)}")
    for i, (x, y) in enumerate(zip(a, b, strict=True)):
        if not same_type(x, y):
            raise ShapeError(f"result {i} is {x} of then and {y} of otherwise")
    return tuple(a)


def _cond_evaluate(attrs: Attrs, flag: Any, *arrays: Any) -> Any:
    results = tuple(attrs["then" if flag else "otherwise"](*arrays))
    return results if len(results) != 1 else results[0]


def _cond_cost(inputs: Any, outputs: Any, attrs: Attrs) -> Dim:
    """That of the costlier branch."""
    a, b = (graph_cost(attrs[name]) for name in BRANCHES)
    if dims.dominates(a, b):
        return a
    return b if dims.dominates(b, a) else a + b


def _cond_vjp(ctx: VjpContext, cotangents: tuple[Expr | None, ...]) -> list[Expr | None]:
    out: list[Expr | None] = [None] * len(ctx.inputs)
    of = seeded(ctx.outputs, cotangents)
    wrt = tuple(i for i in range(1, len(ctx.inputs)) if ctx.needs[i])
    if not of or not wrt:
        return out
    seeds = [c for i in of if (c := cotangents[i]) is not None]
    with recomputing(ctx):
        branches = {name: _pulled(ctx, ctx.attrs[name], of, wrt) for name in BRANCHES}
        found = apply(cond, [*ctx.inputs, *seeds], branches)
    for i, g in zip(wrt, found if isinstance(found, tuple) else (found,), strict=True):
        out[i] = g
    return out


def _pulled(ctx: VjpContext, branch: Graph, of: tuple[int, ...], wrt: tuple[int, ...]) -> Graph:
    """(operands, cotangents of the results `of`) -> cotangents of the operands `wrt`."""
    whole = silent(ctx.differentiate(branch, of, tuple(i - 1 for i in wrt)))
    whole = whole.replace(outputs=whole.outputs[len(branch.outputs) :], output_names=())
    outer = required()
    inner = Builder(f"{branch.name}.backward", Expr)
    with inner, inner.located(ctx.node.loc, None, outer.origin):
        operands = [inner.input(v.type, name) for v, name in _named_inputs(whole)]
        results = inner.inline(_needed(whole), operands)
    return inner.finish([e.value for e in results])


def _named_inputs(graph: Graph) -> list[tuple[Any, str]]:
    names = graph.input_names or ("",) * len(graph.inputs)
    return list(zip(graph.inputs, names, strict=True))


def _needed(graph: Graph) -> Graph:
    """The graph without what its outputs do not need; it has no effects."""
    live = set(graph.outputs)
    kept = []
    for node in reversed(graph.nodes):
        if any(v in live for v in node.outputs):
            kept.append(node)
            live.update(node.inputs)
    return graph.replace(nodes=tuple(kept[::-1]))


cond = register(
    Op(
        "cond",
        Kind.REGION,
        _cond_infer,
        _cond_evaluate,
        vjp=_cond_vjp,
        doc="the results of the sub-graph `then` on the operands after the first where the first, "
        "a boolean, is true, else those of `otherwise`",
        convention="only the branch taken runs, its gradient computes it again; sizes must fit in "
        "both",
        cost=_cond_cost,
        has_regions=True,
    )
)


def _while_infer(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    condition, body, n = attrs["condition"], attrs["body"], attrs["carries"]
    _check_operands(types, condition, "the condition")
    _check_operands(types, body, "the body")
    if len(condition.outputs) != 1:
        raise ShapeError(f"the condition returns {len(condition.outputs)} values, one is needed")
    _check_flag(condition.outputs[0].type, "the condition")
    if len(body.outputs) != n:
        raise ShapeError(f"the body returns {len(body.outputs)} values for {n} carries")
    for i, (t, v) in enumerate(zip(types[:n], body.outputs, strict=True)):
        if not same_type(t, v.type):
            raise ShapeError(f"carry {i} enters the body as {t} and leaves it as {v.type}")
    return types[:n]


def _while_evaluate(attrs: Attrs, *arrays: Any) -> Any:
    n = attrs["carries"]
    carries, constants = arrays[:n], arrays[n:]
    turn = 0
    while attrs["condition"](*carries, *constants, step=turn)[0]:
        carries = tuple(attrs["body"](*carries, *constants, step=turn))
        turn += 1
    return carries if n != 1 else carries[0]


def _while_cost(inputs: Any, outputs: Any, attrs: Attrs) -> Dim:
    """That of one turn: how many there will be is not known."""
    return graph_cost(attrs["condition"]) + graph_cost(attrs["body"])


while_ = register(
    Op(
        "while",
        Kind.REGION,
        _while_infer,
        _while_evaluate,
        NotDifferentiable(
            "how many turns there were is known only afterwards, and nothing is kept of them: use "
            "rg.scan over a fixed number of steps, with rg.cond or rnp.where for those that are "
            "to change nothing, or rg.stop_gradient on the result",
            refuses=True,
        ),
        doc="runs `body` on (carries, constants) as long as `condition` of the same is true; "
        "returns the last carries",
        convention="a condition that is false at once lets the carries pass; a derivative is an "
        "error; the cost is that of one turn",
        cost=_while_cost,
        has_regions=True,
    )
)
