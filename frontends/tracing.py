"""Tracing: a Python function and the types of its inputs -> a graph, and how its results nest.

`trace_root` makes a graph that stands alone: arrays met by closure become hidden inputs after the
declared ones.  `trace_inner` makes one inside of a trace: what it takes from outside becomes extra
inputs, bound where the graph is inlined.  Invariant: a graph refers to nothing but its inputs.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optree

from retrograde import scopes, tree
from retrograde.compiler.errors import TraceError
from retrograde.compiler.ir import dtypes
from retrograde.compiler.ir.builder import Builder, current, required
from retrograde.compiler.ir.collection import paused_collection
from retrograde.compiler.ir.dims import Poly
from retrograde.compiler.ir.dtypes import DType
from retrograde.compiler.ir.expr import SCALARS, Expr, cast, dim_number
from retrograde.compiler.ir.graph import Graph, TensorType
from retrograde.compiler.ir.location import skip_frames_under, where
from retrograde.eager_mode import EagerBuilder, EagerTracer, array_of
from retrograde.tracer import Tracer
from retrograde.unrolled import WatchingBuilder

# The user's line is the innermost one outside of the front end's own machinery.  Layers, losses,
# models and recipes that ship with it are written as users write theirs, and show their own lines.
_HERE = os.path.dirname(os.path.abspath(__file__))
_OWN_CODE = {"losses.py", "nn", "models", "recipes"}
for _name in sorted(os.listdir(_HERE)):
    if _name not in _OWN_CODE:
        skip_frames_under(os.path.join(_HERE, _name))
for _name in ("module.py", "context.py"):
    skip_frames_under(os.path.join(_HERE, "nn", _name))
skip_frames_under(os.path.dirname(os.path.abspath(optree.__file__)))


@dataclass(frozen=True)
class Traced:
    """A function as a graph: declared inputs, then captured ones; the outputs are its leaves."""

    graph: Graph
    structure: tree.TreeDef  # of what the function returned
    captured: tuple[Any, ...]  # expressions of outer builders; at the root arrays
    weak: tuple[bool, ...]  # of the outputs

    def inlined(self, args: Sequence[Expr]) -> Any:
        """What the function returns for `args`, in the graph being built."""
        outputs = required().inline(self.graph, [*args, *self.captured])
        return self.returned(outputs)

    def returned(self, outputs: Sequence[Expr]) -> Any:
        """Outputs in the structure that the function gave them."""
        for x, weak in zip(outputs, self.weak, strict=True):
            x.weak = weak
        return tree.unflatten(self.structure, outputs)


def expression(x: Any, what: str = "a value") -> Expr:
    """A leaf as an expression of the graph being built; numbers and sizes stay weak.

    Raises TraceError, with `what` it is, for anything else."""
    builder = required()
    if isinstance(x, Expr):
        return builder.lift(x)
    if isinstance(x, np.ndarray):
        return builder.lift_array(x)
    if isinstance(x, Poly):
        return dim_number(x)
    if isinstance(x, SCALARS):
        kind = dtypes.weak_kind(x)
        dtype = {"bool": dtypes.bool_, "int": dtypes.i64, "float": dtypes.f64}[kind]
        number = {"bool": bool, "int": int, "float": float}[kind](x)
        constant = builder.constant(number, dtype)
        out = builder.wrap(constant.value, builder)
        out.weak = kind != "bool"
        return out
    raise TraceError(
        f"{where()}{what} is a {type(x).__name__}: functions being traced take and return arrays, "
        "numbers, and lists, tuples, dicts or modules of these"
    )


def strong(x: Expr) -> Expr:
    """`x`; where it came from numbers alone, as f32 or i32."""
    if not x.weak:
        return x
    return cast(x, default_dtype(x.dtype))


def default_dtype(dtype: DType) -> DType:
    """What a weak value of `dtype` becomes on its own."""
    if dtype.is_float:
        return dtypes.f32
    return dtypes.i32 if dtype.is_integer else dtype


def name_of(fn: Any) -> str:
    """What a function is called in messages and graphs."""
    name = getattr(fn, "__name__", None) or type(fn).__name__
    return "function" if name == "<lambda>" else str(name)


def checked_function(fn: Any) -> None:
    """TraceError for what cannot be called."""
    if not callable(fn):
        raise TraceError(f"{where()}a {type(fn).__name__} is no function that could be traced")


def argument_names(fn: Any, count: int) -> list[str]:
    """What `fn` calls its first `count` positional arguments."""
    names: list[str] = []
    try:
        for p in inspect.signature(fn).parameters.values():
            if p.kind is p.VAR_POSITIONAL:
                names.extend(f"{p.name}.{i}" for i in range(count - len(names)))
            elif p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD):
                names.append(p.name)
    except (TypeError, ValueError):  # some builtins have no signature
        pass
    names.extend(f"arg{i}" for i in range(len(names), count))
    return names[:count]


def leaf_names(args: Sequence[Any], names: Sequence[str]) -> list[str]:
    """The name of every leaf of the arguments: the argument's, then the path in it."""
    return [
        f"{name}.{path}" if path else name
        for arg, name in zip(args, names, strict=True)
        for path in tree.paths(arg)
    ]


