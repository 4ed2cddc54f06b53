"""The thread pool walks a list of launches as a plain walk in Python does, whatever the threads."""

from __future__ import annotations

import ctypes
import itertools
import multiprocessing
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrograde.compiler.errors import DeviceError
from retrograde.runtime.native import pool as pools
from retrograde.runtime.native.pool import Code, Fault, Pool, Spread, share, table
from retrograde.runtime.native.toolchain import find_toolchain, load, search, shared_library

pytestmark = pytest.mark.skipif(search()[0] is None, reason="no C compiler works here")

KERNELS = r"""
#include <stdint.h>
#include <string.h>
#include <time.h>
typedef int64_t i64;

/* a: counts, parts that did them, */
i64 count(const i64 *a, i64 lo, i64 hi, i64 part) {
    for (i64 i = lo; i < hi; i++) { ((i64 *)a[0])[i]++; ((i64 *)a[1])[i] = part; }
    return 0;
}
/* a: log (its length first), four numbers to write down */
i64 note(const i64 *a, i64 lo, i64 hi, i64 part) {
    i64 *log = (i64 *)a[0];
    (void)part;
    for (i64 i = lo; i < hi; i++) { memcpy(log + 1 + 4 * log[0], a + 1, 32); log[0]++; }
    return 0;
}
/* a: from, to, cells: each item takes what its neighbour left in the last launch, and adds one */
i64 next(const i64 *a, i64 lo, i64 hi, i64 part) {
    (void)part;
    for (i64 i = lo; i < hi; i++) ((i64 *)a[1])[i] = ((i64 *)a[0])[(i + 1) % a[2]] + 1;
    return 0;
}
/* a: counts, items that fail: a bit for each, code */
i64 fail(const i64 *a, i64 lo, i64 hi, i64 part) {
    (void)part;
    for (i64 i = lo; i < hi; i++) {
        ((i64 *)a[0])[i]++;
        if (a[1] >> i & 1) return a[2] + i;
    }
    return 0;
}
/* a: number, byte: counts down and leaves whether there is more to count */
i64 down(const i64 *a, i64 lo, i64 hi, i64 part) {
    (void)lo, (void)hi, (void)part;
    *(char *)a[1] = --*(i64 *)a[0] > 0;
    return 0;
}
/* a: number, byte, what to count down from */
i64 refill(const i64 *a, i64 lo, i64 hi, i64 part) {
    (void)lo, (void)hi, (void)part;
    *(i64 *)a[0] = a[2];
    *(char *)a[1] = 1;
    return 0;
}
/* a: milliseconds, counts */
i64 rest(const i64 *a, i64 lo, i64 hi, i64 part) {
    struct timespec t = {a[0] / 1000, a[0] % 1000 * 1000000};
    (void)part;
    nanosleep(&t, 0);
    for (i64 i = lo; i < hi; i++) ((i64 *)a[1])[i]++;
    return 0;
}
/* a: floats in, floats out: halves */
i64 halve(const i64 *a, i64 lo, i64 hi, i64 part) {
    (void)part;
    for (i64 i = lo; i < hi; i++) ((volatile float *)a[1])[i] = ((float *)a[0])[i] * 0.5f;
    return 0;
}
/* a: sums: needs 256 KiB of stack */
i64 deep(const i64 *a, i64 lo, i64 hi, i64 part) {
    volatile char block[256 << 10];
    (void)part;
    for (i64 i = lo; i < hi; i++) {
        for (i64 k = 0; k < (i64)sizeof block; k += 1024) block[k] = (char)(i + 1);
        for (i64 k = 0; k < (i64)sizeof block; k += 1024) ((i64 *)a[0])[i] += block[k];
    }
    return 0;
}
unsigned set_modes(unsigned modes) {
#if defined(__SSE__)
    unsigned before = __builtin_ia32_stmxcsr();
    __builtin_ia32_ldmxcsr(modes);
    return before;
#else
    return modes;
#endif
}
"""
NAMES = ("count", "note", "next", "fail", "down", "refill", "rest", "halve", "deep")
COUNT, NOTE, NEXT, FAIL, DOWN, REFILL, REST, HALVE, DEEP = range(len(NAMES))


@dataclass(frozen=True)
class Built:
    library: ctypes.CDLL
    path: Path

    @property
    def kernels(self) -> npt.NDArray[np.int64]:
        addresses = [ctypes.cast(getattr(self.library, n), ctypes.c_void_p).value for n in NAMES]
        return np.array(addresses, np.int64)


@pytest.fixture(scope="module")
def built() -> Built:
    path = shared_library(KERNELS, find_toolchain(), name="pool_test")
    return Built(load(path), path)


@pytest.fixture(scope="module", params=[1, 2, 5])
def threads(request: pytest.FixtureRequest) -> Pool:
    return Pool(request.param)


