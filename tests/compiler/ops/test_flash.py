"""Tiled attention: the reference against the untiled formulas, its memory, closed rows, dropout,
and what does not fit."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrograde.compiler.errors import DTypeError, ShapeError
from retrograde.compiler.ir import dtypes
from retrograde.compiler.ir.builder import Builder
from retrograde.compiler.ir.dims import dim
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.graph import Graph, TensorType
from retrograde.compiler.ir.interpreter import evaluate
from retrograde.compiler.ir.registry import lookup
from retrograde.compiler.ops.flash import EXTRAS, ROWS
from retrograde.compiler.ops.random import philox_bits
from retrograde.compiler.passes.backward import Backward
from tests.compiler.ops.harness import build, gradient, run

Array = npt.NDArray[Any]


def numbers(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


def untiled(name: str, operands: list[Array], attrs: dict[str, Any]) -> list[Array]:
    """The op's results by its decomposition."""
    builder = Builder(name, Expr)
    with builder:
        inputs = [builder.input(v.type) for v in build(name, operands, attrs).inputs]
        op = lookup(name)
        assert op.decompose is not None
        made = op.decompose({**op.defaults, **attrs}, *inputs)
    return evaluate(builder.finish([e.value for e in made]), operands)


@st.composite
def calls(draw: st.DrawFn) -> tuple[list[Array], dict[str, Any]]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shared, group = draw(st.sampled_from([(1, 1), (1, 3), (2, 2)]))
    b, t, s = draw(st.sampled_from([(2, 5, 7), (1, 1, 9), (3, 4, 0), (1, 0, 3), (1, ROWS + 3, 6)]))
    heads, d, e = shared * group, 4, 3
    shapes = ((b, heads, t, d), (b, shared, s, d), (b, shared, s, e))
    operands = [rng.standard_normal(shape) for shape in shapes]
    scores = (b, heads, t, s)
    made = {
        "lengths": rng.integers(0, s + 2, b).astype(np.int32),
        "query_segments": rng.integers(0, 2, (b, t)).astype(np.int32),
        "key_segments": rng.integers(0, 2, (b, s)).astype(np.int32),
        "mask": rng.random(scores) < 0.7,
        "bias": rng.standard_normal((1, heads, t, 1)),
        "drop_key": rng.integers(0, 2**32, 2, dtype=np.uint32),
        "drop_row": np.array(rng.integers(0, 9)),
    }
    chosen = {name for name in EXTRAS if draw(st.booleans())}
    for pair in (("query_segments", "key_segments"), ("drop_key", "drop_row")):
        chosen -= set(pair) if pair[0] not in chosen else set()
        chosen |= set(pair) if pair[0] in chosen else set()
    extras = tuple(name for name in EXTRAS if name in chosen)
    attrs: dict[str, Any] = {"extras": extras, "keep": 0.6}
    for bound in ("low", "high"):
        if draw(st.booleans()):
            attrs[bound] = draw(st.integers(-4, 4))
    return [*operands, *(made[name] for name in extras)], attrs


@given(calls())
def test_tiled_and_untiled_agree(call: tuple[list[Array], dict[str, Any]]) -> None:
    operands, attrs = call
    out, lse = run("flash_attention", *operands, **attrs)
    for mine, theirs in zip((out, lse), untiled("flash_attention", operands, attrs), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-11, atol=1e-11)
    operands = [*operands, out, lse, numbers(*out.shape, seed=3)]
    found = run("flash_attention_grad", *operands, **attrs)
    for mine, theirs in zip(found, untiled("flash_attention_grad", operands, attrs), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("keys", [6, 9])
def test_it_is_attention(keys: int) -> None:
    q, k, v = numbers(2, 3, 6, 4), numbers(2, 3, keys, 4, seed=1), numbers(2, 3, keys, 5, seed=2)
    mask = np.random.default_rng(4).random((2, 1, 6, keys)) < 0.6
    mask[1, :, 2] = False  # a closed row
    want = run("attention", q, k, v, mask, causal=True)
    attrs = {"high": keys - 6, "extras": ("mask",)}
    out, lse = run("flash_attention", q, k, v, mask, **attrs)
    np.testing.assert_allclose(out, want, atol=1e-12)
    assert not out[1, :, 2].any() and np.isneginf(lse[1, :, 2]).all()
    theirs = gradient("attention", q, k, v, mask, by=(0, 1, 2), causal=True)
    g = np.ones_like(out)
    mine = run("flash_attention_grad", q, k, v, mask, out, lse, g, **attrs)
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-11)
    assert not mine[0][1, :, 2].any()


def differentiated(operands: list[Array], attrs: dict[str, Any]) -> Graph:
    graph = build("flash_attention", operands, attrs)
    return Backward((0,), (0, 1, 2))(graph)


def test_the_gradient_is_one_op() -> None:
    operands = [numbers(1, 2, 5, 4), numbers(1, 1, 6, 4), numbers(1, 1, 6, 3)]
    names = [n.op.name for n in differentiated(operands, {"high": 1}).nodes]
    assert names == ["flash_attention", "flash_attention_grad"]


def test_a_bias_is_differentiated_too() -> None:
    operands = [numbers(1, 2, 5, 4), numbers(1, 2, 6, 4), numbers(1, 2, 6, 3), numbers(1, 1, 5, 6)]
    graph = build("flash_attention", operands, {"extras": ("bias",)})
    weigh = numbers(1, 2, 5, 3, seed=8)
    *_, found = evaluate(Backward((0,), (0, 3))(graph), [*operands, weigh])
    for at in ((0, 0, 1, 2), (0, 0, 4, 5)):
        ends = []
        for step in (1e-5, -1e-5):
            moved = operands[3].copy()
            moved[at] += step
            ends.append((evaluate(graph, [*operands[:3], moved])[0] * weigh).sum())
        assert found[at] == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6)


