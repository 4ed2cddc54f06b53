"""What the tests of the IR share: `build` makes a graph from a function of expressions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

import retrograde.compiler.ops  # noqa: F401  # registers the ops
from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.builder import Builder
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.graph import Graph, TensorType


def make_type(dtype: str, *shape: Any) -> TensorType:
    """`make_type("f32", "B", 3)`; names are sizes of at least 1."""
    sizes = tuple(dims.parse(d) if isinstance(d, str) else d for d in shape)
    return TensorType(dtypes.dtype(dtype), sizes)


def build_graph(
    fn: Callable[..., Any],
    *types: TensorType,
    names: Sequence[str] = (),
    outputs: Sequence[str] = (),
    aliases: Sequence[tuple[int, int]] = (),
    name: str = "f",
) -> Graph:
    """The graph of `fn` on inputs of these types."""
    builder = Builder(name, Expr)
    with builder:
        padded = [*names, *[""] * len(types)]
        inputs = [builder.input(t, n) for t, n in zip(types, padded, strict=False)]
        made = fn(*inputs)
        results = made if isinstance(made, (tuple, list)) else (made,)
    return builder.finish([builder.lift(e).value for e in results], outputs, aliases)


@pytest.fixture(scope="session")
def tensor() -> Callable[..., TensorType]:
    return make_type


@pytest.fixture(scope="session")
def build() -> Callable[..., Graph]:
    return build_graph
