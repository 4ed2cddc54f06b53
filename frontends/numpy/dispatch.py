"""Where a function of `retrograde.numpy` runs: in the trace at work, or at once.

Inside a trace a call appends ops to the graph being built.  Outside, the same code builds a small
graph that the interpreter evaluates, so both have one meaning.  Invariant: what is returned outside
of a trace shares no memory with the operands; results of numbers alone are NumPy scalars, which
are weak like the numbers themselves.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt

import retrograde.compiler.ops  # noqa: F401  (declares the ops)
from retrograde.compiler.ir.builder import Builder, current
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.interpreter import evaluate
from retrograde.compiler.ir.location import skip_frames_under

P = ParamSpec("P")
R = TypeVar("R")

skip_frames_under(os.path.dirname(os.path.abspath(__file__)) + os.sep)


def function(fn: Callable[P, R]) -> Callable[P, R]:
    """Makes `fn`, written in expressions, a function of traced values and of plain arrays."""

    @functools.wraps(fn)
    def public(*args: P.args, **kwargs: P.kwargs) -> R:
        if current() is not None:
            return fn(*args, **kwargs)
        out: R = _evaluate_now(fn, args, kwargs)
        return out

    return public


def _evaluate_now(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    found: list[Expr] = []
    with Builder(getattr(fn, "__name__", "function"), Expr) as builder:
        result = fn(*args, **kwargs)
        _collect(result, found)
        graph = builder.finish([builder.lift(e).value for e in found])
    inputs: list[npt.NDArray[Any]] = builder.captured
    arrays = evaluate(graph, inputs)
    fresh = [_fresh(x, inputs, e.weak) for x, e in zip(arrays, found, strict=True)]
    return _replace(result, iter(fresh))


def _fresh(x: npt.NDArray[Any], inputs: list[npt.NDArray[Any]], weak: bool) -> Any:
    if weak:
        return x[()]
    if x.base is None and not any(x is y for y in inputs):
        return x
    return np.array(x)


def _collect(tree: Any, found: list[Expr]) -> None:
    if isinstance(tree, Expr):
        found.append(tree)
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            _collect(item, found)


def _replace(tree: Any, arrays: Any) -> Any:
    if isinstance(tree, Expr):
        return next(arrays)
    if isinstance(tree, (tuple, list)):
        return type(tree)(_replace(item, arrays) for item in tree)
    return tree