def listing(*rows: tuple[int, ...]) -> npt.NDArray[np.int64]:
    code = np.zeros((len(rows), 8), np.int64)
    for line, row in zip(code, rows, strict=True):
        line[: len(row)] = row
    return code


def launch(
    kernel: int, first: int, items: int, grain: int = 1, barrier: int = 1, spread: int = 0
) -> tuple[int, ...]:
    return (Code.LAUNCH, kernel, first, items, grain, barrier, spread)


def address(array: npt.NDArray[Any]) -> int:
    return int(array.ctypes.data)


def run(
    pool: Pool,
    built: Built,
    rows: list[tuple[int, ...]],
    arguments: list[int] | list[list[int]],
    movers: list[tuple[int, int]] | None = None,
) -> None:
    """Runs with one row of arguments for all, or one for each thread; the tables have to stay."""
    each = arguments if isinstance(arguments[0], list) else [arguments] * pool.threads
    origin = table(pool.threads, len(each[0]))
    for row, values in zip(origin, each, strict=True):
        row[: len(values)] = values
    work, before = table(*origin.shape), origin.copy()
    work[:] = origin
    moved = np.array(movers or [], np.int64).reshape(-1, 2)
    try:
        pool.run(listing(*rows), built.kernels, origin, work, moved)
    finally:
        np.testing.assert_array_equal(work, before)
        np.testing.assert_array_equal(origin, before)


# ---- shares ----


