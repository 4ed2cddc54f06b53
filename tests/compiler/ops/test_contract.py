"""dot_general against einsum: all arrangements of axes, dtypes, empty sums, symbolic sizes."""

from __future__ import annotations

import string
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrograde.compiler.errors import DTypeError, ShapeError
from retrograde.compiler.ir import dtypes
from retrograde.compiler.ir.builder import Builder
from retrograde.compiler.ir.dims import dim
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.graph import TensorType
from retrograde.compiler.ir.interpreter import evaluate
from retrograde.compiler.ir.registry import lookup
from retrograde.compiler.passes.backward import Backward
from tests.compiler.ops.harness import INTEGERS, epsilon, numpy_dtype, run

Array = npt.NDArray[Any]
B, T = dim("B"), dim("T")


@st.composite
def arrangements(draw: Any) -> tuple[str, str, str, str, dict[str, int]]:
    """Letters of both operands, of the contracted and the batch axes, and the letters' sizes."""
    counts = [draw(st.integers(0, 2)) for _ in range(4)]  # batch, contracted, left, right
    letters = iter(string.ascii_lowercase)
    batch, contract, left, right = ("".join(next(letters) for _ in range(n)) for n in counts)
    lhs = "".join(draw(st.permutations(batch + contract + left)))
    rhs = "".join(draw(st.permutations(batch + contract + right)))
    sizes = {c: draw(st.integers(0, 4)) for c in batch + contract + left + right}
    return lhs, rhs, contract, batch, sizes


def axes_of(lhs: str, rhs: str, contract: str, batch: str) -> dict[str, Any]:
    pairs = {"contract": contract, "batch": batch}
    return {
        name: (tuple(lhs.index(c) for c in letters), tuple(rhs.index(c) for c in letters))
        for name, letters in pairs.items()
    }


@given(arrangements())
def test_every_arrangement_agrees_with_einsum_and_so_do_its_gradients(case: Any) -> None:
    lhs, rhs, contract, batch, sizes = case
    used = contract + batch
    result = batch + "".join(c for c in lhs + rhs if c not in used)
    rng = np.random.default_rng(1)
    a, b, g = (rng.standard_normal([sizes[c] for c in s]) for s in (lhs, rhs, result))
    builder = Builder("dot", Expr)
    with builder:
        inputs = [builder.input(TensorType(dtypes.f64, x.shape)) for x in (a, b)]
        out = lookup("dot_general")(*inputs, **axes_of(lhs, rhs, contract, batch))
    graph = Backward((0,), (0, 1))(builder.finish([out.value]))
    y, da, db = evaluate(graph, [a, b, g])
    expected = (
        (y, f"{lhs},{rhs}->{result}", a, b),
        (da, f"{result},{rhs}->{lhs}", g, b),
        (db, f"{lhs},{result}->{rhs}", a, g),
    )
    for found, spelling, p, q in expected:
        np.testing.assert_allclose(found, np.einsum(spelling, p, q), rtol=1e-12, atol=1e-12)


MATMUL = {"contract": ((1,), (0,)), "batch": ((), ())}


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_are_exact(dtype: str) -> None:
    a = np.arange(12).reshape(3, 4).astype(numpy_dtype(dtype))
    b = np.arange(20).reshape(4, 5).astype(numpy_dtype(dtype))
    out = run("dot_general", a, b, **MATMUL)
    assert out.dtype == a.dtype
    wide = a.astype(np.int64) @ b.astype(np.int64)
    np.testing.assert_array_equal(out, wide.astype(a.dtype))  # wraps as the type does


