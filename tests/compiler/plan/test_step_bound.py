"""The bound over all orders: no sequence of the steps, repeats included, is below it."""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
import pytest

import retrograde as rg
import retrograde.numpy as rnp
from retrograde.compiler.ir import dims
from retrograde.compiler.plan.in_place import takes_over
from retrograde.compiler.plan.step_bound import step_bound
from retrograde.compiler.plan.steps import ChainStep, FusedStep, OpStep, reads, writes
from retrograde.compiler.plan.views import View

B, T = 3, 17


def mlp(w: Any, v: Any, x: Any) -> Any:
    return rnp.sum(rnp.tanh(rnp.tanh(x @ w) @ v) ** 2)


def softmax(w: Any, v: Any, x: Any) -> Any:
    scores = x @ w
    e = rnp.exp(scores - rnp.max(scores, axis=-1, keepdims=True))
    return (e / rnp.sum(e, axis=-1, keepdims=True)) @ v


def wide(w: Any, v: Any, x: Any) -> Any:
    h = rnp.concatenate([x @ w, rnp.sin(x @ (2 * w))], axis=-1)
    return h, rnp.sum(h * h)


def loop(w: Any, v: Any, x: Any) -> Any:
    def cell(h: Any, row: Any) -> Any:
        h = rnp.tanh(h @ v + row)
        return h, h

    h, hs = rg.scan(cell, rnp.zeros((11,)), x @ w)
    return rnp.sum(h), rnp.sum(hs * hs, axis=0)


def chain(w: Any, v: Any, x: Any) -> Any:
    a = rnp.exp(x @ w)
    return rnp.cumsum(a, axis=0), rnp.flip(a, axis=0) @ v


PROGRAMS = {
    "mlp": (mlp, (7, 11), (11, 5)),
    "gradient": (rg.value_and_grad(mlp), (7, 11), (11, 5)),
    "softmax": (softmax, (7, 11), (11, 5)),
    "wide": (wide, (7, 11), (11, 5)),
    "loop": (loop, (7, 11), (11, 11)),
    "loop gradient": (rg.grad(lambda w, v, x: loop(w, v, x)[0]), (7, 11), (11, 11)),
    "chain": (chain, (7, 11), (11, 5)),
}


def compiled(name: str, backend: str, budget: Any = None) -> Any:
    fn, w, v = PROGRAMS[name]
    specs = rg.spec("f32", *w), rg.spec("f32", *v), rg.spec("f32", "T", w[0])
    return rg.compile(fn, *specs, at={"T": T}, backend=backend, budget=budget)


def least_peak(schedule: Any, sizes: dict[str, int]) -> int:
    """The least peak over all sequences of the steps, by search over what is there: after each run
    any value may be dropped, a result may take the place of an operand that is dropped with it."""
    steps: list[Any] = []
    for step in schedule.steps:
        steps += step.links if isinstance(step, ChainStep) else [step]
    home = dict(schedule.merged)

    def at_home(storage: Any) -> Any:
        while storage in home:
            storage = home[storage]
        return storage

    def places(views: Any) -> frozenset[Any]:
        return frozenset(at_home(v.storage) for v in views)

    inputs = places(schedule.inputs)
    outputs = places(v for v in schedule.outputs if isinstance(v, View))
    makers: dict[Any, set[int]] = {}
    for i, step in enumerate(steps):
        for s in places(writes(step)):
            makers.setdefault(s, set()).add(i)
    # A storage that several steps fill is there in parts: (storage, maker).
    def parts(s: Any) -> frozenset[Any]:
        return frozenset((s, m) for m in makers.get(s, (-1,)))

    def size(there: Any) -> int:
        return sum(dims.evaluate(s.bytes, sizes) for s in {s for s, _ in there})

    def reading(i: int) -> frozenset[Any]:
        found: set[Any] = set()
        for s in places(reads(steps[i])):
            ready = {m for m in makers.get(s, ()) if m < i}
            found |= {(s, m) for m in ready} if s in makers and ready else {(s, -1)}
        return frozenset(p for p in found if p[1] >= 0 or p[0] not in makers)

    start = frozenset(p for s in inputs for p in parts(s))
    end = frozenset(p for s in outputs for p in parts(s))
    need = [reading(i) for i in range(len(steps))]
    best = {start: size(start)}
    heap = [(best[start], 0, start)]
    tick = 0
    while heap:
        peak, _, there = heapq.heappop(heap)
        if peak > best[there]:
            continue
        if end <= there:
            return peak
        after: list[tuple[int, frozenset[Any]]] = [(peak, there - {p}) for p in there]
        for i, step in enumerate(steps):
            if not need[i] <= there:
                continue
            made = frozenset((s, i) for s in places(writes(step)))
            keep = frozenset(p for p in made if not _scratch(step, p[0]))
            after.append((max(peak, size(there | made)), there | keep))
            if not isinstance(step, (OpStep, FusedStep)):
                continue
            for pairs in _takeovers(step, at_home):
                taken = {o for o, _ in pairs}
                gone = frozenset(p for p in there if p[0] in taken)
                saved = sum(dims.evaluate(n.bytes, sizes) for _, n in pairs)
                after.append((max(peak, size(there | made) - saved), (there - gone) | keep))
        for cost, state in after:
            if cost < best.get(state, cost + 1):
                best[state] = cost
                tick += 1
                heapq.heappush(heap, (cost, tick, state))
    raise AssertionError("the steps do not lead to the outputs")


