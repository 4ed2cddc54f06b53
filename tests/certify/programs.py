"""Small programs for certificates: every kind of step that a compiler can get wrong."""

from __future__ import annotations

from typing import Any

import numpy as np

import retrograde as rg
import retrograde.numpy as rnp
from retrograde import nn

SMALL = [{"B": 3}]


def net(p: Any, x: Any, ids: Any) -> Any:
    """Products, a bias, shared uses, a table, rows that are normalised, a choice."""
    h = rnp.tanh(x @ p["w"] + p["b"])
    z = h * p["table"][ids] + h * h
    rows = z - rnp.mean(z, axis=1, keepdims=True)
    soft = _soft(rows)
    kept = rnp.where(z > 0.1, z, 0.25 * z)
    return rnp.sum(soft * z) + rnp.sum(rnp.exp(-kept) - kept / (2.0 + z * z))


def _soft(x: Any) -> Any:
    e = rnp.exp(x - rnp.max(x, axis=1, keepdims=True))
    return e / rnp.sum(e, axis=1, keepdims=True)


PARTS = {"w": rg.spec("f32", 5, 4), "b": rg.spec("f32", 4), "table": rg.spec("f32", 6, 4)}


def make_net(backend: str = "numpy", **options: Any) -> Any:
    x, ids = rg.spec("f32", "B", 5), rg.spec("i32", "B")
    return rg.compile(rg.value_and_grad(net), PARTS, x, ids, backend=backend, **options)


def loop(p: Any, xs: Any) -> Any:
    """A recurrent net written out: a gate, a state, a weight read at every step."""

    def step(carry: Any, x: Any) -> Any:
        h, c = carry
        a = x @ p["in"] + h @ p["back"]
        gate = 1.0 / (1.0 + rnp.exp(-a))
        c = gate * c + (1.0 - gate) * rnp.tanh(a)
        h = gate * rnp.tanh(c)
        return (h, c), h

    zero = rnp.zeros((xs.shape[1], 4), "f32")
    (h, c), hs = rg.scan(step, (zero, zero), xs)
    return rnp.sum(hs * hs) + rnp.sum(rnp.sin(c)) - rnp.sum(h)


CELL = {"in": rg.spec("f32", 3, 4), "back": rg.spec("f32", 4, 4)}


def make_loop(backend: str = "numpy", **options: Any) -> Any:
    xs = rg.spec("f32", "T", "B", 3)
    return rg.compile(rg.value_and_grad(loop), CELL, xs, backend=backend, **options)


def make_remat(backend: str = "numpy", **options: Any) -> Any:
    """A block that is computed again, dropout and all."""

    def block(w: Any, x: Any, key: Any) -> Any:
        kept = rg.random.bernoulli(key, 0.7, x.shape)
        return rnp.tanh(x @ w) * rnp.where(kept, 1.25, 0.0) + x

    again = rg.remat(block)

    def loss(w: Any, x: Any, key: Any) -> Any:
        for i in range(2):
            x = again(w, x, rg.random.fold_in(key, i))
        return rnp.sum(x**3)

    specs = rg.spec("f32", 4, 4), rg.spec("f32", "B", 4), rg.spec("u32", 2)
    return rg.compile(rg.value_and_grad(loss), *specs, backend=backend, **options)


def make_custom(factor: float = 1.0, backend: str = "numpy") -> Any:
    """A function with a gradient of its own, right for a factor of 1."""
    cube = rg.custom_vjp(
        lambda x: x * x * x, lambda x: (x * x * x, x), lambda x, g: (factor * 3.0 * x * x * g,)
    )

    def loss(x: Any) -> Any:
        return rnp.sum(cube(rnp.sin(x)) * x)

    return rg.compile(rg.value_and_grad(loss), rg.spec("f32", "B", 3), backend=backend)


class MLP(nn.Module):
    """Two layers."""

    first: nn.Linear
    second: nn.Linear

    def __init__(self) -> None:
        self.first, self.second = nn.Linear(5, 7, seed=1), nn.Linear(7, 3, seed=2)

    def __call__(self, x: Any) -> Any:
        return self.second(rnp.tanh(self.first(x)))


def make_mlp(backend: str = "numpy", **options: Any) -> Any:
    def loss(model: Any, x: Any, y: Any) -> Any:
        return rg.losses.cross_entropy(model(x), y)

    batch = {"x": rg.spec("f32", "B", 5), "y": rg.spec("i32", "B")}
    return rg.compile_training(loss, MLP(), rg.optim.AdamW(1e-2), batch, backend=backend, **options)


def make_gpt(backend: str = "numpy", **options: Any) -> Any:
    def loss(model: Any, tokens: Any, targets: Any) -> Any:
        return rg.losses.cross_entropy(model(tokens), targets)

    model = rg.models.GPT(
        vocab=31, width=16, layers=2, heads=2, context=40, seed=3, dropout=0.1, tied=True
    )
    t = rg.dim("T", max=40)
    batch = {"tokens": rg.spec("i32", "B", t), "targets": rg.spec("i32", "B", t)}
    return rg.compile_training(
        loss, model, rg.optim.AdamW(1e-3), batch, clip_norm=1.0, backend=backend, **options
    )


def make_lstm(backend: str = "numpy", **options: Any) -> Any:
    """Rows of unequal lengths."""

    def loss(model: Any, tokens: Any, targets: Any, lengths: Any) -> Any:
        logits = model(tokens, lengths=lengths)
        logits = logits[0] if isinstance(logits, tuple) else logits
        mask = rnp.arange(tokens.shape[1])[None, :] < lengths[:, None]
        return rg.losses.cross_entropy(logits, targets, mask=mask)

    model = rg.models.RNNLM(vocab=13, width=8, layers=1, cell="lstm", seed=1, dropout=0.2)
    batch = {
        "tokens": rg.spec("i32", "B", "T"),
        "targets": rg.spec("i32", "B", "T"),
        "lengths": rg.spec("i32", "B"),
    }
    return rg.compile_training(loss, model, rg.optim.Adam(1e-2), batch, backend=backend, **options)


def numbers(*shape: int) -> Any:
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)
