"""Prefetching: the same batches and states, errors in their place, and no thread left behind."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrograde.compiler.errors import DataError
from retrograde.runtime.data.epochs import Epochs
from retrograde.runtime.data.prefetch import Prefetch
from retrograde.runtime.data.streaming import Streaming
from retrograde.runtime.training.saver import Resumable


def threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "retrograde-prefetch"]


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    yield
    assert not threads()


class Failing:
    """Whole numbers, of which some fail the first time they are asked for."""

    def __init__(self, *failing: int) -> None:
        self.position, self.failing, self.made = 0, set(failing), 0

    def __next__(self) -> int:
        if self.position in self.failing:
            self.failing.discard(self.position)
            raise OSError(f"no {self.position} today")
        self.position += 1
        self.made += 1
        return self.position - 1

    def at(self, position: int) -> int:
        return position

    def state(self) -> dict[str, Any]:
        return {"position": self.position}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.position = state["position"]


@given(
    st.integers(1, 4), st.lists(st.sampled_from(["next", "close", "at", "restart"]), max_size=30)
)
def test_it_is_the_batches_themselves(depth: int, actions: list[str]) -> None:
    plain, ahead = Epochs(7, 3, seed=2), Prefetch(Epochs(7, 3, seed=2), depth)
    with ahead:
        for action in actions:
            if action == "next":
                np.testing.assert_array_equal(next(ahead), next(plain))
            elif action == "close":
                ahead.close()
            elif action == "at":
                np.testing.assert_array_equal(ahead.at(5), plain.at(5))
            else:
                state, fresh = ahead.state(), Prefetch(Epochs(7, 3, seed=2), depth)
                ahead.close()
                ahead = fresh
                ahead.restore(state)
            assert ahead.state() == plain.state()
        ahead.close()
        np.testing.assert_array_equal(next(ahead.batches), next(plain))


def test_an_error_comes_where_its_batch_would_and_can_be_gone_on_from() -> None:
    ahead = Prefetch(Failing(3), depth=4)
    assert [next(ahead) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="no 3 today"):
        next(ahead)
    assert not threads()
    assert ahead.state() == {"position": 3}
    assert [next(ahead) for _ in range(2)] == [3, 4]
    ahead.close()


def test_the_end_of_finite_batches() -> None:
    source = [{"x": np.array([k])} for k in range(5)]
    ahead = Prefetch(Streaming(lambda start: iter(source[start:]), 2, epochs=1, shuffle=False))
    assert [batch["x"][:, 0].tolist() for batch in ahead] == [[0, 1], [2, 3], [4]]
    assert list(ahead) == []
    assert not threads()


def test_it_makes_so_many_ahead_and_no_more() -> None:
    batches = Failing()
    with Prefetch(batches, depth=3) as ahead:
        next(ahead)
        deadline = time.monotonic() + 5
        while batches.made < 4 and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.02)
        assert batches.made == 4
        assert ahead.state() == {"position": 1}
    assert batches.position == 1


def test_it_works_while_the_step_does() -> None:
    class Slow(Failing):
        def __next__(self) -> int:
            time.sleep(0.02)
            return super().__next__()

    with Prefetch(Slow()) as ahead:
        next(ahead)
        start = time.perf_counter()
        for _ in range(10):
            time.sleep(0.02)
            next(ahead)
        assert time.perf_counter() - start < 0.35  # one behind the other would take 0.4 s


def test_one_that_is_forgotten_ends_its_thread() -> None:
    ahead = Prefetch(Failing())
    next(ahead)
    assert len(threads()) == 1
    del ahead
    gc.collect()
    assert not threads()


def test_closing_while_it_waits_for_room_and_twice() -> None:
    ahead = Prefetch(Failing(), depth=1)
    next(ahead)
    time.sleep(0.01)  # the thread now waits for room
    ahead.close()
    ahead.close()
    assert not threads()
    with Prefetch(Failing()) as never_asked:
        pass
    assert next(never_asked) == 0
    never_asked.close()


def test_it_can_be_checkpointed() -> None:
    assert isinstance(Prefetch(Epochs(3, 1)), Resumable)
    with pytest.raises(DataError, match="depth"):
        Prefetch(Epochs(3, 1), 0)
