"""Steps of a loop and all of them at once, for the tests of Vectorize: graphs in, graphs out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import retrograde.compiler.ops  # noqa: F401  # registers the ops
from retrograde.compiler.ir.builder import Builder
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.graph import Graph, TensorType, Value
from retrograde.compiler.ir.text import parse
from retrograde.compiler.ir.verify import verify
from retrograde.compiler.passes.vectorize import Vectorized, spread, vectorize


def body_of(fn: Callable[..., tuple[Any, ...]], *types: tuple[Any, ...]) -> Graph:
    builder = Builder("body", Expr)
    with builder:
        results = fn(*(builder.input(TensorType(t, tuple(shape))) for t, *shape in types))
    return builder.finish([e.value for e in results])


def vectorized(graph: Graph, stacked: Sequence[bool], length: Dim) -> tuple[Graph, Vectorized]:
    """The graph of all steps, with the outputs of a step (those that are shared stretched where
    others are not), and what it was made from."""
    builder = Builder("steps", Expr)
    varying: dict[Value, Expr] = {}
    fixed: dict[Value, Expr] = {}
    with builder:
        for v, flag in zip(graph.inputs, stacked, strict=True):
            shape = (length, *v.shape) if flag else v.shape
            (varying if flag else fixed)[v] = builder.input(TensorType(v.dtype, shape))
        found = vectorize(graph.nodes, varying, fixed, length)
        outputs = [found.stacked.get(v, found.shared.get(v)) for v in graph.outputs]
        if any(stacked):
            outputs = [
                e if v in found.stacked else spread(e, length)
                for v, e in zip(graph.outputs, outputs, strict=True)
            ]
    made = builder.finish([e.value for e in outputs])
    verify(made)
    assert parse(made.text()).text() == made.text()
    return made, found


def choices(count: int) -> Iterator[tuple[bool, ...]]:
    """Every choice of stacked operands but that of none."""
    for flags in itertools.product((True, False), repeat=count):
        if any(flags):
            yield flags


def names(graph: Graph) -> list[str]:
    return [node.op.name for node in graph.nodes]
