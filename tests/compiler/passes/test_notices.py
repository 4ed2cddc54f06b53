"""The notice about single-`where` code: given where the formula can make a NaN, and only there."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import retrograde.compiler.ops  # noqa: F401  # declares the ops
from retrograde.compiler.errors import Notice
from retrograde.compiler.ir import dtypes
from retrograde.compiler.ir.builder import Builder
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.graph import Graph, TensorType
from retrograde.compiler.ir.interpreter import evaluate
from retrograde.compiler.ir.registry import lookup
from retrograde.compiler.passes.backward import Backward


def summed(fn: Callable[[Any], Any]) -> Graph:
    builder = Builder("f", Expr)
    with builder:
        x = builder.input(TensorType(dtypes.f64, (3,)), "x")
        out = lookup("sum")(fn(x), axes=(0,), keepdims=False)
        return builder.finish([out.value])


def where(condition: Any, a: Any, b: Any) -> Any:
    return lookup("select")(condition, a, b)


def log(x: Any) -> Any:
    return lookup("log")(x)


def slope(graph: Graph, x: np.ndarray) -> np.ndarray:
    return evaluate(Backward((0,), (0,))(graph), [x, np.float64(1.0)])[1]


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: where(x > 0, log(x), 0.0),
        lambda x: where(x != 0, 2.0 / (x * 3.0), 0.0),
        lambda x: where(x > 0, lookup("tanh")(lookup("sqrt")(x)) * 2.0, x),
    ],
)
def test_a_single_where_follows_the_formula_with_a_notice(fn: Callable[[Any], Any]) -> None:
    graph = summed(fn)
    with pytest.warns(Notice, match=r"test_notices\.py:\d+: where"):
        found = slope(graph, np.array([0.0, 1.0, 2.0]))
    assert np.isnan(found[0])
    assert np.isfinite(found[1:]).all()


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: where(x > 0, log(where(x > 0, x, 1.0)), 0.0),
        lambda x: where(x > 0, log(lookup("maximum")(x, 0.5)), 0.0),
        lambda x: where(x > 0, x / 3.0, 0.0),
        lambda x: where(x > 0, lookup("exp")(x), 0.0),
    ],
)
def test_guarded_code_is_finite_and_silent(fn: Callable[[Any], Any]) -> None:
    graph = summed(fn)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isfinite(slope(graph, np.array([0.0, 1.0, -2.0]))).all()
