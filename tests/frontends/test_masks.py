"""Masks as an algebra: against loops in Python, as predicates of tiled attention, and no leaks."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import retrograde as rg
from retrograde import masks, nn, tree
from retrograde.runtime.native.toolchain import find_toolchain

Array = npt.NDArray[Any]
SEGMENTS = np.array([[1, 1, 1, 2, 2, 0, 0], [3, 4, 4, 4, 4, 4, 9], [5, 5, 5, 5, 5, 5, 5]])
LENGTHS = np.array([5, 7, 1])
B, T, W = 3, 7, 16
NATIVE = pytest.mark.skipif(find_toolchain() is None, reason="there is no C compiler")


def drawn(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape)


def wide(model: Any) -> Any:
    """In float64, and away from its first values."""
    rng = np.random.default_rng(5)
    return tree.map(lambda x: x + 0.2 * rng.normal(size=x.shape), model)


# --- the algebra


def opened(rule: Any, queries: int, keys: int) -> Array:
    pairs = [[[rule(b, i, j) for j in range(keys)] for i in range(queries)] for b in range(B)]
    return np.array(pairs)


def cases() -> dict[str, tuple[Any, Any]]:
    back = {"causal": lambda b, i, j: j <= i, "padding": lambda b, i, j: j < LENGTHS[b]}
    same = lambda b, i, j: SEGMENTS[b, i] == SEGMENTS[b, j]  # noqa: E731
    near = lambda b, i, j: i - 2 <= j <= i + 1  # noqa: E731
    some = np.random.default_rng(1).random((B, T, T)) < 0.5
    return {
        "causal": (masks.causal(), back["causal"]),
        "padding": (masks.padding(LENGTHS), back["padding"]),
        "segments": (masks.segments(SEGMENTS), same),
        "window": (masks.window(2, 1), near),
        "allowed": (masks.allowed(some), lambda b, i, j: some[b, i, j]),
        "and": (
            masks.causal() & masks.segments(SEGMENTS) & masks.padding(LENGTHS),
            lambda b, i, j: j <= i and same(b, i, j) and j < LENGTHS[b],
        ),
        "or": (
            masks.window(2, 1) | masks.padding(LENGTHS) & masks.causal(),
            lambda b, i, j: near(b, i, j) or (j < LENGTHS[b] and j <= i),
        ),
    }


@pytest.mark.parametrize("name", cases())
def test_a_mask_is_what_its_rule_says(name: str) -> None:
    mask, rule = cases()[name]
    expected = opened(rule, T, T)
    got = np.broadcast_to(mask.array(T, T), (B, T, T))
    assert np.array_equal(got, expected)
    per_head = np.broadcast_to(mask.array(T, T, heads=True), (B, 2, T, T))
    assert np.array_equal(per_head, np.broadcast_to(expected[:, None], (B, 2, T, T)))


def test_the_last_query_is_aligned_with_the_last_key() -> None:
    assert np.array_equal(masks.causal().array(2, 5), np.tri(2, 5, 3, dtype=bool))
    assert np.array_equal(masks.window(1).array(2, 4), [[0, 1, 1, 0], [0, 0, 1, 1]])


def test_positions_count_in_each_segment() -> None:
    expected = [[0, 1, 2, 0, 1, 0, 1], [0, 0, 1, 2, 3, 4, 0], [0, 1, 2, 3, 4, 5, 6]]
    compiled = rg.compile(masks.positions, rg.spec("i64", "B", rg.dim("T", min=0)))
    assert np.array_equal(masks.positions(SEGMENTS), expected)
    assert np.array_equal(compiled(SEGMENTS), expected)
    assert compiled(SEGMENTS[:, :0]).shape == (B, 0)
    ahead = [[0, 0, 1, 0, 1, 0, 0], [1, 0, 0, 0, 0, 1, 0], [0] * 7]
    assert np.array_equal(masks.changes(SEGMENTS, reverse=True), np.array(ahead, bool))


WRONG: dict[str, tuple[Any, Any, str]] = {
    "lengths": (lambda: masks.padding(np.ones((2, 2), int)), rg.errors.ShapeError, "the lengths"),
    "floats": (lambda: masks.segments(np.ones((2, 2))), rg.errors.DTypeError, "integers"),
    "back": (lambda: masks.window(-1), rg.errors.ShapeError, "back is -1"),
    "rank": (lambda: masks.allowed(np.ones(3, bool)), rg.errors.ShapeError, "the mask is bool"),
    "keys": (lambda: masks.segments(SEGMENTS).array(4, 4), rg.errors.ShapeError, "of 4 queries"),
    "kv": (lambda: nn.MultiHeadAttention(12, 6, kv_heads=4), rg.errors.ShapeError, "no multiple"),
    "odd": (lambda: nn.MultiHeadAttention(9, 3, rotary=True), rg.errors.ShapeError, "odd"),
    "batch": (
        lambda: nn.CrossAttention(4, 2)(np.ones((2, 3, 4)), np.ones((3, 3, 4))),
        rg.errors.ShapeError,
        "one batch",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_names_the_line(name: str) -> None:
    call, error, said = WRONG[name]
    with pytest.raises(error, match=said) as caught:
        call()
    assert __file__.rsplit("/", 1)[1] in str(caught.value)


# --- in tiled attention


PREDICATES: dict[str, tuple[dict[str, Any], dict[str, Any], Any]] = {
    "causal": ({}, {}, None),
    "segments": ({}, {"segments": SEGMENTS}, None),
    "lengths": ({"causal": False}, {"lengths": LENGTHS}, None),
    "window": ({"window": 3}, {}, None),
    "all": (
        {"window": 3, "kv_heads": 2, "rotary": True},
        {"segments": SEGMENTS, "lengths": LENGTHS},
        None,
    ),
    "mask": ({"causal": False}, {"segments": SEGMENTS}, lambda s: masks.causal() & masks.window(4)),
    "composed": ({"causal": False}, {"segments": SEGMENTS},
                 lambda s: masks.segments(s["segments"]) & masks.causal()),
}  # fmt: skip


@NATIVE
@pytest.mark.parametrize("name", PREDICATES)
def test_masks_reach_the_kernel(name: str) -> None:
    """No array of queries x keys is left, forward or backward, and the numbers are the same."""
    options, given, extra = PREDICATES[name]
    layer = nn.MultiHeadAttention(W, 4, seed=3, **options)

    def loss(layer: Any, x: Any, more: Any) -> Any:
        y = layer(x, **more) if extra is None else layer(x, mask=extra(more))
        return (y**2).mean()

    x = drawn(B, T, W).astype(np.float32)
    specs = {k: rg.spec("i64", "B", *["T"] * (v.ndim - 1)) for k, v in given.items()}
    compiled = rg.compile(
        rg.value_and_grad(loss), layer, rg.spec("f32", "B", "T", W), specs, backend="native"
    )
    graph = compiled.ir("trace")
    assert "flash_attention" in {n.op.name for n in graph.nodes}
    square = [n for n in graph.nodes for v in n.outputs if [*map(str, v.shape)].count("T") > 1]
    assert not square
    value, gradient = compiled(layer, x, given)
    with_mask = rg.jit(rg.value_and_grad(loss))(wide64(layer), x.astype(np.float64), given)
    np.testing.assert_allclose(value, with_mask[0], rtol=1e-5)
    for a, b in zip(tree.leaves(gradient), tree.leaves(with_mask[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def wide64(model: Any) -> Any:
    return tree.map(lambda x: x.astype(np.float64), model)


# --- no leak


@pytest.mark.parametrize("noise", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("backend", ["numpy", pytest.param("native", marks=NATIVE)])
def test_what_lies_beyond_a_length_changes_no_bit(noise: float, backend: str) -> None:
    layer = nn.MultiHeadAttention(W, 4, causal=False, kv_heads=2, seed=3)
    cross = nn.CrossAttention(W, 2, 6, seed=4)
    inside = np.arange(T) < LENGTHS[:, None]

    def loss(parts: Any, x: Any, memory: Any, lengths: Any) -> Any:
        y = parts[1](parts[0](x, lengths=lengths), memory, lengths=lengths)
        return rg.losses.mse(y, y * 0.0, rg.numpy.less(rg.numpy.arange(T), lengths[:, None]))

    x, memory = drawn(B, T, W).astype(np.float32), drawn(B, T, 6, seed=1).astype(np.float32)
    both = rg.compile(
        rg.value_and_grad(loss, argnums=(0, 1, 2)), (layer, cross), x, memory, LENGTHS,
        backend=backend,
    )  # fmt: skip
    plain = both((layer, cross), x, memory, LENGTHS)
    other = both(
        (layer, cross), np.where(inside[..., None], x, noise).astype(np.float32),
        np.where(inside[..., None], memory, noise).astype(np.float32), LENGTHS,
    )  # fmt: skip
    for a, b in zip(tree.leaves(plain), tree.leaves(other), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
        assert np.all(np.isfinite(a))


def test_packed_is_padded_is_one_by_one() -> None:
    """The same sequences three ways: loss and gradients within 1e-12 in float64."""
    layer = wide(nn.MultiHeadAttention(W, 4, kv_heads=2, rotary=True, window=4, seed=3))
    sizes = [4, 2, 6, 1]
    rows = [drawn(n, W, seed=n) for n in sizes]

    def loss(layer: Any, x: Any, mask: Any, **given: Any) -> Any:
        return rg.losses.mse(layer(x, **given), x * 0.5, mask)

    run = rg.jit(rg.value_and_grad(loss))
    alone = [run(layer, r[None], np.ones((1, len(r)), bool)) for r in rows]
    counts = np.array(sizes) * W
    total = sum(float(v) * c for (v, _), c in zip(alone, counts, strict=True)) / counts.sum()
    slopes = [tree.leaves(g) for _, g in alone]
    expected = [
        sum(g * c for g, c in zip(each, counts, strict=True)) / counts.sum()
        for each in zip(*slopes, strict=True)
    ]
    padded = np.zeros((4, 6, W))
    for row, r in zip(padded, rows, strict=True):
        row[: len(r)] = r
    inside = np.arange(6) < np.array(sizes)[:, None]
    packed = np.stack(
        [np.concatenate([rows[2], rows[3]]), np.concatenate([rows[0], rows[1], np.zeros((1, W))])]
    )
    segments = np.array([[1, 1, 1, 1, 1, 1, 2], [1, 1, 1, 1, 2, 2, 0]])
    ways = {
        "padded": run(layer, padded, inside, lengths=np.array(sizes)),
        "packed": run(layer, packed, segments > 0, segments=segments),
    }
    for name, (value, gradient) in ways.items():
        assert value == pytest.approx(total, abs=1e-12), name
        for a, b in zip(tree.leaves(gradient), expected, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-12, err_msg=name)


# --- positions as numbers


def test_rotary_turns_pairs_and_keeps_distances() -> None:
    turn = nn.Rotary(6)
    x = drawn(2, 3, 5, 6)
    places = np.array([[4, 0, 2, 9, 7], [1, 2, 3, 4, 5]])
    angles = places[..., None] * 10000.0 ** (-2 * np.arange(3) / 6)
    z = (x[..., :3] + 1j * x[..., 3:]) * np.exp(1j * angles)[:, None]
    expected = np.concatenate([z.real, z.imag], -1)
    np.testing.assert_allclose(turn(x, places), expected, atol=1e-12)
    q, k = turn(x), turn(x[:, :, ::-1])
    later = np.arange(5) + 100
    far = turn(x, later) @ turn(x[:, :, ::-1], later).swapaxes(-1, -2)
    np.testing.assert_allclose(q @ k.swapaxes(-1, -2), far, atol=1e-9)


def test_sinusoidal_is_its_formula() -> None:
    got = nn.sinusoidal(np.array([0, 3, 50]), 8)
    angles = np.array([0, 3, 50])[:, None] * 10000.0 ** (-2 * np.arange(4) / 8)
    np.testing.assert_allclose(got, np.concatenate([np.sin(angles), np.cos(angles)], -1), atol=1e-5)


def test_a_segment_hides_the_others_and_a_window_what_is_far() -> None:
    layer = wide(nn.MultiHeadAttention(W, 4, kv_heads=1, rotary=True, window=3, seed=3))
    x = drawn(B, T, W)
    base = layer(x, segments=SEGMENTS)
    for t in range(T):
        changed = x.copy()
        changed[:, t] += 1
        moved = np.abs(layer(changed, segments=SEGMENTS) - base).max(-1) > 0
        for b in range(B):
            sees = [SEGMENTS[b, i] == SEGMENTS[b, t] and i - 2 <= t <= i for i in range(T)]
            assert moved[b].tolist() == sees
