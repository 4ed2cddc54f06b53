"""Gradients as the user wants them: `stop_gradient`, `remat`, `custom_vjp`.

Each becomes an op or a region op that the backward pass knows.  Invariant: a function given its own
gradient takes everything that it differentiates by as an argument.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from retrograde import tree
from retrograde.compiler.errors import ShapeError, TraceError, UnsupportedError
from retrograde.compiler.ir.builder import Builder, current, new_value, required
from retrograde.compiler.ir.expr import Expr, apply, cast, zeros
from retrograde.compiler.ir.graph import Graph, TensorType, Value, same_type
from retrograde.compiler.ir.location import where
from retrograde.compiler.ir.registry import lookup
from retrograde.eager_mode import EagerBuilder
from retrograde.jitted import shared_jit
from retrograde.tracing import (
    Traced,
    argument_names,
    expression,
    is_traced,
    leaf_names,
    lifted,
    name_of,
    strong,
    trace_inner,
)

Function = Callable[..., Any]


def stop_gradient(x: Any) -> Any:
    """`x` (a tree), as a constant to every derivative."""

    def stopped(leaf: Any) -> Any:
        if isinstance(leaf, Expr):
            out = apply(lookup("stop_gradient"), (leaf,))
            out.weak = leaf.weak
            return out
        return leaf

    return tree.map(stopped, x)


def remat(fn: Function) -> Function:
    """`fn`, whose values are computed again for its gradient instead of being kept.

    A hint: the results are the same bits, dropout masks included."""

    @functools.wraps(fn)
    def rematerialized(*args: Any, **kwargs: Any) -> Any:
        if not is_traced():
            return shared_jit(fn, ("remat",), rematerialized)(*args, **kwargs)
        if isinstance(current(), EagerBuilder):
            return fn(*lifted(args), **lifted(kwargs))
        given = _Arguments(fn, args, kwargs)
        traced = trace_inner(name_of(fn), given.exprs, given.names, given.calling(fn))
        operands = [*given.exprs, *traced.captured]
        return traced.returned(
            _results(apply(lookup("remat_call"), operands, {"body": traced.graph}))
        )

    return rematerialized


def custom_vjp(fn: Function, forward: Function, backward: Function) -> Function:
    """`fn` with a gradient of its own.

    `forward(*args)` returns (result, residuals), with the result that `fn` returns;
    `backward(residuals, cotangent)` returns a tuple with the cotangent of each argument, None for
    zero.  Arguments and results are trees; only floats have cotangents.  Raises UnsupportedError
    where one of the three uses a traced float from outside: pass it as an argument."""

    @functools.wraps(fn)
    def custom(*args: Any) -> Any:
        if not is_traced():
            key = ("custom_vjp", forward, backward)
            return shared_jit(fn, key, custom, (forward, backward))(*args)
        return _custom_call(fn, forward, backward, args)

    return custom


class _Arguments:
    """The arguments of a call: the leaves that are traced, and how to put them back."""

    def __init__(self, fn: Function, args: Sequence[Any], kwargs: dict[str, Any] | None = None):
        keywords = kwargs or {}
        self.leaves, self.structure = tree.flatten((tuple(args), keywords))
        labels = [*argument_names(fn, len(args)), *sorted(keywords)]
        names = leaf_names([*args, *(keywords[k] for k in sorted(keywords))], labels)
        self.places = [
            i for i, x in enumerate(self.leaves)
            if isinstance(x, (Expr, np.ndarray, float, np.floating))
        ]  # fmt: skip
        self.names = [names[i] for i in self.places]
        self.exprs = [
            expression(self.leaves[i], n) for i, n in zip(self.places, self.names, strict=True)
        ]

    def calling(self, fn: Function) -> Callable[[list[Expr]], Any]:
        """`fn` as a function of the traced leaves."""

        def call(inner: list[Expr]) -> Any:
            leaves = list(self.leaves)
            for i, x in zip(self.places, inner, strict=True):
                leaves[i] = x
            args, kwargs = tree.unflatten(self.structure, leaves)
            return fn(*args, **kwargs)

        return call


def _results(out: Any) -> list[Expr]:
    return list(out) if isinstance(out, tuple) else [out]


def _custom_call(fn: Function, forward: Function, backward: Function, args: Sequence[Any]) -> Any:
    name = name_of(fn)
    given = _Arguments(fn, args)
    types = [x.type for x in given.exprs]
    weak = [x.weak for x in given.exprs]
    made: dict[str, tree.TreeDef] = {}

    def both(inner: list[Expr]) -> Any:
        out = given.calling(forward)(inner)
        if not (isinstance(out, tuple) and len(out) == 2):
            raise TraceError(f"{where()}the forward of {name} must return (result, residuals)")
        made["result"], made["residuals"] = map(tree.structure, out)
        return tree.leaves(out[0]), tree.leaves(out[1])

    body = trace_inner(name, types, given.names, given.calling(fn), weak)
    ahead = trace_inner(f"{name}.forward", types, given.names, both, weak)
    results = body.graph.outputs
    _check_forward(name, body, ahead, made["result"])
    residuals = ahead.graph.outputs[len(results) :]
    seeds = [v.type for v in results if v.dtype.is_float]

    def pull(inner: list[Expr]) -> Any:
        kept = tree.unflatten(made["residuals"], inner[: len(residuals)])
        cotangents = iter(inner[len(residuals) :])
        whole = [next(cotangents) if v.dtype.is_float else None for v in results]
        returned = backward(kept, tree.unflatten(made["result"], whole))
        return _cotangents(name, given, returned)

    back_types = [*(v.type for v in residuals), *seeds]
    labels = [f"residual {i}" for i in range(len(residuals))] + ["cotangent"] * len(seeds)
    back = trace_inner(f"{name}.backward", back_types, labels, pull)
    for traced in (body, ahead, back):
        _refuse_floats(name, traced)
    attrs, operands = _regions(given, body, ahead, back, len(results), len(residuals))
    return body.returned(_results(apply(lookup("custom_call"), operands, attrs)))


def _check_forward(name: str, body: Traced, ahead: Traced, structure: tree.TreeDef) -> None:
    """The forward's result must be of the type of the function's own."""
    if structure != body.structure:
        raise ShapeError(
            f"{where()}the forward of {name} returns another structure than {name}: "
            f"{tree.difference(body.structure, structure)}"
        )
    for a, b in zip(body.graph.outputs, ahead.graph.outputs, strict=False):
        if not same_type(a.type, b.type):
            raise ShapeError(f"{where()}{name} returns {a.type}, and its forward {b.type}")


def _cotangents(name: str, given: _Arguments, returned: Any) -> list[Expr]:
    """What a backward returned, as one cotangent for every float leaf of the arguments."""
    args, _ = tree.unflatten(given.structure, given.leaves)
    parts = returned if isinstance(returned, tuple) else (returned,)
    if len(parts) != len(args):
        raise ShapeError(
            f"{where()}the backward of {name} returns {len(parts)} cotangents for {len(args)} "
            "arguments: return a tuple with one for each, None for zero"
        )
    out: list[Expr] = []
    wanted = iter(zip(given.places, given.exprs, given.names, strict=True))
    place, x, label = next(wanted, (-1, None, ""))
    at = 0
    for arg, part in zip(args, parts, strict=True):
        leaves, structure = tree.flatten(arg)
        what = f"{where()}the backward of {name} returns a cotangent unlike its argument"
        pulled = [None] * len(leaves) if part is None else tree.aligned(structure, part, what)
        for g in pulled:
            if at == place:
                assert x is not None
                if x.dtype.is_float:
                    out.append(_fitted(name, g, x, label))
                place, x, label = next(wanted, (-1, None, ""))
            at += 1
    return out


def _fitted(name: str, g: Any, x: Expr, label: str) -> Expr:
    if g is None:
        return zeros(x.type)
    found = expression(g, f"the cotangent of {label}")
    found = cast(found, x.dtype) if found.weak else strong(found)
    if not same_type(found.type, x.type):
        raise ShapeError(
            f"{where()}the backward of {name} returns {found.type} as the cotangent of {label}, "
            f"which is {x.type}"
        )
    return found


def _refuse_floats(name: str, traced: Traced) -> None:
    """A traced float from outside would lose its gradient silently; NumPy arrays have none."""
    arrays = {id(x) for x in _arrays_of(required())}
    for x in traced.captured:
        if x.dtype.is_float and id(x) not in arrays:
            raise UnsupportedError(
                f"{where()}{name} has its own gradient and uses a traced value from outside "
                f"({x.type}), whose gradient would be lost: pass it as an argument"
            )


def _arrays_of(builder: Any) -> list[Expr]:
    """The expressions that stand for NumPy arrays, which have no gradient."""
    return [x for key, x in builder._lifted.items() if isinstance(key, int)]


def _regions(
    given: _Arguments, body: Traced, ahead: Traced, back: Traced, results: int, residuals: int
) -> tuple[dict[str, Graph], list[Expr]]:
    """The three graphs over one list of operands: arguments, then everything captured."""
    found = [*body.captured, *ahead.captured, *back.captured]
    captured = list({x.value: x for x in found}.values())
    n = len(given.exprs)

    def widened(traced: Traced, inputs: Sequence[Value]) -> tuple[Value, ...]:
        own = {x.value: v for x, v in zip(traced.captured, inputs, strict=True)}
        return tuple(own.get(x.value) or new_value(x.type) for x in captured)

    body_graph = body.graph.replace(
        inputs=(*body.graph.inputs[:n], *widened(body, body.graph.inputs[n:])), input_names=()
    )
    ahead_captured = widened(ahead, ahead.graph.inputs[n:])
    ahead_graph = ahead.graph.replace(
        inputs=(*ahead.graph.inputs[:n], *ahead_captured),
        outputs=(*ahead.graph.outputs, *ahead_captured),  # the backward reads them as residuals
        input_names=(),
        output_names=(),
    )
    declared = back.graph.inputs[: len(back.graph.inputs) - len(back.captured)]
    back_captured = widened(back, back.graph.inputs[len(declared) :])
    nothing = [x for x in captured if x.dtype.is_float]
    back_graph = _with_zeros(
        back.graph.replace(
            inputs=(*declared[:residuals], *back_captured, *declared[residuals:]), input_names=()
        ),
        [x.type for x in nothing],
    )
    attrs = {"body": body_graph, "forward": ahead_graph, "backward": back_graph}
    return attrs, [*given.exprs, *captured]


def _with_zeros(graph: Graph, types: Sequence[TensorType]) -> Graph:
    """The graph with zeros of these types as further outputs."""
    builder = Builder(graph.name, Expr)
    with builder:
        more = [zeros(t).value for t in types]
    return graph.replace(
        nodes=(*graph.nodes, *builder.nodes), outputs=(*graph.outputs, *more), output_names=()
    )
