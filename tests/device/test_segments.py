"""Loops in segments on every device: each length of a segment with each number of kept states gives
the gradients of the whole loop, poisoned and without reuse bit for bit, running as little again as
can be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

import retrograde as rg
import retrograde.numpy as rnp
from retrograde.compiler.codegen.numpy_support import Support
from retrograde.compiler.ir.binding import bind_sizes
from retrograde.compiler.ir.graph import Graph
from retrograde.compiler.ir.interpreter import evaluate
from retrograde.compiler.pipeline import CompiledGraph, compile_graph
from retrograde.compiler.plan.choice import Choice
from retrograde.compiler.plan.revolve import recomputed
from retrograde.compiler.program import Program
from retrograde.runtime.executable import Executable
from retrograde.runtime.protocol import Device
from tests.device.harness import MODES, Array, same_bits

D, E = 4, 3
PLENTY = 2**40
Loss = Callable[..., Any]
LOSSES: dict[str, tuple[Loss, tuple[tuple[Any, ...], ...]]] = {}


def loss(*shapes: tuple[Any, ...]) -> Callable[[Loss], Loss]:
    def put(fn: Loss) -> Loss:
        LOSSES[fn.__name__] = fn, shapes
        return fn

    return put


@loss((E, 4 * D), (D, 4 * D), (4 * D,), ("T", "B", E), ("B", D))
def lstm_with_step_losses(wx, wh, b, x, h):  # type: ignore[no-untyped-def]
    def step(carry: Any, x: Any) -> Any:
        h, c = carry
        i, f, g, o = rnp.split(x @ wx + h @ wh + b, 4, axis=-1)
        c = rnp.sigmoid(f) * c + rnp.sigmoid(i) * rnp.tanh(g)
        h = rnp.sigmoid(o) * rnp.tanh(c)
        return (h, c), h

    (h, c), ys = rg.scan(step, (h, rnp.zeros_like(h)), x)
    return rnp.sum(ys * ys) + rnp.sum(h * c)


@loss((E, D), (D, D), ("T", "B", E), ("B", D))
def backwards_in_time(wx, wh, x, h):  # type: ignore[no-untyped-def]
    def step(h: Any, x: Any) -> Any:
        h = rnp.tanh(x @ wx + h @ wh)
        return h, rnp.sum(h**2)

    h, losses = rg.scan(step, h, x, reverse=True)
    return rnp.sum(losses) * rnp.sum(h)


@loss(("B", D), ("B", D), ("T", D))
def carries_that_change_places(a, b, x):  # type: ignore[no-untyped-def]
    def step(carry: Any, x: Any) -> Any:
        a, b, n = carry
        return (b, rnp.tanh(a) + x, n + 1), rnp.where(n % 2 == 0, a, b * b)

    (a, b, n), ys = rg.scan(step, (a, b, 0), x)
    return rnp.sum(a * b) + rnp.sum(ys**2) + n


@loss((D, D), ("B", D))
def without_slices(w, h):  # type: ignore[no-untyped-def]
    h, _ = rg.scan(lambda h, _: (rnp.tanh(h @ w), None), h, length=11)
    return rnp.sum(h**3)


@loss((D, D), (D, D), ("T", "B", D), ("B", D))
def two_loops_of_one_length(u, w, x, h):  # type: ignore[no-untyped-def]
    def step(h: Any, x: Any) -> Any:
        h = rnp.tanh(h @ w + x)
        return h, h

    def up(h: Any, x: Any) -> Any:
        h = rnp.tanh(h @ u + x * h)
        return h, h

    last, ys = rg.scan(step, h, x)
    other, zs = rg.scan(up, h, ys)
    return rnp.sum(last * other) + rnp.sum(zs * zs)


@cache
def traced(name: str) -> Graph:
    fn, shapes = LOSSES[name]
    argnums = tuple(range(len(shapes)))
    return rg.trace(
        rg.value_and_grad(fn, argnums=argnums), *(rg.spec("f64", *shape) for shape in shapes)
    )


@cache
def in_segments(name: str, mode: str) -> CompiledGraph:
    options = replace(MODES[mode], budget=PLENTY, at={"B": 2, "T": 9} if name != "without_slices"
                      else {"B": 2})  # fmt: skip
    made = compile_graph(traced(name), options)
    assert "keep some states" in [item.recipe.name for item in made.recipes]
    return made


def arrays(name: str, steps: int) -> list[Array]:
    rng = np.random.default_rng(steps)
    sizes = {"T": steps, "B": 2}
    _, shapes = LOSSES[name]
    return [rng.standard_normal([sizes.get(d, d) for d in shape]) for shape in shapes]


def forced(
    made: CompiledGraph, sizes: Mapping[str, int], segment: int, slots: int,
    name: str = "keep some states",
) -> Program:  # fmt: skip
    """A recipe in segments, whatever else would be cheaper."""
    (recipe,) = (item.recipe for item in made.recipes if item.recipe.name == name)
    full = dict(sizes)
    for loop in recipe.loops:
        full |= {loop.segment: segment, loop.slots: slots}
    choice = Choice(0, recipe, full, recipe.layout(full)[2], 0.0, {})
    program = replace(made.program, recipes=(recipe,), budget=None, _chosen={})
    program._chosen[(-1, *(sizes[s.name] for s in program.symbols))] = choice
    return program


CUTS = [(1, 1), (1, 2), (1, 30), (2, 2), (3, 1), (3, 3), (4, 2), (11, 1), (40, 1)]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("steps", [1, 2, 7, 11])
def test_gradients_are_those_of_the_whole_loop(name: str, steps: int, device: Device) -> None:
    given = arrays(name, steps)
    graph = traced(name)
    expected = evaluate(graph, given)
    sizes = bind_sizes([v.type for v in graph.inputs], graph.input_names, [x.shape for x in given])
    for segment, slots in CUTS:
        found: list[Sequence[Array]] = []
        for mode, options in MODES.items():
            program = forced(in_segments(name, mode), sizes, segment, slots)
            found.append(Executable(program, device, poison=options.poison).run(given, sizes))
            for a, b in zip(found[0], found[-1], strict=True):
                same_bits(a, b, f"{mode} differs, {segment} steps and {slots} states")
        for a, b in zip(expected, found[0], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("steps", [1, 7])
def test_every_recipe_gives_the_same_gradients(name: str, steps: int, device: Device) -> None:
    given = arrays(name, steps)
    graph = traced(name)
    expected = evaluate(graph, given)
    sizes = bind_sizes([v.type for v in graph.inputs], graph.input_names, [x.shape for x in given])
    recipes = [item.recipe.name for item in in_segments(name, "plain").recipes]
    assert len(recipes) >= 3
    for recipe in recipes:
        found: list[Sequence[Array]] = []
        for mode, options in MODES.items():
            program = forced(in_segments(name, mode), sizes, 2, 2, recipe)
            found.append(Executable(program, device, poison=options.poison).run(given, sizes))
            for a, b in zip(found[0], found[-1], strict=True):
                same_bits(a, b, f"{mode} differs, {recipe}")
        for a, b in zip(expected, found[0], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("steps", "segment", "slots"), [(11, 1, 3), (11, 2, 2), (11, 4, 9)])
def test_as_little_runs_again_as_can_be(
    steps: int, segment: int, slots: int, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "backwards_in_time"
    ran: list[tuple[str, int]] = []
    make_parts = Support.parts

    def counted(self: Support, *cut: Any) -> Any:
        which = len([1 for kind, _ in ran if kind == "made"])
        ran.append(("made", which))
        parts = make_parts(self, *cut)

        def noting(part: Any) -> Any:
            def run() -> None:
                ran.append(("ran", which))
                part()

            return run

        return [noting(part) for part in parts]

    monkeypatch.setattr(Support, "parts", counted)
    given = arrays(name, steps)
    sizes = {"B": 2, "T": steps}
    program = forced(in_segments(name, "plain"), sizes, segment, slots)
    Executable(program, device).run(given, sizes)
    count = -(-steps // segment)
    # The sweep and its last segment; between kept states, residuals again, back.
    runs = [sum(item == ("ran", which) for item in ran) for which in range(5)]
    assert runs == [count - 1, 1, recomputed(count, slots), count - 1, count]


def test_a_size_may_be_called_as_the_plans_symbols_are(device: Device) -> None:
    def total(w: Any, x: Any) -> Any:
        h, _ = rg.scan(lambda h, x: (rnp.tanh(h * w + x), None), rnp.zeros(D, w.dtype), x)
        return rnp.sum(h)

    graph = rg.trace(rg.grad(total), rg.spec("f64", D), rg.spec("f64", "slots", D))
    at = {"slots": 9}
    made = compile_graph(graph, replace(MODES["plain"], budget=PLENTY, at=at))
    program = forced(made, at, 2, 3)
    assert [s.name for s in program.recipes[0].symbols] == ["slots", "segment_", "slots_"]
    rng = np.random.default_rng(3)
    given = [rng.standard_normal(D), rng.standard_normal((9, D))]
    (found,) = Executable(program, device).run(given, at)
    np.testing.assert_allclose(found, evaluate(graph, given)[0], rtol=1e-12)


@pytest.mark.parametrize("slots", [1, 2, 3, 5, 30])
def test_a_loop_keeps_the_states_it_is_asked_to(slots: int, device: Device) -> None:
    def total(w: Any, x: Any, h: Any, **how: Any) -> Any:
        h, _ = rg.scan(lambda h, x: (rnp.tanh(h @ w + x), None), h, x, **how)
        return rnp.sum(h**2)

    specs = rg.spec("f64", D, D), rg.spec("f64", "T", "B", D), rg.spec("f64", "B", D)
    lean = rg.trace(rg.grad(lambda *a: total(*a, slots=slots)), *specs)
    whole = rg.trace(rg.grad(total), *specs)
    made = compile_graph(lean, MODES["plain"])
    run = Executable(made.program, device)
    for steps in (1, 2, 11):
        rng = np.random.default_rng(steps)
        given = [rng.standard_normal(s) for s in ((D, D), (steps, 2, D), (2, D))]
        sizes = {"B": 2, "T": steps}
        (found,) = run.run(given, sizes)
        np.testing.assert_allclose(found, evaluate(whole, given)[0], rtol=1e-12, atol=1e-13)
        plan = made.program.plan(sizes)
        assert plan.recomputed_steps == recomputed(steps, slots) + steps - 1
        assert plan.plan_sizes == {"each": 1}
