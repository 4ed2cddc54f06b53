"""Executables: one program at many sizes, from many threads; state that survives growth; results
that belong to the caller."""

from __future__ import annotations

import builtins
import random
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from retrograde.compiler.errors import DataError, DeviceError, ShapeError
from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.builder import Builder
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.graph import Graph, TensorType
from retrograde.compiler.ir.interpreter import evaluate
from retrograde.compiler.ir.registry import lookup as op
from retrograde.compiler.passes.backward import Backward
from retrograde.compiler.pipeline import compile_graph
from retrograde.runtime.device import default_name, get_device
from retrograde.runtime.executable import KEPT_SIZES, Executable
from retrograde.runtime.native.toolchain import find_toolchain

Array = npt.NDArray[Any]
B, T = dims.dim("B"), dims.dim("T")
F64 = dtypes.f64


def attention_gradient() -> Graph:
    builder = Builder("attention", Expr)
    with builder:
        x = builder.input(TensorType(F64, (B, T, 6)), "x")
        w = builder.input(TensorType(F64, (6, 6)), "w")
        gain = builder.input(TensorType(F64, (6,)), "gain")
        h = op("layer_norm")(x, gain, eps=1e-5)[0]
        y = op("attention")(h @ w, h, x, causal=True, scale=0.4)
        loss = op("sum")(op("gelu")(y) * y, axes=(0, 1, 2))
    return Backward((0,), (0, 1, 2))(builder.finish([loss.value], ["loss"]))


def arrays_at(b: int, t: int, seed: int = 0) -> list[Array]:
    rng = np.random.default_rng([seed, b, t])
    return [
        rng.standard_normal((b, t, 6)), rng.standard_normal((6, 6)), rng.standard_normal(6),
        np.asarray(1.0),
    ]  # fmt: skip


def counter() -> Graph:
    """state s[3,4] += sum of x[B,4] over B; returns the old sum of s."""
    builder = Builder("counter", Expr)
    with builder:
        s = builder.input(TensorType(F64, (3, 4)), "s")
        x = builder.input(TensorType(F64, (B, 4)), "x")
        old = op("sum")(s, axes=(0, 1))
        new = s + op("sum")(op("exp")(x), axes=(0,))
    return builder.finish([new.value, old.value], ["s", "old"], aliases=[(0, 0)])


def run_of(graph: Graph) -> Executable:
    return Executable(compile_graph(graph).program, get_device("numpy"))


def test_two_hundred_sizes_without_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = attention_gradient()
    run = run_of(graph)
    compiled = []
    real = builtins.compile
    monkeypatch.setattr(builtins, "compile", lambda *a, **k: compiled.append(a[1]) or real(*a, **k))
    chance = random.Random(0)
    slowest = 0.0
    for n in range(200):
        b, t = chance.randrange(1, 9), chance.randrange(1, 40)
        arrays = arrays_at(b, t, n)
        began = time.perf_counter()
        found = run.run(arrays, {"B": b, "T": t})
        slowest = max(slowest, time.perf_counter() - began)
        if n % 8 == 0:
            for x, y in zip(found, evaluate(graph, arrays), strict=True):
                np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-9)
    assert compiled.count("<attention>") == 1
    print(f"slowest of 200 first runs: {1e3 * slowest:.1f} ms")


def test_a_size_that_was_dropped_comes_back() -> None:
    graph = counter()
    run = run_of(graph)
    run.set_state([np.zeros((3, 4))])
    x = np.random.default_rng(1).standard_normal((100, 4))
    expected = np.zeros((3, 4))
    for b in (*range(1, KEPT_SIZES + 10), 1, 2, 99, 1):
        run.run([x[:b]], {"B": b})
        expected = expected + np.exp(x[:b]).sum(0)
    np.testing.assert_allclose(run.state()[0], expected, rtol=1e-12)


def test_growth_keeps_the_state() -> None:
    run = run_of(counter())
    state = np.arange(12.0).reshape(3, 4)
    run.set_state([state])
    total = state.copy()
    for b in (1, 50, 2, 5000, 1, 40_000, 3):
        x = np.full((b, 4), -1.0 * b)
        (old,) = run.run([x], {"B": b})
        np.testing.assert_allclose(old, total.sum())
        total = total + np.exp(x).sum(0)
        np.testing.assert_allclose(run.state()[0], total, rtol=1e-12)
    assert run.arena_bytes == run.plan({"B": 40_000}).peak_bytes


def test_state_may_become_larger() -> None:
    """State whose size is a symbol is set anew, in an arena that was too small for it."""
    builder = Builder("grows", Expr)
    with builder:
        total = builder.input(TensorType(F64, (T, 4)), "total")
        x = builder.input(TensorType(F64, (4,)), "x")
        new = total + x
    graph = builder.finish([new.value], aliases=[(0, 0)])
    run = run_of(graph)
    for steps in (3, 5000, 2, 40_000):
        run.set_state([np.zeros((steps, 4))])
        for _ in range(2):
            run.run([np.arange(4.0)], {"T": steps})
        np.testing.assert_array_equal(run.state()[0], np.tile(2 * np.arange(4.0), (steps, 1)))


