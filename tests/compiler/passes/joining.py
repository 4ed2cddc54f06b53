"""Models for the tests of joining, in f64: losses of sequences and their gradients, as graphs.

Sizes differ on every axis; T is a symbol.  A model is a function that returns the traced graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import retrograde as rg
import retrograde.numpy as rnp
from retrograde.compiler.ir import dims
from retrograde.compiler.ir.graph import Graph

B, D, H, V = 2, 3, 4, 7
STEPS = rg.dim("T", min=0)
AT_LEAST_ONE = rg.dim("T", min=1)
TOKENS = rg.spec("i32", B, STEPS)
MASK = rg.spec("bool", B, STEPS)
LENGTHS = rg.spec("i32", B)

MODELS: dict[str, Callable[[], Graph]] = {}


def model(*specs: Any, weights: dict[str, tuple[int, ...]], grad: bool = True) -> Any:
    """Registers `loss(w, *args)` with the shapes of its weights."""

    def note(loss: Callable[..., Any]) -> Callable[..., Any]:
        def traced() -> Graph:
            given = {name: rg.spec("f64", *shape) for name, shape in weights.items()}
            graph: Graph = rg.trace(rg.value_and_grad(loss) if grad else loss, given, *specs)
            return graph

        MODELS[loss.__name__] = traced
        return loss

    return note


def layered(*specs: Any, parts: Callable[[], Any]) -> Any:
    """Registers `loss(modules, *args)`, with the modules in f64."""

    def note(loss: Callable[..., Any]) -> Callable[..., Any]:
        def traced() -> Graph:
            modules = rg.tree.map(lambda x: np.asarray(x, "f8"), parts())
            graph: Graph = rg.trace(rg.value_and_grad(loss), modules, *specs)
            return graph

        MODELS[loss.__name__] = traced
        return loss

    return note


def inputs_for(graph: Graph, steps: int, seed: int = 0) -> list[np.ndarray]:
    """Weights, tokens below the vocabulary, masks with both values, lengths up to `steps`."""
    draw = np.random.default_rng(seed)
    out: list[np.ndarray] = []
    for v, name in zip(graph.inputs, graph.input_names, strict=True):
        shape = tuple(dims.evaluate(d, {"T": steps}) for d in v.shape)
        if v.dtype.name == "bool":
            x = draw.uniform(size=shape) < 0.7
        elif name == "lengths":
            x = draw.integers(0, steps + 1, shape)
        elif v.dtype.name == "u32":
            x = draw.integers(0, 2**32, shape)
        elif not v.dtype.is_float:
            x = draw.integers(0, V, shape)
        else:
            x = draw.normal(size=shape) * 0.6
        out.append(np.asarray(x).astype(v.dtype.numpy))
    return out


def lstm(w: Any, carry: Any, x: Any) -> Any:
    h, c = carry
    i, f, g, o = rnp.split(x @ w["x"] + h @ w["h"] + w["b"], 4, axis=-1)
    c = rnp.sigmoid(f) * c + rnp.sigmoid(i) * rnp.tanh(g)
    h = rnp.sigmoid(o) * rnp.tanh(c)
    return (h, c), h


LSTM = {"x": (D, 4 * H), "h": (H, 4 * H), "b": (4 * H,)}
RNN = {"x": (D, H), "h": (H, H)}
XS = rg.spec("f64", STEPS, B, D)
YS = rg.spec("f64", STEPS, B, H)


def start(count: int = 2) -> Any:
    return tuple(rnp.zeros((B, H), "f64") for _ in range(count))


def rnn(w: Any, xs: Any, reverse: bool = False) -> Any:
    def step(h: Any, x: Any) -> Any:
        h = rnp.tanh(x @ w["x"] + h @ w["h"])
        return h, h

    return rg.scan(step, start()[0], xs, reverse=reverse)


# --- layers over time


def _language() -> dict[str, Any]:
    return {
        "embed": rg.nn.Embedding(V, D), "cell": rg.nn.LSTM(D, H), "head": rg.nn.Linear(H, V)
    }  # fmt: skip


def _logits(m: dict[str, Any], tokens: Any) -> Any:
    return m["head"](m["cell"](m["embed"](tokens))[0])


@layered(TOKENS, TOKENS, parts=_language)
def language(m: Any, tokens: Any, targets: Any) -> Any:
    return rg.losses.cross_entropy(_logits(m, tokens), targets)


@layered(TOKENS, TOKENS, MASK, parts=_language)
def masked_language(m: Any, tokens: Any, targets: Any, mask: Any) -> Any:
    return rg.losses.cross_entropy(_logits(m, tokens), targets, mask=mask)


@layered(TOKENS, TOKENS, parts=_language)
def smoothed(m: Any, tokens: Any, targets: Any) -> Any:
    weights = rnp.arange(1, V + 1).astype("f64")
    return rg.losses.cross_entropy(
        _logits(m, tokens), targets, label_smoothing=0.1, ignore_index=3, weights=weights
    )


@layered(
    rg.spec("f64", B, STEPS, D), TOKENS, LENGTHS,
    parts=lambda: {"cell": rg.nn.LSTM(D, H), "head": rg.nn.Linear(H, V)},
)  # fmt: skip
def with_lengths(m: Any, xs: Any, targets: Any, lengths: Any) -> Any:
    y, ((h, _),) = m["cell"](xs, lengths=lengths)
    inside = rnp.arange(targets.shape[1]) < lengths[:, None]
    return rg.losses.cross_entropy(m["head"](y), targets, mask=inside).sum + rnp.sum(h * h)


@layered(
    TOKENS, rg.spec("i32", B),
    parts=lambda: {
        "embed": rg.nn.Embedding(V, D), "cell": rg.nn.GRU(D, H), "head": rg.nn.Linear(H, 5)
    },
)  # fmt: skip
def last_step(m: Any, tokens: Any, label: Any) -> Any:
    _, (h,) = m["cell"](m["embed"](tokens))
    return rg.losses.cross_entropy(m["head"](h[0] if isinstance(h, tuple) else h), label % 5)


@layered(
    TOKENS, TOKENS,
    parts=lambda: {
        "embed": rg.nn.Embedding(V, D), "cell": rg.nn.LSTM(D, H, bidirectional=True),
        "head": rg.nn.Linear(2 * H, V),
    },
)  # fmt: skip
def both_ways(m: Any, tokens: Any, targets: Any) -> Any:
    return rg.losses.cross_entropy(_logits(m, tokens), targets)


@layered(
    TOKENS, TOKENS,
    parts=lambda: {
        "embed": rg.nn.Embedding(V, D), "cell": rg.nn.LSTM(D, H, layers=3),
        "head": rg.nn.Linear(H, V),
    },
)  # fmt: skip
def deep(m: Any, tokens: Any, targets: Any) -> Any:
    return rg.losses.cross_entropy(_logits(m, tokens), targets)


@layered(
    TOKENS, TOKENS,
    parts=lambda: {"embed": rg.nn.Embedding(V, H), "cell": rg.nn.LSTM(H, H)},
)  # fmt: skip
def tied(m: Any, tokens: Any, targets: Any) -> Any:
    y = m["cell"](m["embed"](tokens))[0]
    return rg.losses.cross_entropy(m["embed"].attend(y), targets)


@layered(
    TOKENS, TOKENS, rg.spec("f64", B, STEPS, 5),
    parts=lambda: {**_language(), "other": rg.nn.Linear(H, 5), "norm": rg.nn.LayerNorm(H)},
)  # fmt: skip
def two_heads(m: Any, tokens: Any, targets: Any, values: Any) -> Any:
    y = m["norm"](m["cell"](m["embed"](tokens))[0])
    first = rg.losses.cross_entropy(m["head"](y), targets)
    return first.sum + rg.losses.mse(rnp.tanh(m["other"](y)), values).sum


# --- loops of the user


@model(XS, YS, weights=LSTM)
def mse_outside(w: Any, xs: Any, target: Any) -> Any:
    _, ys = rg.scan(lambda c, x: lstm(w, c, x), start(), xs)
    return rnp.mean((ys - target) ** 2)


@model(XS, YS, weights=LSTM)
def mse_inside(w: Any, xs: Any, target: Any) -> Any:
    def step(carry: Any, given: Any) -> Any:
        x, t = given
        (h, c), y = lstm(w, carry[:2], x)
        return (h, c, carry[2] + rnp.sum((y - t) ** 2)), None

    (_, _, total), _ = rg.scan(step, (*start(), rnp.asarray(0.0, "f64")), (xs, target))
    return total


@model(XS, YS, weights=LSTM)
def loss_of_each_step(w: Any, xs: Any, target: Any) -> Any:
    def step(carry: Any, given: Any) -> Any:
        carry, y = lstm(w, carry, given[0])
        return carry, rnp.sum((y - given[1]) ** 2)

    _, losses = rg.scan(step, start(), (xs, target))
    return rnp.sum(losses * losses)


@model(XS, YS, weights={**RNN, "o": (H, 5)})
def reversed_loop(w: Any, xs: Any, target: Any) -> Any:
    last, ys = rnn(w, rnp.tanh(xs * 2.0), reverse=True)
    return rnp.sum(rnp.exp(ys @ w["o"])) + rnp.sum(ys * target) + rnp.sum(last)


@model(XS, weights={**RNN, "o": (H, 5)})
def only_the_largest(w: Any, xs: Any) -> Any:
    return rnp.sum(rnp.max(rnn(w, xs)[1] @ w["o"], axis=-1))


@model(XS, weights=RNN)
def spread_about_the_mean(w: Any, xs: Any) -> Any:
    _, ys = rnn(w, xs)
    middle = rnp.sum(rnp.tanh(ys), axis=(0, 1)) / 7.0
    return rnp.sum(rnp.sin(ys - middle) ** 2)


@model(XS, weights={**RNN, "o": (H, 5)})
def normalised_by_all(w: Any, xs: Any) -> Any:
    scores = rnp.exp(rnn(w, xs)[1] @ w["o"])
    return rnp.log(1.0 + rnp.sum(scores))


@model(XS, weights=RNN)
def attending_over_time(w: Any, xs: Any) -> Any:
    ys = rnp.swapaxes(rnn(w, xs)[1], 0, 1)
    scores = rnp.softmax(ys @ rnp.swapaxes(ys, 1, 2), axis=-1)
    return rnp.sum(rnp.tanh(scores @ ys)) + rnp.sum(ys * ys)


@model(XS, weights={**RNN, "o": (H, 5)})
def rows_of_all_steps(w: Any, xs: Any) -> Any:
    flat = rnn(w, xs)[1].reshape((-1, H))
    return rnp.sum(rnp.log_softmax(flat @ w["o"], axis=-1)[:, 1:3] ** 2)


@model(XS, weights={**RNN, "o": (H, 5)})
def rearranged(w: Any, xs: Any) -> Any:
    _, ys = rnn(w, rnp.flip(rnp.cumsum(xs, axis=-1), axis=-1))
    wider = rnp.pad(ys, ((0, 0), (0, 0), (1, 0)))
    out = rnp.concatenate([ys @ w["o"], ys[..., 1:3], wider], axis=-1)
    best = rnp.argmax(out, axis=-1).astype("f64")
    split = out.reshape((out.shape[0], B, 2, 6)).transpose((2, 0, 3, 1))
    return rnp.sum(rnp.prod(split, axis=2) * 1.5) + rnp.sum(best * out[..., 0])


@model(XS, weights={**RNN, "x2": (H, H), "h2": (H, H), "m": (H, H)})
def loop_behind_loop(w: Any, xs: Any) -> Any:
    _, ys = rnn(w, xs)
    last, zs = rnn({"x": w["x2"], "h": w["h2"]}, rnp.sigmoid(ys @ w["m"]))
    return rnp.sum(zs * ys) + rnp.sum(last)


@model(XS, weights={**RNN, "x2": (D, H), "h2": (H, H)})
def begun_by_the_other(w: Any, xs: Any) -> Any:
    last, ys = rnn(w, xs)

    def step(h: Any, given: Any) -> Any:
        h = rnp.tanh(given[0] @ w["x2"] + h @ w["h2"] + given[1])
        return h, h

    return rnp.sum(rg.scan(step, last, (xs, ys))[1] ** 2)


@model(XS, YS, weights=RNN)
def shifted_by_one(w: Any, xs: Any, target: Any) -> Any:
    _, ys = rnn(w, xs)
    return rnp.sum((ys[:-1] - target[1:]) ** 2) + rnp.sum(ys[2:3] * 2.0)


@layered(
    rg.spec("i32", B, AT_LEAST_ONE), rg.spec("i32", B),
    parts=lambda: {
        "embed": rg.nn.Embedding(V, D), "cell": rg.nn.GRU(D, H), "head": rg.nn.Linear(H, 5)
    },
)  # fmt: skip
def last_of_all(m: Any, tokens: Any, label: Any) -> Any:
    y, _ = m["cell"](m["embed"](tokens))
    return rg.losses.cross_entropy(m["head"](y[:, -1:].reshape((B, H))), label % 5)


@model(XS, weights={**RNN, "o": (H, 5)})
def running_total(w: Any, xs: Any) -> Any:
    """A sum along time can join no loop, what it is made of is there anyway."""
    scores = rnp.exp(rnn(w, xs)[1] @ w["o"])
    return rnp.sum(rnp.sin(rnp.cumsum(scores, axis=0))) + rnp.sum(scores * scores)


@model(TOKENS, weights={**RNN, "t": (V, D), "o": (H, V)})
def next_token(w: Any, tokens: Any) -> Any:
    """Runs over all steps, of which the last has no target."""
    xs = rnp.swapaxes(rnp.take(w["t"], tokens, axis=0), 0, 1)
    logits = rnp.swapaxes(rnn(w, xs)[1], 0, 1) @ w["o"]
    return rg.losses.cross_entropy(logits[:, :-1], tokens[:, 1:])


@model(XS, weights={**RNN, "o": (H, 5)})
def loop_in_loop(w: Any, xs: Any) -> Any:
    def step(h: Any, x: Any) -> Any:
        rows = rnp.stack([x @ w["x"]] * 3)
        h, zs = rg.scan(lambda a, b: (rnp.tanh(a @ w["h"] + b), a), h, rows)
        return h, rnp.sum(zs, axis=0)

    return rnp.sum(rnp.exp(rg.scan(step, start()[0], xs)[1] @ w["o"]))


@model(XS, rg.spec("u32", 2), weights={**RNN, "o": (H, 5)})
def dropped(w: Any, xs: Any, key: Any) -> Any:
    keep = rg.random.bernoulli(key, 0.7, (STEPS, B, H))
    _, ys = rnn(w, xs)
    return rnp.sum(rnp.tanh(rnp.where(keep, ys, 0.0) @ w["o"]))


@model(XS, weights={**RNN, "o": (H, 5)}, grad=False)
def without_gradient(w: Any, xs: Any) -> Any:
    _, ys = rnn(w, xs)
    out = ys @ w["o"]
    return rnp.sum(rnp.exp(out)), rnp.sum(rnp.argmax(out, axis=-1) == 2), rnp.tanh(ys)


def _with_results() -> Graph:
    def loss(w: Any, xs: Any, h: Any) -> Any:
        def step(h: Any, x: Any) -> Any:
            h = rnp.tanh(x @ w["x"] + h @ w["h"])
            return h, h

        _, ys = rg.scan(step, h, xs * xs)
        out = ys @ w["o"]
        return rnp.sum(rnp.log_softmax(out, axis=-1)[..., 0]), (out, ys)

    spec = {k: rg.spec("f64", *s) for k, s in {**RNN, "o": (H, 5)}.items()}
    run = rg.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
    graph: Graph = rg.trace(run, spec, XS, rg.spec("f64", B, H))
    return graph


MODELS["with_results"] = _with_results
