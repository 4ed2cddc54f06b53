"""Graphs over T steps made over for new steps: the same numbers, in pieces of any size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import retrograde as rg
import retrograde.numpy as rnp
from retrograde.compiler.errors import UnsupportedError
from retrograde.compiler.ir import dims
from retrograde.compiler.ir.graph import Graph
from retrograde.compiler.ir.interpreter import evaluate
from retrograde.compiler.ir.verify import verify
from retrograde.compiler.passes.incremental import Incremental, incremental
from retrograde.execution import runnable

RNG = np.random.default_rng(7)
TABLE = RNG.normal(size=(32, 8)).astype("f4") / 3
X = RNG.normal(size=(2, 13, 8)).astype("f4")
MEMORY = RNG.normal(size=(2, 5, 8)).astype("f4")
SPEC = rg.spec("f32", "B", rg.dim("T", min=8, max=29), 8)


def attention(q: Any, k: Any, v: Any, open_to: Any, closed: float = -np.inf) -> Any:
    i, j = rnp.arange(q.shape[1])[:, None], rnp.arange(k.shape[1])[None, :]
    scores = rnp.where(open_to(i, j), rnp.einsum("btd,bsd->bts", q, k), closed)
    weights = rnp.exp(scores - rnp.max(scores, -1, keepdims=True))
    return rnp.einsum("bts,bsd->btd", weights / rnp.sum(weights, -1, keepdims=True), v)


def past(i: Any, j: Any) -> Any:
    return j <= i


def convolution(table: Any, x: Any, dilation: int = 2) -> Any:
    padded = rnp.pad(x, ((0, 0), (2 * dilation, 0), (0, 0)))
    time = x.shape[1]
    return sum(padded[:, dilation * k : dilation * k + time] * table[k] for k in range(3))


def scanned(table: Any, x: Any) -> Any:
    def step(h: Any, row: Any) -> Any:
        h = rnp.tanh(row @ table[:8] + h @ table[8:16])
        return h, h * 2.0

    start = rnp.tanh(rnp.zeros((x.shape[0], 8), "f32") + table[20])
    return rnp.swapaxes(rg.scan(step, start, rnp.swapaxes(x, 0, 1))[1], 0, 1)


def grouped(table: Any, x: Any) -> Any:
    """Queries of four heads that share two heads of keys."""
    batch, time = x.shape[:2]
    q = rnp.reshape(x @ table[:16].reshape(8, 16), (batch, time, 4, 4)).transpose(0, 2, 1, 3)
    k = rnp.reshape(x @ table[16:24], (batch, time, 2, 4)).transpose(0, 2, 1, 3)
    k = rnp.repeat(k, 2, axis=1)
    i = rnp.arange(time)
    scores = rnp.where(i[None, :] <= i[:, None], q @ rnp.swapaxes(k, -1, -2), -np.inf)
    weights = rnp.exp(scores - rnp.max(scores, -1, keepdims=True))
    return rnp.reshape((weights @ k).transpose(0, 2, 1, 3), (batch, time, 16))


def over_layers(table: Any, x: Any) -> Any:
    weights = rnp.reshape(table[:24], (3, 8, 8))

    def layer(x: Any, w: Any) -> Any:
        return rnp.tanh(attention(x, x, x, past) @ w), None

    return rg.scan(layer, x, weights)[0]


def of_scores(table: Any, x: Any) -> Any:
    i = rnp.arange(x.shape[1])
    scores = rnp.where(i[None, :] <= i[:, None], rnp.einsum("btd,bsd->bts", x, x) / 9, 0.0)
    return (scores @ scores) @ x



MODELS: dict[str, Callable[[Any, Any], Any]] = {
    "attention": lambda t, x: attention(x @ t[:8], x @ t[8:16], x @ t[16:24], past),
    "window": lambda t, x: attention(x, x, x, lambda i, j: (j <= i) & (i - j < 3), -1e9),
    "places": lambda t, x: attention(x + t[: x.shape[1]], x, x + t[3 : x.shape[1] + 3], past),
    "places by number": lambda t, x: x + rnp.sin(
        rnp.arange(x.shape[1]).astype("f32")[:, None] * t[0]
    ),
    "linear attention": lambda t, x: rnp.einsum(
        "bts,bsd->btd", rnp.tril(rnp.einsum("btd,bsd->bts", x, x)), x
    ),
    "running sums": lambda t, x: rnp.cumsum(x, 1) + rnp.cumprod(x / 2, 1),
    "running mean": lambda t, x: rnp.cumsum(x, 1) / (1.0 + rnp.arange(x.shape[1]))[:, None],
    "moved on": lambda t, x: rnp.concatenate(
        [rnp.ones((x.shape[0], 2, 8), "f32") * t[0], x[:, :-2]], 1
    ) + x,
    "the first repeated": lambda t, x: rnp.concatenate([x[:, :1], x[:, :-1]], 1) - x[:, :1],
    "differences": lambda t, x: rnp.pad(
        x[:, 1:] - x[:, :-1], ((0, 0), (1, 0), (0, 0)), constant_values=3.0
    ),
    "convolutions": lambda t, x: convolution(t, rnp.tanh(convolution(t, x)), 1),
    "reshaped": lambda t, x: rnp.reshape(
        rnp.tanh(rnp.reshape(x, (-1, 8)) @ t.T), (x.shape[0], x.shape[1], 32)
    ),
    "scan": scanned,
    "scan of attention": lambda t, x: scanned(t, attention(x, x, x, past)),
    "shared keys": grouped,
    "loop over layers": over_layers,
    "recomputed": lambda t, x: rg.remat(lambda x: attention(x, x, x, past))(x),
    "scores of scores": of_scores,
    "sorted features": lambda t, x: rnp.sort(x, -1) + rnp.max(x, -1, keepdims=True),
    "running largest": lambda t, x: rnp.maximum.accumulate(x, 1)
    if hasattr(rnp.maximum, "accumulate") else rnp.cummax(x, axis=1),
}  # fmt: skip


def made(fn: Callable[..., Any], *rest: Any) -> tuple[Graph, Incremental]:
    graph = rg.trace(fn, TABLE, SPEC, *rest)
    return graph, incremental(graph, graph.symbols()["T"], 1, dims.dim("B"))


def begin(
    found: Incremental, inputs: dict[int, Any], sizes: dict[str, int], first: list[Any]
) -> list[Any]:
    return [
        np.array((inputs if s.kind == "given" else first)[s.first])
        if s.first is not None
        else np.full(
            [dims.evaluate(d, sizes) for d in s.type.shape], s.fill, s.type.dtype.numpy
        )
        for s in found.state
    ]


def in_pieces(found: Incremental, inputs: dict[int, Any], pieces: tuple[int, ...]) -> Any:
    sizes = {"B": 2, "C": 16}
    first = []
    if found.first is not None:
        rows = np.zeros(2, np.int32)
        first = evaluate(found.first, [*(inputs[i] for i in found.first_given), rows], sizes)
    state = begin(found, inputs, sizes, first)
    outs, at = [], 0
    for n in pieces:
        *state, out = evaluate(found.step, [*state, X[:, at : at + n]], {**sizes, "N": n})
        outs.append(out)
        at += n
    return np.concatenate(outs, axis=1)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("pieces", [(1,) * 13, (5, 1, 1, 4, 1, 1), (13,)])
def test_pieces_are_the_whole(name: str, pieces: tuple[int, ...]) -> None:
    graph, found = made(MODELS[name])
    verify(found.step)
    (whole,) = evaluate(graph, [TABLE, X], {"B": 2, "T": 13})
    got = in_pieces(found, {0: TABLE}, pieces)
    np.testing.assert_allclose(got, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["numpy", "native"])
@pytest.mark.parametrize("name", ["attention", "convolutions", "scan", "running sums"])
def test_devices_update_the_state_in_place(name: str, backend: str) -> None:
    graph, found = made(MODELS[name])
    (whole,) = evaluate(graph, [TABLE, X], {"B": 2, "T": 13})
    sizes = {"B": 2, "C": 16}
    first: list[Any] = []
    if found.first is not None:
        run = runnable(found.first, {}, backend)
        inputs = {0: TABLE}
        given = [*(inputs[i] for i in found.first_given), np.zeros(2, np.int32)]
        first = run.run(given, {"B": 2})
    run = runnable(found.step, {"B": 2, "C": 16, "N": 1}, backend)
    run.executable.set_state(begin(found, {0: TABLE}, sizes, first))
    for at, n in ((0, 4), (4, 1), (5, 1), (6, 7)):
        (out,) = run.run([X[:, at : at + n]], {**sizes, "N": n})
        np.testing.assert_allclose(out, whole[:, at : at + n], rtol=1e-5, atol=1e-5)
    small, large = (run.executable.plan({"B": 2, "C": c, "N": 1}) for c in (2048, 4096))
    grown = large.state_bytes - small.state_bytes
    assert large.peak_bytes - small.peak_bytes <= 1.7 * grown  # no second copy of a cache


def test_what_does_not_depend_on_time_is_computed_once() -> None:
    def cross(table: Any, x: Any, memory: Any, lengths: Any) -> Any:
        keys = rnp.tanh(memory @ table[:8])
        scores = rnp.einsum("btd,bsd->bts", x, keys)
        scores = rnp.where(rnp.arange(5) < lengths[:, None, None], scores, -np.inf)
        weights = rnp.exp(scores - rnp.max(scores, -1, keepdims=True))
        return rnp.cumsum(rnp.einsum("bts,bsd->btd", weights, keys), 1)

    graph, found = made(cross, rg.spec("f32", "B", 5, 8), rg.spec("i32", "B"))
    lengths = np.array([3, 5], np.int32)
    (whole,) = evaluate(graph, [TABLE, X, MEMORY, lengths], {"B": 2, "T": 13})
    inputs = {0: TABLE, 2: MEMORY, 3: lengths}
    np.testing.assert_allclose(in_pieces(found, inputs, (1,) * 13), whole, rtol=1e-5, atol=1e-5)
    assert found.first is not None
    assert "tanh" in {n.op.name for n in found.first.nodes}
    assert "tanh" not in {n.op.name for n in found.step.nodes}


def test_shared_keys_are_kept_once() -> None:
    _, found = made(MODELS["shared keys"])
    (cache,) = found.caches
    assert cache.type.shape[1] == 2  # not one for each head of queries


def test_caches_are_written_where_they_lie() -> None:
    _, found = made(MODELS["attention"])
    run = runnable(found.step, {"B": 2, "C": 16, "N": 1}, "numpy")
    written = [n for n in run.stages["order"].nodes if n.op.name == "scatter_set"]
    assert len(written) == len(found.caches) == 2
    plan = run.executable.plan({"B": 2, "C": 16, "N": 1})
    assert not [b for b in plan.buffers if b.kind == "value" and b.name == "scatter_set"]


@pytest.mark.parametrize(
    ("fn", "why"),
    [
        (lambda t, x: x + rnp.mean(x, 1, keepdims=True), "later places"),
        (lambda t, x: attention(x, x, x, lambda i, j: j <= i + 1), "later places"),
        (lambda t, x: x[:, ::-1], "later places"),
        (lambda t, x: x * x.shape[1], "the number of steps"),
        (lambda t, x: rnp.sum(x, 1), "later places"),
    ],
)
def test_what_looks_ahead_is_refused_with_its_line(fn: Any, why: str) -> None:
    with pytest.raises(UnsupportedError, match=why) as error:
        made(fn)
    assert "test_incremental.py:" in str(error.value)


def test_other_inputs_with_time_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="as many steps"):
        made(lambda t, x, y: x + y, SPEC)


def test_a_cache_that_is_full_says_so() -> None:
    _, found = made(MODELS["attention"])
    with pytest.raises(Exception, match="out of range"):
        sizes = {"B": 2, "C": 4, "N": 5}
        evaluate(found.step, [*begin(found, {0: TABLE}, sizes, []), X[:, :5]], sizes)
