"""What is checked of every sequence model: slopes, sight, noise beyond lengths, packing, training.

Models are in float64 and away from their first values, where most signals are near zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import retrograde as rg
import retrograde.numpy as rnp
from retrograde import tree

Array = npt.NDArray[Any]


def wide(model: Any, seed: int = 5, by: float = 0.2) -> Any:
    """In float64, and moved."""
    rng = np.random.default_rng(seed)
    return tree.map(lambda x: x + by * rng.normal(size=x.shape), model)


def check_slopes(loss: Callable[..., Any], model: Any, *data: Any, directions: int = 2) -> None:
    """The gradient along random directions against central differences."""
    value = rg.jit(lambda m, *d: _value(loss(m, *d)))
    gradient = rg.jit(rg.grad(loss))(model, *data)
    rng = np.random.default_rng(8)
    for _ in range(directions):
        way = tree.map(lambda x: rng.normal(size=x.shape), model)
        slope = sum(
            float(np.vdot(g, d))
            for g, d in zip(tree.leaves(gradient), tree.leaves(way), strict=True)
        )
        up, down = (
            float(value(tree.map(lambda x, d, h=h: x + h * d, model, way), *data))
            for h in (1e-5, -1e-5)
        )
        assert slope == pytest.approx((up - down) / 2e-5, rel=1e-5, abs=1e-8)


def _value(loss: Any) -> Any:
    return loss.value if isinstance(loss, rg.Mean) else loss


def seen(run: Callable[[Array], Array], x: Array, other: Callable[[Array], Array]) -> Array:
    """[T, T]: whether the result at i changes with what stands at j, in any row."""
    base = np.asarray(run(x))
    time = x.shape[1]
    found = np.zeros((time, time), bool)
    for j in range(time):
        changed = x.copy()
        changed[:, j] = other(changed[:, j])
        difference = np.abs(np.asarray(run(changed)) - base)
        found[:, j] = difference.reshape(*difference.shape[:2], -1).max((0, 2)) > 0
    return found


def same_bits(a: Any, b: Any) -> bool:
    """Whether two trees hold the same bits, all of them finite."""
    pairs = list(zip(tree.leaves(a), tree.leaves(b), strict=True))
    return all(
        np.asarray(x).tobytes() == np.asarray(y).tobytes() and bool(np.all(np.isfinite(x)))
        for x, y in pairs
    )


def check_three_ways(
    model: Any,
    rows: Sequence[Array],
    targets: Sequence[Array],
    loss: Callable[..., Any],
    tolerance: float = 1e-12,
) -> None:
    """Packed = padded = one by one, loss and gradients.

    `loss(model, x, targets, mask, **given)` is a Mean over tokens; what it is given is lengths or
    segments."""
    run = rg.jit(rg.value_and_grad(loss))
    sizes = [len(r) for r in rows]
    counts = np.array(sizes) / sum(sizes)
    alone = [
        run(model, r[None], t[None], np.ones((1, len(r)), bool))
        for r, t in zip(rows, targets, strict=True)
    ]
    total = sum(float(v) * c for (v, _), c in zip(alone, counts, strict=True))
    slopes = [
        sum(g * c for g, c in zip(each, counts, strict=True))
        for each in zip(*(tree.leaves(g) for _, g in alone), strict=True)
    ]
    longest = max(sizes)
    padded = [_padded(x, longest) for x in (rows, targets)]
    inside = np.arange(longest) < np.array(sizes)[:, None]
    half = len(rows) // 2
    groups = [range(half), range(half, len(rows))]
    width = max(sum(sizes[i] for i in g) for g in groups) + 1
    packed = [
        _padded([np.concatenate([x[i] for i in g]) for g in groups], width)
        for x in (rows, targets)
    ]
    numbers = [np.concatenate([np.full(sizes[i], i + 1) for i in g]) for g in groups]
    segments = _padded(numbers, width)
    ways = {
        "padded": run(model, *padded, inside, lengths=np.array(sizes)),
        "packed": run(model, *packed, segments > 0, segments=segments),
    }
    for name, (value, gradient) in ways.items():
        assert float(value) == pytest.approx(total, abs=tolerance), name
        for a, b in zip(tree.leaves(gradient), slopes, strict=True):
            np.testing.assert_allclose(a, b, atol=tolerance, err_msg=name)


def _padded(rows: Sequence[Array], size: int) -> Array:
    out = np.zeros((len(rows), size, *rows[0].shape[1:]), rows[0].dtype)
    for row, r in zip(out, rows, strict=True):
        row[: len(r)] = r
    return out


def check_training(
    loss: Callable[..., Any], model: Any, batch: dict[str, Any], **options: Any
) -> None:
    """A few steps make the loss smaller."""
    specs = {
        name: rg.spec(str(x.dtype), "B", *("T" if i == 0 else d for i, d in enumerate(x.shape[1:])))
        for name, x in batch.items()
    }
    step = rg.compile_training(loss, model, rg.optim.AdamW(3e-3), batch=specs, **options)
    losses = [float(step(**batch)["loss"]) for _ in range(8)]
    assert np.all(np.isfinite(losses)) and losses[-1] < losses[0], losses


def token_loss(model: Any, x: Any, targets: Any, mask: Any, **given: Any) -> Any:
    """Cross-entropy where the mask is true."""
    return rg.losses.cross_entropy(model(x, **given), targets, mask)


def beyond(lengths: Array, x: Array, noise: Any) -> Array:
    """`x` with noise beyond each row's length."""
    inside = np.arange(x.shape[1]) < lengths[:, None]
    inside = inside.reshape(*inside.shape, *(1,) * (x.ndim - 2))
    return np.where(inside, x, noise).astype(x.dtype)


def steps(lengths: Any, x: Any) -> Any:
    """The mask [B, T] of lengths, traced."""
    return rnp.less(rnp.arange(x.shape[1]), rnp.expand_dims(lengths, 1))
