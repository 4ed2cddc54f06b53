"""Lifetimes and in-place reuse against a run in which every byte remembers who wrote it; planned
peak, allocated arena and what a run touches."""

from __future__ import annotations

import random
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrograde.compiler.ir import dtypes
from retrograde.compiler.ir.graph import Graph
from retrograde.compiler.passes.backward import Backward
from retrograde.compiler.pipeline import Options, compile_graph
from retrograde.compiler.plan.memory import Buffer, lower_bound
from retrograde.compiler.plan.steps import (
    BranchStep,
    CopyStep,
    FusedStep,
    LoopStep,
    OpStep,
    WhileStep,
    inside,
)
from retrograde.runtime.device import get_device
from retrograde.runtime.executable import Executable
from tests.compiler.passes.harness import written
from tests.compiler.plan.shadow import Shadow
from tests.device.random_graphs import RandomGraph, inputs_for
from tests.device.test_state import CASES, built, random_updates

SIZES = ({"B": 3, "T": 5}, {"B": 1, "T": 1}, {"B": 2, "T": 0}, {"B": 0, "T": 3}, {"B": 1, "T": 7})
SEEDS = st.integers(0, 2**32 - 1)


def shadowed(graph: Graph, options: Options | None = None) -> None:
    compiled = compile_graph(graph, options or Options())
    for sizes in SIZES:
        mine = {name: sizes[name] for name in graph.symbols()}
        shadow = Shadow(compiled, mine)
        shadow.run()
        top = [a + n for a, n in zip(shadow.at, shadow.bytes, strict=True)]
        assert shadow.height == max(top, default=0)
        assert shadow.touched <= shadow.height


@given(seed=SEEDS, steps=st.integers(4, 24))
def test_no_live_byte_is_overwritten(seed: int, steps: int) -> None:
    shadowed(RandomGraph(random.Random(seed).randrange, dtypes.f64, steps).graph)


@settings(max_examples=20)
@given(seed=SEEDS)
@pytest.mark.filterwarnings("ignore:.*selects against")
def test_no_live_byte_is_overwritten_in_gradients(seed: int) -> None:
    graph = RandomGraph(random.Random(seed).randrange, dtypes.f64, 10).graph
    shadowed(Backward((0,), (0, 1, 4))(graph))


@settings(max_examples=30)
@given(seed=SEEDS, steps=st.integers(4, 20), reuse=st.booleans())
def test_no_live_byte_is_overwritten_by_updates(seed: int, steps: int, reuse: bool) -> None:
    graph, _, _ = random_updates(seed, steps, get_device())
    shadowed(graph, Options(reuse=reuse))


@pytest.mark.parametrize("name", CASES)
def test_updates(name: str) -> None:
    shadowed(built(CASES[name]))


@given(seed=SEEDS, steps=st.integers(4, 24))
def test_lifetimes_are_exact(seed: int, steps: int) -> None:
    """Without loops, what the plan says is what a run does, to the step."""
    graph = RandomGraph(random.Random(seed).randrange, dtypes.f64, steps).graph
    compiled = compile_graph(graph)
    planned = compiled.planned
    kinds = {type(s) for s in planned.schedule.steps}
    if not kinds or any(map(inside, planned.schedule.steps)):
        return
    shadow = Shadow(compiled, {"B": 3, "T": 5})
    shadow.run()
    found: dict[int, tuple[int, int]] = {}
    for storage, (first, last) in shadow.accessed.items():
        index = planned.places[planned.liveness.home(storage)]
        a, b = found.get(index, (first, last))
        found[index] = (min(a, first), max(b, last))
    assert set(found) == set(range(len(planned.buffers)))
    for index, (first, last) in found.items():
        spec = planned.buffers[index]
        # The clock is 0 for inputs and step number k is at k + 1.
        start = 0 if spec.kind in ("input", "state") else first - 1
        assert (spec.start, spec.end) == (start, max(last, 1)), spec


def test_an_elementwise_op_takes_over_a_dying_operand() -> None:
    text = """(%0: f64[B,4]) {
      %1: f64[B,4] = sort %0 {axis=0, descending=False}
      %2: f64[B,4] = exp %1
      return %2 }"""
    compiled = compile_graph(written(text))
    assert len(compiled.program.buffers) == 2
    shadowed(written(text))


