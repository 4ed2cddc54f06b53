"""Tiles: every element is covered once, no array is copied, whatever the strides and unit axes."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from retrograde.compiler.codegen.tiles import Tiles


@st.composite
def spaces(draw: st.DrawFn) -> tuple[tuple[int, ...], list[Any], bool, int]:
    """A space, arrays that stretch to it with all kinds of strides, whole rows or not, a limit."""
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    arrays = []
    for number in range(draw(st.integers(1, 3))):
        own = [1 if draw(st.integers(0, 3)) == 0 else n for n in shape]
        roomy = [n * draw(st.integers(1, 2)) + draw(st.integers(0, 1)) for n in own]
        order = draw(st.permutations(range(len(shape))))
        base = np.arange(np.prod(roomy), dtype=np.float64).reshape([roomy[i] for i in order])
        back = [order.index(i) for i in range(len(shape))]
        step = [draw(st.sampled_from((1, -1))) for _ in shape]
        array = (base + 1000 * number).transpose(back)[tuple(slice(None, None, s) for s in step)]
        array = array[tuple(slice(n) for n in own)]
        drop = draw(st.integers(0, 1)) and own[0] == 1
        arrays.append(array[0] if drop and len(own) > 1 else array)
    arrays.append(np.zeros(shape))  # the result
    return shape, arrays, draw(st.booleans()), draw(st.integers(1, 30))


@given(spaces())
def test_tiles_cover_the_space(case: tuple[tuple[int, ...], list[Any], bool, int]) -> None:
    shape, arrays, whole_rows, limit = case
    flags = (False, True)
    width = shape[-1]
    scratch = [np.zeros(max(limit, width)), np.zeros(max(limit, 1))]
    tiles = Tiles(shape, arrays, scratch, flags, whole_rows, limit)
    *operands, result = arrays
    seen = 0
    for x in tiles:
        *xs, y, t, row = x
        assert all(np.shares_memory(a, b) for a, b in zip(xs, operands, strict=True) if a.size)
        assert np.shares_memory(y, result)
        assert t.shape == y.shape
        if whole_rows:
            assert y.shape[-1] == width and row.shape == (*y.shape[:-1], 1)
        t[...] = sum(np.broadcast_to(a, y.shape) for a in xs)
        y += t
        seen += y.size
    assert seen == result.size
    np.testing.assert_array_equal(result, sum(np.broadcast_to(a, shape) for a in operands))


def test_one_long_row_stays_whole() -> None:
    x, y = np.ones(200_000), np.zeros(200_000)
    (tile,) = Tiles((200_000,), [x, y], [], (), True)
    assert tile[0].shape == (200_000,)


def test_rows_longer_than_a_tile_come_one_by_one() -> None:
    x, y = np.ones((3, 70_000)), np.zeros((3, 1))
    tiles = list(Tiles((3, 70_000), [x, y], [], (), True))
    assert [a.shape for a, _ in tiles] == [(1, 70_000)] * 3
    assert [b.shape for _, b in tiles] == [(1, 1)] * 3


def test_empty_rows_are_rows() -> None:
    x, y, space = np.ones((5, 0)), np.zeros((5, 1)), np.zeros(2)
    tiles = list(Tiles((5, 0), [x, y], [space], (True,), True, limit=2))
    assert sum(b.shape[0] for _, b, _ in tiles) == 5
    assert all(t.shape == b.shape for _, b, t in tiles)
