"""Ragged loops of native programs: one call runs them, whatever the lengths; what they give is what
the NumPy device gives, on as many threads as there may be, with as few rows as may be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import retrograde as rg
import retrograde.numpy as rnp
from retrograde.compiler.codegen import native_support
from retrograde.compiler.codegen.native_ragged import MOST
from retrograde.compiler.ir.binding import bind_sizes
from retrograde.compiler.ir.graph import Graph
from retrograde.compiler.ir.interpreter import evaluate
from retrograde.runtime.device import get_device
from retrograde.runtime.native.toolchain import find_toolchain
from tests.device.harness import MODES, executable
from tests.frontends.ragged_cells import CELLS, arrays, graph_of

pytestmark = pytest.mark.skipif(find_toolchain() is None, reason="there is no C compiler")

@pytest.fixture(autouse=True)
def _threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small programs run on all threads too."""
    monkeypatch.setattr(native_support, "SMALL", 0)


# (steps, lengths): sorted, mixed, none, beyond the steps, no step, more rows than have own turns.
MANY = np.random.default_rng(3).integers(0, 9, 2 * MOST + 7)
BATCHES: tuple[tuple[int, Any], ...] = (
    (5, (5, 4, 4, 2, 1, 0)), (5, (1, 0, 5, 0, 3)), (3, (0, 0)), (4, (2, 9, -3, 1)), (0, (0, 2, 0)),
    (9, np.sort(MANY)[::-1]), (9, MANY), (5, (5, 4, 4, 2, 1, 0)),
)  # fmt: skip


def rows_of(time: int, lengths: Any) -> list[int]:
    """The rows of each step: up to the last that has it, and to the next that has its own turn."""
    stride = -(-len(lengths) // MOST)
    last = [max((i + 1 for i, n in enumerate(lengths) if n > t), default=0) for t in range(time)]
    return [min(-(-n // stride) * stride, len(lengths)) for n in last]


def bound(graph: Graph, given: list[Any]) -> dict[str, int]:
    types = [v.type for v in graph.inputs]
    return bind_sizes(types, graph.input_names, [x.shape for x in given])


def one_list(source: str) -> bool:
    return source.split("def run():")[1].split("return run")[0].split() == ["run0()"]


@pytest.mark.parametrize("reverse", (False, True), ids=("forward", "reverse"))
@pytest.mark.parametrize("name", ("lstm", "gru", "rows", "unit", "nested", "turned", "crossing"))
def test_every_thread_count_and_mode_gives_the_same_bits(name: str, reverse: bool) -> None:
    cell = CELLS[name]
    graph = graph_of(cell, False, reverse)
    runs = [
        executable(graph, get_device("native", threads=n), MODES[mode])
        for n, mode in ((1, "plain"), (2, "plain"), (3, "poison"), (2, "apart"))
    ]
    assert one_list(runs[0][0].program.recipes[0].source)
    for time, lengths in BATCHES:
        given = arrays(cell, time, lengths, False)
        sizes = bound(graph, given)
        found = [made.run(given, sizes) for _, made in runs]
        for other in found[1:]:
            assert [x.tobytes() for x in other] == [x.tobytes() for x in found[0]]
        for x, wanted in zip(found[0], evaluate(graph, given), strict=True):
            np.testing.assert_allclose(x, wanted, rtol=1e-11, atol=1e-11)
        rows = rows_of(time, lengths)
        steps = sum(1 for n in rows if n)
        for _, made in runs:
            ((ran, *rest),) = made.ragged().values()
            assert rest == [time * len(lengths), steps, time]
            assert ran in (sum(rows), steps * len(lengths))
            assert ran == sum(rows) or name == "crossing"


@pytest.mark.parametrize("name", ("lstm", "gru", "gather"))
def test_gradients_are_one_call_and_those_of_the_numpy_device(name: str) -> None:
    cell = CELLS[name]
    graph = graph_of(cell, True)
    compiled, made = executable(graph, get_device("native", threads=2))
    assert one_list(compiled.program.recipes[0].source)
    for time, lengths in BATCHES:
        given = arrays(cell, time, lengths, True)
        found = made.run(given, bound(graph, given))
        for x, wanted in zip(found, evaluate(graph, given), strict=True):
            np.testing.assert_allclose(x, wanted, rtol=1e-5, atol=1e-4)


def test_a_ragged_loop_within_a_loop_counts_all_of_its_runs() -> None:
    """The lengths differ from turn to turn of the loop around, and the weights' gradient too."""

    def loss(w: Any, xs: Any, lengths: Any) -> Any:
        def outer(h: Any, given: Any) -> tuple[Any, Any]:
            x, n = given
            body = lambda h, row: (rnp.tanh(h @ w + row),) * 2  # noqa: E731
            h, ys = rg.scan(body, h, x, lengths=n)
            return h * 0.5, rnp.sum(ys * ys)

        return rnp.sum(rg.scan(outer, rnp.zeros((5, 4), "f64"), (xs, lengths))[1])

    draw = np.random.default_rng(0)
    w, xs = draw.normal(size=(4, 4)), draw.normal(size=(3, 6, 5, 4))
    lengths = np.array([[6, 5, 3, 1, 1], [0, 0, 0, 0, 0], [2, 6, 0, 1, 0]])
    specs = rg.spec("f64", 4, 4), rg.spec("f64", 3, "T", 5, 4), rg.spec("i64", 3, 5)
    results = []
    for backend, threads in (("numpy", 1), ("native", 1), ("native", 2)):
        compiled = rg.compile(rg.value_and_grad(loss), *specs, backend=backend, threads=threads)
        results.append(compiled(w, xs, lengths))
    assert one_list(compiled.source().split('\n/* ')[0])
    assert results[1][0] == results[2][0] and (results[1][1] == results[2][1]).all()
    for got, wanted in zip(results[1], results[0], strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-10)
    forward = (5 + 3 + 3 + 2 + 2 + 1) + (4 + 2 * 5), 3 * 6 * 5, 12, 18
    assert forward in compiled._runnable().executable.ragged().values()


def test_the_step_refuses_bad_data_and_runs_on() -> None:
    """A fault before the loop leaves nothing behind in the counts of the next run."""

    def f(table: Any, ids: Any, lengths: Any) -> Any:
        x = rnp.take(table, ids, axis=0)
        return rg.scan(lambda h, x: (h + x,) * 2, rnp.zeros_like(x[0]), x, lengths=lengths)[1]

    specs = rg.spec("f32", 7, 3), rg.spec("i32", "T", "B"), rg.spec("i32", "B")
    compiled = rg.compile(f, *specs, backend="native", threads=2)
    table, ids = np.ones((7, 3), np.float32), np.arange(12, dtype=np.int32).reshape(4, 3) % 7
    lengths = np.array([4, 2, 1], np.int32)
    with pytest.raises(rg.errors.DataError, match="index 9 is out of range"):
        compiled(table, np.where(ids == 6, 9, ids).astype(np.int32), lengths)
    ys = compiled(table, ids, lengths)
    assert ys[:, :, 0].T.tolist() == [[1, 2, 3, 4], [1, 2, 0, 0], [1, 0, 0, 0]]
    assert compiled._runnable().executable.ragged() == {0: (3 + 2 + 1 + 1, 12, 4, 4)}