def test_booleans_are_or_of_ands() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.uniform(size=(3, 4)) < 0.4, rng.uniform(size=(4, 5)) < 0.4
    out = run("dot_general", a, b, **MATMUL)
    assert out.dtype == bool
    np.testing.assert_array_equal(out, (a[:, :, None] & b).any(1))


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_halves_are_summed_in_f32(dtype: str) -> None:
    rng = np.random.default_rng(0)
    a = rng.uniform(0.5, 1.0, (3, 2000)).astype(numpy_dtype(dtype))
    b = rng.uniform(0.5, 1.0, (2000, 2)).astype(numpy_dtype(dtype))
    out = run("dot_general", a, b, **MATMUL)
    assert out.dtype == a.dtype
    exact = a.astype(np.float64) @ b.astype(np.float64)
    np.testing.assert_allclose(out.astype(np.float64), exact, rtol=epsilon(dtype))


def test_operands_meet_in_a_common_dtype() -> None:
    out = run("dot_general", np.ones((2, 3), np.int32), np.ones((3, 4), np.float32), **MATMUL)
    assert out.dtype == np.float32
    with pytest.raises(DTypeError, match="common integer type"):
        run("dot_general", np.ones((2, 3), np.int64), np.ones((3, 4), np.uint64), **MATMUL)


def test_a_sum_over_nothing_is_zero() -> None:
    out = run("dot_general", np.ones((2, 0), np.float32), np.ones((0, 3), np.float32), **MATMUL)
    np.testing.assert_array_equal(out, np.zeros((2, 3), np.float32))


def test_nan_stays_in_its_row() -> None:
    a = np.ones((3, 4))
    a[1, 2] = np.nan
    out = run("dot_general", a, np.ones((4, 5)), **MATMUL)
    np.testing.assert_array_equal(np.isnan(out).all(1), [False, True, False])


def test_shape_and_cost_in_symbols() -> None:
    op = lookup("dot_general")
    x, w = TensorType(dtypes.f32, (B, T, 64)), TensorType(dtypes.f32, (64, 256))
    projection = {"contract": ((2,), (0,)), "batch": ((), ())}
    (y,) = op.infer((x, w), projection)
    assert y.shape == (B, T, 256)
    assert op.cost((x, w), (y,), projection) == 2 * B * T * 64 * 256
    heads = TensorType(dtypes.f32, (B, 4, T, 16))
    scores = {"contract": ((3,), (3,)), "batch": ((0, 1), (0, 1))}
    (s,) = op.infer((heads, heads), scores)
    assert s.shape == (B, 4, T, T)
    assert op.cost((heads, heads), (s,), scores) == 2 * 4 * B * T * T * 16


def test_a_projection_needs_no_transpose_in_its_gradient() -> None:
    builder = Builder("linear", Expr)
    with builder:
        x = builder.input(TensorType(dtypes.f32, (B, T, 64)))
        w = builder.input(TensorType(dtypes.f32, (64, 256)))
        y = lookup("dot_general")(x, w, contract=((2,), (0,)), batch=((), ()))
    graph = Backward((0,), (0, 1))(builder.finish([y.value]))
    assert [n.op.name for n in graph.nodes] == ["dot_general"] * 3


@pytest.mark.parametrize(
    ("shapes", "contract", "batch", "says"),
    [
        (((2, 3), (4, 5)), ((1,), (0,)), ((), ()), "3 on axis 1 .* against 4 on axis 0"),
        (((2, 3), (3, 5)), ((1,), ()), ((), ()), "pairs axes"),
        (((2, 3), (3, 5)), ((2,), (0,)), ((), ()), "distinct axes"),
        (((2, 3), (3, 2)), ((1,), (0,)), ((1,), (0,)), "distinct axes"),
        (((2, T), (B, 5)), ((1,), (0,)), ((), ()), "T on axis 1"),
        (((B, 3), (T, 3)), ((1,), (1,)), ((0,), (0,)), "B on axis 0"),
    ],
)
def test_axes_that_do_not_fit(shapes: Any, contract: Any, batch: Any, says: str) -> None:
    types = tuple(TensorType(dtypes.f32, s) for s in shapes)
    with pytest.raises(ShapeError, match=says):
        lookup("dot_general").infer(types, {"contract": contract, "batch": batch})