@pytest.mark.parametrize(
    ("what", "text", "buffers"),
    [
        (
            "a comparison has another type",
            """(%0: f64[B,4]) {
              %1: f64[B,4] = sort %0 {axis=0, descending=False}
              %2: bool[B,4] = isnan %1
              return %2 }""",
            3,
        ),
        (
            "the smaller operand of a broadcast cannot hold the result",
            """(%0: f64[4], %1: f64[B,4]) {
              %2: f64[4] = sort %0 {axis=0, descending=False}
              %3: f64[B,4] = add %2, %1
              return %3, %1 }""",
            4,
        ),
        (
            "a stretched operand that looks like the result",
            """(%0: f64[1,4], %1: f64[T,4]) {
              %2: f64[1,4] = sort %0 {axis=1, descending=False}
              %3: f64[T,4] = broadcast_to %2 {shape=(dim(T),4)}
              %4: f64[T,4] = exp %3
              %5: f64[T,4] = sub %4, %1
              return %4, %5 }""",
            4,
        ),
        (
            "select takes over what it falls back on",
            """(%0: bool[B,4], %1: f64[B,4], %2: f64[B,4]) {
              %3: f64[B,4] = sort %1 {axis=0, descending=False}
              %4: f64[B,4] = select %0, %2, %3
              return %4, %2 }""",
            4,
        ),
        (
            "select does not take over what it prefers",
            """(%0: bool[B,4], %1: f64[B,4], %2: f64[B,4]) {
              %3: f64[B,4] = sort %1 {axis=0, descending=False}
              %4: f64[B,4] = select %0, %3, %2
              return %4, %2 }""",
            5,
        ),
        (
            "a transposed operand meets its own elements elsewhere",
            """(%0: f64[4,4]) {
              %1: f64[4,4] = sort %0 {axis=0, descending=False}
              %2: f64[4,4] = transpose %1 {perm=(1,0)}
              %3: f64[4,4] = add %1, %2
              return %3 }""",
            3,
        ),
        (
            "an input that is still read",
            """(%0: f64[B,4]) {
              %1: f64[B,4] = exp %0
              return %1, %0 }""",
            2,
        ),
    ],
)
def test_in_place(what: str, text: str, buffers: int) -> None:
    compiled = compile_graph(written(text))
    assert len(compiled.program.buffers) == buffers, what
    shadowed(written(text))


def test_planned_peak_is_the_arena() -> None:
    """Plan, closed form, lower bound and allocation, at 50 sizes."""
    chance = random.Random(5)
    for seed in (1, 2, 3):
        graph = RandomGraph(random.Random(seed).randrange, dtypes.f64, 20).graph
        for reuse in (True, False):
            program = compile_graph(graph, Options(reuse=reuse)).program
            peak, n = program.peak(), program.state_count
            for _ in range(50):
                sizes = {"B": chance.randrange(0, 40), "T": chance.randrange(0, 90)}
                plan = program.plan(sizes)
                assert peak(**sizes) == plan.peak_bytes == plan.arena_bytes
                assert plan.lower_bound_bytes <= plan.peak_bytes
                if reuse:
                    live = [Buffer(b.start, b.end, b.bytes) for b in plan.buffers[n:]]
                    assert plan.lower_bound_bytes == plan.state_bytes + lower_bound(live)
                assert plan.peak_bytes == max(b.offset + b.bytes for b in plan.buffers)
            small = {"B": 2, "T": 3}
            run = Executable(program, get_device())
            run.run(inputs_for(graph, small), small)
            assert run.arena_bytes == program.plan(small).peak_bytes


def test_a_run_touches_what_is_planned(capsys: pytest.CaptureFixture[str]) -> None:
    """The top of the arena is reached: poisoned pages up to the planned height are written."""
    graph = Backward((0,), (0, 4))(RandomGraph(random.Random(11).randrange, dtypes.f64, 16).graph)
    compiled = compile_graph(graph)
    sizes = {"B": 7, "T": 11}
    run = Executable(compiled.program, get_device())
    run.run(inputs_for(graph, sizes), sizes)
    arena = np.frombuffer(run._arena.map, np.uint8)
    plan = run.plan(sizes)
    arena[:] = 0x5A
    run.run(inputs_for(graph, sizes), sizes)
    touched = int(np.flatnonzero(arena != 0x5A).max()) + 1
    assert plan.peak_bytes - 64 - 8 < touched <= plan.peak_bytes or _top_is_scratch(plan, touched)
    began = time.perf_counter()
    compiled.program.layout({"B": 9, "T": 13})
    with capsys.disabled():
        print(f"\nlayout at a new size: {1e3 * (time.perf_counter() - began):.2f} ms", end=" ")


def _top_is_scratch(plan, touched: int) -> bool:  # type: ignore[no-untyped-def]
    top = max(plan.buffers, key=lambda b: b.offset + b.bytes)
    return top.kind == "scratch" and touched <= plan.peak_bytes


def test_every_step_has_a_shadow() -> None:
    """The shadow knows all kinds of steps that the plan makes."""
    kinds = (OpStep, CopyStep, FusedStep, LoopStep, BranchStep, WhileStep)
    assert {k.__name__ for k in kinds} <= {
        type(s).__name__
        for seed in range(30)
        for s in compile_graph(
            RandomGraph(random.Random(seed).randrange, dtypes.f64, 20).graph
        ).planned.schedule.steps
    }
