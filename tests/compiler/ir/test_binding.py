"""Shapes of input arrays -> sizes of symbols, and every way in which they may not fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrograde.compiler.errors import ShapeError
from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.binding import bind_sizes
from retrograde.compiler.ir.graph import TensorType


@pytest.mark.parametrize(
    ("declared", "shapes", "expected"),
    [
        ([("B", "T")], [(3, 7)], {"B": 3, "T": 7}),
        ([("B", "T"), ("T", 5)], [(3, 7), (7, 5)], {"B": 3, "T": 7}),
        ([("T - 1",)], [(6,)], {"T": 7}),
        ([("2*T",)], [(14,)], {"T": 7}),
        ([("3*T + 2",)], [(23,)], {"T": 7}),
        ([("B*T",), ("B",)], [(21,), (3,)], {"B": 3, "T": 7}),
        ([("B*T + B",), ("B",)], [(24,), (3,)], {"B": 3, "T": 7}),
        ([("B*T", "T + C", "C")], [(21, 12, 5)], {"B": 3, "C": 5, "T": 7}),
        ([("T // 2", "T")], [(3, 7)], {"T": 7}),
        ([("min(K, T)", "K", "T")], [(4, 4, 7)], {"K": 4, "T": 7}),
        ([("K + min(5, T)", "T")], [(11, 7)], {"K": 6, "T": 7}),
        ([(4, 2)], [(4, 2)], {}),
        ([()], [()], {}),
    ],
)
def test_sizes_are_solved(
    tensor: Callable[..., TensorType],
    declared: list[Any],
    shapes: list[Any],
    expected: dict[str, int],
) -> None:
    assert bind_sizes([tensor("f32", *d) for d in declared], (), shapes) == expected


@pytest.mark.parametrize(
    ("declared", "shapes", "message"),
    [
        (
            [("B", "T"), ("T",)], [(3, 7), (8,)],
            r"b: expected f32\[T\], got shape \[8\]: axis 0 is 8, expected T = 7 "
            r"\(T = 7 by axis 1 of a\)",
        ),
        ([("B", 5)], [(3, 4)], r"expected f32\[B,5\], got shape \[3, 4\]: axis 1 is 4, expected 5"),
        ([("B", "T")], [(3,)], r"a: expected f32\[B,T\] \(2 axes\), got shape \[3\] \(1 axes\)"),
        ([("2*T",)], [(7,)], r"axis 0 is 7, no whole T makes 2\*T that"),
        ([("B*T",), ("B",)], [(22,), (3,)], r"no whole T makes B\*T that \(B = 3 by axis 0 of b\)"),
        ([("T + 5",)], [(3,)], r"T = -2, which must be at least 1"),
        ([("B", "T")], [(0, 4)], r"B = 0, which must be at least 1"),
        ([("B*T",)], [(6,)], r"the sizes B, T cannot be told .*axis 0 of a is 6 = B\*T"),
        ([("T // 2",)], [(6,)], r"the sizes T cannot be told"),
        ([("T", "T // 2")], [(7, 4)], r"axis 1 is 4, expected T // 2 = 3 \(T = 7 by axis 0 of a\)"),
        ([("T - 1", "T + 1")], [(6, 9)], r"axis 1 is 9, expected T \+ 1 = 8"),
        ([("B",)], [(3,), (4,)], r"expected 1 arrays, got 2"),
    ],
)  # fmt: skip
def test_conflicts_are_told(
    tensor: Callable[..., TensorType], declared: list[Any], shapes: list[Any], message: str
) -> None:
    with pytest.raises(ShapeError, match=message):
        bind_sizes([tensor("f32", *d) for d in declared], ("a", "b"), shapes)


def test_bounds_hold() -> None:
    size = dims.dim("T", min=2, max=9)
    types = [TensorType(dtypes.f32, (size,))]
    assert bind_sizes(types, ("x",), [(9,)]) == {"T": 9}
    for bad in (1, 10):
        with pytest.raises(ShapeError, match=rf"x: .*T = {bad}, which must be 2\.\.9"):
            bind_sizes(types, ("x",), [(bad,)])


def test_known_sizes_are_kept_and_checked(tensor: Callable[..., TensorType]) -> None:
    types = [tensor("f32", "B*T")]
    assert bind_sizes(types, (), [(12,)], {"B": 3}) == {"B": 3, "T": 4}
    with pytest.raises(ShapeError, match=r"input 0: .*axis 0 is 12, expected B\*T = 15"):
        bind_sizes(types, (), [(12,)], {"B": 3, "T": 5})


@given(
    b=st.integers(1, 50), t=st.integers(1, 50), scale=st.integers(1, 6), shift=st.integers(0, 9)
)
def test_solving_inverts_evaluation(b: int, t: int, scale: int, shift: int) -> None:
    size_b, size_t = dims.dim("B"), dims.dim("T")
    shape = (scale * size_t + shift, size_b * size_t + size_b, size_t * (size_b + 1) + 3)
    sizes = {"B": b, "T": t}
    actual = tuple(dims.evaluate(d, sizes) for d in shape)
    assert bind_sizes([TensorType(dtypes.f32, shape)], (), [actual]) == sizes