def test_results_own_their_memory() -> None:
    graph = attention_gradient()
    run = run_of(graph)
    a, b = arrays_at(3, 5, 1), arrays_at(3, 5, 2)
    first = run.run(a, {"B": 3, "T": 5})
    kept = [x.copy() for x in first]
    second = run.run(b, {"B": 3, "T": 5})
    for x, y, z in zip(first, kept, second, strict=True):
        np.testing.assert_array_equal(x, y)
        assert x.flags.owndata and x.flags.writeable and not np.shares_memory(x, z)
        x[...] = np.nan
    for x, y in zip(run.run(b, {"B": 3, "T": 5}), second, strict=True):
        np.testing.assert_array_equal(x, y)
    del run
    np.testing.assert_array_equal(second[0], evaluate(graph, b)[0])


def test_state_is_copied_in_and_out() -> None:
    run = run_of(counter())
    mine = np.zeros((3, 4))
    run.set_state([mine])
    mine[...] = 7.0
    assert run.state()[0].sum() == 0
    run.run([np.zeros((2, 4))], {"B": 2})
    snapshot = run.state()[0]
    np.testing.assert_array_equal(snapshot, np.full((3, 4), 2.0))
    snapshot[...] = 9.0
    mine[...] = 1.0
    run.set_state([mine])
    mine[...] = 5.0
    np.testing.assert_array_equal(run.state()[0], np.ones((3, 4)))


def test_inputs_and_views_are_taken_as_they_are() -> None:
    """Any strides, read-only arrays, 0-d scalars."""
    graph = attention_gradient()
    run = run_of(graph)
    arrays = arrays_at(4, 3)
    odd: list[Any] = [arrays[0].transpose(2, 1, 0).copy().transpose(2, 1, 0), arrays[1][::-1][::-1]]
    odd[1].flags.writeable = False
    odd += [arrays[2], np.float64(1.0)]
    for x, y in zip(run.run(odd, {"B": 4, "T": 3}), run.run(arrays, {"B": 4, "T": 3}), strict=True):
        np.testing.assert_array_equal(x, y)


def in_threads(count: int, work: Any) -> None:
    failures: list[BaseException] = []

    def guarded(i: int) -> None:
        try:
            work(i)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(i,)) for i in range(count)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    if failures:
        raise failures[0]


def test_threads_share_one_executable() -> None:
    graph = attention_gradient()
    run = run_of(graph)
    expected = {(b, t): evaluate(graph, arrays_at(b, t)) for b in (1, 2, 3) for t in (2, 7)}

    def work(i: int) -> None:
        chance = random.Random(i)
        for _ in range(25):
            b, t = chance.choice(list(expected))
            for x, y in zip(
                run.run(arrays_at(b, t), {"B": b, "T": t}), expected[b, t], strict=True
            ):
                np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-9)

    in_threads(6, work)


def test_threads_add_to_one_state() -> None:
    run = run_of(counter())
    run.set_state([np.zeros((3, 4))])

    def work(i: int) -> None:
        for n in range(40):
            b = 1 + (i + n) % 5
            run.run([np.zeros((b, 4))], {"B": b})
            run.state()

    in_threads(5, work)
    assert run.state()[0][0, 0] == sum(1 + (i + n) % 5 for i in range(5) for n in range(40))


def test_clones_are_apart() -> None:
    run = run_of(counter())
    held = run.clone()  # nothing to copy yet
    run.set_state([np.ones((3, 4))])
    before = run.clone()  # copies what waits for the first run
    x = np.zeros((2, 4))
    run.run([x], {"B": 2})
    after = run.clone()
    run.run([x], {"B": 2})
    after.run([np.zeros((7, 4))], {"B": 7})
    held.set_state([np.zeros((3, 4))])
    held.run([x], {"B": 2})
    before.run([x], {"B": 2})
    sums = [r.state()[0][0, 0] for r in (run, after, before, held)]
    assert sums == [5.0, 10.0, 3.0, 2.0]
    assert not np.shares_memory(np.frombuffer(run._arena.map), np.frombuffer(after._arena.map))


def test_clones_run_side_by_side() -> None:
    run = run_of(counter())
    run.set_state([np.zeros((3, 4))])
    clones = [run.clone() for _ in range(4)]

    def work(i: int) -> None:
        for _ in range(50):
            clones[i].run([np.zeros((i + 1, 4))], {"B": i + 1})

    in_threads(4, work)
    assert [c.state()[0][2, 3] for c in clones] == [50.0, 100.0, 150.0, 200.0]


# --- misuse


def test_a_state_that_was_never_set() -> None:
    run = run_of(counter())
    with pytest.raises(DataError, match="never set"):
        run.state()
    assert run_of(attention_gradient()).state() == []


def test_wrong_counts() -> None:
    run = run_of(counter())
    with pytest.raises(ShapeError, match="takes 1 arrays"):
        run.run([], {"B": 1})
    with pytest.raises(ShapeError, match="1 state arrays"):
        run.set_state([])


