"""What an output can see along time: relations, leaks, and that perturbations agree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import retrograde as rg
import retrograde.numpy as rnp
from retrograde import nn
from retrograde.compiler.ir.interpreter import evaluate
from retrograde.compiler.passes.dependence import LENGTH, Dependence

X = rg.spec("f32", "B", rg.dim("T", min=8, max=29), 8)
IDS = rg.spec("i32", "B", rg.dim("T", min=8, max=29))


def seen(fn: Callable[..., Any], *specs: Any, segments: int | None = None) -> Dependence:
    graph = rg.trace(fn, *specs)
    return Dependence.of(graph, graph.symbols()["T"], segments)


def relations(found: Dependence) -> dict[str, str]:
    out = found.graph.outputs[0]
    names = dict(zip(found.graph.inputs, found.graph.input_names, strict=True))
    return {names.get(s, s): found.relation(out, s) for s in found.sees[out]}  # type: ignore[call-overload]


def attention(
    open_to: Callable[[Any, Any], Any], closed: float = -np.inf
) -> Callable[[Any], Any]:
    def mix(x: Any) -> Any:
        scores = rnp.einsum("btd,bsd->bts", x, x) / 8**0.5
        i = rnp.arange(x.shape[1])
        scores = rnp.where(open_to(i[:, None], i[None, :]), scores, closed)
        weights = rnp.exp(scores - rnp.max(scores, -1, keepdims=True))
        weights = weights / rnp.sum(weights, -1, keepdims=True)
        return rnp.einsum("bts,bsd->btd", weights, x)

    return mix


def heads_last(x: Any) -> Any:
    q = rnp.reshape(x, (x.shape[0], x.shape[1], 2, 4))
    scores = rnp.einsum("bthd,bshd->btsh", q, q)
    i = rnp.arange(x.shape[1])
    scores = rnp.where((i[None, :] <= i[:, None])[:, :, None], scores, -np.inf)
    weights = rnp.exp(scores - rnp.max(scores, 2, keepdims=True))
    return rnp.einsum("btsh,bshd->bthd", weights, q)


def zeros(x: Any) -> Any:
    return rnp.zeros((x.shape[0], 1, 8), "f32")


def flat(x: Any) -> Any:
    return rnp.reshape(rnp.tanh(rnp.reshape(x, (-1, 8))), (x.shape[0], x.shape[1], 8))


def scanned(x: Any, reverse: bool = False) -> Any:
    def step(h: Any, row: Any) -> Any:
        h = rnp.tanh(row + h)
        return h, h

    start = rnp.zeros((x.shape[0], 8), "f32")
    return rnp.swapaxes(rg.scan(step, start, rnp.swapaxes(x, 0, 1), reverse=reverse)[1], 0, 1)


def over_layers(x: Any) -> Any:
    def layer(x: Any, scale: Any) -> Any:
        return attention(lambda i, j: j <= i)(x) * scale, None

    return rg.scan(layer, x, rnp.arange(3).astype("f32"))[0]


CAUSAL: dict[str, Callable[[Any], Any]] = {
    "by hand": attention(lambda i, j: j <= i),
    "a large negative number": attention(lambda i, j: j <= i, -1e9),
    "a window": attention(lambda i, j: (j <= i) & (i - j < 3)),
    "not later": attention(lambda i, j: ~(j > i)),
    "strictly before": attention(lambda i, j: (j < i) | (j == i)),
    "heads last": heads_last,
    "tril": lambda x: rnp.einsum("bts,bsd->btd", rnp.tril(rnp.einsum("btd,bsd->bts", x, x)), x),
    "products of triangles": lambda x: (
        rnp.tril(rnp.einsum("btd,bsd->bts", x, x)) @ rnp.tril(rnp.einsum("btd,bsd->bts", x, x))
    ) @ x,
    "mask as numbers": lambda x: rnp.einsum(
        "ts,bsd->btd",
        (rnp.arange(x.shape[1])[None, :] <= rnp.arange(x.shape[1])[:, None]).astype("f32"), x
    ),
    "added mask": lambda x: rnp.einsum(
        "bts,bsd->btd",
        rnp.exp(rnp.einsum("btd,bsd->bts", x, x) + rnp.where(
            rnp.arange(x.shape[1])[None, :] <= rnp.arange(x.shape[1])[:, None], 0.0, -np.inf)), x
    ),
    "running sum": lambda x: rnp.cumsum(x, 1),
    "moved on": lambda x: rnp.concatenate([zeros(x), x[:, :-1]], 1),
    "the first repeated": lambda x: rnp.concatenate([x[:, :1], x[:, :-1]], 1),
    "the first for all": lambda x: x + x[:, :1],
    "convolution": lambda x: rnp.pad(x, ((0, 0), (4, 0), (0, 0)))[:, 2:-2] + x,
    "reshaped": flat,
    "scan": scanned,
    "loop over layers": over_layers,
    "recomputed": lambda x: rg.remat(attention(lambda i, j: j <= i))(x),
}  # fmt: skip

LEAKS: dict[str, Callable[[Any], Any]] = {
    "mean": lambda x: x + rnp.mean(x, 1, keepdims=True),
    "one too far": attention(lambda i, j: j <= i + 1),
    "window of the wrong side": attention(lambda i, j: i - j < 4),
    "no mask": attention(lambda i, j: j == j),
    "triu": lambda x: rnp.einsum("bts,bsd->btd", rnp.triu(rnp.einsum("btd,bsd->bts", x, x)), x),
    "moved back": lambda x: rnp.concatenate([x[:, 1:], zeros(x)], 1),
    "rolled": lambda x: rnp.roll(x, 1, 1),
    "reversed": lambda x: x[:, ::-1] + x,
    "the last for all": lambda x: x + x[:, -1:],
    "the second for all": lambda x: x + x[:, 1:2],
    "scan from the end": lambda x: scanned(x, reverse=True),
    "last carry": lambda x: x + rg.scan(
        lambda h, row: (h + row, None), rnp.zeros((x.shape[0], 8), "f32"), rnp.swapaxes(x, 0, 1)
    )[0][:, None],
    "sorted": lambda x: rnp.sort(x, 1),
    "largest": lambda x: x - rnp.max(x, 1, keepdims=True),
    "axes mixed up": lambda x: rnp.reshape(rnp.reshape(x, (-1, 8)), (x.shape[1], x.shape[0], 8)),
    "middle convolution": lambda x: rnp.pad(x, ((0, 0), (1, 1), (0, 0)))[:, 2:] + x,
    "reversed sum": lambda x: rnp.cumsum(x[:, ::-1], 1)[:, ::-1],
}  # fmt: skip


@pytest.mark.parametrize("name", CAUSAL)
def test_what_keeps_to_the_past_is_proven_to(name: str) -> None:
    found = seen(CAUSAL[name], X)
    out = found.graph.outputs[0]
    assert found.causal(out) and found.leak(out) is None
    assert relations(found)["x"] in ("<=", "=")
    _check_by_perturbation(CAUSAL[name], leaks=False)


@pytest.mark.parametrize("name", LEAKS)
def test_what_leaks_is_found_with_its_line(name: str) -> None:
    found = seen(LEAKS[name], X)
    out = found.graph.outputs[0]
    leak = found.leak(out)
    assert not found.causal(out) and leak is not None
    assert leak.source == "x" and leak.path[-1] is found.graph.producers()[out]
    assert "test_dependence.py:" in str(leak)
    if name != "axes mixed up":
        _check_by_perturbation(LEAKS[name], leaks=True)


def _check_by_perturbation(fn: Callable[[Any], Any], *, leaks: bool) -> None:
    graph = rg.trace(fn, X)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 9, 8)).astype("f4")
    (before,) = evaluate(graph, [x], {"B": 2, "T": 9})
    changed = False
    for place in range(1, 9):
        other = x.copy()
        other[:, place] += 100.0
        (after,) = evaluate(graph, [other], {"B": 2, "T": 9})
        changed |= not np.array_equal(before[:, :place], after[:, :place])
    assert changed is leaks


def test_relations_have_their_names() -> None:
    assert relations(seen(lambda x: rnp.tanh(x), X)) == {"x": "="}
    assert relations(seen(lambda x: scanned(x), X)) == {"x": "<="}
    assert relations(seen(lambda x: scanned(x, True), X)) == {LENGTH: "any", "x": ">="}
    assert relations(seen(lambda x: x * 0 + 1.0, X)) == {}
    both = seen(lambda x: scanned(x) + scanned(x, True), X)
    assert relations(both)["x"] == "any"


def test_the_number_of_steps_is_seen_as_well() -> None:
    for fn in (lambda x: x * x.shape[1], lambda x: x + rnp.arange(x.shape[1])[::-1][:, None]):
        found = seen(fn, X)
        leak = found.leak(found.graph.outputs[0])
        assert leak is not None and leak.relation == "length" and leak.source == LENGTH


def segmented(isolated: bool, skip: bool = False) -> Callable[..., Any]:
    def fn(x: Any, segments: Any) -> Any:
        i = rnp.arange(x.shape[1])
        past = i[:, None] >= i[None, :]
        own = segments[:, :, None] == segments[:, None, :]
        for layer in range(2):
            mask = past & own if isolated and not (skip and layer == 1) else past & (own | past)
            scores = rnp.where(mask, rnp.einsum("btd,bsd->bts", x, x), -np.inf)
            weights = rnp.exp(scores - rnp.max(scores, -1, keepdims=True))
            x = rnp.einsum("bts,bsd->btd", weights / rnp.sum(weights, -1, keepdims=True), x)
        return x

    return fn


def test_segments_keep_apart() -> None:
    found = seen(segmented(True), X, IDS, segments=1)
    assert found.isolated(found.graph.outputs[0]) and found.causal(found.graph.outputs[0])


@pytest.mark.parametrize("fn", [segmented(False), segmented(True, skip=True)])
def test_a_layer_without_the_segments_is_found(fn: Callable[..., Any]) -> None:
    found = seen(fn, X, IDS, segments=1)
    out = found.graph.outputs[0]
    leak = found.segment_leak(out)
    assert found.causal(out) and not found.isolated(out)
    assert leak is not None and leak.source == "x" and "other segments" in str(leak)


@pytest.mark.parametrize("options", [{}, {"rotary": True}, {"window": 3}, {"kv_heads": 1}])
@pytest.mark.parametrize("causal", [True, False])
def test_attention_of_the_library_keeps_segments_apart(
    options: dict[str, Any], causal: bool
) -> None:
    layer = nn.MultiHeadAttention(8, 2, causal=causal, seed=0, **options)

    def fn(layer: Any, x: Any, segments: Any, lengths: Any) -> Any:
        return layer(x, segments=segments, lengths=lengths)

    count = len(rg.tree.leaves(layer))
    found = seen(fn, layer, X, IDS, rg.spec("i32", "B"), segments=count + 1)
    out = found.graph.outputs[0]
    assert found.isolated(out) and found.causal(out) is causal


def test_shifts_and_carries_cross_segments() -> None:
    for fn in (
        lambda x, segments: scanned(x) + 0.0 * segments[:, :, None],
        lambda x, segments: rnp.concatenate([zeros(x), x[:, :-1]], 1) + segments[:, :, None],
    ):
        found = seen(fn, X, IDS, segments=1)
        assert not found.isolated(found.graph.outputs[0])


def reset(kept: bool) -> Callable[..., Any]:
    """A running state that begins anew at the border of a segment, or only seems to."""

    def fn(x: Any, segments: Any) -> Any:
        begins = rg.masks.changes(segments)

        def step(h: Any, given: Any) -> Any:
            row, new = given
            fresh = rnp.where(new[:, None], 0.0, h)
            h = rnp.tanh(row + fresh + (0.0 if kept else 0.1 * h))
            return h, h

        start = rnp.zeros((x.shape[0], 8), "f32")
        rows = (rnp.swapaxes(x, 0, 1), rnp.swapaxes(begins, 0, 1))
        return rnp.swapaxes(rg.scan(step, start, rows)[1], 0, 1)

    return fn


def neighbours(by: int, mask_by: int) -> Callable[..., Any]:
    """The place so many steps before, where the segments of places so far apart are equal."""

    def fn(x: Any, segments: Any) -> Any:
        time = x.shape[1]
        before = rnp.pad(x, ((0, 0), (4, 0), (0, 0)))[:, 4 - by : 4 - by + time]
        ids = rnp.pad(segments, ((0, 0), (4, 0)))[:, 4 - mask_by : 4 - mask_by + time]
        return x + rnp.where((ids == segments)[:, :, None], before, 0.0)

    return fn


@pytest.mark.parametrize(
    ("fn", "isolated"),
    [(reset(True), True), (reset(False), False), (neighbours(2, 2), True),
     (neighbours(2, 1), False), (neighbours(1, 2), False)],
)  # fmt: skip
def test_borders_of_segments_in_loops_and_convolutions(
    fn: Callable[..., Any], isolated: bool
) -> None:
    found = seen(fn, X, IDS, segments=1)
    assert found.isolated(found.graph.outputs[0]) is isolated
    graph = rg.trace(fn, X, IDS)
    x = np.random.default_rng(0).normal(size=(1, 9, 8)).astype("f4")
    ids = np.array([[1, 1, 1, 2, 2, 2, 2, 3, 3]], np.int32)
    (before,) = evaluate(graph, [x, ids], {"B": 1, "T": 9})
    other = x.copy()
    other[:, 3:7] += 1.0
    (after,) = evaluate(graph, [other, ids], {"B": 1, "T": 9})
    if isolated:
        assert np.array_equal(before[:, :3], after[:, :3])
        assert np.array_equal(before[:, 7:], after[:, 7:])