def output_names(structure: tree.TreeDef) -> list[str]:
    """The names of the outputs: their paths; "out" for one that has none."""
    found = tree.names(structure)
    return [(f"out.{p}" if p[0].isdigit() else p) if p else "out" for p in found]


def trace_root(
    name: str,
    types: Sequence[TensorType],
    names: Sequence[str],
    weak: Sequence[bool],
    call: Callable[[list[Expr]], Any],
) -> Traced:
    """The graph of `call`, which gets one expression for each type; weak results become strong."""
    with paused_collection(), scopes.binding(), WatchingBuilder(name, Tracer) as builder:
        result = call(_declared(builder, types, names, weak))
        leaves, structure = tree.flatten(result)
        paths = output_names(structure)
        outputs = [
            strong(expression(x, f"{name} returns {path}, which"))
            for x, path in zip(leaves, paths, strict=True)
        ]
    graph = builder.finish([x.value for x in outputs], paths)
    return Traced(graph, structure, tuple(builder.captured), (False,) * len(outputs))


def trace_inner(
    name: str,
    inputs: Sequence[TensorType | Expr],
    names: Sequence[str],
    call: Callable[[list[Expr]], Any],
    weak: Sequence[bool] = (),
) -> Traced:
    """The graph of `call` inside of the trace at work.

    An input is a type, or an expression that the input stands for, which in eager mode lends it
    its numbers."""
    parent = required()
    builder: Builder
    if isinstance(parent, EagerBuilder) and all(isinstance(x, EagerTracer) for x in inputs):
        builder = EagerBuilder(name, parent)
    else:
        builder = WatchingBuilder(name, Tracer, parent)
    with scopes.binding(), builder:
        result = call(_declared(builder, inputs, names, weak or [_is_weak(x) for x in inputs]))
        leaves, structure = tree.flatten(result)
        outputs = [expression(x, f"{name} returns something that") for x in leaves]
    graph = builder.finish([x.value for x in outputs], output_names(structure))
    return Traced(graph, structure, tuple(builder.captured), tuple(x.weak for x in outputs))


def _is_weak(x: TensorType | Expr) -> bool:
    return isinstance(x, Expr) and x.weak


def _declared(
    builder: Builder,
    inputs: Sequence[TensorType | Expr],
    names: Sequence[str],
    weak: Sequence[bool],
) -> list[Expr]:
    out = []
    for x, name, is_weak in zip(inputs, names, weak, strict=True):
        if isinstance(builder, EagerBuilder):
            assert isinstance(x, Expr)
            made = builder.input_array(array_of(x), name)
        else:
            made = builder.input(x.type if isinstance(x, Expr) else x, name)
        made.weak = is_weak
        out.append(made)
    return out


def is_traced() -> bool:
    """Whether a trace (or eager mode) is at work."""
    return current() is not None


def lifted(args: Any) -> Any:
    """The arguments with their arrays as expressions of the trace at work, so that what a function
    does to them is traced."""
    return tree.map(lambda x: expression(x) if isinstance(x, np.ndarray) else x, args)
