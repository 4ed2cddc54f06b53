"""Two small layers with scopes, and one training step of them, as graphs."""

from __future__ import annotations

from itertools import pairwise

import pytest

import retrograde.compiler.ops  # noqa: F401  # registers the ops
from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.builder import Builder
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.graph import Graph, Origin, TensorType
from retrograde.compiler.ir.location import scope
from retrograde.compiler.ir.registry import lookup
from retrograde.compiler.passes.backward import Backward

WIDTHS = (5, 7, 3)


@pytest.fixture(scope="session")
def forward() -> Graph:
    """x[B, 5] -> the mean square of two layers under `blocks.0.first` and `blocks.0.second`."""
    builder = Builder("model", Expr)
    with builder:
        weights = [
            builder.input(TensorType(dtypes.f32, (m, n)), f"w{i}")
            for i, (m, n) in enumerate(pairwise(WIDTHS))
        ]
        x = builder.input(TensorType(dtypes.f32, (dims.dim("B"), WIDTHS[0])), "x")
        with scope("blocks"), scope("0"):
            for weight, name in zip(weights, ("first", "second"), strict=True):
                with scope(name):
                    x = lookup("tanh")(x @ weight)
        loss = lookup("sum")(x * x * 0.5, axes=(0, 1), keepdims=False)
        return builder.finish([loss.value], ["loss"])


@pytest.fixture(scope="session")
def step(forward: Graph) -> Graph:
    """The loss and the weights moved against their gradients, in place."""
    backward = Backward((0,), (0, 1))(forward)
    builder = Builder("step", Expr)
    with builder:
        inputs = [
            builder.input(v.type, name)
            for v, name in zip(forward.inputs, forward.input_names, strict=True)
        ]
        loss, *gradients = builder.inline(backward, [*inputs, builder.constant(1.0, dtypes.f32)])
        with builder.located(None, "", Origin("update", "optimizer")):
            moved = [w - g * 0.1 for w, g in zip(inputs, gradients, strict=False)]
        return builder.finish(
            [loss.value, *(w.value for w in moved)], ["loss", "", ""], [(1, 0), (2, 1)]
        )
