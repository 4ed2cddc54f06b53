"""Loops whose rows the threads share out, where something in a turn has no rows: no thread may see
what another one is in the middle of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import retrograde as rg
import retrograde.numpy as rnp
from retrograde.compiler.plan.liveness import analyse, walk
from retrograde.compiler.plan.lower import lower
from retrograde.compiler.plan.steps import LoopStep, walk_all, writes
from retrograde.runtime.native.toolchain import find_toolchain

pytestmark = pytest.mark.skipif(find_toolchain() is None, reason="there is no C compiler")

E, V, N = 16, 50, 4000
Turn = Callable[[Any, Any], tuple[Any, Any]]


def branched(extra: Callable[..., Any]) -> Callable[..., Any]:
    """A loop with rows that adds, in a branch, what `extra` makes of arrays from outside of it."""

    def loop(c: Any, xs: Any, flag: Any, *outside: Any) -> Any:
        def step(c: Any, x: Any) -> tuple[Any, Any]:
            c = rnp.tanh(c * 0.5 + x)
            c = rg.cond(flag, lambda c: c + extra(*outside), lambda c: c, c)
            return c, c

        return rg.scan(step, c, xs)

    return loop


def listed(table: Any, ids: Any, updates: Any) -> Any:
    return table.at[ids].add(updates)[0]


def normalised(table: Any, ids: Any, updates: Any) -> Any:
    return rnp.softmax(table, axis=-1)[0]


def widened(table: Any, ids: Any, updates: Any) -> Any:
    return table[1] * 2.0


SPECS = (
    rg.spec("f32", "B", E), rg.spec("f32", "T", "B", E), rg.spec("bool"), rg.spec("f32", V, E),
    rg.spec("i32", N), rg.spec("f32", N, E),
)  # fmt: skip


def splits(compiled: Any) -> bool:
    return "rt.split" in compiled.source()


@pytest.mark.parametrize("extra, shared", [(listed, False), (normalised, False), (widened, True)])
def test_what_has_no_rows_is_done_by_all_threads_only_if_it_is_written_once(
    extra: Any, shared: bool
) -> None:
    one, two = (
        rg.compile(branched(extra), *SPECS, backend="native", threads=threads) for threads in (1, 2)
    )
    assert splits(two) == shared
    draw = np.random.default_rng(3)
    arguments = [
        draw.normal(size=(64, E)).astype("f4"), draw.normal(size=(30, 64, E)).astype("f4"),
        np.asarray(True), draw.normal(size=(V, E)).astype("f4"),
        draw.integers(0, V, N, dtype=np.int32), draw.normal(size=(N, E)).astype("f4"),
    ]  # fmt: skip
    wanted = [x.tobytes() for x in one(*arguments)]
    for _ in range(20):
        assert [x.tobytes() for x in two(*arguments)] == wanted


def test_halves_added_up_in_memory_of_all_threads_are_not_shared_out_by_rows() -> None:
    def loop(d: Any, c: Any, xs: Any, ids: Any) -> Any:
        def step(carry: Any, x: Any) -> tuple[Any, Any]:
            d, c = carry
            d = rnp.tanh(d + 1.0)
            c = rnp.tanh(c.at[ids].add(x) * d)
            return (d, c), c

        return rg.scan(step, (d, c), xs)

    for dtype, shared in ("bf16", False), ("f32", True):
        specs = rg.spec(dtype, "B"), rg.spec(dtype, V, "B"), rg.spec(dtype, "T", N, "B")
        compiled = rg.compile(loop, *specs, rg.spec("i32", N), backend="native", threads=2)
        assert splits(compiled) == shared


def test_slices_of_loops_within_a_loop_lie_apart() -> None:
    def inner(w: Any, cut: int) -> Turn:
        def step(d: Any, y: Any) -> tuple[Any, Any]:
            d = rnp.tanh(d @ w + y[:, :E] * y[:, cut:])
            return d, d

        return step

    def loop(c: Any, xs: Any, ys: Any, w: Any, v: Any) -> Any:
        def step(c: Any, x: Any) -> tuple[Any, Any]:
            d, _ = rg.scan(inner(w, E), c, x[0])
            e, _ = rg.scan(inner(v, 2 * E), d, x[1])
            return e, e

        return rg.scan(step, c, (xs, ys))

    square = rg.spec("f32", E, E)
    specs = rg.spec("f32", "B", E), rg.spec("f32", "T", 4, "B", 2 * E)
    compiled = rg.compile(
        loop, *specs, rg.spec("f32", "T", 3, "B", 3 * E), square, square,
        backend="native", threads=2,
    )  # fmt: skip
    schedule, liveness = analyse(lower(compiled.ir("order"), 2, True))
    (found,) = [
        (at, end, step) for at, step, end in walk(schedule.steps) if isinstance(step, LoopStep)
        and step.split is not None
    ]  # fmt: skip
    at, end, outer = found
    within = [s for s in walk_all(outer.body) if isinstance(s, LoopStep)]
    slices = [place for step in within for _, place in step.slices]
    assert len(within) == 2
    for view in (*slices, *(v for step in walk_all(outer.body) for v in writes(step))):
        life = liveness.lives[liveness.home(view.storage)]
        assert life.first <= at and life.last >= end