def windowed() -> Graph:
    """The first three of T: legal for T >= 3 alone."""
    builder = Builder("windowed", Expr)
    with builder:
        s = builder.input(TensorType(F64, (2,)), "s")
        x = builder.input(TensorType(F64, (T, 2)), "x")
        head = op("slice")(x, start=(0, 0), stop=(3, 2), step=(1, 1))
        new = s + op("sum")(head, axes=(0,))
    return builder.finish([new.value, head.value], aliases=[(0, 0)])


def test_a_size_that_cannot_be_bound_changes_nothing() -> None:
    run = run_of(windowed())
    run.set_state([np.zeros(2)])
    with pytest.raises(ShapeError, match="slice 0:3"):
        run.run([np.ones((2, 2))], {"T": 2})
    run.run([np.ones((4, 2))], {"T": 4})
    for t in (1, 2):
        with pytest.raises(ShapeError, match="slice 0:3"):
            run.run([np.ones((t, 2))], {"T": t})
        np.testing.assert_array_equal(run.state()[0], [3.0, 3.0])


def test_a_failing_allocation_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(counter())
    run.set_state([np.ones((3, 4))])
    run.run([np.zeros((2, 4))], {"B": 2})

    def full(bytes: int) -> Any:
        raise MemoryError(f"{bytes} bytes")

    monkeypatch.setattr(run.device, "allocate", full)
    with pytest.raises(MemoryError):
        run.run([np.zeros((9000, 4))], {"B": 9000})
    np.testing.assert_array_equal(run.state()[0], np.full((3, 4), 3.0))
    run.run([np.zeros((2, 4))], {"B": 2})


def test_state_of_symbolic_size() -> None:
    builder = Builder("carried", Expr)
    with builder:
        h = builder.input(TensorType(F64, (B, 2)), "h")
        x = builder.input(TensorType(F64, (B, T)), "x")
        new = h + op("sum")(x, axes=(1,), keepdims=True)
    run = run_of(builder.finish([new.value], aliases=[(0, 0)]))
    run.set_state([np.zeros((3, 2))])
    run.run([np.ones((3, 4))], {"B": 3, "T": 4})
    run.run([np.ones((3, 900))], {"B": 3, "T": 900})
    with pytest.raises(ShapeError, match=r"state h .*shape \[3, 2\].*shape \[5, 2\].*set_state"):
        run.run([np.ones((5, 4))], {"B": 5, "T": 4})
    np.testing.assert_array_equal(run.state()[0], np.full((3, 2), 904.0))
    run.set_state([np.full((5, 2), 1.0)])
    with pytest.raises(ShapeError, match="set_state"):
        run.run([np.ones((3, 4))], {"B": 3, "T": 4})
    run.run([np.ones((5, 4))], {"B": 5, "T": 4})
    np.testing.assert_array_equal(run.state()[0], np.full((5, 2), 5.0))


def test_devices_by_name() -> None:
    assert get_device("auto").name == get_device().name == default_name()
    assert default_name() == ("native" if find_toolchain() else "numpy")
    with pytest.raises(DeviceError, match=r"unknown device 'tpu'.*'numpy'"):
        get_device("tpu")


def test_cupy_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(DeviceError, match=r"pip install 'retrograde\[gpu\]'.*backend='numpy'"):
        get_device("cupy")


def test_cupy_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """CuPy is installed, its runtime finds no driver."""
    import sys
    from types import ModuleType, SimpleNamespace

    def no_driver() -> int:
        raise RuntimeError("cudaErrorInsufficientDriver")

    modules = {name: ModuleType(name) for name in _nested("cupyx.scipy.special")}
    modules["cupy"] = ModuleType("cupy")
    modules["cupy"].cuda = SimpleNamespace(runtime=SimpleNamespace(getDeviceCount=no_driver))  # type: ignore[attr-defined]
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(DeviceError, match=r"no usable GPU \(cudaErrorInsufficientDriver\)"):
        get_device("cupy")
    modules["cupy"].cuda.runtime.getDeviceCount = lambda: 0
    with pytest.raises(DeviceError, match="no usable GPU"):
        get_device("cupy")


def _nested(name: str) -> Sequence[str]:
    parts = name.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def test_binding_beforehand_leaves_the_run_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """With state, which is there from the first binding on, and in an arena that grows."""
    run, seen = run_of(counter()), []
    real = run.device.bind
    monkeypatch.setattr(run.device, "bind", lambda *a: seen.append(a[1].bytes) or real(*a))
    run.set_state([np.full((3, 4), 2.0)])
    for b in (2, 500):
        run.bind({"B": b})
        run.bind({"B": b})
    assert len(seen) == 2 and seen[1] > seen[0]
    (old,) = run.run([np.zeros((500, 4))], {"B": 500})
    assert len(seen) == 2 and old == 24.0
    assert np.array_equal(run.state()[0], np.full((3, 4), 502.0))