def test_memory_is_linear() -> None:
    """Twice as many queries and keys take twice the memory, not four times."""
    peaks = []
    for time in (1024, 2048):
        q, k, v = (numbers(1, 1, time, 8, seed=i).astype("f4") for i in range(3))
        operands: list[Array] = [q, k, v]
        tracemalloc.start()
        results = evaluate(differentiated(operands, {"high": 0}), [*operands, q])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert results[2].shape == q.shape
    assert peaks[1] < 2.3 * peaks[0]
    assert peaks[1] < 2048 * 2048 * 4 / 2  # half of one array of scores


def test_dropped_weights_are_those_of_the_shape_of_the_scores() -> None:
    b, h, t, s, keep = 2, 3, 5, 7, 0.7
    q, k, v = (numbers(b, h, n, 4, seed=n).astype("f4") for n in (t, s, s))
    key, row = np.array([11, 12], np.uint32), np.array(2**40)
    weights = run("softmax", q @ k.swapaxes(2, 3) / np.float32(2), axis=3)
    kept = (philox_bits(np, key, row, (b, h, t, s)) >> 8) * 2.0**-24 < np.float32(keep)
    attrs = {"extras": ("drop_key", "drop_row"), "keep": keep}
    out, _ = run("flash_attention", q, k, v, key, row, **attrs)
    np.testing.assert_allclose(out, np.where(kept, weights / keep, 0) @ v, atol=1e-5)
    part, _ = run("flash_attention", q[1:], k[1:], v[1:], key, row + 1, **attrs)
    np.testing.assert_array_equal(part, out[1:])  # a batch that is cut drops the same


def test_halves_are_computed_in_f32() -> None:
    q, k, v = (numbers(1, 2, 6, 4, seed=i).astype(np.float16) for i in range(3))
    out, lse = run("flash_attention", q, k, v)
    want, level = run("flash_attention", *(x.astype("f4") for x in (q, k, v)))
    assert out.dtype == np.float16 and lse.dtype == np.float32
    np.testing.assert_array_equal(out, want.astype(np.float16))
    np.testing.assert_array_equal(lse, level)


def test_nan_reaches_its_row_and_no_other() -> None:
    q, k, v = numbers(1, 1, 4, 3), numbers(1, 1, 5, 3), numbers(1, 1, 5, 2)
    q[0, 0, 2, 1] = math.nan
    out, lse = run("flash_attention", q, k, v)
    assert np.isnan(out[0, 0, 2]).all() and np.isnan(lse[0, 0, 2])
    assert np.isfinite(np.delete(out, 2, 2)).all()


B, T = dim("B"), dim("T")
F, WHOLE = dtypes.f32, dtypes.i32
Q = (F, (B, 4, T, 8))


def test_sizes_may_be_symbols() -> None:
    types = [TensorType(*t) for t in (Q, (F, (B, 2, 5, 8)), (F, (B, 2, 5, 3)), (WHOLE, (B,)))]
    builder = Builder("symbols", Expr)
    with builder:
        inputs = [builder.input(t) for t in types]
        out, lse = lookup("flash_attention")(*inputs, extras=("lengths",), high=5 - T)
    assert (out.shape, lse.shape) == ((B, 4, T, 3), (B, 4, T))
    graph = builder.finish([out.value])
    arrays = [numbers(2, 4, 7, 8).astype("f4"), numbers(2, 2, 5, 8).astype("f4")]
    arrays += [numbers(2, 2, 5, 3).astype("f4"), np.array([5, 2], np.int32)]
    (found,) = evaluate(graph, arrays)
    want, _ = run("flash_attention", *arrays, extras=("lengths",), high=-2)
    np.testing.assert_array_equal(found, want)


@pytest.mark.parametrize(
    ("types", "attrs", "error", "match"),
    [
        ([Q, (F, (B, 4, 5, 8)), (F, (B, 4, 6, 8))], {}, ShapeError, "key heads"),
        ([Q, (F, (B, 3, 5, 8)), (F, (B, 3, 5, 8))], {}, ShapeError, "share 3 heads"),
        ([Q, (F, (B, 4, 5, 8)), (dtypes.f64, (B, 4, 5, 8))], {}, DTypeError, "unequal"),
        ([Q, Q, Q, (WHOLE, (T,))], {"extras": ("lengths",)}, ShapeError, "lengths are"),
        ([Q, Q, Q, (WHOLE, (B,))], {"extras": ("spans",)}, ShapeError, "in this order"),
        ([Q, Q, Q, (WHOLE, (B, T))], {"extras": ("key_segments",)}, ShapeError, "come together"),
        ([Q, Q, Q, (F, (B, 1, 1, T))], {"extras": ("mask",)}, DTypeError, "takes bool"),
        ([Q, Q, Q, (F, (B, 2, 1, T))], {"extras": ("bias",)}, ShapeError, "stretch"),
        ([Q, Q, Q, Q], {}, ShapeError, "got 4 operands"),
        ([Q, Q, Q], {"keep": 0.0}, ShapeError, "chance"),
    ],
)
def test_misfits(types: Any, attrs: dict[str, Any], error: type[Exception], match: str) -> None:
    builder = Builder("misfit", Expr)
    with builder, pytest.raises(error, match=match):
        lookup("flash_attention")(*(builder.input(TensorType(*t)) for t in types), **attrs)
