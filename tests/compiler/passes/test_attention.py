"""Attention by its tiled op: the spellings that are taken, what they mean, what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import retrograde as rg
import retrograde.nn as nn
import retrograde.numpy as rnp
from retrograde.compiler.ir import dims
from retrograde.compiler.ir.graph import Graph, Node
from retrograde.compiler.ir.interpreter import evaluate
from retrograde.compiler.passes.attention import Refusals, TileAttention, tiled
from retrograde.models.gpt import GPT
from retrograde.nn.layers import dropped

Array = npt.NDArray[Any]
B, T, S = rg.dim("B"), rg.dim("T"), rg.dim("S")
EXACT = TileAttention(elements=("f32", "f64"))


def spec(*shape: Any, dtype: str = "f64") -> Any:
    return rg.spec(dtype, *shape)


def numbers(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


def flash(graph: Graph) -> list[Node]:
    return [n for n in graph.nodes if n.op.name == "flash_attention"]


def no_scores(graph: Graph, queries: Any, keys: Any) -> bool:
    """Whether nothing is as large as queries x keys."""
    sizes = [v.shape for n in graph.nodes for v in n.outputs]
    return not any(
        dims.same(a, queries) and any(dims.same(b, keys) for b in shape[i + 1 :])
        for shape in sizes
        for i, a in enumerate(shape)
    )


def softmax(s: Any) -> Any:
    e = rnp.exp(s - rnp.max(s, axis=-1, keepdims=True))
    return e / rnp.sum(e, axis=-1, keepdims=True)


def squeezed_softmax(s: Any) -> Any:
    s = s - rg.stop_gradient(rnp.max(s, axis=-1))[..., None]
    e = rnp.exp(s)
    return e / rnp.sum(e, axis=-1)[..., None]


def scores(q: Any, k: Any) -> Any:
    return q @ rnp.swapaxes(k, -1, -2) / math.sqrt(q.shape[-1])


def places(q: Any, k: Any) -> tuple[Any, Any]:
    return rnp.arange(q.shape[-2])[:, None], rnp.arange(k.shape[-2])[None, :]


Q4, K4 = spec(B, 4, T, 8), spec(B, 4, S, 8)
SIZES = {"B": 2, "T": 5, "S": 7}


def plain(q: Any, k: Any, v: Any) -> Any:
    return softmax(scores(q, k)) @ v


def squeezed(q: Any, k: Any, v: Any) -> Any:
    return squeezed_softmax(0.3 * (q @ rnp.swapaxes(k, -1, -2))) @ v


def by_einsum(q: Any, k: Any, v: Any) -> Any:
    weights = rnp.softmax(rnp.einsum("bthd,bshd->bhts", q, k) * 0.4)
    return rnp.einsum("bhts,bshe->bthe", weights, v)


def causal(q: Any, k: Any, v: Any) -> Any:
    open_ = rnp.tril(rnp.ones((q.shape[-2], k.shape[-2]), dtype=bool))
    return softmax(rnp.where(open_, scores(q, k), -rnp.inf)) @ v


def causal_by_adding(q: Any, k: Any, v: Any) -> Any:
    i, j = places(q, k)
    return softmax(scores(q, k) + rnp.where(j > i, -1e9, 0.0)) @ v


def counted(q: Any, k: Any, v: Any) -> Any:
    i, j = places(q, k)
    allowed = (j - 1 <= i).astype("f32")
    return softmax(scores(q, k) + (1.0 - allowed).astype(q.dtype) * -1e9) @ v


def window(q: Any, k: Any, v: Any) -> Any:
    i, j = places(q, k)
    open_ = ~((j > i) | (i - j >= 3))
    return softmax(rnp.where(open_, scores(q, k), -1e9)) @ v


def ragged(q: Any, k: Any, v: Any, lengths: Any) -> Any:
    within = rnp.arange(k.shape[-2]) < lengths[:, None, None, None]
    return rnp.softmax(rnp.where(within, scores(q, k), -rnp.inf)) @ v


def padded(q: Any, k: Any, v: Any, lengths: Any) -> Any:
    beyond = lengths.astype("i64")[:, None, None, None] <= rnp.arange(k.shape[-2])
    return softmax(rnp.where(beyond, -1e9, scores(q, k))) @ v


def packed(q: Any, k: Any, v: Any, segments: Any) -> Any:
    i, j = places(q, q)
    open_ = (segments[:, None, :, None] == segments[:, None, None, :]) & (j <= i)
    return softmax(rnp.where(open_, scores(q, k), -rnp.inf)) @ v


def masked(q: Any, k: Any, v: Any, mask: Any) -> Any:
    return rnp.softmax(rnp.where(mask[:, None], scores(q, k), -rnp.inf)) @ v


def biased(q: Any, k: Any, v: Any, bias: Any) -> Any:
    return softmax((q @ rnp.swapaxes(k, -1, -2) + bias) * 0.5) @ v


def repeated(q: Any, k: Any, v: Any) -> Any:
    return softmax(scores(q, rnp.repeat(k, 2, axis=1))) @ rnp.repeat(v, 2, axis=1)


def grouped(q: Any, k: Any, v: Any) -> Any:
    q = rnp.reshape(q, (q.shape[0], 2, 2, *q.shape[2:]))
    weights = softmax(rnp.einsum("bgrtd,bgsd->bgrts", q, k))
    return rnp.einsum("bgrts,bgse->bgrte", weights, v)


def drops(q: Any, k: Any, v: Any, key: Any) -> Any:
    return dropped(rnp.softmax(scores(q, k)), 0.25, key) @ v


KEY = np.array([5, 6], np.uint32)
LENGTHS = np.array([3, 7], np.int32)
SEGMENTS = np.array([[1, 1, 2, 2, 2], [4, 4, 4, 4, 9]], np.int32)
Q3, K3 = spec(B, T, 8), spec(B, S, 8)
KEYS2 = spec(B, 2, S, 8)
N, G = rg.spec("i32", B), rg.spec("i32", B, T)

# name: function, specs, arrays after q, k, v, attributes of the op, operands after q, k, v
SPELLINGS: dict[str, tuple[Callable[..., Any], Sequence[Any], list[Array], dict[str, Any]]] = {
    "plain": (plain, (Q4, K4, K4), [], {"high": None, "extras": ()}),
    "three axes": (plain, (Q3, K3, K3), [], {"high": None, "extras": ()}),
    "two axes": (plain, (spec(T, 8), spec(S, 8), spec(S, 8)), [], {"extras": ()}),
    "one head of keys": (plain, (Q4, spec(B, 1, S, 8), spec(B, 1, S, 8)), [], {"extras": ()}),
    "squeezed": (squeezed, (Q4, K4, K4), [], {"scale": 0.3}),
    "einsum": (by_einsum, (spec(B, T, 4, 8), spec(B, S, 4, 8), spec(B, S, 4, 3)), [], {}),
    "causal": (causal, (Q4, K4, K4), [], {"high": 0, "low": None, "extras": ()}),
    "causal by adding": (causal_by_adding, (Q3, K3, K3), [], {"high": 0, "extras": ()}),
    "counted": (counted, (Q4, K4, K4), [], {"high": 1, "extras": ()}),
    "window": (window, (Q4, Q4, Q4), [], {"high": 0, "low": -2, "extras": ()}),
    "lengths": (ragged, (Q4, K4, K4, N), [LENGTHS], {"extras": ("lengths",)}),
    "padded": (padded, (Q4, K4, K4, N), [LENGTHS], {"extras": ("lengths",)}),
    "segments": (packed, (Q4, Q4, Q4, G), [SEGMENTS],
                 {"high": 0, "extras": ("query_segments", "key_segments")}),
    "mask": (masked, (Q4, K4, K4, rg.spec("bool", B, T, S)), [numbers(2, 5, 7) > -0.8],
             {"extras": ("mask",)}),
    "bias": (biased, (Q4, K4, K4, spec(4, 1, S)), [numbers(4, 1, 7)], {"extras": ("bias",)}),
    "repeated": (repeated, (Q4, KEYS2, KEYS2), [], {"extras": ()}),
    "grouped": (grouped, (Q4, KEYS2, KEYS2), [], {"extras": ()}),
    "dropout": (drops, (Q4, K4, K4, rg.spec("u32", 2)), [KEY],
                {"extras": ("drop_key", "drop_row"), "keep": 0.75}),
}  # fmt: skip


def arrays_of(specs: Sequence[Any], more: Sequence[Array]) -> list[Array]:
    shapes = [tuple(SIZES[str(d)] if not isinstance(d, int) else d for d in s.shape) for s in specs]
    return [*(numbers(*shape, seed=i) for i, shape in enumerate(shapes[:3])), *more]


def run(graph: Graph, arrays: Sequence[Array]) -> list[Array]:
    return evaluate(graph, list(arrays))


@pytest.mark.parametrize("name", SPELLINGS)
def test_spellings(name: str) -> None:
    """Taken, with the attributes that tell what was understood; values and gradients stay."""
    fn, specs, more, attrs = SPELLINGS[name]
    arrays = arrays_of(specs, more)
    dense = rg.trace(fn, *specs)
    graph = EXACT(dense)
    (node,) = flash(graph)
    for key, value in attrs.items():
        if isinstance(value, float):
            assert node.attrs[key] == pytest.approx(value), key
        else:
            assert node.attrs[key] == value, key
    assert name == "mask" or no_scores(graph, T, S)
    for mine, theirs in zip(run(graph, arrays), run(dense, arrays), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=1e-12)

    def loss(q: Any, k: Any, v: Any, *others: Any) -> Any:
        out = fn(q, k, v, *others)
        return rnp.sum(out * rnp.cos(out))

    dense = rg.trace(rg.grad(loss, argnums=(0, 1, 2)), *specs)
    assert not flash(dense)
    with tiled(EXACT):
        graph = rg.trace(rg.grad(loss, argnums=(0, 1, 2)), *specs)
    assert len(flash(graph)) == 1
    assert [n.op.name for n in graph.nodes].count("flash_attention_grad") == 1
    assert name == "mask" or no_scores(graph, T, S)
    for mine, theirs in zip(run(graph, arrays), run(dense, arrays), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-10, atol=1e-10)


def test_keys_that_are_shared_stay_shared() -> None:
    for name, heads in (("repeated", 2), ("grouped", 2), ("one head of keys", 1)):
        fn, specs, _, _ = SPELLINGS[name]
        (node,) = flash(EXACT(rg.trace(fn, *specs)))
        assert [v.shape[1] for v in node.inputs[:3]] == [4, heads, heads]


# --- queries without keys


@pytest.mark.parametrize("fill", [-math.inf, -1e9])
@pytest.mark.parametrize("normal", [softmax, rnp.softmax])
def test_a_query_without_keys_keeps_its_meaning(normal: Callable[[Any], Any], fill: float) -> None:
    """exp(x - max) / sum gives NaN, the op zeros, a finite number the mean of the values."""

    def attend(q: Any, k: Any, v: Any, lengths: Any) -> Any:
        within = rnp.arange(k.shape[-2]) < lengths[:, None, None, None]
        return normal(rnp.where(within, scores(q, k), fill)) @ v

    specs = (Q4, KEYS2, KEYS2, N)
    fn = lambda q, k, v, n: attend(q, rnp.repeat(k, 2, 1), rnp.repeat(v, 2, 1), n)  # noqa: E731
    dense = rg.trace(fn, *specs)
    graph = EXACT(dense)
    assert len(flash(graph)) == 1 and no_scores(graph, T, S)
    arrays = arrays_of(specs, [np.array([0, 3], np.int32)])
    with np.errstate(invalid="ignore"):
        (want,) = run(dense, arrays)
    (found,) = run(graph, arrays)
    np.testing.assert_allclose(found, want, rtol=1e-12, atol=1e-12)
    if fill == -math.inf:
        assert np.isnan(found[0]).all() if normal is softmax else not found[0].any()
    else:
        assert found[0].std() > 0
        loss = lambda *x: rnp.sum(rnp.sin(fn(*x)))  # noqa: E731
        gradient = rg.grad(loss, argnums=(0, 1, 2))
        theirs = run(rg.trace(gradient, *specs), arrays)
        with tiled(EXACT):
            mine = run(rg.trace(gradient, *specs), arrays)
        for a, b in zip(mine, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)


# --- what is refused


def leaks(q: Any, k: Any, v: Any) -> Any:
    weights = softmax(scores(q, k))
    return weights @ v, weights


def unsafe(q: Any, k: Any, v: Any) -> Any:
    e = rnp.exp(scores(q, k))
    return e / rnp.sum(e, axis=-1, keepdims=True) @ v


def learned(q: Any, k: Any, v: Any) -> Any:
    return softmax(scores(q, k) * rnp.sum(q)) @ v


def replaced(q: Any, k: Any, v: Any) -> Any:
    i, j = places(q, k)
    return softmax(rnp.where(j <= i, scores(q, k), 0.0)) @ v


def clipped(q: Any, k: Any, v: Any) -> Any:
    return softmax(rnp.tanh(scores(q, k))) @ v


def twice(q: Any, k: Any, v: Any, lengths: Any) -> Any:
    i, j = places(q, k)
    s = rnp.where(j <= i, scores(q, k), -1e9)
    return softmax(rnp.where(rnp.arange(k.shape[-2]) < lengths[:, None, None, None], s, -1e9)) @ v


def negated(q: Any, k: Any, v: Any) -> Any:
    return softmax(-2.0 * (q @ rnp.swapaxes(k, -1, -2))) @ v


@pytest.mark.parametrize(
    ("fn", "specs", "reason"),
    [
        (leaks, (Q4, K4, K4), "used elsewhere"),
        (unsafe, (Q4, K4, K4), "exp is not taken"),
        (learned, (Q4, K4, K4), "no constant"),
        (replaced, (Q4, K4, K4), "minus infinity"),
        (clipped, (Q4, K4, K4), "tanh"),
        (twice, (Q4, K4, K4, N), "no keys"),
        (negated, (Q4, K4, K4), "multiplied by -2"),
        (lambda s, v: softmax(s) @ v, (spec(T, S), spec(S, 8)), "an input"),
    ],
    ids=["leaks", "unsafe", "learned", "replaced", "clipped", "twice", "negated", "no product"],
)
def test_refusals(fn: Callable[..., Any], specs: Sequence[Any], reason: str) -> None:
    refusals = Refusals()
    dense = rg.trace(fn, *specs)
    graph = TileAttention(elements=("f64",), refusals=refusals)(dense)
    assert graph is dense
    (line,) = refusals.lines
    assert reason in line and "test_attention.py:" in line


def top_by_key(s: Any) -> Any:
    e = rnp.exp(s - rnp.max(s, axis=-1))
    return e / rnp.sum(e, axis=-1, keepdims=True)


def sum_by_key(s: Any) -> Any:
    e = rnp.exp(s - rnp.max(s, axis=-1, keepdims=True))
    return e / rnp.sum(e, axis=-1)


def stretched_by_key(s: Any) -> Any:
    e = rnp.exp(s - rnp.max(s, axis=-1, keepdims=True))
    return e / rnp.broadcast_to(rnp.sum(e, axis=-1), s.shape)


@pytest.mark.parametrize("normal", [top_by_key, sum_by_key, stretched_by_key])
def test_as_many_queries_as_keys_are_not_mistaken_for_each_other(
    normal: Callable[[Any], Any],
) -> None:
    """Without keepdims the numbers of the queries stand beside the keys."""
    dense = rg.trace(lambda q, k, v: normal(scores(q, k)) @ v, *[spec(T, 8)] * 3)
    assert not flash(EXACT(dense))


def test_other_types_of_numbers_are_refused() -> None:
    refusals = Refusals()
    dense = rg.trace(plain, Q4, K4, K4)
    assert TileAttention(refusals=refusals)(dense) is dense
    assert "not f64" in refusals.lines[0]


def test_a_softmax_of_something_else_is_no_attention() -> None:
    refusals = Refusals()
    graph = rg.trace(lambda x, w: rnp.tanh(x) @ w, spec(T, 3), spec(3, 2))
    assert TileAttention(refusals=refusals)(graph) is graph
    assert not refusals.lines


# --- models


def test_multi_head_attention_with_lengths() -> None:
    layer = nn.MultiHeadAttention(12, 3, causal=True, seed=1)
    x, n = rg.spec("f32", B, T, 12), N

    def loss(x: Any, lengths: Any) -> Any:
        return rnp.sum(layer(x, lengths=lengths) ** 2)

    step = rg.value_and_grad(loss)
    with tiled() as used:
        graph = rg.trace(step, x, n)
    assert used == TileAttention()
    (node,) = flash(graph)
    assert (node.attrs["high"], node.attrs["extras"]) == (0, ("lengths",))
    assert no_scores(graph, T, T)
    data, lengths = numbers(2, 5, 12).astype("f4"), np.array([5, 2], np.int32)
    want = rg.compile(step, x, n)(data, lengths)
    with tiled():
        found = rg.compile(step, x, n)(data, lengths)
    for mine, theirs in zip(found, want, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("recompute", [False, True])
def test_a_gpt(recompute: bool) -> None:
    model = GPT(
        vocab=11, width=12, heads=3, layers=2, context=8, seed=3, remat=recompute
    )  # fmt: skip
    tokens = rg.spec("i32", B, T)

    def loss(model: Any, tokens: Any) -> Any:
        return rnp.mean(rnp.sin(model(tokens)))

    step = rg.value_and_grad(loss)
    with tiled():
        graph = rg.trace(step, model, tokens)
    names = [n.op.name for n in graph.nodes]
    assert names.count("flash_attention_grad") == 2
    assert "softmax" not in names
    data = np.random.default_rng(1).integers(0, 11, (2, 6)).astype(np.int32)
    want, gradients = rg.compile(step, model, tokens)(model, data)
    with tiled():
        found, mine = rg.compile(step, model, tokens)(model, data)
    np.testing.assert_allclose(found, want, rtol=1e-5)
    for a, b in zip(rg.tree.leaves(mine), rg.tree.leaves(gradients), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
