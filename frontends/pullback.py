"""Pullbacks: what a function keeps for its derivative -> cotangents of its arguments.

A backward graph is cut in two: what the results need, and what the cotangents need beside it,
which reads the first part's values as residuals.  Invariant: nothing is computed in both parts,
and a `Pullback` is a tree of arrays, so it passes through compiled functions like any result.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from retrograde import tree
from retrograde.compiler.errors import DTypeError, ShapeError, UnsupportedError
from retrograde.compiler.ir import dims
from retrograde.compiler.ir.binding import bind_sizes
from retrograde.compiler.ir.builder import required
from retrograde.compiler.ir.expr import Expr, cast, zeros
from retrograde.compiler.ir.graph import Derivative, Graph, Node, TensorType, Value, same_type
from retrograde.compiler.ir.location import where
from retrograde.compiler.ir.registry import Kind
from retrograde.compiler.passes.dce import has_effect
from retrograde.execution import Runnable, runnable
from retrograde.tracing import expression, is_traced


def split(backward: Graph, results: int, seeds: int) -> tuple[Graph, Graph, tuple[Value, ...]]:
    """The graph of the first `results` outputs, that of the others, and the residuals.

    The last `seeds` inputs are the cotangents.  First graph: inputs -> results, residuals; second:
    residuals, cotangents -> cotangents."""
    cut = len(backward.inputs) - seeds
    inputs, cotangents = backward.inputs[:cut], backward.inputs[cut:]
    outputs, pulled = backward.outputs[:results], backward.outputs[results:]
    first = _needed(backward.nodes, outputs, effects=True)
    second = _needed(backward.nodes, pulled, effects=False)
    kept = [n for n in backward.nodes if n in first]
    linear = [n for n in backward.nodes if n in second and (n not in first or _is_free(n))]
    own = {*cotangents, *(v for n in linear for v in n.outputs)}
    read = dict.fromkeys([*(v for n in linear for v in n.inputs), *pulled])
    residuals = [v for v in read if v not in own]
    residuals += _bearers(inputs, [*residuals, *cotangents], linear)
    names = backward.output_names
    primal = Graph(
        backward.name,
        inputs,
        tuple(kept),
        (*outputs, *residuals),
        backward.input_names[:cut],
        (*names[:results], *(f"residual {i}" for i in range(len(residuals)))),
    )
    pullback = Graph(
        f"{backward.name}.pullback",
        (*residuals, *cotangents),
        tuple(linear),
        pulled,
        (*(f"residual {i}" for i in range(len(residuals))), *backward.input_names[cut:]),
        names[results:],
    )
    return primal, pullback, tuple(residuals)


def _needed(nodes: Sequence[Node], outputs: Iterable[Value], effects: bool) -> set[Node]:
    live = set(outputs)
    found = set()
    for node in reversed(nodes):
        if (effects and has_effect(node)) or any(v in live for v in node.outputs):
            found.add(node)
            live.update(node.inputs)
    return found


def _is_free(node: Node) -> bool:
    """Whether making it again is nothing: constants and sizes."""
    return node.op.kind is Kind.CREATE


def _bearers(inputs: Sequence[Value], shown: Sequence[Value], nodes: Sequence[Node]) -> list[Value]:
    """Inputs to keep only because their shapes tell a size that nothing else does."""
    known = {s.name for v in shown for d in v.shape for s in dims.symbols(d)}
    needed = {s.name for n in nodes for v in n.outputs for d in v.shape for s in dims.symbols(d)}
    out = []
    for v in inputs:
        told = {s.name for d in v.shape for s in dims.symbols(d)} & (needed - known)
        if told and v not in shown:
            known |= told
            out.append(v)
    return out


@dataclass(frozen=True, eq=False)
class Pullback:
    """Cotangents of a function's result, in its structure -> a tuple of those of its arguments.

    An argument's leaf that is no float gets None."""

    residuals: tuple[Any, ...]
    graph: Graph
    result: tree.TreeDef
    of: tuple[int, ...]  # the result's leaves that have cotangents
    arguments: tree.TreeDef
    wrt: tuple[int, ...]  # the arguments' leaves that get them

    def claim(self, of: Sequence[Value], wrt: Sequence[Value]) -> None:
        """Notes for the trace at work which of its values this is the derivative of."""
        object.__setattr__(self, "_claimed", (required(), tuple(of), tuple(wrt)))

    def __call__(self, cotangents: Any) -> Any:
        what = f"{where()}the cotangents are not of the structure of the result"
        leaves = tree.aligned(self.result, cotangents, what)
        given = [leaves[i] for i in self.of]
        pulled = self.apply(given) if is_traced() else self._run(given)
        out: list[Any] = [None] * self.arguments.num_leaves
        for i, x in zip(self.wrt, pulled, strict=True):
            out[i] = x
        return tree.unflatten(self.arguments, out)

    @property
    def _seed_types(self) -> list[Any]:
        return [v.type for v in self.graph.inputs[len(self.residuals) :]]

    def apply(self, cotangents: Sequence[Any]) -> list[Any]:
        """The cotangents of the arguments' float leaves, in the trace at work."""
        residuals = [expression(x) for x in self.residuals]
        for x, v in zip(residuals, self.graph.inputs, strict=False):
            if not same_type(x.type, v.type):
                raise UnsupportedError(
                    f"{where()}this pullback was made outside of the function being traced, for "
                    f"arrays of {v.type}: call rg.vjp inside of it"
                )
        seeds = [self._seed(x, t) for x, t in zip(cotangents, self._seed_types, strict=True)]
        builder = required()
        pulled = builder.inline(self.graph, [*residuals, *seeds])
        traced, of, wrt = getattr(self, "_claimed", (None, (), ()))
        if traced is builder:
            given, found = (tuple(x.value for x in part) for part in (seeds, pulled))
            builder.derivatives.append(Derivative(of, given, wrt, found))
        return list(pulled)

    def _seed(self, x: Any, type: Any) -> Expr:
        if x is None:
            return zeros(type)
        found = expression(x, "a cotangent")
        found = cast(found, type.dtype) if found.weak else found
        if not same_type(found.type, type):
            raise ShapeError(f"{where()}a cotangent is {found.type}, the result is {type}")
        return found

    def _run(self, cotangents: Sequence[Any]) -> list[Any]:
        program = _programs.get(self.graph)
        if program is None:
            program = _programs[self.graph] = runnable(self.graph)
        types, names = [v.type for v in self.graph.inputs], self.graph.input_names
        n = len(self.residuals)
        seeds = [None if x is None else np.asarray(x) for x in cotangents]
        known = [i for i in range(len(types)) if i < n or seeds[i - n] is not None]
        shapes = [x.shape for x in (*self.residuals, *seeds) if x is not None]
        sizes = bind_sizes([types[i] for i in known], [names[i] for i in known], shapes)
        filled = [_filled(x, t, sizes) for x, t in zip(seeds, types[n:], strict=True)]
        return program.run([*self.residuals, *filled], sizes)


def _filled(x: Any, type: TensorType, sizes: Mapping[str, int]) -> Any:
    """A cotangent in the dtype of the result: a number that was given, or zeros."""
    if x is None:
        return np.zeros([dims.evaluate(d, sizes) for d in type.shape], type.dtype.numpy)
    if x.dtype != type.dtype.numpy and x.ndim:
        raise DTypeError(f"{where()}a cotangent is {x.dtype}{list(x.shape)}, the result is {type}")
    return x.astype(type.dtype.numpy)


_programs: WeakKeyDictionary[Graph, Runnable] = WeakKeyDictionary()

tree.register(
    Pullback,
    lambda p: (
        p.residuals,
        (p.graph, p.result, p.of, p.arguments, p.wrt),
        [f"residual {i}" for i in range(len(p.residuals))],
    ),
    lambda made, residuals: Pullback(tuple(residuals), *made),
)
