"""Random pieces of sequence models, one behind the other: a seed -> a loss and what it takes.

Invariant: a seed makes the same choices for every dtype, so that what is computed in float64 is the
truth about the others; values stay within a few units, and every op is smooth where it is used.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

import retrograde as rg
import retrograde.numpy as rnp
from retrograde import nn
from retrograde.compiler.ir import dtypes

Array = npt.NDArray[Any]
WIDTHS = (1, 2, 3, 5, 7, 8, 9, 13, 15, 16, 17, 31, 32, 33, 37, 63, 64, 65)
VOCAB = 11
IGNORED = -100
SMOOTH = ("tanh", "sigmoid", "silu", "gelu", "softplus", "sin", "erf")


@dataclass
class Model:
    """The choices of a seed; `loss(weights, data)` is what they make.

    `weights` are arrays of one float dtype, `data` a dict with `x` [B, T, D], `ids` and `targets`
    [B, T], `lengths` [B], `mask` [B, T], `flag` []."""

    seed: int
    pieces: int
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    dtype: str = "f32"
    names: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        choose = random.Random(self.seed)
        self.width = choose.choice(WIDTHS)
        self._plan: list[tuple[Callable[..., Any], Any]] = []
        width = self.width
        makers = list(PIECES)
        for _ in range(self.pieces):
            make = choose.choice(makers)
            apply, out = make(self, choose, width)
            self.names.append(make.__name__.strip("_"))
            self._plan.append(apply)
            width = out
        self.out = width
        self._loss = choose.choice(LOSSES)(self, choose, width)
        self.names.append(self._loss.__qualname__.split(".")[0].strip("_"))

    def weight(self, *shape: int) -> int:
        """The number of a weight of this shape."""
        self.shapes.append(shape)
        return len(self.shapes) - 1

    def hidden(self, weights: Any, data: Any) -> Any:
        h = data["x"]
        for apply in self._plan:
            h = apply(h, weights, data)
        return h

    def loss(self, weights: Any, data: Any) -> Any:
        return self._loss(self.hidden(weights, data), weights, data)

    def specs(self, dtype: str) -> tuple[Any, Any]:
        B, T = rg.dim("B", min=0), rg.dim("T", min=0)
        data = {
            "x": rg.spec(dtype, B, T, self.width), "ids": rg.spec("i32", B, T),
            "targets": rg.spec("i64", B, T), "lengths": rg.spec("i32", B),
            "mask": rg.spec("bool", B, T), "flag": rg.spec("bool"), "key": rg.spec("u32", 2),
        }  # fmt: skip
        return [rg.spec(dtype, *shape) for shape in self.shapes], data

    def arrays(self, dtype: str, rows: int, steps: int, seed: int) -> tuple[Any, Any]:
        """The same numbers for every dtype, as far as bf16 has them."""
        draw = np.random.default_rng(seed)

        def some(*shape: int, scale: float = 1.0) -> Array:
            wide = draw.normal(size=shape) * scale
            return wide.astype(dtypes.bf16.numpy).astype(dtypes.dtype(dtype).numpy)

        weights = [some(*s, scale=1 / np.sqrt(s[0]) if len(s) > 1 else 0.5) for s in self.shapes]
        targets = draw.integers(0, max(self.out, 1), (rows, steps))
        if seed % 2:
            targets[draw.random(targets.shape) < 0.3] = IGNORED
        data = {
            "x": some(rows, steps, self.width),
            "ids": draw.integers(0, VOCAB, (rows, steps), dtype=np.int32),
            "targets": targets,
            "lengths": draw.integers(-1, steps + 2, rows, dtype=np.int32),
            "mask": draw.random((rows, steps)) < 0.7,
            "flag": np.asarray(bool(seed % 3)),
            "key": draw.integers(0, 2**32, 2, dtype=np.uint32),
        }
        return weights, data


# --- pieces: [B, T, width] -> [B, T, another width]

Piece = tuple[Callable[[Any, Any, Any], Any], int]


def _smooth(name: str, x: Any) -> Any:
    return getattr(rnp, name)(x)


def _linear(m: Model, choose: random.Random, width: int) -> Piece:
    out, name = choose.choice(WIDTHS), choose.choice(SMOOTH)
    w, b, biased = m.weight(width, out), m.weight(out), choose.random() < 0.7

    def apply(h: Any, p: Any, data: Any) -> Any:
        y = h @ p[w]
        return _smooth(name, y + p[b] if biased else y)

    return apply, out


def _shared_left(m: Model, choose: random.Random, width: int) -> Piece:
    """Several products of one operand, as of a gated layer."""
    out, name = choose.choice(WIDTHS), choose.choice(SMOOTH)
    w, v = m.weight(width, out), m.weight(width, out)

    def apply(h: Any, p: Any, data: Any) -> Any:
        return _smooth(name, h @ p[w]) * rnp.tanh(h @ p[v])

    return apply, out


def _norm(m: Model, choose: random.Random, width: int) -> Piece:
    kind, g, b = choose.randrange(4), m.weight(width), m.weight(width)

    def apply(h: Any, p: Any, data: Any) -> Any:
        if kind == 0:
            centred = h - rnp.mean(h, axis=-1, keepdims=True)
            spread = rnp.mean(centred * centred, axis=-1, keepdims=True)
            return centred / rnp.sqrt(spread + 1e-1) * p[g] + p[b]
        if kind == 1:
            return h / rnp.sqrt(rnp.mean(h * h, axis=-1, keepdims=True) + 1e-1) * p[g] + h
        if kind == 2:
            return rnp.softmax(h * p[g], axis=-1) + h
        return rnp.tanh(rnp.log_softmax(h + p[b], axis=-1) * 0.1)

    return apply, width


def _embedded(m: Model, choose: random.Random, width: int) -> Piece:
    table, places = m.weight(VOCAB, width), m.weight(64, width)
    positions = choose.random() < 0.5

    def apply(h: Any, p: Any, data: Any) -> Any:
        h = h + rnp.take(p[table], data["ids"], axis=0)
        if positions:
            h = h + rnp.take(p[places], rnp.arange(h.shape[1]) % 64, axis=0)
        return h

    return apply, width


def _scattered(m: Model, choose: random.Random, width: int) -> Piece:
    table = m.weight(VOCAB, width)

    def apply(h: Any, p: Any, data: Any) -> Any:
        summed = p[table].at[data["ids"]].add(h * 0.25)
        return rnp.tanh(rnp.take(summed, data["ids"], axis=0)) + h

    return apply, width


def _moved(m: Model, choose: random.Random, width: int) -> Piece:
    kind, amount = choose.randrange(7), choose.randrange(1, 3)
    cut = choose.randrange(1, width + 1)

    def apply(h: Any, p: Any, data: Any) -> Any:
        if kind == 0:  # the step before
            return h + 0.5 * rnp.pad(h, ((0, 0), (amount, 0), (0, 0)))[:, : h.shape[1]]
        if kind == 1:
            return rnp.flip(h, 1) * 0.5 + h
        if kind == 2:  # parts change places
            return rnp.concatenate([h[..., cut:], rnp.tanh(h[..., :cut])], axis=-1)
        if kind == 3:
            return rnp.concatenate([h[:, h.shape[1] // 2 :], h[:, : h.shape[1] // 2]], axis=1) + h
        if kind == 4:
            rows, steps = h.shape[0], h.shape[1]
            turned = rnp.transpose(h, (1, 2, 0))
            return rnp.reshape(rnp.transpose(rnp.sin(turned), (2, 0, 1)), (rows, steps, width))
        if kind == 5:
            return rnp.reshape(rnp.reshape(h, (-1, width)) * 0.5, h.shape) + h
        return rnp.roll(h, amount, axis=-1) - h * 0.5

    return apply, width


def _over_time(m: Model, choose: random.Random, width: int) -> Piece:
    kind = choose.randrange(4)

    def apply(h: Any, p: Any, data: Any) -> Any:
        if kind == 0:
            return h - rnp.sum(h, axis=1, keepdims=True) * 0.1
        if kind == 1:
            return rnp.tanh(rnp.cumsum(h, axis=1) * 0.3)
        if kind == 2:
            return h * rnp.sigmoid(rnp.sum(h * h, axis=(0, 1)) * 0.01)
        kept = rnp.astype(data["mask"], h.dtype)[..., None]
        return rnp.where(data["mask"][..., None], h, 0.5 * h) + rnp.sum(h * kept, 0) * 0.1

    return apply, width


def _chosen(m: Model, choose: random.Random, width: int) -> Piece:
    w, g = m.weight(width, width), m.weight(width)

    def apply(h: Any, p: Any, data: Any) -> Any:
        return rg.cond(
            data["flag"], lambda x: rnp.tanh(x @ p[w]), lambda x: rnp.sin(x * p[g]) + x, h
        )

    return apply, width


def _dropped(m: Model, choose: random.Random, width: int) -> Piece:
    rate = choose.choice((0.1, 0.5))

    def apply(h: Any, p: Any, data: Any) -> Any:
        kept = rg.random.bernoulli(data["key"], 1 - rate, h.shape)
        return rnp.where(kept, h / (1 - rate), 0)

    return apply, width


def _looped(m: Model, choose: random.Random, width: int) -> Piece:
    out, reverse = choose.choice(WIDTHS), choose.random() < 0.4
    lengths, gated = choose.random() < 0.4, choose.random() < 0.5
    truncate = choose.choice((None, None, 2))
    slots = None if lengths else choose.choice((None, None, 2))
    w, u, v, b = (
        m.weight(width, out), m.weight(out, out), m.weight(out, out), m.weight(out),
    )  # fmt: skip

    def apply(h: Any, p: Any, data: Any) -> Any:
        def step(carry: Any, x: Any) -> Any:
            new = rnp.tanh(x @ p[w] + carry @ p[u] + p[b])
            if gated:
                gate = rnp.sigmoid(carry @ p[v] + p[b])
                new = gate * carry + (1 - gate) * new
            return new, new

        start = rnp.zeros((h.shape[0], out), h.dtype)
        _, ys = rg.scan(
            step, start, rnp.transpose(h, (1, 0, 2)), reverse=reverse, truncate=truncate,
            slots=slots, lengths=data["lengths"] if lengths else None,
        )  # fmt: skip
        return rnp.transpose(ys, (1, 0, 2))

    return apply, out


def _loop_of_loops(m: Model, choose: random.Random, width: int) -> Piece:
    """Within each turn, a loop over the features, and what no kernel does where that is chosen."""
    sorts, rows = choose.random() < 0.5, choose.randrange(2)
    w = m.weight(width, width)

    def apply(h: Any, p: Any, data: Any) -> Any:
        def inner(carry: Any, x: Any) -> Any:
            new = rnp.tanh(carry * 0.5 + x)
            return new, new

        def step(carry: Any, x: Any) -> Any:
            if sorts:
                x = x + rnp.sort(x, axis=-1) * 0.1
            _, parts = rg.scan(inner, carry[:, 0], rnp.transpose(x), reverse=bool(rows))
            new = rnp.tanh(carry @ p[w] + rnp.transpose(parts))
            return new, new + x

        start = rnp.zeros((h.shape[0], width), h.dtype)
        _, ys = rg.scan(step, start, rnp.transpose(h, (1, 0, 2)))
        return rnp.transpose(ys, (1, 0, 2))

    return apply, width


def _attended(m: Model, choose: random.Random, width: int) -> Piece:
    heads, head = choose.choice((1, 2, 3)), choose.choice((1, 4, 5, 8, 16, 19))
    size = heads * head
    q, k, v, o = *(m.weight(width, size) for _ in range(3)), m.weight(size, width)
    causal, lengths, random_mask, spelled = (choose.random() < 0.5 for _ in range(4))
    residual = choose.random() < 0.5

    def split(x: Any) -> Any:
        return rnp.transpose(rnp.reshape(x, (*x.shape[:2], heads, head)), (0, 2, 1, 3))

    def apply(h: Any, p: Any, data: Any) -> Any:
        rows, steps = h.shape[0], h.shape[1]
        parts = [split(h @ p[i]) for i in (q, k, v)]
        places = rnp.arange(steps)
        mask = None
        if lengths:
            mask = (places[None, :] < rnp.maximum(data["lengths"], 1)[:, None])[:, None, None, :]
        if random_mask:
            seen = data["mask"][:, None, None, :] | (places[:, None] == places[None, :])
            mask = seen if mask is None else mask & seen
        if spelled:
            scores = parts[0] @ rnp.swapaxes(parts[1], -1, -2) / float(head) ** 0.5
            if causal:
                past = places[:, None] >= places[None, :]
                mask = past if mask is None else mask & past
            if mask is not None:
                scores = rnp.where(mask, scores, -1e9 if m.dtype != "f16" else -6e4)
            mixed = rnp.softmax(scores, axis=-1) @ parts[2]
        else:
            mixed = nn.attention(*parts, mask, causal=causal)
        y = rnp.reshape(rnp.transpose(mixed, (0, 2, 1, 3)), (rows, steps, size)) @ p[o]
        return h + y if residual else y

    return apply, width


def _rounded(m: Model, choose: random.Random, width: int) -> Piece:
    """Through integers and booleans, which no gradient goes through."""
    kind = choose.randrange(3)

    def apply(h: Any, p: Any, data: Any) -> Any:
        if kind == 0:
            return h + rnp.astype(data["ids"] % 3, h.dtype)[..., None] * 0.25
        if kind == 1:
            hot = rnp.one_hot(data["ids"] % width, width, dtype=h.dtype)
            return h * 0.5 + hot
        count = rnp.astype(rnp.cumsum(data["mask"], axis=1), h.dtype)
        return h + rnp.sin(count)[..., None]

    return apply, width


PIECES: tuple[Callable[..., Piece], ...] = (
    _linear, _shared_left, _norm, _embedded, _scattered, _moved, _over_time, _chosen, _dropped,
    _looped, _loop_of_loops, _attended, _rounded,
)  # fmt: skip


# --- losses: [B, T, width] -> a number


def _squares(m: Model, choose: random.Random, width: int) -> Any:
    def loss(h: Any, p: Any, data: Any) -> Any:
        return rnp.sum(rnp.tanh(h) ** 2) / (data["x"].shape[0] + 1)

    return loss


def _head(m: Model, choose: random.Random, width: int) -> Any:
    classes = choose.choice((2, 3, 17, 64, 65, 130, 2100))
    m.out = classes
    w, b = m.weight(width, classes), m.weight(classes)
    by_class = np.linspace(0.25, 2.0, classes)
    smoothing = choose.choice((0.0, 0.0, 0.1))
    biased, weighed, masked = (choose.random() < 0.5 for _ in range(3))

    def loss(h: Any, p: Any, data: Any) -> Any:
        logits = h @ p[w]
        if biased:
            logits = logits + p[b]
        return rg.losses.cross_entropy(
            logits, data["targets"], data["mask"] if masked else None, label_smoothing=smoothing,
            ignore_index=IGNORED, weights=by_class.astype(np.float32) if weighed else None,
        )  # fmt: skip

    return loss


LOSSES = (_squares, _head, _head)
