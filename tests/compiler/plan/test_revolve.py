"""Checkpoint schedules: valid, within their slots, and as short as any can be."""

from __future__ import annotations

from functools import cache

import pytest

from retrograde.compiler.errors import DataError
from retrograde.compiler.plan.revolve import advances, checkpoints, recomputed


@cache
def least(segments: int, slots: int) -> int:
    """The least number of forward parts, by trying every place for the next kept state."""
    if segments <= 1:
        return 0
    if slots == 1:
        return segments * (segments - 1) // 2
    return min(
        at + least(segments - at, slots - 1) + least(at, slots) for at in range(1, segments)
    )


@pytest.mark.parametrize("slots", [1, 2, 3, 4, 7])
def test_no_schedule_runs_fewer_parts_again(slots: int) -> None:
    for segments in range(70):
        found = checkpoints(segments, slots)
        run = sum(a.kind == "advance" for a in (*found.sweep, *found.back))
        assert run == advances(segments, slots) == least(segments, slots), segments
        assert found.again == recomputed(segments, slots)


@pytest.mark.parametrize("slots", [1, 2, 3, 5, 12])
def test_every_segment_is_reversed_from_the_state_that_enters_it(slots: int) -> None:
    for segments in (0, 1, 2, 3, 10, 57):
        kept: dict[int, int] = {}
        at_work, reversed_ones = 0, []
        found = checkpoints(segments, slots)
        for action in (*found.sweep, *found.back):
            if action.kind == "store":
                assert 0 <= action.slot < slots
                kept[action.slot] = at_work
            elif action.kind == "restore":
                at_work = kept[action.slot]
            elif action.kind == "advance":
                at_work += 1
                continue
            else:
                reversed_ones.append(action.segment)
            assert at_work == action.segment
        assert reversed_ones == list(range(segments))[::-1]
        assert not any(a.kind == "reverse" for a in found.sweep)
        assert sum(a.kind == "advance" for a in found.sweep) == max(segments - 1, 0)


def test_enough_slots_run_nothing_again() -> None:
    found = [recomputed(9, slots) for slots in range(1, 12)]
    assert found == [least(9, slots) - 8 for slots in range(1, 12)]
    assert found[0] == 28
    assert found[7:] == [0, 0, 0, 0]
    assert found == sorted(found, reverse=True)


def test_a_million_segments_are_counted_at_once() -> None:
    assert advances(1_000_000, 1_000_000) == 999_999
    assert advances(1_000_000, 1) == 1_000_000 * 999_999 // 2


def test_numbers_that_make_no_sense_are_refused() -> None:
    for segments, slots in ((-1, 3), (4, 0)):
        with pytest.raises(DataError, match="at least 0 and 1"):
            checkpoints(segments, slots)
