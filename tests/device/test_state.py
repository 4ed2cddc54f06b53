"""Donated inputs: updates in place must equal a functional run, step by step, in every mode; a run
that is refused leaves the state as it was, bit for bit."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from retrograde.compiler.errors import DataError
from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.builder import Builder
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.graph import Graph, TensorType, same_type
from retrograde.compiler.ir.interpreter import evaluate
from retrograde.compiler.ir.registry import lookup as op
from retrograde.runtime.protocol import Device
from tests.device.harness import MODES, agree, executable, grow, same_bits
from tests.device.random_graphs import RandomGraph, inputs_for

Array = npt.NDArray[Any]
Case = Callable[[Expr, Expr, Expr, Expr], tuple[list[Any], list[tuple[int, int]]]]
CASES: dict[str, Case] = {}
B = dims.dim("B")


def case(fn: Case) -> Case:
    """(states a[3,4], b[3,4], m[4,4], batch x[B,4]) -> outputs, aliases by (output, state)."""
    CASES[fn.__name__] = fn
    return fn


@case
def adam_like(a, b, m, x):  # type: ignore[no-untyped-def]
    g = op("sum")(op("tanh")(x @ m), axes=(0,))
    new_b = b * 0.9 + g
    return [a - new_b / (op("sqrt")(op("abs")(new_b)) + 1.0), new_b, op("sum")(a, axes=(0, 1))], [
        (0, 0), (1, 1),
    ]  # fmt: skip


@case
def swapped(a, b, m, x):  # type: ignore[no-untyped-def]
    return [b, a], [(0, 0), (1, 1)]


@case
def swapped_with_work(a, b, m, x):  # type: ignore[no-untyped-def]
    return [b * 2.0, a + 1.0, a * b], [(0, 0), (1, 1)]


@case
def returned_as_it_was(a, b, m, x):  # type: ignore[no-untyped-def]
    return [a * 2.0, a, op("transpose")(a, perm=(1, 0))], [(0, 0)]


@case
def returned_and_updated(a, b, m, x):  # type: ignore[no-untyped-def]
    new = a * 2.0
    return [new, new, op("flip")(new, axes=(1,))], [(0, 0)]


@case
def reads_another_update(a, b, m, x):  # type: ignore[no-untyped-def]
    new = a + 1.0
    return [new, b * new + a, op("sum")(a * b, axes=(1,))], [(0, 0), (1, 1)]


@case
def one_value_into_two_states(a, b, m, x):  # type: ignore[no-untyped-def]
    new = a + b
    return [new, new], [(0, 0), (1, 1)]


@case
def from_its_own_transpose(a, b, m, x):  # type: ignore[no-untyped-def]
    t = op("transpose")(m, perm=(1, 0))
    return [m * 0.5 + t, t], [(0, 2)]


@case
def into_its_own_transpose(a, b, m, x):  # type: ignore[no-untyped-def]
    return [op("transpose")(m, perm=(1, 0))], [(0, 2)]


@case
def own_flip(a, b, m, x):  # type: ignore[no-untyped-def]
    return [op("flip")(a, axes=(0,)), op("flip")(b, axes=(1,)) + b], [(0, 0), (1, 1)]


@case
def product_with_itself(a, b, m, x):  # type: ignore[no-untyped-def]
    return [m @ m * 0.1, a @ m * 0.1], [(0, 2), (1, 0)]


@case
def a_constant(a, b, m, x):  # type: ignore[no-untyped-def]
    zero = op("broadcast_to")(op("constant")(value=0.5, dtype=dtypes.f64), shape=(3, 4))
    return [zero, a + b], [(0, 0)]


@case
def put_together(a, b, m, x):  # type: ignore[no-untyped-def]
    """The parts are written one after the other; the second still reads the state."""
    top = op("slice")(b, start=(0, 0), stop=(1, 4), step=(1, 1)) * 3.0
    rest = op("slice")(a, start=(1, 0), stop=(3, 4), step=(1, 1))
    return [op("concatenate")(op("sin")(top), op("cos")(rest), axis=0)], [(0, 0)]


@case
def put_together_with_the_batch(a, b, m, x):  # type: ignore[no-untyped-def]
    """The last part to be written does not read the state, the others do, crosswise."""
    row = op("reshape")(op("sum")(x, axes=(0,)), shape=(1, 4))
    first, last = (op("slice")(a, start=(i, 0), stop=(i + 1, 4), step=(1, 1)) for i in (0, 2))
    parts = op("sin")(last), op("cos")(first), op("sort")(row, axis=1)
    return [op("concatenate")(*parts, axis=0)], [(0, 0)]


@case
def put_together_in_reverse(a, b, m, x):  # type: ignore[no-untyped-def]
    rows = [op("slice")(a, start=(i, 0), stop=(i + 1, 4), step=(1, 1)) for i in (2, 1, 0)]
    parts = [op("tanh")(r * (0.5 + i)) for i, r in enumerate(rows)]
    return [op("concatenate")(*parts, axis=0), op("sum")(a, axes=(0,))], [(0, 0)]


@case
def never_read(a, b, m, x):  # type: ignore[no-untyped-def]
    total = op("sum")(x, axes=(0,))
    return [op("broadcast_to")(total, shape=(3, 4)), b * total], [(0, 0), (1, 1)]


@case
def unchanged(a, b, m, x):  # type: ignore[no-untyped-def]
    return [a, b * 2.0], [(0, 0), (1, 1)]


@case
def rolled(a, b, m, x):  # type: ignore[no-untyped-def]
    """A cache that moves up by a row."""
    old = op("slice")(a, start=(1, 0), stop=(3, 4), step=(1, 1))
    new = op("reshape")(op("sum")(x, axes=(0,)), shape=(1, 4))
    return [op("concatenate")(old, new, axis=0)], [(0, 0)]


@case
def written_into(a, b, m, x):  # type: ignore[no-untyped-def]
    row = op("slice")(b, start=(0, 0), stop=(1, 4), step=(1, 1))
    return [op("set_slice")(a, row, start=(1, 0), step=(1, 1)), a], [(0, 0)]


@case
def through_a_loop(a, b, m, x):  # type: ignore[no-untyped-def]
    inner = Builder("body", Expr)
    with inner:
        c, d, w = (inner.input(TensorType(dtypes.f64, s)) for s in ((3, 4), (4,), (3, 4)))
        new = op("tanh")(c + d) + w * 0.1
    body = inner.finish([new.value])
    out = op("scan")(a, x, b, body=body, carries=1, slices=1, length=B, reverse=False)
    return [out, b + a], [(0, 0), (1, 1)]


def built(make: Case) -> Graph:
    builder = Builder("step", Expr)
    with builder:
        states = [builder.input(TensorType(dtypes.f64, s), n)
                  for n, s in (("a", (3, 4)), ("b", (3, 4)), ("m", (4, 4)))]  # fmt: skip
        x = builder.input(TensorType(dtypes.f64, (B, 4)), "x")
        outputs, aliases = make(*states, x)
    return builder.finish([e.value for e in outputs], aliases=aliases)


def follow(
    graph: Graph, device: Device, batches: Sequence[Sequence[Array]], tolerance: float
) -> None:
    """Steps on a device in every mode beside steps of the interpreter; `batches`: whole inputs."""
    donated = sorted({i for _, i in graph.aliases})
    into = {i: o for o, i in graph.aliases}
    returned = [o for o in range(len(graph.outputs)) if o not in into.values()]
    runs = {mode: executable(graph, device, o)[1] for mode, o in MODES.items()}
    state = {i: batches[0][i] for i in donated}
    for run in runs.values():
        run.set_state([state[i] for i in donated])
    for arrays in batches:
        arrays = [state.get(i, x) for i, x in enumerate(arrays)]
        largest = [1.0]
        expected = evaluate(graph, arrays, trace=lambda n, r, m=largest: grow(m, r))
        sizes = {"B": 0, "T": 0} | dict(_sizes(graph, arrays))
        given = [x for i, x in enumerate(arrays) if i not in donated]
        state = {i: expected[into[i]] for i in donated}
        first: list[Array] | None = None
        for run in runs.values():
            outputs = run.run(given, sizes)
            now = run.state()
            for found, o in zip(outputs, returned, strict=True):
                agree(found, expected[o], tolerance, largest[0])
            for found, i in zip(now, donated, strict=True):
                agree(found, state[i], tolerance, largest[0])
            if first is not None:
                for x, y in zip(first, [*outputs, *now], strict=True):
                    same_bits(x, y)
            first = [*outputs, *now]


def _sizes(graph: Graph, arrays: Sequence[Array]) -> Any:
    from retrograde.compiler.ir.binding import bind_sizes

    return bind_sizes([v.type for v in graph.inputs], graph.input_names, [x.shape for x in arrays])


@pytest.mark.parametrize("name", CASES)
def test_state(device: Device, name: str) -> None:
    graph = built(CASES[name])
    rng = np.random.default_rng(3)
    batches = []
    for b in (2, 5, 1, 2):
        shapes = ((3, 4), (3, 4), (4, 4), (b, 4))
        batches.append([rng.standard_normal(s) for s in shapes])
    follow(graph, device, batches, 1e-12)


@settings(phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink))
@given(seed=st.integers(0, 2**32 - 1), steps=st.integers(4, 18))
def test_random_updates(device: Device, seed: int, steps: int) -> None:
    follow(*random_updates(seed, steps, device), 1e-8)


def random_updates(seed: int, steps: int, device: Device) -> Any:
    """A random graph some of whose inputs are replaced by whatever has their type."""
    chance = random.Random(seed)
    made = RandomGraph(chance.randrange, dtypes.f64, steps)
    graph = made.graph
    outputs, aliases = list(graph.outputs), []
    for i, v in enumerate(graph.inputs):
        if any(isinstance(d, dims.Poly) for d in v.shape) or v.dtype is not dtypes.f64:
            continue
        fits = [e.value for e in made.pool if same_type(e.type, v.type)]
        if chance.random() < 0.8:
            outputs.append(chance.choice(fits))
            aliases.append((len(outputs) - 1, i))
    graph = graph.replace(outputs=tuple(outputs), aliases=tuple(aliases))
    batches = [
        inputs_for(graph, {"B": b, "T": t}, n)
        for n, (b, t) in enumerate(((2, 3), (1, 1), (2, 3), (4, 0)))
    ]
    return graph, device, batches


def test_refused_data_leaves_the_state(device: Device) -> None:
    """In whatever way the new state is made: never read, put together, reshaped, in a group."""
    for mode, options in MODES.items():
        builder = Builder("refused", Expr)
        with builder:
            a, b, c, d = (builder.input(TensorType(dtypes.f64, (3, 4)), n) for n in "abcd")
            x = builder.input(TensorType(dtypes.f64, (B, 4)), "x")
            index = builder.input(TensorType(dtypes.i32, (B,)), "index")
            total = op("sum")(x, axes=(0,))
            never_read = op("reshape")(op("broadcast_to")(total, shape=(3, 4)) * 2.0, shape=(4, 3))
            never_read = op("sin")(op("reshape")(never_read, shape=(3, 4)))
            rows = op("slice")(b, start=(1, 0), stop=(3, 4), step=(1, 1))
            joined = op("concatenate")(rows * 2.0, op("reshape")(total, shape=(1, 4)), axis=0)
            late = op("gather")(x, index, axes=(0,))
            also = op("gather")(op("tanh")(late), index, axes=(0,))
            grouped = op("tanh")(c * 0.5) + op("sum")(c, axes=(1,), keepdims=True)
            outputs = [never_read, joined, grouped, d + a, also]
        aliases = [(0, 0), (1, 1), (2, 2), (3, 3)]
        graph = builder.finish([e.value for e in outputs], aliases=aliases)
        _, run = executable(graph, device, options)
        rng = np.random.default_rng(1)
        run.set_state([rng.standard_normal((3, 4)) for _ in range(4)])
        good = [rng.standard_normal((5, 4)), np.array([0, 4, -5, 1, 1], np.int32)]
        run.run(good, {"B": 5})
        before = run.state()
        for bad in ([0, 5, 1, 1, 1], [0, 1, 1, 1, -6]):
            with pytest.raises(DataError, match="out of range"):
                run.run([good[0], np.array(bad, np.int32)], {"B": 5})
            for x_, y_ in zip(before, run.state(), strict=True):
                same_bits(x_, y_, mode)
        run.run(good, {"B": 5})
        assert not np.array_equal(run.state()[1], before[1])


def test_a_refusal_after_an_update_leaves_the_state(device: Device) -> None:
    """The check depends on a new state, so it can only come after it."""
    builder = Builder("late", Expr)
    with builder:
        a = builder.input(TensorType(dtypes.i32, (3,)), "a")
        b = builder.input(TensorType(dtypes.f64, (4,)), "b")
        new = a + 1
        picked = op("gather")(b, new, axes=(0,), wrap=False)
    graph = builder.finish([new.value, picked.value], aliases=[(0, 0)])
    for options in MODES.values():
        _, run = executable(graph, device, options)
        run.set_state([np.array([0, 1, 2], np.int32)])
        x = np.arange(4.0)
        np.testing.assert_array_equal(run.run([x], {})[0], [1.0, 2.0, 3.0])
        with pytest.raises(DataError):
            run.run([x], {})
        np.testing.assert_array_equal(run.state()[0], [1, 2, 3])
