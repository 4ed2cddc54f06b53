"""Making arrays: values, default dtypes, symbolic sizes, lists of traced values."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

import retrograde.numpy as rnp
from retrograde.compiler.errors import DTypeError, ShapeError, TraceError
from retrograde.compiler.ir import dims


def test_creation_defaults_and_values(run: Any) -> None:
    f32, i32 = np.float32, np.int32
    cases: list[tuple[Any, Any]] = [
        (lambda: rnp.zeros((2, 3)), np.zeros((2, 3), f32)),
        (lambda: rnp.ones(3), np.ones(3, f32)),
        (lambda: rnp.ones((), dtype="i64"), np.ones((), np.int64)),
        (lambda: rnp.empty((2,)), np.zeros(2, f32)),
        (lambda: rnp.full((2, 3), 7), np.full((2, 3), 7, i32)),
        (lambda: rnp.full((2, 3), 1.5), np.full((2, 3), 1.5, f32)),
        (lambda: rnp.full(2, True), np.array([True, True])),
        (lambda: rnp.full((2, 3), np.arange(3.0)), np.full((2, 3), np.arange(3.0))),
        (lambda: rnp.arange(5), np.arange(5, dtype=i32)),
        (lambda: rnp.arange(2, 11, 3), np.arange(2, 11, 3, dtype=i32)),
        (lambda: rnp.arange(9, -3, -4), np.arange(9, -3, -4, dtype=i32)),
        (lambda: rnp.arange(5, 5), np.arange(0, dtype=i32)),
        (lambda: rnp.arange(3, 1), np.arange(0, dtype=i32)),
        (lambda: rnp.arange(0.5, 3.0, 0.25), np.arange(0.5, 3.0, 0.25, dtype=f32)),
        (lambda: rnp.arange(4, dtype="f32"), np.arange(4, dtype=f32)),
        (lambda: rnp.arange(4, dtype=np.uint8), np.arange(4, dtype=np.uint8)),
        (lambda: rnp.linspace(0, 1, 11), np.linspace(0, 1, 11, dtype=f32)),
        (lambda: rnp.linspace(2, 3, 1), np.linspace(2, 3, 1, dtype=f32)),
        (lambda: rnp.linspace(0, 10, 4, dtype=i32), np.linspace(0, 10, 4, dtype=i32)),
        (lambda: rnp.eye(3), np.eye(3, dtype=f32)),
        (lambda: rnp.eye(3, 4, 1), np.eye(3, 4, 1, dtype=f32)),
        (lambda: rnp.eye(4, 3, -2, dtype="bool"), np.eye(4, 3, -2, dtype=bool)),
        (lambda: rnp.identity(2), np.identity(2, dtype=f32)),
        (lambda: rnp.tri(3, 4, 1), np.tri(3, 4, 1, dtype=f32)),
        (lambda: rnp.tril(rnp.ones((3, 3), "bool")), np.tri(3, dtype=bool)),
        (lambda: rnp.asarray([1, 2, 3]), np.array([1, 2, 3], i32)),
        (lambda: rnp.asarray([[1.5, 2], [3, 4]]), np.array([[1.5, 2], [3, 4]], f32)),
        (lambda: rnp.asarray([True, False]), np.array([True, False])),
        (lambda: rnp.asarray([]), np.array([], f32)),
        (lambda: rnp.asarray(3), np.array(3, i32)),
        (lambda: rnp.asarray(range(3)), np.arange(3, dtype=i32)),
        (lambda: rnp.array(2.5, ndmin=2), np.array([[2.5]], f32)),
        (lambda: rnp.array([1, 2], dtype="u8"), np.array([1, 2], np.uint8)),
        (
            lambda: rnp.one_hot(rnp.asarray([0, 2, -1, 5]), 3),
            np.eye(6, dtype=f32)[[0, 2, 3, 5], :3],
        ),
        (lambda: rnp.zeros(np.array([2, 3])), np.zeros((2, 3), f32)),
    ]
    for make, want in cases:
        for ours in (make(), run(lambda make=make: make())):
            np.testing.assert_allclose(ours, want, 1e-6, err_msg=inspect.getsource(make))
            assert ours.dtype == want.dtype, inspect.getsource(make)


def test_creation_on_symbolic_sizes(run: Any) -> None:
    B, T = dims.dim("B"), dims.dim("T")
    x = np.zeros((2, 5), np.float32)

    def f(x: Any) -> Any:
        b, t = x.shape
        return [
            rnp.zeros((b, t + 1)), rnp.ones(x.shape), rnp.arange(t), rnp.arange(1, t, 2),
            rnp.arange(t, 0, -1), rnp.eye(t), rnp.tri(b, t), rnp.linspace(0.0, 1.0, t),
            rnp.full((b,), t), rnp.asarray(t), rnp.one_hot(rnp.arange(t), t),
        ]  # fmt: skip

    f32, i32 = np.float32, np.int32
    want = [
        np.zeros((2, 6), f32), np.ones((2, 5), f32), np.arange(5, dtype=i32),
        np.arange(1, 5, 2, dtype=i32), np.arange(5, 0, -1, dtype=i32), np.eye(5, dtype=f32),
        np.tri(2, 5, dtype=f32), np.linspace(0, 1, 5, dtype=f32), np.full(2, 5, i32),
        np.array(5, i32), np.eye(5, dtype=f32),
    ]  # fmt: skip
    for ours, theirs in zip(run(f, x, shapes=[(B, T)]), want, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
        assert ours.dtype == theirs.dtype


def test_lists_of_traced_values_stack_with_weak_numbers(run: Any) -> None:
    x = np.float32(1.5) * np.ones((), np.float32)
    half = np.ones((), np.float16)
    out = run(lambda x, h: [rnp.asarray([x, 2, 0.5]), rnp.asarray([[h, 1], [2.5, h]])], x, half)
    np.testing.assert_array_equal(out[0], np.array([1.5, 2, 0.5], np.float32))
    np.testing.assert_array_equal(out[1], np.array([[1, 1], [2.5, 1]], np.float16))
    assert [o.dtype for o in out] == [np.float32, np.float16]


def test_creation_misfits() -> None:
    with pytest.raises(ShapeError, match="negative size"):
        rnp.zeros((2, -1))
    with pytest.raises(ShapeError, match="never ends"):
        rnp.arange(0, 3, 0)
    with pytest.raises(ShapeError, match="unequal lengths"):
        rnp.asarray([[1, 2], [3]])
    with pytest.raises(DTypeError, match="do not fit in i32"):
        rnp.asarray([1 << 40])
    with pytest.raises(TraceError, match="no array"):
        rnp.asarray(["a"])
    with pytest.raises(ShapeError, match="is no size"):
        rnp.zeros((2.5, 1))
