"""Helpers of the front end's tests: trace a function, check its graph, run the interpreter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from retrograde.compiler.ir import dims, dtypes, parse
from retrograde.compiler.ir.builder import Builder
from retrograde.compiler.ir.expr import as_expr
from retrograde.compiler.ir.graph import Graph, TensorType
from retrograde.compiler.ir.interpreter import evaluate
from retrograde.compiler.ir.verify import verify
from retrograde.tracer import Tracer


def trace(fn: Callable[..., Any], types: Sequence[TensorType]) -> tuple[Graph, list[Any], Any]:
    """The graph of `fn`, the arrays it captured, and what it returned with slots for outputs."""
    leaves: list[Any] = []

    def flattened(tree: Any) -> Any:
        if isinstance(tree, (tuple, list)):
            return [flattened(item) for item in tree]
        if isinstance(tree, (Tracer, np.ndarray, dims.Poly)):
            leaves.append(as_expr(tree))
            return slice(len(leaves) - 1)
        return tree

    with Builder("f", Tracer) as builder:
        result = flattened(fn(*(builder.input(t, f"x{i}") for i, t in enumerate(types))))
        graph = builder.finish([e.value for e in leaves])
    verify(graph)
    assert parse(graph.text()).text() == graph.text()
    return graph, builder.captured, result


def run(fn: Callable[..., Any], *arrays: Any, shapes: Sequence[Sequence[Any]] | None = None) -> Any:
    """`fn` traced for the arrays (with `shapes` where given) and evaluated on them."""
    xs = [np.asarray(x) for x in arrays]
    types = [
        TensorType(dtypes.dtype(x.dtype), x.shape if shapes is None else tuple(shape))
        for x, shape in zip(xs, shapes or [()] * len(xs), strict=True)
    ]
    graph, captured, result = trace(fn, types)
    outputs = evaluate(graph, [*xs, *captured])

    def filled(tree: Any) -> Any:
        if isinstance(tree, list):
            return [filled(item) for item in tree]
        return outputs[tree.stop] if isinstance(tree, slice) else tree

    return filled(result)


def symbolic(*arrays: Any, min: int = 1) -> list[tuple[Any, ...]]:
    """Shapes in which equal sizes from 2 on share a symbol."""
    return [tuple(dims.dim(f"N{n}", min=min) if n > 1 else n for n in np.shape(x)) for x in arrays]


@pytest.fixture(name="run", scope="session")
def _run() -> Callable[..., Any]:
    return run


@pytest.fixture(name="trace", scope="session")
def _trace() -> Callable[..., Any]:
    return trace


@pytest.fixture(name="symbolic", scope="session")
def _symbolic() -> Callable[..., Any]:
    return symbolic