@given(st.integers(0, 10_000), st.integers(1, 300), st.integers(1, 40))
def test_shares_are_blocks_of_grain_that_cover_each_item_once(
    items: int, grain: int, parts: int
) -> None:
    cuts = [share(items, grain, parts, part) for part in range(parts)]
    assert cuts[0][0] == 0 and cuts[-1][1] == items
    assert all(a[1] == b[0] for a, b in itertools.pairwise(cuts))
    assert all(lo % grain == 0 for lo, hi in cuts if lo < hi)
    blocks = [-(-(hi - lo) // grain) for lo, hi in cuts]
    assert max(blocks) - min(blocks) <= 1


@pytest.mark.parametrize("items", [0, 1, 4, 7, 64, 1001])
@pytest.mark.parametrize("grain", [1, 3, 64])
def test_each_item_is_done_once_by_the_thread_whose_share_it_is(
    threads: Pool, built: Built, items: int, grain: int
) -> None:
    counts, parts = np.zeros((2, items + 1), np.int64)
    run(threads, built, [launch(COUNT, 0, items, grain)], [address(counts), address(parts)])
    np.testing.assert_array_equal(counts, [1] * items + [0])
    for part in range(threads.threads):
        lo, hi = share(items, grain, threads.threads, part)
        assert (parts[lo:hi] == part).all()


def test_own_items_are_of_each_threads_own_table(threads: Pool, built: Built) -> None:
    sizes = [3 * part for part in range(threads.threads)]
    counts, parts = np.zeros((2, threads.threads, 20), np.int64)
    rows = [[address(counts[p]), address(parts[p]), size] for p, size in enumerate(sizes)]
    run(threads, built, [launch(COUNT, 0, 2, spread=Spread.OWN)], rows)
    assert counts.sum(1).tolist() == sizes
    assert all((parts[p, :size] == p).all() for p, size in enumerate(sizes))


def test_the_first_thread_does_all_and_the_others_wait_for_it(threads: Pool, built: Built) -> None:
    first, second = np.zeros((2, 100), np.int64)
    counts = np.zeros(100, np.int64)
    run(
        threads,
        built,
        [launch(REST, 2, 1, barrier=0, spread=Spread.FIRST),
         launch(COUNT, 0, 100, 64, barrier=0, spread=Spread.FIRST),
         launch(NEXT, 4, 100)],
        [address(counts), address(np.zeros(100, np.int64)), 20, address(first),
         address(counts), address(second), 100],
    )  # fmt: skip
    assert (counts == 1).all() and (second == 2).all()


def test_an_empty_list_and_an_empty_launch_do_nothing(threads: Pool, built: Built) -> None:
    run(threads, built, [], [0])
    run(threads, built, [launch(COUNT, 0, 0), launch(COUNT, 0, -3)], [0, 0])


def test_a_copy_is_shared_out_and_ends_where_it_should(threads: Pool, built: Built) -> None:
    source = np.random.default_rng(0).integers(0, 255, 5000, np.uint8)
    for size in (0, 1, 63, 64, 129, 4999):
        target = np.zeros(5000, np.uint8)
        run(threads, built, [(Code.COPY, 2, 0, 1, 1)], [address(source), size, address(target)])
        np.testing.assert_array_equal(target[:size], source[:size])
        assert not target[size:].any()


@pytest.mark.parametrize("blocks, each", [(1, 1), (7, 1), (12, 5), (12, 64)])
def test_a_chain_does_all_links_of_a_block_before_the_next(
    threads: Pool, built: Built, blocks: int, each: int
) -> None:
    """The second link writes down what the first left of its block, and nothing else is there."""
    items = blocks * each - each // 2
    first, second, parts = np.zeros((3, blocks * each + 1), np.int64)
    rows = [
        (Code.CHAIN, blocks, 2, 1), launch(COUNT, 0, items, each, 0),
        launch(NEXT, 2, items - 1, each, 0), launch(COUNT, 0, 0),
    ]  # fmt: skip
    given = [address(first), address(parts), address(first), address(second), len(first)]
    run(threads, built, rows, given)
    np.testing.assert_array_equal(first[: items + 1], [1] * items + [0])
    # An item sees its neighbour only within the block, or where another thread was faster.
    inside = np.arange(max(items - 1, 0)) % each < each - 1
    assert (second[: items - 1][inside] == 2).all()
    if threads.threads == 1:
        assert (second[: items - 1][~inside] == 1).all()
    for part in range(threads.threads):
        lo, hi = share(blocks, 1, threads.threads, part)
        assert (parts[lo * each : min(hi * each, items)] == part).all()


def test_a_fault_in_a_chain_is_that_of_its_link(threads: Pool, built: Built) -> None:
    counts, parts, bad = np.zeros((3, 40), np.int64)
    rows = [
        (Code.CHAIN, 8, 2, 1), launch(COUNT, 0, 40, 5, 0), launch(FAIL, 2, 40, 5, 0),
        launch(COUNT, 5, 40),
    ]  # fmt: skip
    after = np.zeros((2, 40), np.int64)
    given = [address(counts), address(parts), address(bad), 1 << 17, 7]
    with pytest.raises(Fault) as caught:
        run(threads, built, rows, [*given, address(after), address(after[1])])
    assert (caught.value.index, caught.value.code) == (2, 24)
    assert not after.any() and bad[17] == 1


# ---- loops, branches, calls ----

LOG, VALUES, ONE, WHICH = 0, (1, 2, 3, 4), 5, 6  # places in the table of arguments


@dataclass(frozen=True)
class Loop:
    turns: int
    direction: int
    moved: tuple[tuple[int, int], ...]
    barrier: bool
    body: tuple[Any, ...]


@dataclass(frozen=True)
class Call:
    start: int
    moved: tuple[tuple[int, int], ...]
    body: tuple[Any, ...]


@dataclass
class Turns:
    """A loop whose turn t runs the case that NUMBERS[t] names."""

    turns: int
    direction: int
    cases: tuple[tuple[tuple[tuple[int, int], ...], tuple[Any, ...]], ...]  # what moves, a body


NUMBERS = np.array([1, 0, 7, -1, 1], np.int64)  # the last case where there is none of the number


moved = st.lists(st.tuples(st.sampled_from(VALUES), st.integers(-50, 50)), max_size=4).map(tuple)


def bodies(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    loops = st.builds(
        Loop, st.integers(0, 3), st.sampled_from([1, -1]), moved, st.booleans(), inner
    )
    calls = st.builds(Call, st.integers(-3, 9), moved, inner)
    cases = st.lists(st.tuples(moved, inner), min_size=1, max_size=3).map(tuple)
    turns = st.builds(Turns, st.integers(0, len(NUMBERS)), st.sampled_from([1, -1]), cases)
    return st.lists(st.just("note") | loops | calls | turns, max_size=3).map(tuple)


programs = st.recursive(bodies(st.just(("note",))), bodies, max_leaves=8)


def plain_walk(body: tuple[Any, ...], values: npt.NDArray[np.int64]) -> Iterator[list[int]]:
    """What each note writes: the living definition of loops and calls that move arguments."""

    def by(moved: tuple[tuple[int, int], ...], turns: int) -> npt.NDArray[np.int64]:
        there = values.copy()
        for argument, stride in moved:
            there[argument - 1] += turns * stride
        return there

    for step in body:
        if isinstance(step, Loop):
            turns = range(step.turns)
            for turn in turns if step.direction > 0 else reversed(turns):
                yield from plain_walk(step.body, by(step.moved, turn))
        elif isinstance(step, Turns):
            turns = range(step.turns)
            for turn in turns if step.direction > 0 else reversed(turns):
                last, number = len(step.cases) - 1, int(NUMBERS[turn])
                moved, case = step.cases[number if 0 <= number <= last else last]
                yield from plain_walk(case, by(moved, turn))
        elif isinstance(step, Call):
            yield from plain_walk(step.body, by(step.moved, step.start))
        else:
            yield values.tolist()


class Flat:
    """A nested program as a list; what is called lies behind the end."""

    def __init__(self, program: tuple[Any, ...]) -> None:
        self.rows: list[tuple[int, ...]] = []
        self.movers: list[tuple[int, int]] = []
        self._later: list[tuple[int, Call]] = []
        self._body(program)
        end = len(self.rows)
        self.rows.append((Code.JUMP, 0))
        while self._later:
            at, call = self._later.pop()
            self.rows[at] = (Code.CALL, len(self.rows), call.start, *self._moved(call.moved))
            self._body(call.body)
            self.rows.append((Code.RETURN,))
        self.rows[end] = (Code.JUMP, len(self.rows))

    def _moved(self, moved: tuple[tuple[int, int], ...]) -> tuple[int, int]:
        self.movers += moved
        return len(self.movers) - len(moved), len(moved)

    def _body(self, body: tuple[Any, ...]) -> None:
        for step in body:
            at = len(self.rows)
            if isinstance(step, Call):
                self.rows.append(())
                self._later.append((at, step))
            elif isinstance(step, Loop):
                self.rows.append(())
                movers = self._moved(step.moved)
                self._body(step.body)
                end = len(self.rows)
                head = (step.turns, step.direction, *movers, end, int(step.barrier))
                self.rows[at] = (Code.LOOP, *head)
                self.rows.append((Code.END, at))
            elif isinstance(step, Turns):
                self.rows += [()] * (1 + len(step.cases))
                ends = []
                for i, (moved, case) in enumerate(step.cases):
                    self.rows[at + 1 + i] = (Code.CASE, len(self.rows), *self._moved(moved))
                    self._body(case)
                    ends.append(len(self.rows))
                    self.rows.append(())
                end = len(self.rows)
                for place in ends:
                    self.rows[place] = (Code.JUMP, end)
                cases = len(step.cases)
                self.rows[at] = (Code.TURNS, step.turns, step.direction, WHICH, cases, end)
                self.rows.append((Code.END, at))
            else:
                self.rows.append(launch(NOTE, LOG, ONE, barrier=0, spread=Spread.OWN))


@given(program=programs)
def test_loops_and_calls_move_arguments_as_a_plain_walk_does(
    threads: Pool, built: Built, program: tuple[Any, ...]
) -> None:
    values = [np.arange(4) * 100 + 1000 * part for part in range(threads.threads)]
    wanted = [list(plain_walk(program, row)) for row in values]
    logs = np.zeros((threads.threads, 1 + 4 * len(wanted[0]) + 4), np.int64)
    rows = [
        [address(log), *row.tolist(), 1, address(NUMBERS)]
        for log, row in zip(logs, values, strict=True)
    ]
    flat = Flat(program)
    run(threads, built, flat.rows, rows, flat.movers)
    for log, lines in zip(logs, wanted, strict=True):
        assert log[0] == len(lines)
        assert log[1 : 1 + 4 * len(lines)].reshape(-1, 4).tolist() == lines
        assert not log[1 + 4 * len(lines) :].any()


@pytest.mark.parametrize("turns", [1, 2, 7])
def test_a_while_loop_runs_until_its_byte_is_zero(threads: Pool, built: Built, turns: int) -> None:
    number, more = np.array([turns]), np.ones(1, np.uint8)
    counts, parts = np.zeros((2, 30), np.int64)
    rows = [
        (Code.TEST, 1, 4),
        launch(COUNT, 2, 30, 4),
        launch(DOWN, 0, 1, spread=Spread.FIRST),
        (Code.JUMP, 0),
    ]
    run(threads, built, rows, [address(number), address(more), address(counts), address(parts)])
    assert (counts == turns).all()


@pytest.mark.parametrize("taken", [0, 1])
def test_a_branch_inside_a_loop(threads: Pool, built: Built, taken: int) -> None:
    flag, counts = np.array([taken], np.uint8), np.zeros((3, 10), np.int64)
    rows = [
        (Code.LOOP, 5, 1, 0, 0, 5, 0),
        (Code.TEST, 0, 4),
        launch(COUNT, 1, 10),
        (Code.JUMP, 5),
        launch(COUNT, 2, 10),
        (Code.END, 0),
    ]
    run(threads, built, rows, [address(flag), *(address(row) for row in counts)])
    assert (counts[0] == (5 if taken else 0)).all()


@pytest.mark.parametrize(
    ("rows", "where"),
    [
        ([(9,)], 0),
        ([launch(len(NAMES), 0, 1)], 0),
        ([launch(0, 99, 1)], 0),
        ([launch(0, 0, 99, spread=Spread.OWN)], 0),
        ([launch(0, 0, 1, spread=3)], 0),
        ([launch(0, 0, 0), (Code.LOOP, 2, 1, 0, 0, 2, 0)], 1),
        ([(Code.LOOP, 2, 1, 0, 0, 2, 0), (Code.END, 0)], 1),
        ([(Code.LOOP, 2, 1, 0, 2, 1, 0), (Code.END, 0)], 0),
        ([(Code.LOOP, 2, 2, 0, 0, 1, 0), (Code.END, 0)], 0),
        ([(Code.END, 0)], 0),
        ([(Code.JUMP, -1)], 0),
        ([(Code.JUMP, 2)], 0),
        ([(Code.JUMP, 2), (Code.LOOP, 2, 1, 0, 0, 2, 0), (Code.END, 1)], 0),
        ([(Code.LOOP, 2, 1, 0, 0, 2, 0), (Code.JUMP, 3), (Code.END, 0)], 1),
        ([(Code.LOOP, 2, 1, 0, 0, 2, 0), (Code.RETURN,), (Code.END, 0)], 1),
        ([(Code.CALL, 1, 0, 1, 1)], 0),
        ([(Code.TEST, 99, 0)], 0),
        ([(Code.TURNS, 2, 1, 0, 1, 3), (Code.CASE, 3, 0, 0), (Code.END, 0)], 2),
        ([(Code.TURNS, 2, 1, 99, 1, 2), (Code.CASE, 2, 0, 0), (Code.END, 0)], 0),
        ([(Code.TURNS, 2, 1, 0, 0, 1), (Code.END, 0)], 0),
        ([(Code.TURNS, 2, 1, 0, 2, 2), (Code.CASE, 2, 0, 0), (Code.END, 0)], 0),
        ([(Code.TURNS, 2, 1, 0, 1, 2), launch(0, 0, 0), (Code.END, 0)], 0),
        ([(Code.TURNS, 2, 1, 0, 1, 2), (Code.CASE, 3, 0, 0), (Code.END, 0)], 1),
        ([(Code.TURNS, 2, 1, 0, 1, 2), (Code.CASE, 2, 1, 1), (Code.END, 0)], 1),
        ([(Code.LOOP, 2, 1, 0, 0, 2, 0), (Code.CASE, 2, 0, 0), (Code.END, 0)], 1),
        ([(Code.COPY, 0, -1, 0, 0)], 0),
        ([(Code.CHAIN, 3, 1, 1)], 0),
        ([(Code.CHAIN, 3, 2, 1), launch(0, 0, 0), (Code.JUMP, 0)], 0),
        ([(Code.CHAIN, 3, 1, 1), launch(0, 0, 9, -1)], 0),
    ],
)
def test_an_unsound_list_is_refused(built: Built, rows: list[tuple[int, ...]], where: int) -> None:
    tables = table(1, 3), table(1, 3)
    with pytest.raises(ValueError, match=f"instruction {where} "):
        Pool(1).bind(listing(*rows), built.kernels, *tables, np.array([[1, 8]]))


def test_a_mover_of_an_argument_that_is_not_there_is_refused(built: Built) -> None:
    with pytest.raises(ValueError, match="no sound list"):
        Pool(1).bind(listing(), built.kernels, table(1, 3), table(1, 3), np.array([[16, 8]]))


def test_tables_that_do_not_fit_are_refused(built: Built) -> None:
    good = table(2, 3)
    code = listing(launch(0, 0, 0))
    with pytest.raises(ValueError, match="2 rows of arguments for a pool of 1 threads"):
        Pool(1).bind(code, built.kernels, good, good.copy())
    with pytest.raises(ValueError, match="work is int64"):
        Pool(2).bind(code, built.kernels, good, table(2, 17))
    with pytest.raises(ValueError, match="code is int32"):
        Pool(2).bind(code.astype(np.int32), built.kernels, good, good.copy())
    with pytest.raises(ValueError, match="without an address"):
        Pool(2).bind(code, np.zeros(1, np.int64), good, good.copy())


def test_rows_of_a_table_share_no_line() -> None:
    for parts, arguments in [(1, 1), (3, 16), (2, 17)]:
        made = table(parts, arguments)
        assert address(made) % 128 == 0 and made.strides[0] % 128 == 0
        assert made.shape[0] == parts and made.shape[1] >= arguments and not made.any()


# ---- faults ----


def failing(pool: Pool, built: Built, *bits: int, barrier: int = 1) -> tuple[Fault, Any]:
    """Launches of 10 items, one for each of `bits` (the items that fail in it), and one more."""
    counts = np.zeros((len(bits) + 1, 10), np.int64)
    rows: list[tuple[int, ...]] = []
    arguments: list[int] = []
    for bit, row in zip([*bits, 0], counts, strict=True):
        rows.append(launch(FAIL, len(arguments), 10, barrier=barrier))
        arguments += [address(row), bit, 100 * len(rows)]
    with pytest.raises(Fault) as caught:
        run(pool, built, rows, arguments)
    return caught.value, counts


@pytest.mark.parametrize("item", range(10))
def test_a_fault_in_any_item_stops_the_run_at_its_barrier(
    threads: Pool, built: Built, item: int
) -> None:
    fault, counts = failing(threads, built, 0, 1 << item, 0)
    assert (fault.index, fault.code) == (1, 200 + item)
    assert (counts[0] == 1).all() and not counts[2:].any()
    for part in range(threads.threads):
        lo, hi = share(10, 1, threads.threads, part)
        stop = min(item + 1, hi) if lo <= item < hi else hi
        assert (counts[1, lo:stop] == 1).all() and not counts[1, stop:hi].any()


def test_of_several_faults_the_first_is_told(threads: Pool, built: Built) -> None:
    everywhere = (1 << 10) - 1
    fault, _ = failing(threads, built, everywhere, everywhere)
    assert (fault.index, fault.code) == (0, 100)


def test_without_a_barrier_between_the_smallest_instruction_is_told(
    threads: Pool, built: Built
) -> None:
    for _ in range(20):
        fault, counts = failing(threads, built, 0, 1 << 9, 1 << 0, barrier=0)
        assert (fault.index, fault.code) == (1, 209)
        assert (counts[0] == 1).all()


@pytest.mark.parametrize(("loop_barrier", "barrier"), [(0, 0), (0, 1), (1, 0)])
def test_a_fault_inside_of_loops_resets_what_they_moved(
    threads: Pool, built: Built, loop_barrier: int, barrier: int
) -> None:
    counts = np.zeros((3, 4, 10), np.int64)
    rows = [
        (Code.LOOP, 3, 1, 0, 2, 4, 0),
        (Code.LOOP, 4, -1, 2, 1, 3, loop_barrier),
        launch(FAIL, 0, 10, barrier=barrier),
        (Code.END, 1),
        (Code.END, 0),
    ]
    # Turn 0 of the outer loop fails nowhere, turn 1 in item 8.
    movers = [(0, counts.strides[0]), (1, 1 << 8), (0, counts.strides[1])]
    with pytest.raises(Fault) as caught:
        run(threads, built, rows, [address(counts), 0, 70], movers)
    assert (caught.value.index, caught.value.code) == (2, 78)
    assert (counts[0] == 1).all() and not counts[2:, :, 8].any()
    assert counts[1, :, 8].tolist() == [0, 0, 0, 1]


def test_a_pool_runs_on_after_faults(threads: Pool, built: Built) -> None:
    for turn in range(50):
        fault, _ = failing(threads, built, *([0] * (turn % 3)), 1 << turn % 10, barrier=turn % 2)
        assert fault.index == turn % 3
        counts, parts = np.zeros((2, 40), np.int64)
        run(threads, built, [launch(COUNT, 0, 40)], [address(counts), address(parts)])
        assert (counts == 1).all()


def test_calls_without_end_are_a_fault(threads: Pool, built: Built) -> None:
    with pytest.raises(Fault) as caught:
        run(threads, built, [launch(NOTE, 0, 0), (Code.CALL, 0, 1, 0, 1)], [5, 5], [(1, 7)])
    assert (caught.value.index, caught.value.code) == (1, pools.TOO_DEEP)


# ---- threads ----


@pytest.mark.parametrize("barrier", [0, 1])
def test_each_launch_sees_what_the_other_threads_wrote_before(
    threads: Pool, built: Built, barrier: int
) -> None:
    """20000 launches; without a barrier (at each turn, then) one would read too early or late."""
    n = threads.threads
    there, back = np.zeros((2, n), np.int64)
    ahead, home = launch(NEXT, 0, n, barrier=1), launch(NEXT, 3, n, barrier=barrier)
    rows = [(Code.LOOP, 10_000, 1, 0, 0, 3, 1 - barrier), ahead, home, (Code.END, 0)]
    arguments = [address(there), address(back), n, address(back), address(there), n]
    run(threads, built, rows, arguments)
    assert (there == 20_000).all() and (back == 19_999).all()


def test_a_copy_ends_before_what_comes_after_its_barrier(threads: Pool, built: Built) -> None:
    cells = 8 * threads.threads  # a line for each thread, which then reads from the next one
    source, target = np.zeros((2, cells), np.int64)
    rows = [
        (Code.LOOP, 5000, 1, 0, 0, 3, 0),
        (Code.COPY, 0, 1, 3, 1),
        launch(NEXT, 0, cells, 8),
        (Code.END, 0),
    ]
    # NEXT reads from the copy, where each cell's neighbour was left at the turn before.
    arguments = [address(target), address(source), cells, 8 * cells]
    run(threads, built, rows, arguments)
    assert (source == 5000).all()


def test_no_thread_writes_a_number_of_turns_before_all_have_read_it(
    threads: Pool, built: Built
) -> None:
    """Else one would take the case of no launch, and leave its part of 40 undone."""
    number, more = np.zeros(1, np.int64), np.ones(1, np.uint8)
    counts, parts = np.zeros((2, 40), np.int64)
    rows = [
        (Code.LOOP, 2000, 1, 0, 0, 9, 0),
        launch(REFILL, 0, 1, spread=Spread.FIRST),
        (Code.TURNS, 1, 1, 0, 2, 7),
        (Code.CASE, 6, 0, 0),
        (Code.CASE, 5, 0, 0),
        launch(COUNT, 3, 40, barrier=0),
        (Code.JUMP, 7),
        (Code.END, 2),
        launch(DOWN, 0, 1, barrier=0),
        (Code.END, 0),
    ]
    arguments = [address(number), address(more), 1, address(counts), address(parts)]
    run(threads, built, rows, arguments)
    assert (counts == 2000).all()


def test_no_thread_writes_a_tested_byte_before_all_have_read_it(
    threads: Pool, built: Built
) -> None:
    number, more = np.zeros(1, np.int64), np.ones(1, np.uint8)
    rows = [
        (Code.LOOP, 2000, 1, 0, 0, 5, 0),
        launch(REFILL, 0, 1, spread=Spread.FIRST),
        (Code.TEST, 1, 5),
        launch(DOWN, 0, 1, spread=Spread.FIRST),
        (Code.JUMP, 2),
        (Code.END, 0),
    ]
    run(threads, built, rows, [address(number), address(more), 3])
    assert number[0] == 0 and more[0] == 0


def counting(pool: Pool, built: Built, turns: int = 40) -> Callable[[], bool]:
    """A function that runs a list of its own and tells whether it did what it should."""
    there, back = np.zeros((2, 7), np.int64)
    rows = [
        (Code.LOOP, turns, 1, 0, 0, 3, 0), launch(NEXT, 0, 7), launch(NEXT, 3, 7), (Code.END, 0)
    ]  # fmt: skip
    origin, work = (table(pool.threads, 6) for _ in range(2))
    origin[:, :6] = [address(there), address(back), 7, address(back), address(there), 7]
    work[:] = origin
    go = pool.bind(listing(*rows), built.kernels, origin, work)

    def once() -> bool:
        there[:] = 0
        go()
        return bool((there == 2 * turns).all())

    return once


def test_several_python_threads_share_a_pool(threads: Pool, built: Built) -> None:
    bad: list[int] = []

    def work(who: int) -> None:
        once = counting(threads, built)
        bad.extend(who for _ in range(100) if not once())

    callers = [threading.Thread(target=work, args=(who,)) for who in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
        assert not caller.is_alive()
    assert bad == []


def test_other_python_threads_go_on_during_a_run(threads: Pool, built: Built) -> None:
    counts = np.zeros(threads.threads, np.int64)
    rows = [launch(REST, 0, threads.threads)]
    arguments = [200, address(counts)]
    runner = threading.Thread(target=run, args=(threads, built, rows, arguments))
    runner.start()
    progress = 0
    while runner.is_alive():
        progress += 1
    assert progress > 1000 and (counts == 1).all()


def test_a_run_wakes_workers_that_sleep(built: Built) -> None:
    sleepy = Pool(3, spin=0.0)
    once = counting(sleepy, built)
    for _ in range(30):
        assert once()
        time.sleep(0.002)


def test_pools_end_their_workers(built: Built) -> None:
    def workers() -> int:
        return sum("rg-worker" in path.read_text() for path in _tasks("comm"))

    if not Path("/proc/self/task").exists():
        pytest.skip("no /proc to count threads in")
    before = workers()
    pool = Pool(4)
    assert workers() == before, "workers are started by the first run"
    assert counting(pool, built)()
    assert workers() == before + 3
    del pool
    assert workers() == before


def _tasks(name: str) -> Iterator[Path]:
    return Path("/proc/self/task").glob(f"*/{name}")


def test_workers_leave_signals_to_the_process(built: Built) -> None:
    if not Path("/proc/self/task").exists():
        pytest.skip("no /proc to look at masks in")
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    pool = Pool(2)
    assert counting(pool, built)()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask
    blocked = [
        int(line.split()[1], 16)
        for path in _tasks("status")
        if "rg-worker" in (text := path.read_text())
        for line in text.splitlines()
        if line.startswith("SigBlk")
    ]
    assert blocked
    for bits in blocked:
        assert bits >> (signal.SIGINT - 1) & 1 and bits >> (signal.SIGPROF - 1) & 1
        assert not bits >> (signal.SIGSEGV - 1) & 1, "faulthandler has to see it"


def test_workers_round_as_their_caller_does(built: Built) -> None:
    """The caller's modes, also if they changed since the workers were started."""
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("sets the modes of an x86 processor")
    set_modes = built.library.set_modes
    set_modes.restype, set_modes.argtypes = ctypes.c_uint, [ctypes.c_uint]
    pool = Pool(2)
    source = np.full(64, np.float32(1.5e-38))  # its half is subnormal
    halves = []
    before = set_modes(0x1F80)
    try:
        for modes in (0x1F80, 0x1F80 | 0x8040, 0x1F80):  # usual; subnormals are flushed; usual
            target = np.ones(64, np.float32)
            set_modes(modes)
            run(pool, built, [launch(HALVE, 0, 64)], [address(source), address(target)])
            found = set_modes(0x1F80)
            assert found & ~0x3F == modes & ~0x3F, "the caller's own modes stay"
            assert (target == target[0]).all()
            halves.append(float(target[0]))
    finally:
        set_modes(before)
    assert halves == [pytest.approx(7.5e-39), 0.0, halves[0]]


def test_kernels_have_a_quarter_of_a_mebibyte_of_stack(threads: Pool, built: Built) -> None:
    sums = np.zeros(threads.threads, np.int64)
    run(threads, built, [launch(DEEP, 0, threads.threads)], [address(sums)])
    assert sums.tolist() == [256 * (i + 1) for i in range(threads.threads)]


# ---- processes ----


def in_child(check: Callable[[], bool]) -> int:
    """Forks; the child's exit code: 0 if the check held there, 1 if not, -14 if it hung."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(20)
        os._exit(0 if check() else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_has_workers_of_its_own(threads: Pool, built: Built) -> None:
    once = counting(threads, built)
    assert once()
    assert in_child(lambda: once() and once() and in_child(once) == 0) == 0
    assert once()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_forked_in_the_middle_of_a_run_can_run(built: Built) -> None:
    pool = Pool(2)
    counts = np.zeros(2, np.int64)
    rows, arguments = [launch(REST, 0, 2)], [1500, address(counts)]
    runner = threading.Thread(target=run, args=(pool, built, rows, arguments))
    runner.start()
    time.sleep(0.05)
    assert in_child(counting(pool, built)) == 0
    assert runner.is_alive(), "the child waited for a run that is not its own"
    runner.join()
    assert (counts == 1).all() and counting(pool, built)()


def _in_process(path: str) -> bool:
    built = Built(ctypes.CDLL(path), Path(path))
    return all(counting(pools.pool(2), built)() for _ in range(20))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_processes_of_multiprocessing_run_on_the_shared_pool(built: Built) -> None:
    assert _in_process(str(built.path))
    with multiprocessing.get_context("fork").Pool(3) as processes:
        done = processes.map_async(_in_process, [str(built.path)] * 6)
        assert done.get(60) == [True] * 6


INTERRUPTED = """
import ctypes, os, signal, sys, threading, time
import numpy as np
from retrograde.runtime.native.pool import Pool, table
library = ctypes.CDLL(sys.argv[1])
kernels = np.array([ctypes.cast(library.rest, ctypes.c_void_p).value])
counts, origin, work = np.zeros(2, np.int64), table(2, 2), table(2, 2)
origin[:, :2] = 400, counts.ctypes.data
work[:] = origin
go = Pool(2).bind(np.array([[0, 0, 0, 2, 1, 1, 0, 0]]), kernels, origin, work)
threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    go()
    time.sleep(5)
except KeyboardInterrupt:
    print(counts.tolist(), (work == origin).all())
go()
print(counts.tolist())
"""


def test_ctrl_c_waits_for_the_end_of_a_run(built: Built) -> None:
    command = [sys.executable, "-c", INTERRUPTED, str(built.path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout == "[1, 1] True\n[2, 2]\n", done.stderr


def test_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETROGRADE_THREADS", "3")
    assert pools.thread_count() == pools.pool().threads == 3
    assert pools.pool() is pools.pool(3) and pools.pool(2) is not pools.pool(3)
    monkeypatch.setenv("RETROGRADE_THREADS", "")
    if hasattr(os, "sched_getaffinity"):
        assert pools.thread_count() == len(os.sched_getaffinity(0))
    for wrong in ("0", "-1", "two", "4096"):
        monkeypatch.setenv("RETROGRADE_THREADS", wrong)
        with pytest.raises(DeviceError, match="RETROGRADE_THREADS"):
            pools.thread_count()
    with pytest.raises(DeviceError, match="1 to 1024 threads"):
        Pool(0)
