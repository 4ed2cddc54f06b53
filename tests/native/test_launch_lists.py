"""Lists of launches: where threads wait for each other, and what a turn asks for ahead of time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import retrograde as rg
import retrograde.numpy as rnp
from retrograde.compiler.codegen import native_ahead
from retrograde.compiler.codegen.native_ahead import ahead
from retrograde.compiler.codegen.native_lists import LAUNCH, LaunchList
from retrograde.runtime.native.toolchain import find_toolchain


def waits(entries: list[Any]) -> list[int]:
    """Of each launch, whether a barrier follows."""
    return [int(row[5]) for row in LaunchList.of(entries).tables(2)[0] if row[0] == LAUNCH]


one, few, many = (1, 1, 1, (5,)), (2, 60, 64, (5,)), (3, 65, 64, (5,))


@pytest.mark.parametrize(
    ("entries", "wanted"),
    [
        ([one, few, one], [0, 0, 1]),
        ([one, many, one, one], [1, 1, 0, 1]),
        ([one, (1, 0, 1, (5,)), few], [0, 1]),  # what has no items is not there
        ([one, (3, 1, [one, one]), one], [1, 0, 1, 1]),  # loops begin and end with all threads
        ([one, ("if", 7, [one], [few]), one], [1, 1, 0, 1]),
        ([("together", [many, many, many]), one], [0, 0, 1, 1]),
        ([("together", [many, (1, 0, 1, (5,))]), many], [1, 1]),
    ],
)
def test_threads_wait_where_another_one_goes_on(entries: list[Any], wanted: list[int]) -> None:
    assert waits(entries) == wanted


parts = st.tuples(st.integers(0, 40), st.sampled_from([64, 128]), st.integers(0, 1))


arrays = st.lists(st.tuples(parts, st.integers(0, 9)), max_size=6)


@given(given=arrays, direction=st.sampled_from([1, -1]))
def test_what_is_asked_for_is_what_moves_each_part_once(given: list[Any], direction: int) -> None:
    made = ahead(4, direction, [*given])
    ((kernel, items, grain, (count, *pairs)),) = made
    assert (kernel, items, grain, 2 * count) == (4, 1, 1, len(pairs))
    found: list[tuple[int, int, int]] = []
    for (place, stride, level), size in zip(pairs[::2], pairs[1::2], strict=True):
        shift = native_ahead.TURNS * direction * stride
        found += [(place - shift + i, stride, level) for i in range(size)]
    wanted = {(place + i, s, n) for (place, s, n), size in given for i in range(size)}
    assert len(found) == len(set(found)) and set(found) == wanted


def test_long_turns_are_left_to_the_processor() -> None:
    half = native_ahead.MOST // 2
    near = [((0, 64, 0), half), ((2 * half, 64, 0), half)]
    assert ahead(1, 1, near) and not ahead(1, 1, [*near, ((9 * half, 64, 0), 1)])


@pytest.mark.skipif(find_toolchain() is None, reason="there is no C compiler")
@pytest.mark.parametrize("threads", [1, 2])
def test_reading_ahead_changes_no_bit(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also at the first turns and the last ones, which ask for what lies outside of the arrays."""

    def loss(w: Any, xs: Any) -> Any:
        def cell(h: Any, x: Any) -> Any:
            h = rnp.tanh(h @ w + x)
            return h, h

        return rnp.sum(rg.scan(cell, rnp.zeros_like(xs[0]), xs)[1] ** 2)

    draw = np.random.default_rng(0)
    w = draw.normal(size=(24, 24)).astype("f4") / 5
    xs = draw.normal(size=(300, 9, 24)).astype("f4")
    specs = rg.spec("f32", 24, 24), rg.spec("f32", "T", "B", 24)
    results = []
    for most in (native_ahead.MOST, 0):
        monkeypatch.setattr(native_ahead, "MOST", most)
        step = rg.compile(rg.value_and_grad(loss), *specs, backend="native", threads=threads)
        assert "rt.ahead(" in step.source()
        results.append([np.asarray(x).tobytes() for x in step(w, xs)])
    assert results[0] == results[1]
