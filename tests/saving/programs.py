"""Compiled functions of all kinds with arguments at several sizes, to be saved and loaded.

Sizes differ on every axis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt

import retrograde as rg
import retrograde.numpy as rnp

Array = npt.NDArray[Any]
D, E = 6, 5
NAN_WITH_SIGN = np.array([0xFFC00001], np.uint32).view(np.float32)


class Pair(NamedTuple):
    first: Any
    second: Any


class Net(rg.nn.Module):
    parts: list[rg.nn.Linear]
    table: dict[str, Any]
    scale: float
    activation: Any

    def __call__(self, x: Any) -> Any:
        for part in self.parts:
            x = self.activation(part(x)) * self.scale
        return x + self.table["shift"]


def net(seed: int = 0) -> Net:
    layers = [rg.nn.Linear(E, D, seed=seed), rg.nn.Linear(D, 4, seed=seed + 1)]
    return Net(layers, {"shift": normal(4, seed=seed)}, 0.5, rnp.tanh)


def normal(*shape: int, seed: int = 1) -> Array:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


class Program(NamedTuple):
    fn: Callable[..., Any]
    specs: tuple[Any, ...]
    arguments: Callable[[int, int], tuple[Any, ...]]  # of B, T
    at: dict[str, int]
    budget: int | None = None


WEIGHT, FLAGS = normal(E, 3), np.array([True, False, True])
HALF = normal(E, 3, seed=8).astype(ml_dtypes.bfloat16)
X = rg.spec("f32", "B", E)


def _trees(d: Any, k: int, flag: str, pair: Any) -> Any:
    y = rnp.tanh(d["x"] @ WEIGHT) * k
    y = rnp.where(FLAGS, y, pair.first)
    return {"z": [y, (y[:, :1], None)], "a": Pair(y.sum(), d["x"] @ HALF), 3: flag and y + 1}


def _constants(x: Any) -> Any:
    numbers = [float("nan"), float("inf"), -float("inf"), -0.0, 1e-45, 3.4028235e38, 0.1]
    large = [2**62 + 1, -(2**63), 2**31 - 1]
    i = rnp.astype(x, "int64")
    return [x * n for n in numbers], [rnp.maximum(i, n) for n in large], 1.0 / (x * 0.0)


def _lstm(w: Any, x: Any, y: Any) -> Any:
    def step(carry: Any, x: Any) -> Any:
        h, c = carry
        i, f, g, o = rnp.split(x @ w["x"] + h @ w["h"] + w["b"], 4, axis=-1)
        c = rnp.sigmoid(f) * c + rnp.sigmoid(i) * rnp.tanh(g)
        h = rnp.sigmoid(o) * rnp.tanh(c)
        return (h, c), h

    zero = rnp.zeros((x.shape[1], D))
    _, hs = rg.scan(step, (zero, zero), x)
    return rnp.mean((hs - y) ** 2)


def _lstm_arguments(b: int, t: int) -> tuple[Any, ...]:
    w = {"x": normal(E, 4 * D), "h": normal(D, 4 * D), "b": normal(4 * D)}
    return w, normal(t, b, E), normal(t, b, D)


LSTM = (
    {"x": rg.spec("f32", E, 4 * D), "h": rg.spec("f32", D, 4 * D), "b": rg.spec("f32", 4 * D)},
    rg.spec("f32", "T", "B", E), rg.spec("f32", "T", "B", D),
)  # fmt: skip


def _ragged(w: Any, x: Any, lengths: Any) -> Any:
    def step(h: Any, x: Any) -> Any:
        h = rnp.tanh(x @ w["x"][:, :D] + h @ w["h"][:, :D])
        return h, h

    return rg.scan(step, rnp.zeros((x.shape[1], D)), x, lengths=lengths)


def _random(key: Any, x: Any) -> Any:
    first, second = rg.random.split(key)
    return x + rg.random.normal(first, x.shape), rg.random.bernoulli(second, 0.3, x.shape)


def _branches(x: Any, n: Any) -> Any:
    y = rg.cond(rnp.sum(x) > 0, lambda x: x * 2, lambda x: -x, x)
    return rg.while_loop(lambda c: c[0] < n, lambda c: (c[0] + 1, c[1] * 0.5 + 1), (n * 0, y))


def _truncated(w: Any, x: Any, y: Any) -> Any:
    def loss(w: Any) -> Any:
        def step(h: Any, x: Any) -> Any:
            h = rnp.tanh(x @ w["x"][:, :D] + h @ w["h"][:, :D])
            return h, h

        _, hs = rg.scan(step, rnp.zeros((x.shape[1], D)), x, truncate=3)
        return rnp.mean((hs - y) ** 2)

    return rg.grad(loss)(w)


def _mean(x: Any, mask: Any) -> Any:
    return rg.Mean(rnp.sum(x * mask[:, None]), rnp.sum(mask)) + 2.0 * rg.Mean(rnp.sum(x), 3)


def _sizes(x: Any) -> Any:
    half = x[: x.shape[0] // 2 + 1]
    return rnp.concatenate([half, x[::2], x[:3]]), x.shape[0] * 2.5


def _updated(model: Net, x: Any, y: Any) -> Any:
    gradient = rg.grad(lambda m: rnp.mean((m(x) - y) ** 2))(model)
    return rg.tree.map(lambda p, g: p - 0.1 * g, model, gradient)


GPT = rg.models.GPT(vocab=11, width=12, layers=2, heads=2, context=16, seed=3)

PROGRAMS: dict[str, Program] = {
    "trees": Program(
        _trees, ({"x": X}, 3, "yes", Pair(rg.spec("f32"), 2.5)),
        lambda b, t: ({"x": normal(b, E)}, 3, "yes", Pair(np.float32(t), 2.5)), {"B": 7},
    ),
    "constants": Program(_constants, (X,), lambda b, t: (normal(b, E),), {}),
    "module": Program(
        lambda m, x: m(x), (net(), X), lambda b, t: (net(t), normal(b, E)), {"B": 3}
    ),
    "updated module": Program(
        _updated, (net(), X, rg.spec("f32", "B", 4)),
        lambda b, t: (net(t), normal(b, E), normal(b, 4)), {"B": 3},
    ),
    "gpt": Program(
        lambda m, x: m(x), (GPT, rg.spec("i32", "B", rg.dim("T", max=16))),
        lambda b, t: (GPT, np.arange(b * t, dtype=np.int32).reshape(b, t) % 11),
        {"B": 4, "T": 16},
    ),
    "lstm": Program(rg.value_and_grad(_lstm), LSTM, _lstm_arguments, {"B": 3, "T": 40}),
    "lstm in a budget": Program(
        rg.value_and_grad(_lstm), LSTM, _lstm_arguments, {"B": 3, "T": 40}, 40_000
    ),
    "truncated": Program(_truncated, LSTM, _lstm_arguments, {"B": 3, "T": 8}),
    "ragged": Program(
        _ragged, (*LSTM[:2], rg.spec("i32", "B")),
        lambda b, t: (*_lstm_arguments(b, t)[:2], np.arange(b, dtype=np.int32) % (t + 1)),
        {"B": 3, "T": 8},
    ),
    "random": Program(
        _random, (rg.spec("u32", 2), X), lambda b, t: (rg.random.key(t), normal(b, E)), {}
    ),
    "branches": Program(
        _branches, (X, rg.spec("i32")), lambda b, t: (normal(b, E), np.int32(t)), {}
    ),
    "mean": Program(
        _mean, (X, rg.spec("f32", "B")), lambda b, t: (normal(b, E), normal(b)), {}
    ),
    "sizes": Program(
        _sizes, (rg.spec("f32", rg.dim("B", min=3), E),), lambda b, t: (normal(b + 2, E),), {}
    ),
}  # fmt: skip
SIZES = ((1, 1), (4, 9), (3, 16))


def compiled(name: str, backend: str = "numpy", **options: Any) -> Any:
    program = PROGRAMS[name]
    return rg.compile(
        program.fn, *program.specs, at=program.at, budget=program.budget, backend=backend,
        **options,
    )  # fmt: skip
