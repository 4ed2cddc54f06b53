"""The peak as a maximum of polynomials: equal to the height at every size."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrograde.compiler.errors import DataError, ShapeError
from retrograde.compiler.ir import dims
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.plan.bounds import PeakForm, peak_terms
from retrograde.compiler.plan.memory import Buffer, Orientation, orient, place

B, T = dims.dim("B"), dims.dim("T")
K = dims.dim("K", min=0, max=9)
PLAIN: list[Dim] = [0, 12, 1000, 4 * B, 3 * T, 64 * B * T, 4 * B * T * T, B * T + B, 7 * B * T - T]
ROUNDED: list[Dim] = [dims.align(size, 64) for size in PLAIN]
ATOMS: list[Dim] = [dims.dim_min(T, 12) * B, dims.dim_max(B, T), T // 3, (T % 4) * B, 5 * K * T]


def oriented(
    lifetimes: Sequence[tuple[int, int]], sizes: Sequence[Dim], at: dict[str, int]
) -> Orientation:
    buffers = [
        Buffer(start, start + length, dims.evaluate(size, at))
        for (start, length), size in zip(lifetimes, sizes, strict=True)
    ]
    return orient(buffers, place(buffers).offsets)


def height(orientation: Orientation, sizes: Sequence[Dim], at: dict[str, int]) -> int:
    return orientation.offsets([dims.evaluate(size, at) for size in sizes])[1]


@pytest.mark.parametrize("pool", [PLAIN, ROUNDED, PLAIN + ATOMS], ids=["plain", "rounded", "atoms"])
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_the_largest_term_is_the_height(pool: list[Dim], data: st.DataObject) -> None:
    lifetimes = data.draw(
        st.lists(st.tuples(st.integers(0, 12), st.integers(0, 6)), min_size=1, max_size=16)
    )
    count = len(lifetimes)
    sizes = data.draw(st.lists(st.sampled_from(pool), min_size=count, max_size=count))
    extents = st.fixed_dictionaries(
        {"B": st.integers(1, 200), "T": st.integers(1, 500), "K": st.integers(0, 9)}
    )
    orientation = oriented(lifetimes, sizes, data.draw(extents))
    form = peak_terms(orientation, sizes, most_terms=10**4)
    assert form.exact
    corners = [{"B": b, "T": t, "K": k} for b in (1, 10**6) for t in (1, 10**6) for k in (0, 9)]
    for at in [*corners, *(data.draw(extents) for _ in range(4))]:
        assert form.at(at) == height(orientation, sizes, at), at


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_an_inexact_form_stays_below(data: st.DataObject) -> None:
    chance = random.Random(data.draw(st.integers(0, 10**6)))
    lifetimes = [(chance.randrange(25), chance.randint(1, 9)) for _ in range(50)]
    sizes = [chance.choice(PLAIN) for _ in lifetimes]
    orientation = oriented(lifetimes, sizes, {"B": 8, "T": 64})
    form = peak_terms(orientation, sizes, most_terms=1)
    for b, t in [(1, 1), (1, 900), (900, 1), (17, 23), (300, 200)]:
        at = {"B": b, "T": t}
        highest = height(orientation, sizes, at)
        assert form.at(at) == highest if form.exact else form.at(at) <= highest


def test_no_term_is_idle() -> None:
    """Each of two rival peaks wins somewhere; what is never the largest is left out."""
    lifetimes = [(0, 2), (1, 2), (5, 2), (6, 2), (10, 2)]
    sizes: list[Dim] = [512 * B * T, 4096, 4 * T * T, 8 * B, 8 * T]
    form = peak_terms(oriented(lifetimes, sizes, {"B": 8, "T": 64}), sizes)
    assert form.exact
    assert {str(term) for term in form.terms} == {"512*B*T + 4096", "4*T**2 + 8*B"}
    assert str(form).startswith("max(") and str(form).endswith(")")


def test_rounded_sizes_are_compared_through_their_bounds() -> None:
    """No coefficient tells 64*((4*B*T + 63) // 64) and 512*B*T apart: their bounds do."""
    small = dims.align(4 * B * T, 64)
    large: Dim = 512 * B * T
    lifetimes = [(0, 1), (1, 1), (2, 1)]
    sizes = [small, large, dims.align(4 * B * T + 4, 64)]
    form = peak_terms(oriented(lifetimes, sizes, {"B": 8, "T": 64}), sizes)
    assert form.exact
    for at in ({"B": 1, "T": 1}, {"B": 3, "T": 11}):
        assert form.at(at) == max(dims.evaluate(size, at) for size in sizes)
    assert len(form.terms) == 1 and str(form) == str(large)


def test_the_symbols_bounds_count() -> None:
    """4*T is above 64 only where T is known to be 16 or more."""
    lifetimes = [(0, 1), (1, 1)]
    for least, terms in ((1, 2), (16, 1)):
        sizes: list[Dim] = [4 * dims.dim("T", min=least), 64]
        form = peak_terms(oriented(lifetimes, sizes, {"T": 20}), sizes)
        assert form.exact and len(form.terms) == terms


def test_constant_sizes_give_one_number() -> None:
    buffers = [Buffer(0, 3, 10), Buffer(1, 4, 20), Buffer(3, 6, 10)]
    form = peak_terms(orient(buffers, place(buffers).offsets), [10, 20, 10])
    assert form == PeakForm((30,), True)
    assert str(form) == "30" and form.at({}) == 30
    assert peak_terms(orient([], []), []) == PeakForm((0,), True)


def test_huge_coefficients_do_not_wrap() -> None:
    huge = 10**17
    sizes: list[Dim] = [huge * B * T, huge * B * B * T, *[huge * T] * 38]
    orientation = orient([Buffer(0, 9, 1)] * 40, range(40))
    form = peak_terms(orientation, sizes)
    at = {"B": 3, "T": 5}
    assert form.exact
    assert form.at(at) == height(orientation, sizes, at) == huge * (15 + 45 + 38 * 5)


def crossing(pairs: int) -> tuple[Orientation, list[Dim]]:
    """A tower of stages, each of two rivals side by side that no size decides between."""
    edges: list[tuple[int, int]] = []
    sizes: list[Dim] = []
    for stage in range(pairs):
        first = 3 * stage
        edges += [(first - 1, first), (first - 1, first + 1)] if stage else []
        edges += [(first, first + 2), (first + 1, first + 2)]
        # Powers of two: no two sets of choices have the same sum.
        sizes += [2**stage * B, 2**stage * T, 1]
    edges.sort(key=lambda edge: (edge[1], edge[0]))
    return Orientation(tuple(edges), tuple(range(3 * pairs))), sizes


@pytest.mark.parametrize(("pairs", "exact"), [(4, True), (12, False)])
def test_a_form_that_would_explode_says_so(pairs: int, exact: bool) -> None:
    orientation, sizes = crossing(pairs)
    form = peak_terms(orientation, sizes)
    assert form.exact is exact
    assert len(form.terms) <= 64
    assert str(form).startswith("max(" if exact else "at least max(")
    for at in ({"B": 1, "T": 9}, {"B": 9, "T": 1}, {"B": 5, "T": 5}):
        assert form.at(at) == height(orientation, sizes, at)


def test_bad_input_is_refused() -> None:
    orientation = orient([Buffer(0, 1, 4), Buffer(0, 1, 4)], [0, 4])
    with pytest.raises(ShapeError, match="1 sizes were given for 2 buffers"):
        peak_terms(orientation, [4])
    with pytest.raises(DataError, match="negative size: -4"):
        peak_terms(orientation, [4, -4])


@pytest.mark.parametrize("round_up", [lambda size: size, lambda size: dims.align(size, 64)])
def test_a_training_step_has_a_short_form(round_up: Callable[[Dim], Dim]) -> None:
    """The shape of a real program: activations of every layer under brief temporaries."""
    layers = 24
    lifetimes: list[tuple[int, int]] = []
    sizes: list[Dim] = []
    for layer in range(layers):
        begin, end = 4 * layer, 8 * layers - 4 * layer
        per_layer: list[Dim] = [4 * B * T * 128, 4 * B * T, 4 * B * 8 * T, 4 * B * T * 512]
        for step, size in enumerate(per_layer):
            lifetimes.append((begin + step, end - step - begin - step))
            sizes.append(round_up(size))
        lifetimes += [(begin + 1, 2), (end - 2, 2)]
        sizes += [round_up(4 * B * 8 * T * T), round_up(4 * B * 16 * T * T)]
    orientation = oriented(lifetimes, sizes, {"B": 8, "T": 64})
    form = peak_terms(orientation, sizes)
    assert form.exact and len(form.terms) <= 8
    for b, t in [(1, 1), (1, 4096), (512, 1), (7, 33), (64, 512)]:
        at = {"B": b, "T": t}
        assert form.at(at) == height(orientation, sizes, at)
