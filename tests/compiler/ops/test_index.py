"""gather and the scatters against plain loops; the buffer kernels against the references, bit for
bit; indices that repeat, count from the end, or are out of range."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrograde.compiler.errors import DataError, DTypeError, ShapeError
from retrograde.compiler.ir import dtypes
from retrograde.compiler.ir.dims import dim
from retrograde.compiler.ir.graph import TensorType
from retrograde.compiler.ir.registry import lookup
from retrograde.compiler.ops.index import (
    add_rows,
    gather_into,
    scatter_add_into,
    scatter_set_into,
    take_rows,
)
from tests.compiler.ops.harness import FLOATS, INTEGERS, epsilon, gradient, numpy_dtype, run

Array = npt.NDArray[Any]
B, T, V = dim("B"), dim("T"), dim("V")


def places(x: Array, axes: tuple[int, ...], indices: tuple[Array, ...]) -> list[Any]:
    """For each index position the key of `x` that it selects."""
    keys = []
    for position in np.ndindex(indices[0].shape):
        key: list[Any] = [slice(None)] * x.ndim
        for axis, idx in zip(axes, indices, strict=True):
            key[axis] = int(idx[position])
        keys.append((position, tuple(key)))
    return keys


def by_loop(x: Array, updates: Array, axes: Any, indices: Any, add: bool) -> Array:
    out = x.copy()
    for position, key in places(x, axes, indices):
        out[key] = out[key] + updates[position] if add else updates[position]
    return out


@st.composite
def cases(draw: Any) -> tuple[Array, Array, tuple[int, ...], tuple[Array, ...]]:
    """An operand, updates, axes and indices into them (many repeat; some count from the end)."""
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    axes = tuple(sorted(draw(st.sets(st.integers(0, len(shape) - 1), min_size=1))))
    index_shape = tuple(draw(st.lists(st.integers(0, 4), max_size=2)))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    dtype = draw(st.sampled_from(["f64", "f32"]))
    indices = tuple(
        np.asarray(rng.integers(-shape[a], shape[a], index_shape))
        .astype(draw(st.sampled_from(["int32", "int64"])))
        for a in axes
    )  # fmt: skip
    rest = [n for i, n in enumerate(shape) if i not in axes]
    x = rng.standard_normal(shape).astype(numpy_dtype(dtype))
    updates = rng.standard_normal((*index_shape, *rest)).astype(x.dtype)
    return x, updates, axes, indices


@given(cases())
def test_references_and_kernels_do_what_loops_do(case: Any) -> None:
    x, updates, axes, indices = case
    before = x.copy()
    attrs: dict[str, Any] = {"axes": axes}
    expected = np.zeros_like(updates)
    for position, key in places(x, axes, indices):
        expected[position] = x[key]
    added = by_loop(x, updates, axes, indices, add=True)
    written = by_loop(x, updates, axes, indices, add=False)
    np.testing.assert_array_equal(run("gather", x, *indices, **attrs), expected)
    np.testing.assert_array_equal(run("scatter_add", x, updates, *indices, **attrs), added)
    np.testing.assert_array_equal(run("scatter_set", x, updates, *indices, **attrs), written)
    np.testing.assert_array_equal(x, before)

    out = np.full_like(updates, np.nan)
    gather_into(np, out, x, axes, indices)
    np.testing.assert_array_equal(out, expected)
    for order in ("C", "F"):  # both memory layouts: one has rows to take, the other has none
        sums, last = x.copy(order), x.copy(order)
        scatter_add_into(np, sums, updates, axes, indices)
        scatter_set_into(np, last, updates, axes, indices)
        np.testing.assert_array_equal(sums, added)
        np.testing.assert_array_equal(last, written)


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS])
def test_scatter_add_in_every_dtype(dtype: str) -> None:
    rng = np.random.default_rng(3)
    x = rng.integers(0, 3, (3, 5)).astype(numpy_dtype(dtype))
    updates = rng.integers(0, 3, (40, 5)).astype(x.dtype)
    idx = rng.integers(-3, 3, 40)
    exact = x.astype(np.float64)
    np.add.at(exact, idx, updates.astype(np.float64))
    out = run("scatter_add", x, updates, idx, axes=(0,))
    assert out.dtype == x.dtype
    np.testing.assert_array_equal(out.astype(np.float64), exact)
    kernel = x.copy()
    add_rows(np, kernel, idx, updates)
    np.testing.assert_array_equal(kernel, out)


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_halves_are_added_in_f32_and_rounded_once(dtype: str) -> None:
    rng = np.random.default_rng(3)
    x = np.zeros((2, 7), numpy_dtype(dtype))
    updates = rng.uniform(0.5, 1.0, (3000, 7)).astype(x.dtype)
    idx = rng.integers(0, 2, 3000)
    exact = np.zeros(x.shape)
    np.add.at(exact, idx, updates.astype(np.float64))
    out = run("scatter_add", x, updates, idx, axes=(0,))
    np.testing.assert_allclose(out.astype(np.float64), exact, rtol=epsilon(dtype))
    kernel = x.copy()
    add_rows(np, kernel, idx, updates)
    np.testing.assert_array_equal(kernel, out)


def test_a_mask_can_be_gathered_and_written_but_not_added_up() -> None:
    mask = np.array([[True, False, False], [False, True, True]])
    idx = np.array([1, -2, 1])
    np.testing.assert_array_equal(run("gather", mask, idx, axes=(0,)), mask[idx])
    out = run("scatter_set", mask, np.zeros((3, 3), bool), idx, axes=(0,))
    np.testing.assert_array_equal(out, np.zeros((2, 3), bool))
    with pytest.raises(DTypeError, match="not added up"):
        run("scatter_add", mask, mask[idx], idx, axes=(0,))


# --- gradients of duplicates


def test_a_row_gathered_twice_gets_both_cotangents() -> None:
    x = np.arange(6.0).reshape(3, 2)
    (g,) = gradient("gather", x, np.array([0, 0, -1]), axes=(0,))
    np.testing.assert_array_equal(g, [[2.0, 2.0], [0.0, 0.0], [1.0, 1.0]])


def test_only_the_last_of_duplicate_writes_gets_a_cotangent() -> None:
    x, updates = np.zeros((3, 2)), np.ones((4, 2))
    gx, gu = gradient("scatter_set", x, updates, np.array([2, 0, -1, 2]), by=(0, 1), axes=(0,))
    np.testing.assert_array_equal(gx, [[0.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    np.testing.assert_array_equal(gu, [[0.0, 0.0], [1.0, 1.0], [0.0, 0.0], [1.0, 1.0]])


# --- out of range


@pytest.mark.parametrize(
    ("idx", "wrap", "says"),
    [
        (np.array([0, 3]), True, r"index 3 is out of range for axis 0 of size 3 \(-3 to 2\)"),
        (np.array([0, -4]), True, r"index -4 is out of range for axis 0 of size 3"),
        (np.array([0, -1]), False, r"index -1 is out of range for axis 0 of size 3 \(0 to 2\)"),
        (np.array(2**40), True, r"index 1099511627776 is out of range"),
        (np.array([2**63 + 1], np.uint64), True, r"index 9223372036854775809 is out of range"),
    ],
)
def test_an_index_out_of_range_is_named(idx: Array, wrap: bool, says: str) -> None:
    x = np.zeros((3, 2))
    rows = np.zeros((*idx.shape, 2))
    attrs: dict[str, Any] = {"axes": (0,), "wrap": wrap}
    with pytest.raises(DataError, match=says):
        run("gather", x, idx, **attrs)
    for name in ("scatter_add", "scatter_set"):
        with pytest.raises(DataError, match=says):
            run(name, x, rows, idx, **attrs)
    with pytest.raises(DataError, match=says):
        take_rows(np, np.empty_like(rows), x, idx, wrap)
    for kernel in (scatter_add_into, scatter_set_into):
        out = np.full((3, 2), 5.0)
        with pytest.raises(DataError, match=says):
            kernel(np, out, rows, (0,), (idx,), wrap)
        np.testing.assert_array_equal(out, 5.0)


def test_the_axis_is_named_and_so_is_an_empty_one() -> None:
    x = np.zeros((3, 4, 5))
    for axes in ((0, 1), (0, 2), (1, 2)):
        size = x.shape[axes[1]]
        with pytest.raises(DataError, match=f"index {size} .* for axis {axes[1]} of size {size}"):
            run("gather", x, np.array([0]), np.array([size]), axes=axes)
    with pytest.raises(DataError, match="axis 0 of size 0"):
        run("gather", np.zeros((0, 2)), np.array([0]), axes=(0,))
    assert run("gather", np.zeros((0, 2)), np.zeros(0, int), axes=(0,)).shape == (0, 2)


# --- shapes


def test_shapes_in_symbols() -> None:
    gather, add = lookup("gather"), lookup("scatter_add")
    table = TensorType(dtypes.f32, (V, 128))
    tokens = TensorType(dtypes.i32, (B, T))
    (rows,) = gather.infer((table, tokens), {"axes": (0,)})
    assert rows.shape == (B, T, 128)
    assert gather.cost((table, tokens), (rows,), {"axes": (0,)}) == B * T * 128
    assert add.infer((table, rows, tokens), {"axes": (0,)}) == (table,)
    assert add.cost((table, rows, tokens), (table,), {"axes": (0,)}) == B * T * 128
    logits = TensorType(dtypes.f32, (B, T, V))
    (picked,) = gather.infer((logits, tokens, tokens, tokens), {"axes": (0, 1, 2)})
    assert picked.shape == (B, T)


F, K = dtypes.f32, dtypes.i32


@pytest.mark.parametrize(
    ("name", "types", "axes", "error", "says"),
    [
        ("gather", [(F, (3,)), (F, (2,))], (0,), DTypeError, "indices are integers"),
        ("gather", [(F, (3,)), (dtypes.bool_, (3,))], (0,), DTypeError, "indices are integers"),
        ("gather", [(F, (3,)), (K, (2,))], (1,), ShapeError, "distinct axes"),
        ("gather", [(F, (3,)), (K, (2,))], (-1,), ShapeError, "distinct axes"),
        ("gather", [(F, (3, 4)), (K, (2,)), (K, (2,))], (1, 0), ShapeError, "rising order"),
        ("gather", [(F, (3,))], (), ShapeError, "at least one"),
        ("gather", [(F, (3, 4)), (K, (2,))], (0, 1), ShapeError, "as many index arrays"),
        ("gather", [(F, (3, 4)), (K, (2,)), (K, (1,))], (0, 1), ShapeError, "unequal shapes"),
        ("scatter_add", [(F, (3,)), (F, (4,)), (K, (2,))], (0,), ShapeError, "updates"),
        ("scatter_set", [(F, (V, 3)), (F, (T, 3)), (K, (B,))], (0,), ShapeError, "updates"),
        ("scatter_set", [(F, (3,)), (K, (2,)), (K, (2,))], (0,), DTypeError, "unequal dtypes"),
    ],
)
def test_operands_that_do_not_fit(name: str, types: Any, axes: Any, error: Any, says: str) -> None:
    with pytest.raises(error, match=says):
        lookup(name).infer(tuple(TensorType(*t) for t in types), {"axes": axes})


# --- what the kernels allocate


def allocated(call: Any) -> int:
    call()
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_rows_are_taken_and_added_without_large_temporaries() -> None:
    rng = np.random.default_rng(0)
    table = rng.standard_normal((65, 128)).astype(np.float32)
    idx = rng.integers(-65, 65, (12, 64)).astype(np.int32)
    rows = np.empty((12, 64, 128), np.float32)
    one_index_each = 8 * idx.size
    assert allocated(lambda: take_rows(np, rows, table, idx)) < one_index_each + 8192
    np.testing.assert_array_equal(rows, table[idx])
    out = np.zeros_like(table)
    block = 1 << 16
    assert allocated(lambda: add_rows(np, out, idx, rows)) < block + one_index_each + 16384
    expected = np.zeros_like(table)
    for _ in range(2):
        np.add.at(expected, idx, rows)
    np.testing.assert_array_equal(out, expected)
