"""Symbolic views against NumPy: whatever chain of moves, at every size the same elements."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st

from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.graph import TensorType
from retrograde.compiler.plan.views import View, new_view

B, T = dims.dim("B", min=0), dims.dim("T")
SIZES = ({"B": 3, "T": 5}, {"B": 1, "T": 1}, {"B": 2, "T": 1}, {"B": 1, "T": 4}, {"B": 0, "T": 2})
SHAPES: tuple[tuple[Dim, ...], ...] = (
    (B, T, 6), (B * T, 12), (4, B, 1, T), (6,), (T, 1, 2), (), (B, 2, 3, T),
)  # fmt: skip


def at(shape: Sequence[Dim], sizes: dict[str, int]) -> tuple[int, ...]:
    return tuple(dims.evaluate(d, sizes) for d in shape)


def elements(view: View, sizes: dict[str, int]) -> npt.NDArray[np.int64]:
    """The element numbers that the view shows, from its offset and strides."""
    total = np.asarray(dims.evaluate(view.offset, sizes))
    for n, stride in zip(at(view.shape, sizes), at(view.strides, sizes), strict=True):
        total = total[..., None] + np.arange(n) * stride
    return total


@given(seed=st.integers(0, 2**32 - 1), moves=st.integers(1, 7))
def test_moves(seed: int, moves: int) -> None:
    chance = random.Random(seed)
    view = new_view(TensorType(dtypes.f64, chance.choice(SHAPES)), "value")
    shown = [np.arange(int(np.prod(at(view.shape, s)))).reshape(at(view.shape, s)) for s in SIZES]
    for _ in range(moves):
        view, shown = moved(chance, view, shown)
        for sizes, x in zip(SIZES, shown, strict=True):
            found = elements(view, sizes)
            assert found.shape == x.shape
            np.testing.assert_array_equal(found, x)
            if view.contiguous and x.size:
                steps = np.diff(found.reshape(-1))
                assert (steps == 1).all()


def moved(chance: random.Random, view: View, shown: list) -> tuple[View, list]:  # type: ignore[type-arg]
    kind = chance.randrange(5)
    rank = len(view.shape)
    if kind == 0:
        perm = chance.sample(range(rank), rank)
        return view.transposed(perm), [x.transpose(perm) for x in shown]
    if kind == 1:
        axes = [i for i in range(rank) if chance.random() < 0.5]
        return view.flipped(axes), [np.flip(x, axes) for x in shown]
    if kind == 2:
        shape = (chance.choice((T, 2)), *(3 if dims.same(d, 1) else d for d in view.shape))
        wide = [np.broadcast_to(x, at(shape, s)) for x, s in zip(shown, SIZES, strict=True)]
        return view.broadcast(shape), wide
    if kind == 3:
        start, step, shape, cut = [], [], [], []
        for d in view.shape:
            if isinstance(d, int) and d > 1:
                a, k = chance.randrange(d), chance.randrange(1, 3)
            else:
                a, k = 0, 1
            start.append(a)
            step.append(k)
            shape.append(-(-(d - a) // k) if isinstance(d, int) else d)
            cut.append(slice(a, None, k))
        return view.sliced(start, step, shape), [x[tuple(cut)] for x in shown]
    shape = regrouped(chance, list(view.shape))
    other = view.reshaped(shape)
    if other is None:
        return view, shown
    return other, [x.reshape(at(shape, s)) for x, s in zip(shown, SIZES, strict=True)]


def regrouped(chance: random.Random, shape: list[Dim]) -> list[Dim]:
    for _ in range(chance.randrange(1, 4)):
        kind = chance.randrange(3)
        if kind == 0 and len(shape) > 1:
            i = chance.randrange(len(shape) - 1)
            shape[i : i + 2] = [shape[i] * shape[i + 1]]
        elif kind == 1:
            shape.insert(chance.randrange(len(shape) + 1), 1)
        else:
            even = [i for i, d in enumerate(shape) if dims.divide_exact(d, 2) is not None]
            if even:
                i = chance.choice(even)
                half = dims.divide_exact(shape[i], 2)
                assert half is not None
                shape[i : i + 1] = [half, 2] if chance.random() < 0.5 else [2, half]
    return shape


def test_a_contiguous_view_always_takes_another_shape() -> None:
    for shape in SHAPES:
        view = new_view(TensorType(dtypes.f64, shape), "value")
        flat = view.reshaped((dims.product(shape),))
        assert flat is not None and flat.contiguous
        again = flat.reshaped(shape)
        assert again is not None and again.contiguous and again.equals(view)


def test_heads_split_and_merge_without_a_copy() -> None:
    view = new_view(TensorType(dtypes.f64, (B, T, 12)), "value")
    split = view.reshaped((B, T, 3, 4))
    assert split is not None
    heads = split.transposed((0, 2, 1, 3))
    assert heads.reshaped((B, 3, T * 4)) is None  # that takes a copy
    merged = heads.transposed((0, 2, 1, 3)).reshaped((B * T, 12))
    assert merged is not None and merged.contiguous