def _takeovers(step: Any, at_home: Any) -> list[list[tuple[Any, Any]]]:
    """All ways in which results take the places of operands: lists of (operand, result)."""
    ways: list[list[tuple[Any, Any]]] = [[]]
    for new in step.results:
        n = at_home(new.storage)
        olds = {at_home(old.storage) for old in reads(step) if takes_over(step, old, new)} - {n}
        ways += [[*way, (o, n)] for way in ways for o in olds if all(o is not p for p, _ in way)]
    return ways[1:]


def _scratch(step: Any, storage: Any) -> bool:
    return any(v.storage is storage for v in getattr(step, "scratch", ()))


@pytest.mark.parametrize("backend", ["numpy", "native"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_no_sequence_of_the_steps_is_below(name: str, backend: str) -> None:
    c = compiled(name, backend)
    schedule = c._program.recipes[0].schedule
    for steps in (1, T, 1000):
        plan = c.plan(T=steps)
        sizes = {**plan.sizes, **plan.plan_sizes}
        found, operation = step_bound(schedule).at(sizes, {})
        assert found <= least_peak(schedule, sizes) <= plan.peak_bytes
        assert plan.order_lower_bound_bytes == found and operation
    # It is worth something: more than what goes in or comes out.
    assert found > max(sum(b.bytes for b in plan.buffers if b.kind == "input"), plan.output_bytes)


def test_it_is_reached_where_one_step_needs_everything() -> None:
    c = rg.compile(lambda x: (x @ x, x), rg.spec("f32", "T", "T"), backend="numpy")
    plan = c.plan(T=40)
    assert plan.order_lower_bound_bytes == plan.peak_bytes == 2 * 40 * 40 * 4
    assert plan.standing == "optimal"
    assert "proven optimal over all orders" in c.report(T=40)


def test_an_operand_that_the_result_replaces_counts_once() -> None:
    c = rg.compile(lambda x: rnp.tanh(x), rg.spec("f32", "T"), backend="numpy")
    assert c.plan(T=1600).order_lower_bound_bytes == 6400 == c.plan(T=1600).peak_bytes


def test_inputs_that_are_read_later_are_there() -> None:
    def fn(x: Any, w: Any) -> Any:
        h = rnp.sum(rnp.tanh(x @ w), axis=-1)
        return rnp.sort(h) @ x

    c = rg.compile(fn, rg.spec("f32", 64, 64), rg.spec("f32", 64, 640), backend="numpy")
    plan = c.plan()
    # While the product runs, both operands and it; x counts once, though the last one reads it.
    assert plan.order_lower_bound_bytes == 4 * (64 * 64 + 2 * 64 * 640) == plan.lower_bound_bytes


@pytest.mark.parametrize("backend", ["numpy", "native"])
def test_a_refusal_says_what_is_known(backend: str) -> None:
    with pytest.raises(rg.errors.BudgetError) as refused:
        compiled("gradient", backend, 64)
    error = refused.value
    low, high = error.lower_bound_bytes, error.minimum_bytes
    assert low is not None and high is not None and low <= high
    known = "they meet" if low == high else f"between {low} and {high} nobody knows"
    assert f"({known})" in str(error) and str(error.operation) in str(error)
    assert "test_step_bound.py" in str(error.operation)
    plan = compiled("gradient", backend, high).plan(T=T)
    assert plan.peak_bytes == high and plan.order_lower_bound_bytes == low


def test_loops_in_segments_are_bounded_whatever_their_lengths() -> None:
    fn = rg.grad(lambda w, v, x: loop(w, v, x)[0])
    specs = rg.spec("f32", 7, 11), rg.spec("f32", 11, 11), rg.spec("f32", "T", 7)
    with pytest.raises(rg.errors.BudgetError) as refused:
        rg.compile(fn, *specs, at={"T": 400}, budget=1)
    assert refused.value.lower_bound_bytes is not None
    least = refused.value.minimum_bytes
    assert least is not None and refused.value.lower_bound_bytes <= least
    c = rg.compile(fn, *specs, at={"T": 400}, budget=2 * least)
    program = c._program
    for recipe in program.recipes:
        for steps in (1, 2, 30, 400):
            bound, _ = recipe.order_bound({"T": steps})
            for segment in {1, 2, 7, steps}:
                for slots in (1, 5):
                    full = {"T": steps}
                    for part in recipe.loops:
                        full[part.segment] = min(segment, steps)
                        if part.slots:
                            full[part.slots] = slots
                    assert bound <= recipe.layout(full)[2]


@pytest.mark.parametrize("seed", range(12))
def test_random_programs(seed: int) -> None:
    rng = np.random.default_rng(seed)

    def fn(*arrays: Any) -> Any:
        values = list(arrays)
        for _ in range(4):
            a, b = (values[i] for i in rng.integers(0, len(values), 2))
            kind = rng.integers(0, 4)
            if kind == 0:
                values.append(a @ b)
            elif kind == 1:
                values.append(rnp.sort(a, axis=0))
            elif kind == 2:
                values.append(rnp.cumsum(a, axis=-1) - b)
            else:
                values.append(rnp.tanh(a) * b)
        return values[-1], rnp.sum(values[-2])

    c = rg.compile(fn, rg.spec("f32", 8, 8), rg.spec("f32", 8, 8), backend="numpy")
    schedule = c._program.recipes[0].schedule
    assert c.plan().order_lower_bound_bytes <= least_peak(schedule, {}) <= c.plan().peak_bytes
