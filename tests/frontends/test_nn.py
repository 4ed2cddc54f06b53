"""Layers against formulas in NumPy, their first values, and their errors."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import retrograde as rg
import retrograde.numpy as rnp
from retrograde import nn
from retrograde.nn.context import dropout_keys

Array = npt.NDArray[Any]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def f32(rng: np.random.Generator, *shape: int) -> Array:
    return rng.normal(size=shape).astype(np.float32)


# --- Linear


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("lead", [(), (4,), (2, 4)])
def test_linear_is_a_product_and_a_bias(
    bias: bool, lead: tuple[int, ...], rng: np.random.Generator
) -> None:
    layer = nn.Linear(5, 3, bias)
    if bias:
        layer = layer.replace(bias=f32(rng, 3))
    x = f32(rng, *lead, 5)
    expected = x @ layer.weight + (layer.bias if bias else 0)
    for call in (layer, rg.jit(layer)):
        np.testing.assert_allclose(call(x), expected, rtol=1e-6, atol=1e-6)


def test_linear_serves_every_size(rng: np.random.Generator) -> None:
    layer = nn.Linear(5, 3)
    compiled = rg.compile(lambda m, x: m(x), layer, rg.spec("f32", "B", "T", 5))
    for lead in ((2, 7), (3, 1)):
        x = f32(rng, *lead, 5)
        np.testing.assert_allclose(compiled(layer, x), x @ layer.weight, rtol=1e-5, atol=1e-6)


def test_first_values_have_the_stated_spread() -> None:
    layer = nn.Linear(400, 300, seed=3)
    assert layer.weight.dtype == np.float32
    assert layer.weight.mean() == pytest.approx(0, abs=4e-4)
    assert layer.weight.std() == pytest.approx(1 / math.sqrt(400), rel=0.01)
    assert not layer.bias.any()
    assert nn.Linear(400, 300, std=0.5).weight.std() == pytest.approx(0.5, rel=0.01)
    assert nn.Embedding(400, 300).weight.std() == pytest.approx(0.02, rel=0.01)
    # Normal, not merely spread so: 68.3% and 95.4% lie within one and two deviations.
    size = np.abs(layer.weight) * math.sqrt(400)
    assert np.mean(size < 1) == pytest.approx(0.683, abs=0.005)
    assert np.mean(size < 2) == pytest.approx(0.954, abs=0.003)


def test_a_seed_fixes_the_first_values_and_a_source_goes_on() -> None:
    assert np.array_equal(nn.Linear(5, 7, seed=1).weight, nn.Linear(5, 7, seed=1).weight)
    assert not np.array_equal(nn.Linear(5, 7, seed=1).weight, nn.Linear(5, 7, seed=2).weight)
    assert not np.array_equal(nn.Linear(5, 7).weight, nn.Linear(5, 7).weight)
    numbers = nn.Source(1)
    first, second = nn.Linear(5, 7, seed=numbers), nn.Linear(5, 7, seed=numbers)
    assert np.array_equal(first.weight, nn.Linear(5, 7, seed=1).weight)
    assert not np.array_equal(first.weight, second.weight)


def test_first_values_are_the_same_in_every_process() -> None:
    code = (
        "from retrograde import nn; import hashlib;"
        "layers = [nn.Linear(5, 7), nn.Embedding(3, 4), nn.Linear(5, 7, seed=3)];"
        "print(hashlib.sha256(b''.join(x.weight.tobytes() for x in layers)).hexdigest())"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(seen) == 1
    # The numbers of a seed do not change from one version to the next either.
    expected = [2.2844415, -1.5494508, 1.9245853]
    got = nn.Source(0).normal((3,), 1.0)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=1e-6)


# --- Embedding


def test_embedding_picks_rows(rng: np.random.Generator) -> None:
    layer = nn.Embedding(6, 4)
    ids = rng.integers(0, 6, (2, 3))
    for call in (layer, rg.jit(layer)):
        assert np.array_equal(call(ids), layer.weight[ids])
        assert np.array_equal(call(ids.astype(np.int32)), layer.weight[ids])


@pytest.mark.parametrize("wrong", [6, -1])
def test_embedding_refuses_rows_that_are_not_there(wrong: int) -> None:
    layer = nn.Embedding(6, 4)
    ids = np.array([0, 5, wrong], np.int32)
    with pytest.raises(rg.errors.DataError, match=rf"{wrong}"):
        layer(ids)
    compiled = rg.compile(lambda m, ids: m(ids), layer, rg.spec("i32", "N"))
    with pytest.raises(rg.errors.DataError, match=rf"{wrong}"):
        compiled(layer, ids)
    assert np.array_equal(compiled(layer, np.array([5], np.int32)), layer.weight[5:])


def test_rows_that_are_used_often_add_up(rng: np.random.Generator) -> None:
    layer = nn.Embedding(4, 3)
    ids = np.array([[2, 0, 2], [2, 1, 0]])
    weights = f32(rng, 2, 3, 3)
    grads = rg.grad(lambda m: rnp.sum(m(ids) * weights))(layer)
    expected = np.zeros((4, 3))
    np.add.at(expected, ids, weights)
    np.testing.assert_allclose(grads.weight, expected, rtol=1e-6)
    assert not grads.weight[3].any()


def test_the_table_serves_as_a_head(rng: np.random.Generator) -> None:
    layer = nn.Embedding(6, 4)
    x = f32(rng, 2, 3, 4)
    np.testing.assert_allclose(layer.attend(x), x @ layer.weight.T, rtol=1e-5, atol=1e-7)


# --- norms


@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm(bias: bool, rng: np.random.Generator) -> None:
    layer = nn.LayerNorm(5, eps=0.01, bias=bias).replace(weight=f32(rng, 5))
    if bias:
        layer = layer.replace(bias=f32(rng, 5))
    x = 3 + f32(rng, 2, 4, 5)
    wide = x.astype(np.float64)
    centred = wide - wide.mean(-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 0.01) * layer.weight
    expected = expected + (layer.bias if bias else 0)
    np.testing.assert_allclose(rg.jit(layer)(x), expected, rtol=1e-4, atol=1e-5)


def test_rms_norm(rng: np.random.Generator) -> None:
    layer = nn.RMSNorm(5, eps=0.01).replace(weight=f32(rng, 5))
    x = 3 + f32(rng, 2, 4, 5)
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 0.01) * layer.weight
    np.testing.assert_allclose(rg.jit(layer)(x), expected, rtol=1e-5)


# --- Dropout


class Noisy(nn.Module):
    """Two dropouts beside each other."""

    first: nn.Dropout
    second: nn.Dropout

    def __call__(self, x: Any) -> Any:
        return self.first(x), self.second(x)


def noisy(model: Noisy, x: Array, seed: int = 0) -> tuple[Array, Array]:
    def run(x: Any) -> Any:
        with dropout_keys(rg.random.key(seed)):
            return model(x)

    out: tuple[Array, Array] = rg.jit(run)(x)
    return out


def test_dropout_zeroes_and_makes_larger(rng: np.random.Generator) -> None:
    x = np.abs(f32(rng, 50, 400)) + 1
    first, second = noisy(Noisy(nn.Dropout(0.3), nn.Dropout(0.3)), x)
    assert np.mean(first == 0) == pytest.approx(0.3, abs=0.01)
    kept = first != 0
    np.testing.assert_allclose(first[kept], x[kept] / 0.7, rtol=1e-6)
    assert not np.array_equal(first, second)  # a place in the model is a mask of its own
    assert np.array_equal(first, noisy(Noisy(nn.Dropout(0.3), nn.Dropout(0.3)), x)[0])
    assert not np.array_equal(first, noisy(Noisy(nn.Dropout(0.3), nn.Dropout(0.3)), x, 1)[0])


def test_dropout_is_off_where_nothing_is_trained(rng: np.random.Generator) -> None:
    x = f32(rng, 4, 5)
    model = Noisy(nn.Dropout(0.5), nn.Dropout(0.0))
    assert np.array_equal(noisy(model.eval(), x)[0], x)
    assert not np.array_equal(noisy(model.eval().train(), x)[0], x)
    assert np.array_equal(noisy(model, x)[1], x)
    assert np.array_equal(rg.jit(model)(x)[0], x)


def test_the_gradient_of_dropout_is_its_mask_also_when_computed_again(
    rng: np.random.Generator,
) -> None:
    layer = nn.Dropout(0.4)
    x = f32(rng, 6, 7)

    def gradient(again: bool) -> Array:
        def loss(x: Any) -> Any:
            with dropout_keys(rg.random.key(3)):
                drop = rg.remat(lambda x: rnp.exp(layer(x))) if again else (
                    lambda x: rnp.exp(layer(x))
                )
                return rnp.sum(drop(x))

        out: Array = rg.grad(loss)(x)
        return out

    kept, recomputed = gradient(False), gradient(True)
    assert np.array_equal(kept, recomputed)
    mask = kept != 0
    np.testing.assert_allclose(kept[mask], np.exp(x[mask] / 0.6) / 0.6, rtol=1e-5)
    assert 0 < mask.sum() < mask.size


# --- attention


def attended(
    layer: nn.MultiHeadAttention, x: Array, allowed: Array
) -> Array:
    """Head by head, query by query, in float64; `allowed` is [batch, heads, time, time]."""
    batch, time, width = x.shape
    d = width // layer.heads
    fused = x.astype(np.float64) @ layer.qkv.weight + layer.qkv.bias
    mixed = np.zeros((batch, time, width))
    for b in range(batch):
        for h in range(layer.heads):
            q, k, v = (fused[b, :, i * width + h * d : i * width + (h + 1) * d] for i in range(3))
            for t in range(time):
                keys = [s for s in range(time) if allowed[b, h, t, s]]
                if not keys:
                    continue
                scores = np.array([q[t] @ k[s] / math.sqrt(d) for s in keys])
                weights = np.exp(scores - scores.max())
                weights /= weights.sum()
                mixed[b, t, h * d : (h + 1) * d] = sum(
                    w * v[s] for w, s in zip(weights, keys, strict=True)
                )
    out: Array = mixed @ layer.out.weight + layer.out.bias
    return out


@pytest.fixture
def heads(rng: np.random.Generator) -> nn.MultiHeadAttention:
    layer = nn.MultiHeadAttention(6, 2, seed=5)
    return layer.replace({"qkv.bias": f32(rng, 18), "out.bias": f32(rng, 6)})


def test_attention_looks_back(heads: nn.MultiHeadAttention, rng: np.random.Generator) -> None:
    x = f32(rng, 3, 5, 6)
    past = np.broadcast_to(np.tri(5, dtype=bool), (3, 2, 5, 5))
    np.testing.assert_allclose(rg.jit(heads)(x), attended(heads, x, past), rtol=1e-4, atol=1e-5)
    for t in range(5):
        changed = x.copy()
        changed[:, t:] += 1
        assert np.allclose(heads(changed)[:, :t], heads(x)[:, :t], atol=1e-6)
        assert not np.allclose(heads(changed)[:, t], heads(x)[:, t])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("rank", [2, 3, 4])
def test_attention_with_masks_and_lengths(
    rank: int, causal: bool, rng: np.random.Generator
) -> None:
    layer = nn.MultiHeadAttention(6, 2, causal=causal, seed=5)
    x = f32(rng, 3, 5, 6)
    shape = {2: (5, 5), 3: (3, 5, 5), 4: (3, 2, 5, 5)}[rank]
    mask = rng.random(shape) < 0.7
    lengths = np.array([5, 3, 1])
    allowed = np.broadcast_to(mask[:, None] if rank == 3 else mask, (3, 2, 5, 5)).copy()
    if causal:
        allowed &= np.tri(5, dtype=bool)
    got = rg.jit(layer)(x, mask)
    np.testing.assert_allclose(got, attended(layer, x, allowed), rtol=1e-4, atol=1e-5)
    allowed &= np.arange(5) < lengths[:, None, None, None]
    got = rg.jit(layer)(x, mask, lengths)
    x[np.arange(5) >= lengths[:, None]] = 0  # as what lies beyond a length is taken
    np.testing.assert_allclose(got, attended(layer, x, allowed), rtol=1e-4, atol=1e-5)


def test_what_lies_beyond_a_length_does_not_matter(rng: np.random.Generator) -> None:
    layer = nn.MultiHeadAttention(6, 2, causal=False, seed=5)
    lengths = np.array([2, 4])
    compiled = rg.compile(
        lambda m, x, n: m(x, lengths=n), layer, rg.spec("f32", "B", "T", 6), rg.spec("i64", "B")
    )
    x = f32(rng, 2, 5, 6)
    noise = x.copy()
    noise[0, 2:] = 1e3
    noise[1, 4:] = -1e3
    a, b = compiled(layer, x, lengths), compiled(layer, noise, lengths)
    assert np.array_equal(a[0, :2], b[0, :2]) and np.array_equal(a[1, :4], b[1, :4])


# --- Sequential and names


def test_sequential_runs_one_after_the_other(rng: np.random.Generator) -> None:
    model = nn.Sequential(nn.Linear(5, 7), rnp.tanh, nn.Linear(7, 2, bias=False))
    x = f32(rng, 4, 5)
    expected = np.tanh(x @ model[0].weight) @ model[2].weight
    np.testing.assert_allclose(rg.jit(model)(x), expected, rtol=1e-5, atol=1e-6)
    assert len(model) == 3
    assert list(model.parameters()) == ["layers.0.weight", "layers.0.bias", "layers.2.weight"]


def test_nodes_carry_the_module_and_the_line_that_called_it() -> None:
    model = nn.Sequential(nn.Linear(5, 7), rnp.tanh)
    graph = rg.trace(lambda m, x: m(x), model, rg.spec("f32", "B", 5))
    product = next(n for n in graph.nodes if n.op.name == "dot_general")
    assert product.scope == "layers.0"
    assert product.loc is not None and product.loc.file == __file__


# --- errors


def wrong_calls() -> dict[str, Any]:
    x = np.ones((2, 5), np.float32)
    return {
        "width": (lambda: nn.Linear(4, 3)(x), rg.errors.ShapeError, r"\[\.\.\., 4\], got f32\[2,5"),
        "dtype": (lambda: nn.Linear(5, 3)(np.ones((2, 5), int)), rg.errors.DTypeError, "floats"),
        "ids": (lambda: nn.Embedding(5, 3)(x), rg.errors.DTypeError, "integers, got f32"),
        "norm": (lambda: nn.LayerNorm(4)(x), rg.errors.ShapeError, "LayerNorm"),
        "rms": (lambda: nn.RMSNorm(4)(x), rg.errors.ShapeError, "RMSNorm"),
        "rank": (lambda: nn.MultiHeadAttention(5, 1)(x), rg.errors.ShapeError, "batch, time"),
        "mask": (
            lambda: nn.MultiHeadAttention(5, 1)(x[None], np.ones((3, 3), bool)),
            rg.errors.ShapeError,
            "the mask is bool",
        ),
        "lengths": (
            lambda: nn.MultiHeadAttention(5, 1)(x[None], lengths=np.ones(3, int)),
            rg.errors.ShapeError,
            "the lengths",
        ),
        "no size": (lambda: nn.Linear(0, 3), rg.errors.ShapeError, "at least 1"),
        "no number": (lambda: nn.Embedding(2.5, 3), rg.errors.ShapeError, "whole number"),
        "heads": (lambda: nn.MultiHeadAttention(5, 2), rg.errors.ShapeError, "no multiple"),
        "rate": (lambda: nn.Dropout(1.0), rg.errors.ShapeError, "below"),
        "seed": (lambda: nn.Linear(2, 3, seed="x"), rg.errors.DTypeError, "seed"),
        "list": (lambda: nn.Sequential([rnp.tanh]), rg.errors.TraceError, r"\*layers"),
    }


@pytest.mark.parametrize("case", wrong_calls())
def test_errors_name_the_line_and_the_shapes(case: str) -> None:
    call, error, message = wrong_calls()[case]
    with pytest.raises(error, match=message) as caught:
        call()
    assert f"{__file__}:" in str(caught.value)
