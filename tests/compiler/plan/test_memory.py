"""Placement: valid whatever comes, never below the bound, optimal where that is claimed."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.solvers import cut
from retrograde.compiler.errors import DataError, ShapeError
from retrograde.compiler.plan.fit import Problem, fit
from retrograde.compiler.plan.memory import Buffer, Placement, lower_bound, orient, place
from retrograde.compiler.plan.search import descend
from retrograde.compiler.plan.skyline import skyline


def meet(a: Buffer, b: Buffer) -> bool:
    return max(a.start, b.start) < min(a.end, b.end)


def assert_apart(
    buffers: Sequence[Buffer], offsets: Sequence[int], sizes: Sequence[int], height: int
) -> None:
    """Every pair, straight from the definition."""
    assert len(offsets) == len(buffers)
    for offset, size in zip(offsets, sizes, strict=True):
        assert 0 <= offset <= offset + size <= height
    for i, j in itertools.combinations(range(len(buffers)), 2):
        if meet(buffers[i], buffers[j]):
            apart = offsets[i] + sizes[i] <= offsets[j] or offsets[j] + sizes[j] <= offsets[i]
            assert apart or sizes[i] == 0 or sizes[j] == 0, (i, j)


def max_live(buffers: Sequence[Buffer]) -> int:
    """Looks at every instant at which something starts."""
    instants = {b.start for b in buffers}
    alive = [sum(b.size for b in buffers if b.start <= t < b.end) for t in instants]
    return max([*alive, *(b.size for b in buffers)], default=0)


def least_height(buffers: Sequence[Buffer]) -> int:
    """The optimum: in some order, first fit finds it (that of rising offsets in the best one)."""
    best = sum(b.size for b in buffers)
    for order in itertools.permutations(buffers):
        placed: list[tuple[int, Buffer]] = []
        for b in order:
            inside = sorted((o, o + c.size) for o, c in placed if meet(b, c))
            offset = 0
            for low, high in inside:
                if low - offset >= b.size:
                    break
                offset = max(offset, high)
            placed.append((offset, b))
        best = min(best, max((o + b.size for o, b in placed), default=0))
    return best


def sizes_of(buffers: Sequence[Buffer]) -> list[int]:
    return [b.size for b in buffers]


@st.composite
def instances(draw: st.DrawFn, most: int = 30, least_size: int = 0) -> list[Buffer]:
    buffer = st.builds(
        lambda start, length, size: Buffer(start, start + length, size),
        st.integers(-5, 20),
        st.integers(0, 12),
        st.integers(least_size, 40),
    )
    return draw(st.lists(buffer, max_size=most))


def perfect(count: int, seed: int, width: int = 400, height: int = 1000) -> list[Buffer]:
    """A rectangle cut into `count` pieces: every instant is full, the optimum is `height`."""
    chance = random.Random(seed)
    pieces = [(0, width, 0, height)]
    while len(pieces) < count:
        pieces.sort(key=lambda p: (p[1] - p[0]) * (p[3] - p[2]))
        left, right, low, high = pieces.pop(chance.randrange(len(pieces) // 2, len(pieces)))
        if right - left > 2 and (chance.random() < 0.5 or high - low <= 2):
            cut = chance.randint(left + 1, right - 1)
            pieces += [(left, cut, low, high), (cut, right, low, high)]
        else:
            cut = chance.randint(low + 1, high - 1)
            pieces += [(left, right, low, cut), (left, right, cut, high)]
    chance.shuffle(pieces)
    return [Buffer(left, right, high - low) for left, right, low, high in pieces]


def training_step(layers: int, seed: int) -> list[Buffer]:
    """What a forward and a backward pass leave: nested activations, brief temporaries."""
    chance = random.Random(seed)
    widths = (7, 64, 128, 384, 512, 1536)
    buffers: list[Buffer] = []
    kept: list[tuple[int, int]] = []
    now = 0
    for _ in range(layers * 6):
        now += 1
        if chance.random() < 0.5:
            kept.append((now, chance.choice(widths)))
        else:
            buffers.append(Buffer(now, now + chance.randint(1, 4), chance.choice(widths)))
    for born, size in reversed(kept):
        now += 1
        buffers.append(Buffer(born, now + 1, size))
        buffers.append(Buffer(now, now + chance.randint(1, 4), chance.choice(widths)))
    return buffers


# --- the bound


@given(instances())
def test_lower_bound_is_max_live(buffers: list[Buffer]) -> None:
    assert lower_bound(buffers) == max_live(buffers)


def test_lower_bound_of_half_open_lifetimes() -> None:
    assert lower_bound([Buffer(0, 2, 5), Buffer(2, 4, 7)]) == 7
    assert lower_bound([Buffer(0, 3, 5), Buffer(2, 4, 7)]) == 12
    assert lower_bound([]) == 0


# --- placement


@settings(max_examples=150)
@given(instances(), st.sampled_from([1, 3, 16]))
def test_placements_are_valid(buffers: list[Buffer], align: int) -> None:
    placement = place(buffers, align=align)
    rounded = [-(-b.size // align) * align for b in buffers]
    assert_apart(buffers, placement.offsets, rounded, placement.height)
    assert all(offset % align == 0 for offset in placement.offsets)
    tops = [o + s for o, s in zip(placement.offsets, rounded, strict=True)]
    assert placement.height == max(tops, default=0)
    aligned = [Buffer(b.start, b.end, s) for b, s in zip(buffers, rounded, strict=True)]
    assert placement.lower_bound == max_live(aligned) <= placement.height


@settings(max_examples=60, deadline=None)
@given(instances(most=6, least_size=1))
def test_against_every_permutation(buffers: list[Buffer]) -> None:
    least = least_height(buffers)
    placement = place(buffers)
    assert placement.lower_bound <= least <= placement.height
    if placement.optimal:
        assert placement.height == least
    searched = place(buffers, time_limit=5.0)
    assert searched.optimal
    assert searched.height == least


def test_seven_buffers_against_every_permutation() -> None:
    for seed in range(4):
        chance = random.Random(seed)
        starts = [chance.randrange(6) for _ in range(7)]
        buffers = [Buffer(s, s + chance.randint(1, 5), chance.randint(1, 9)) for s in starts]
        assert place(buffers, time_limit=10.0).height == least_height(buffers)


# Exactly 6 are alive at every instant, and yet no placement is that low.
LIFETIMES = [(0, 1), (0, 2), (1, 3), (1, 4), (2, 3), (2, 4), (3, 5), (4, 5)]
OUT_OF_REACH = [
    Buffer(start, end, size)
    for (start, end), size in zip(LIFETIMES, (4, 2, 3, 1, 1, 1, 4, 2), strict=True)
]


def fits(buffers: Sequence[Buffer], height: int, placed: tuple[int, ...] = ()) -> bool:
    """Tries every offset of every buffer."""
    if len(placed) == len(buffers):
        return True
    new = buffers[len(placed)]
    return any(
        fits(buffers, height, (*placed, offset))
        for offset in range(height - new.size + 1)
        if all(
            not meet(new, old) or offset + new.size <= low or low + old.size <= offset
            for low, old in zip(placed, buffers, strict=False)
        )
    )


def problem_of(buffers: Sequence[Buffer]) -> Problem:
    start, end, size = np.array([(b.start, b.end, b.size) for b in buffers]).T
    return Problem.of(start, end, size)


def test_an_optimum_above_the_bound_is_proven() -> None:
    assert not fits(OUT_OF_REACH, 6) and fits(OUT_OF_REACH, 7)
    placement = place(OUT_OF_REACH, time_limit=10.0)
    assert (placement.height, placement.lower_bound) == (7, 6)
    assert placement.proven and placement.optimal
    assert (placement.gap, placement.gap_fraction) == (1, 1 / 6)
    assert not place(OUT_OF_REACH).optimal


def test_descent_rules_out_exactly_what_cannot_be() -> None:
    problem = problem_of(OUT_OF_REACH)
    for order in itertools.islice(itertools.permutations(range(8)), 0, None, 1009):
        below = descend(problem, 6, order, dead_ends=10**6)
        assert below.offsets is None and below.exhausted
        met = descend(problem, 7, order, dead_ends=10**6)
        assert met.offsets is not None
        assert_apart(OUT_OF_REACH, met.offsets.tolist(), sizes_of(OUT_OF_REACH), 7)
    given_up = descend(problem, 6, range(8), dead_ends=0)
    assert given_up.offsets is None and not given_up.exhausted


@settings(max_examples=60, deadline=None)
@given(instances(most=6, least_size=1).filter(len), st.randoms(use_true_random=False))
def test_descent_meets_every_height_that_can_be(
    buffers: list[Buffer], chance: random.Random
) -> None:
    small = [Buffer(b.start, max(b.end, b.start + 1), 1 + b.size % 3) for b in buffers]
    order = list(range(len(small)))
    chance.shuffle(order)
    for height in range(max_live(small) - 1, 1 + sum(sizes_of(small))):
        found = descend(problem_of(small), height, order, dead_ends=10**6)
        assert (found.offsets is not None) == fits(small, height)
        assert found.exhausted == (found.offsets is None)
        if found.offsets is not None:
            assert_apart(small, found.offsets.tolist(), sizes_of(small), height)
            break


@pytest.mark.parametrize(("count", "seed"), [(12, 0), (20, 1), (40, 0), (80, 2)])
def test_perfect_packings_are_found(count: int, seed: int) -> None:
    """Full at every instant: greedies fail on these by 20 to 50 percent, the descents do not."""
    buffers = perfect(count, seed)
    placement = place(buffers)
    assert (placement.height, placement.lower_bound) == (1000, 1000)
    assert_apart(buffers, placement.offsets, sizes_of(buffers), 1000)


@settings(max_examples=100, deadline=None)
@given(instances(most=14, least_size=1), st.integers(1, 5))
def test_skylines_are_valid(buffers: list[Buffer], width: int) -> None:
    living = [b for b in buffers if b.end > b.start]
    if not living:
        return
    found = skyline(problem_of(living), width, below=10**6)
    assert found is not None and found.height >= max_live(living)
    assert_apart(living, found.offsets.tolist(), sizes_of(living), found.height)
    assert skyline(problem_of(living), width, below=max_live(living)) is None


@pytest.mark.parametrize("seed", range(3))
def test_a_skyline_finds_perfect_packings_of_hundreds(seed: int) -> None:
    """Cuts at places of their own leave each corner to one buffer or two."""
    buffers = cut(300, seed)
    greedy = fit(problem_of(buffers), problem_of(buffers).order(problem_of(buffers).size))
    assert greedy.height > 1.1 * max_live(buffers)
    assert place(buffers).gap == 0


def test_greedy_by_size_alone_is_not_enough_there() -> None:
    problem = problem_of(perfect(40, 0))
    assert fit(problem, problem.order(problem.size)).height > 1100


@pytest.mark.parametrize("seed", range(3))
def test_training_steps_meet_the_bound(seed: int) -> None:
    buffers = training_step(12, seed)
    placement = place(buffers)
    assert placement.gap == 0 and placement.optimal
    assert_apart(buffers, placement.offsets, sizes_of(buffers), placement.height)


def test_time_limit_helps_and_is_kept() -> None:
    buffers = perfect(300, 5)
    quick = place(buffers)
    begun = time.perf_counter()
    longer = place(buffers, time_limit=1.5)
    assert time.perf_counter() - begun < 6  # generous: other work may share the machine
    assert longer.height <= quick.height
    assert_apart(buffers, longer.offsets, sizes_of(buffers), longer.height)


def test_equally_tall_groups_share_the_time() -> None:
    later = [Buffer(b.start + 100, b.end + 100, b.size) for b in OUT_OF_REACH]
    placement = place(OUT_OF_REACH + later, time_limit=10.0)
    assert placement.height == 7
    assert placement.optimal


def test_same_input_same_placement() -> None:
    buffers = perfect(60, 2) + training_step(8, 2)
    assert place(buffers) == place(list(buffers))


def test_only_order_and_sizes_of_lifetimes_matter() -> None:
    buffers = training_step(6, 1)
    stretched = [Buffer(b.start * 10**6 - 7, b.end * 10**6 - 7, b.size) for b in buffers]
    assert place(stretched) == place(buffers)


def test_large_sizes_stay_exact() -> None:
    unit = 10**15
    buffers = [Buffer(0, 3, unit + 1), Buffer(1, 4, 2 * unit + 3), Buffer(3, 6, unit)]
    placement = place(buffers)
    assert placement.height == placement.lower_bound == 3 * unit + 4
    assert_apart(buffers, placement.offsets, sizes_of(buffers), placement.height)


def test_the_largest_sizes_that_are_allowed() -> None:
    half = 2**59
    buffers = [Buffer(0, 3, half - 4), Buffer(2, 5, half), Buffer(4, 7, 3), Buffer(1, 6, 1)]
    placement = place(buffers)
    assert placement.height == placement.lower_bound == 2 * half - 3
    assert_apart(buffers, placement.offsets, sizes_of(buffers), placement.height)
    offsets, height = orient(buffers, placement.offsets).offsets([2**70, 1, 2, 3])
    assert_apart(buffers, offsets, [2**70, 1, 2, 3], height)


def test_empty_and_trivial_input() -> None:
    assert place([]) == Placement((), 0, 0)
    assert place([]).optimal and place([]).gap_fraction == 0.0
    assert place([Buffer(0, 5, 0)]) == Placement((0,), 0, 0)
    # A buffer that lives for no time is placed like any other: inside the arena.
    assert place([Buffer(3, 3, 11)]) == Placement((0,), 11, 11)
    assert place([Buffer(0, 2, 4), Buffer(2, 2, 9)], align=8) == Placement((0, 0), 16, 16)


def test_buffers_of_no_size_do_not_cost_height() -> None:
    buffers = [Buffer(0, 9, 0) for _ in range(5)] + [Buffer(0, 4, 6), Buffer(2, 9, 3)]
    placement = place(buffers)
    assert placement.height == placement.lower_bound == 9


@pytest.mark.parametrize(
    ("start", "end", "size", "says"),
    [
        (3, 2, 1, "start=3, end=2"),
        (0, 1, -4, "size=-4"),
        (0, 1.5, 4, "Buffer.end must be an integer, not 1.5"),
        ("0", 1, 4, "Buffer.start must be an integer"),
        (0, 1, True, "truth value"),
        (0, 1, None, "NoneType"),
    ],
)
def test_bad_buffers_are_refused(start: object, end: object, size: object, says: str) -> None:
    with pytest.raises(DataError, match=says):
        Buffer(start, end, size)  # type: ignore[arg-type]


def test_other_bad_input_is_refused() -> None:
    good = Buffer(0, 1, 8)
    with pytest.raises(DataError, match=r"item 1 is \(0, 1, 8\)"):
        place([good, (0, 1, 8)])  # type: ignore[list-item]
    with pytest.raises(DataError, match="align must be at least 1"):
        place([good], align=0)
    with pytest.raises(DataError, match="time_limit"):
        place([good], time_limit=-1.0)
    with pytest.raises(DataError, match="time_limit"):
        place([good], time_limit=float("nan"))
    with pytest.raises(DataError, match="add up to"):
        place([Buffer(0, 1, 2**59), Buffer(0, 1, 2**59), Buffer(0, 1, 1)])
    with pytest.raises(DataError, match="add up to"):
        place([good], align=2**61)
    with pytest.raises(DataError, match="item 0 lives beyond"):
        place([Buffer(0, 2**70, 8)])


def test_numpy_integers_are_integers() -> None:
    buffer = Buffer(np.int64(1), np.int32(4), np.uint8(9))  # type: ignore[arg-type]
    assert buffer == Buffer(1, 4, 9)
    assert type(buffer.size) is int


def test_a_placement_says_how_good_it_is() -> None:
    assert str(Placement((0, 4), 8, 8)) == "8 bytes for 2 buffers (optimal)"
    assert str(Placement((0, 4), 10, 8)) == "10 bytes for 2 buffers (gap 25.00%)"


# --- orientation


@settings(max_examples=200)
@given(instances(), st.data())
def test_orientation_holds_at_all_sizes(buffers: list[Buffer], data: st.DataObject) -> None:
    placement = place(buffers)
    orientation = orient(buffers, placement.offsets)
    _, height = orientation.offsets(sizes_of(buffers))
    assert height <= placement.height
    other = data.draw(st.lists(st.integers(0, 50), min_size=len(buffers), max_size=len(buffers)))
    offsets, height = orientation.offsets(other)
    assert_apart(buffers, offsets, other, height)


@given(instances())
def test_edges_are_few_and_rise(buffers: list[Buffer]) -> None:
    orientation = orient(buffers, place(buffers).offsets)
    where = {b: i for i, b in enumerate(orientation.order)}
    assert sorted(orientation.order) == list(range(len(buffers)))
    assert len(orientation.edges) <= 2 * len(buffers)
    assert all(where[a] < where[b] for a, b in orientation.edges)
    targets = [where[b] for _, b in orientation.edges]
    assert targets == sorted(targets)
    assert all(meet(buffers[a], buffers[b]) for a, b in orientation.edges)


@given(instances(most=12), st.data())
def test_offsets_are_longest_paths(buffers: list[Buffer], data: st.DataObject) -> None:
    """Of all pairs that meet, not just of the neighbours that are kept as edges."""
    placement = place(buffers)
    orientation = orient(buffers, placement.offsets)
    sizes = data.draw(st.lists(st.integers(0, 50), min_size=len(buffers), max_size=len(buffers)))
    expected = [0] * len(buffers)
    for i, high in enumerate(orientation.order):
        below = [low for low in orientation.order[:i] if meet(buffers[low], buffers[high])]
        expected[high] = max((expected[low] + sizes[low] for low in below), default=0)
    assert orientation.offsets(sizes)[0] == expected


def test_empty_buffers_grow_into_a_sound_order() -> None:
    """Nothing at the reference, real at other sizes; a chain of them need not pile up."""
    buffers = [Buffer(t, t + 2, 0) for t in range(20)] + [Buffer(0, 21, 10)]
    orientation = orient(buffers, place(buffers).offsets)
    sizes = [7] * 20 + [10]
    offsets, height = orientation.offsets(sizes)
    assert_apart(buffers, offsets, sizes, height)
    assert height == 7 + 7 + 10


def test_offsets_of_empty_buffers_do_not_matter() -> None:
    buffers = [Buffer(0, 4, 10), Buffer(1, 6, 0), Buffer(4, 8, 10)]
    orientation = orient(buffers, [0, 5, 0])
    for sizes in ([10, 0, 10], [10, 3, 4], [0, 9, 2]):
        offsets, height = orientation.offsets(sizes)
        assert_apart(buffers, offsets, sizes, height)
    assert orientation.offsets([10, 0, 10])[1] == 10


def test_a_bad_placement_has_no_orientation() -> None:
    buffers = [Buffer(0, 4, 10), Buffer(2, 6, 10)]
    with pytest.raises(DataError, match="buffers 0 and 1 overlap"):
        orient(buffers, [0, 9])
    with pytest.raises(DataError, match="offset -1"):
        orient(buffers, [-1, 9])
    with pytest.raises(DataError, match="an offset must be an integer"):
        orient(buffers, [0, 9.5])  # type: ignore[list-item]
    with pytest.raises(ShapeError, match="1 offsets were given for 2 buffers"):
        orient(buffers, [0])
    orientation = orient(buffers, [0, 10])
    with pytest.raises(ShapeError, match="3 sizes were given for 2 buffers"):
        orientation.offsets([1, 2, 3])
    with pytest.raises(DataError, match="negative size: -2"):
        orientation.offsets([1, -2])


@given(instances(most=10, least_size=1), st.data())
def test_every_overlap_is_noticed(buffers: list[Buffer], data: st.DataObject) -> None:
    offsets = data.draw(st.lists(st.integers(0, 60), min_size=len(buffers), max_size=len(buffers)))
    overlap = any(
        meet(buffers[i], buffers[j])
        and offsets[i] < offsets[j] + buffers[j].size
        and offsets[j] < offsets[i] + buffers[i].size
        for i, j in itertools.combinations(range(len(buffers)), 2)
    )
    if not overlap:
        orient(buffers, offsets)
        return
    with pytest.raises(DataError, match="overlap"):
        orient(buffers, offsets)
