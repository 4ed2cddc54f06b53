"""Derivatives of functions of pytrees: `grad`, `value_and_grad`, `vjp`, `jvp`.

Inside a trace the function becomes a graph of its own, the backward pass differentiates it, and
the result is inlined: so they compose to any order.  On arrays they are traced, compiled and run.
Invariant: the values that the function computes are computed once, however many gradients use them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from retrograde import tree
from retrograde.compiler.errors import DTypeError, ShapeError, TraceError
from retrograde.compiler.ir import dtypes
from retrograde.compiler.ir.builder import required
from retrograde.compiler.ir.expr import Expr, cast, zeros
from retrograde.compiler.ir.graph import same_type
from retrograde.compiler.ir.location import where
from retrograde.compiler.passes.backward import Backward
from retrograde.jitted import shared_jit
from retrograde.mean import Mean, check_counts
from retrograde.pullback import Pullback, split
from retrograde.tracing import (
    argument_names,
    expression,
    is_traced,
    leaf_names,
    lifted,
    name_of,
    strong,
    trace_inner,
)

Argnums = int | Sequence[int]
Function = Callable[..., Any]


def value_and_grad(fn: Function, argnums: Argnums = 0, has_aux: bool = False) -> Function:
    """A function that returns `fn`'s value and its gradient by the arguments `argnums`.

    `fn` returns one float, or a `Mean` (whose value is differentiated); with `has_aux` a pair of
    that and anything else, which is passed on: ((value, aux), gradient).  The gradient has the
    structure of the argument, a tuple for several.  Raises DTypeError for a leaf that is no float,
    ShapeError where `fn` returns no single number."""
    chosen = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    key = ("value_and_grad", argnums if isinstance(argnums, int) else chosen, has_aux)

    @functools.wraps(fn)
    def value_and_gradient(*args: Any, **kwargs: Any) -> Any:
        value, aux, grads = differentiated(fn, chosen, has_aux, args, kwargs)
        out = grads[0] if isinstance(argnums, int) else grads
        return ((value, aux), out) if has_aux else (value, out)

    return _on_arrays_too(fn, key, value_and_gradient)


def grad(fn: Function, argnums: Argnums = 0, has_aux: bool = False) -> Function:
    """A function that returns the gradient of `fn` by the arguments `argnums`.

    As `value_and_grad`, without the value; with `has_aux`: (gradient, aux)."""
    both = value_and_grad(fn, argnums, has_aux)
    key = ("grad", argnums if isinstance(argnums, int) else tuple(argnums), has_aux)

    @functools.wraps(fn)
    def gradient(*args: Any, **kwargs: Any) -> Any:
        value, grads = both(*args, **kwargs)
        return (grads, value[1]) if has_aux else grads

    return _on_arrays_too(fn, key, gradient)


def vjp(fn: Function, *args: Any) -> tuple[Any, Callable[[Any], Any]]:
    """`fn(*args)` and its pullback: cotangents in the structure of the result -> cotangents of the
    arguments, a tuple with None where a leaf is no float."""
    if not is_traced():
        out: tuple[Any, Callable[[Any], Any]] = shared_jit(
            fn, ("vjp",), functools.partial(vjp, fn)
        )(*args)
        return out
    return _vjp(fn, args)


def jvp(fn: Function, args: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, Any]:
    """`fn(*args)` and its derivative in the direction `tangents` (of the structure of `args`).

    The tangent of an integer leaf may be missing; results that are no floats have tangent zero.
    Made of two pullbacks: the pullback is linear, and its own pullback pushes forward."""
    if not is_traced():
        jitted = shared_jit(fn, ("jvp",), lambda args, tangents: jvp(fn, args, tangents))
        out: tuple[Any, Any] = jitted(tuple(args), tuple(tangents))
        return out
    return _jvp(fn, tuple(args), tuple(tangents))


def _on_arrays_too(fn: Function, key: tuple[Any, ...], composed: Function) -> Function:
    @functools.wraps(fn)
    def transformed(*args: Any, **kwargs: Any) -> Any:
        if is_traced():
            args, kwargs = lifted((args, kwargs))
            return composed(*args, **kwargs)
        return shared_jit(fn, key, composed)(*args, **kwargs)

    return transformed


def differentiated(
    fn: Function, argnums: tuple[int, ...], has_aux: bool, args: Sequence[Any], kwargs: Any
) -> tuple[Any, Any, tuple[Any, ...]]:
    """The value, the auxiliary result and the gradients by the chosen arguments, in a trace."""
    name = name_of(fn)
    argnums = tuple(_argument(i, len(args), name) for i in argnums)
    names = argument_names(fn, len(args))
    wrt = tuple(args[i] for i in argnums)
    leaves, structure = tree.flatten(wrt)
    labels = leaf_names(wrt, [names[i] for i in argnums])
    sources = [_float(x, label, name) for x, label in zip(leaves, labels, strict=True)]

    def call(inner: list[Expr]) -> Any:
        given = list(args)
        for i, part in zip(argnums, tree.unflatten(structure, inner), strict=True):
            given[i] = part
        result = fn(*given, **kwargs)
        aux = None
        if has_aux:
            result, aux = _pair(result, name)
        if isinstance(result, Mean):
            check_counts(result, required().nodes, {x.value for x in inner})
        return single(result, name), aux

    traced = trace_inner(name, sources, labels, call)
    backward = Backward((0,), tuple(range(len(leaves))))(traced.graph)
    seed = required().constant(1.0, traced.graph.outputs[0].dtype)
    results = required().inline_derived(backward, [*sources, *traced.captured, seed])
    n = len(traced.graph.outputs)
    value, aux = traced.returned(results[:n])
    for gradient, x in zip(results[n:], sources, strict=True):
        gradient.weak = x.weak
    return value, aux, tree.unflatten(structure, results[n:])


def _argument(i: int, count: int, name: str) -> int:
    if not -count <= i < count:
        raise TraceError(
            f"{where()}argnums {i}: {name} is called with {count} positional arguments, and only "
            "these can be differentiated by"
        )
    return i % count


def _float(x: Any, label: str, name: str) -> Expr:
    """A leaf to differentiate by."""
    found = expression(x, f"{label} of {name}")
    if not found.dtype.is_float:
        if found.weak:  # a number as it is written: 3
            return cast(found, dtypes.f32)
        raise DTypeError(
            f"{where()}{label} of {name} is {found.type}, and only floats have gradients: cast it, "
            "or differentiate by other arguments (argnums)"
        )
    return found


def _pair(result: Any, name: str) -> tuple[Any, Any]:
    if isinstance(result, tuple) and len(result) == 2:
        return result
    raise TraceError(
        f"{where()}with has_aux, {name} must return a pair (value, aux); it returned a "
        f"{type(result).__name__}"
    )


def single(result: Any, name: str) -> Expr:
    """The float that a function to differentiate returned."""
    if isinstance(result, Mean):
        result = result.value
    leaves = tree.leaves(result)
    if len(leaves) != 1 or leaves[0] is not result:
        raise ShapeError(
            f"{where()}{name} returns {len(leaves)} arrays in a {type(result).__name__}, and a "
            "gradient is that of one number: return a sum or mean, the rest as aux "
            "(has_aux=True), or use rg.vjp"
        )
    value = strong(expression(result, f"what {name} returns"))
    if value.shape:
        raise ShapeError(
            f"{where()}{name} returns {value.type}, and a gradient is that of one number: return "
            "its mean or sum, or use rg.vjp"
        )
    if not value.dtype.is_float:
        raise DTypeError(f"{where()}{name} returns {value.type}: a gradient is that of a float")
    return value


# --- pullbacks


def _vjp(fn: Function, args: Sequence[Any]) -> tuple[Any, Pullback]:
    name = name_of(fn)
    leaves, structure = tree.flatten(tuple(args))
    labels = leaf_names(args, argument_names(fn, len(args)))
    sources, fixed = [], {}
    for i, (x, label) in enumerate(zip(leaves, labels, strict=True)):
        if isinstance(x, (Expr, np.ndarray, float, np.floating)):
            sources.append((i, expression(x, f"{label} of {name}")))
        else:
            fixed[i] = x

    def call(inner: list[Expr]) -> Any:
        given = dict(fixed) | {i: x for (i, _), x in zip(sources, inner, strict=True)}
        return fn(*tree.unflatten(structure, [given[i] for i in range(len(leaves))]))

    exprs = [x for _, x in sources]
    traced = trace_inner(name, exprs, [labels[i] for i, _ in sources], call)
    graph = traced.graph
    of = tuple(i for i, v in enumerate(graph.outputs) if v.dtype.is_float)
    wrt = tuple(k for k, x in enumerate(exprs) if x.dtype.is_float)
    backward = Backward(of, wrt)(graph)
    primal, linear, crossing = split(backward, len(graph.outputs), len(of))
    results = required().inline(primal, [*exprs, *traced.captured])
    out = traced.returned(results[: len(graph.outputs)])
    pullback = Pullback(
        tuple(results[len(graph.outputs) :]),
        linear,
        traced.structure,
        of,
        structure,
        tuple(sources[k][0] for k in wrt),
    )
    pullback.claim([results[i].value for i in of], [exprs[k].value for k in wrt])
    assert len(crossing) == len(pullback.residuals)
    return out, pullback


def _jvp(fn: Function, args: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    name = name_of(fn)
    leaves, structure = tree.flatten(args)
    what = f"{where()}the tangents of {name} are not of the structure of its arguments"
    directions = tree.aligned(structure, tangents, what)
    out, pull = _vjp(fn, args)
    results, results_structure = tree.flatten(out)
    labels = leaf_names(args, argument_names(fn, len(args)))
    primals = {}
    for i in pull.wrt:
        x = expression(leaves[i])
        t = zeros(x.type) if directions[i] is None else expression(directions[i])
        t = cast(t, x.dtype) if t.weak else t
        if not same_type(x.type, t.type):
            raise ShapeError(f"{where()}the tangent of {labels[i]} is {t.type}, not {x.type}")
        primals[i] = t
    seeds = [zeros(results[i].type) for i in pull.of]

    def pulled(*cotangents: Any) -> list[Any]:
        return pull.apply(list(cotangents))

    _, push = _vjp(pulled, seeds)
    pushed = dict(zip(pull.of, push.apply([primals[i] for i in pull.wrt]), strict=True))
    made = [pushed[i] if i in pushed else zeros(expression(x).type) for i, x in enumerate(results)]
    for tangent, x in zip(made, results, strict=True):
        tangent.weak = expression(x).weak  # of a plain number: both take the same type
    return out, tree.unflatten(results_structure, made)
