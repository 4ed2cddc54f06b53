"""Attention of several heads, as a function of a fused projection and as layers.

Input: [batch, time, width]; output: the same.  Source: Vaswani et al. 2017.  Invariant: where a
query may attend to no key at all, it gets zeros; what lies beyond `lengths`, NaN and infinities
included, changes no bit of what lies within them, nor of any gradient.
"""

from __future__ import annotations

import functools
import operator
import os

import retrograde.numpy as rnp
from retrograde import masks
from retrograde.compiler.errors import ShapeError
from retrograde.compiler.ir import dims
from retrograde.compiler.ir.location import skip_frames_under, where
from retrograde.compiler.ir.registry import lookup
from retrograde.masks import Mask
from retrograde.nn import checks, initial
from retrograde.nn.initial import Source
from retrograde.nn.layers import Dropout, Linear
from retrograde.nn.module import Module
from retrograde.nn.positions import Rotary
from retrograde.numpy.dispatch import function
from retrograde.numpy.primitives import Array, array

skip_frames_under(os.path.abspath(__file__))


@function
def attention(
    q: Array, k: Array, v: Array, mask: Array | None = None, *, causal: bool = False
) -> Array:
    """softmax(q k^T / sqrt(d)) v: [..., queries, d], [..., keys, d], [..., keys, e] -> [..., e].

    `mask` is true where a query may attend to a key and broadcasts to [..., queries, keys];
    `causal` lets a query attend to no later key, the last query being aligned with the last key."""
    operands = [array(x) for x in (q, k, v)]
    if mask is not None:
        operands.append(array(mask))
    return lookup("attention")(*operands, causal=bool(causal))


def self_attention(
    qkv: Array,
    heads: int,
    *,
    causal: bool,
    mask: Array | None = None,
    kv_heads: int | None = None,
    rotary: Rotary | None = None,
    positions: Array | None = None,
) -> Array:
    """Attention of each of the `heads`: [batch, time, 3 width] -> [batch, time, width].

    Along the last axis lie all queries, then all keys, then all values, head after head.  With
    fewer `kv_heads`, [batch, time, width + 2 kv_heads size] of heads [size], each pair of keys and
    values serves heads / kv_heads heads of queries that follow each other (Ainslie et al. 2023).
    `rotary` turns queries and keys by their `positions`."""
    batch, time, fused = qkv.shape
    shared = heads if kv_heads is None else kv_heads
    size = fused // (heads + 2 * shared)
    first = 0
    parts = []
    for count in (heads, shared, shared):
        part = rnp.reshape(qkv[:, :, first : first + count * size], (batch, time, count, size))
        parts.append(rnp.transpose(part, (0, 2, 1, 3)))
        first += count * size
    q, k, v = parts
    if rotary is not None:
        q, k = rotary(q, positions), rotary(k, positions)
    mixed = attention(q, _repeated(k, heads), _repeated(v, heads), mask, causal=causal)
    return _joined(mixed)


def _repeated(x: Array, heads: int) -> Array:
    """[batch, kv_heads, time, size] -> [batch, heads, time, size]; tiled attention reads `x`."""
    batch, shared, time, size = x.shape
    if shared == heads:
        return x
    each = (batch, shared, heads // shared, time, size)
    stretched = rnp.broadcast_to(rnp.reshape(x, (batch, shared, 1, time, size)), each)
    return rnp.reshape(stretched, (batch, heads, time, size))


def _joined(x: Array) -> Array:
    """[batch, heads, time, size] -> [batch, time, heads size]."""
    batch, heads, time, size = x.shape
    return rnp.reshape(rnp.transpose(x, (0, 2, 1, 3)), (batch, time, heads * size))


def _sizes(width: int, heads: int, layer: str) -> tuple[int, int]:
    width = checks.positive(width, f"the width of {layer}")
    heads = checks.positive(heads, "the number of heads")
    if width % heads:
        raise ShapeError(f"{where()}the width {width} is no multiple of {heads} heads")
    return width, heads


def kv_heads_of(heads: int, kv_heads: int | None) -> int | None:
    """None where every head has keys and values of its own."""
    if kv_heads is None:
        return None
    if heads % checks.positive(kv_heads, "the number of kv_heads"):
        raise ShapeError(f"{where()}{heads} heads are no multiple of {kv_heads} kv_heads")
    return None if kv_heads == heads else int(kv_heads)


class MultiHeadAttention(Module):
    """Self-attention of `heads` heads with a fused projection to queries, keys and values.

    `qkv` is Linear(width, 3 width), `out` Linear(width, width).  Dropout is applied to the result.
    `kv_heads` lets several heads share keys and values; `rotary` (True, or a Rotary of width /
    heads) turns queries and keys by their positions; `window` n lets a query see the n places up to
    its own (without `causal`, n - 1 on both sides).

    Call it with a `mask` of `rg.masks`, or a boolean, true where a query may attend to a key:
    [time, time], [batch, time, time] or [batch, heads, time, time]; with `lengths` [batch], beyond
    which keys count for nothing and x is taken as zeros; with `segments` [batch, time], numbers
    that only attend to their equals.  All that is given holds.  `positions` [time] or [batch, time]
    are for `rotary`; without them places count from 0, in each segment if there are any."""

    qkv: Linear
    out: Linear
    dropout: Dropout
    heads: int
    causal: bool
    kv_heads: int | None
    rotary: Rotary | None
    window: int | None

    def __init__(
        self,
        width: int,
        heads: int,
        causal: bool = True,
        dropout: float = 0.0,
        kv_heads: int | None = None,
        rotary: bool | Rotary = False,
        window: int | None = None,
        *,
        bias: bool = True,
        seed: int | Source | None = None,
        std: float | None = None,
        std_out: float | None = None,
    ) -> None:
        width, heads = _sizes(width, heads, "MultiHeadAttention")
        self.kv_heads = kv_heads_of(heads, kv_heads)
        size = width // heads
        numbers = initial.source(seed)
        fused = width + 2 * size * (heads if self.kv_heads is None else self.kv_heads)
        self.qkv = Linear(width, fused, bias, seed=numbers, std=std)
        self.out = Linear(width, width, bias, seed=numbers, std=std_out)
        self.dropout = Dropout(dropout)
        self.heads = heads
        self.causal = bool(causal)
        self.rotary = rotary_of(rotary, size)
        self.window = None if window is None else checks.positive(window, "the window")

    def __call__(
        self,
        x: Array,
        mask: Mask | Array | None = None,
        lengths: Array | None = None,
        segments: Array | None = None,
        positions: Array | None = None,
    ) -> Array:
        checks.last_axis(x, self.out.weight.shape[0], "MultiHeadAttention")
        _check_rank(x, "MultiHeadAttention")
        time = x.shape[1]
        if lengths is not None:
            x = within(x, lengths)
        rules = open_to(mask, lengths, segments, self.window, self.causal)
        if self.rotary is not None and positions is None and segments is not None:
            positions = masks.positions(segments)
        mixed = self_attention(
            self.qkv(x),
            self.heads,
            causal=self.causal,
            mask=None if rules is None else rules.array(time, time, heads=True),
            kv_heads=self.kv_heads,
            rotary=self.rotary,
            positions=positions,
        )
        return self.dropout(self.out(mixed))


class CrossAttention(Module):
    """Attention to another sequence: x [batch, time, width], memory [batch, places, memory_width].

    `query` is Linear(width, width), `memory` Linear(memory_width, 2 width), all keys before all
    values, `out` Linear(width, width).  Call it with a `mask` of [time, places] as at
    MultiHeadAttention, and with `lengths` [batch] of the memory. """

    query: Linear
    memory: Linear
    out: Linear
    dropout: Dropout
    heads: int

    def __init__(
        self,
        width: int,
        heads: int,
        memory_width: int | None = None,
        dropout: float = 0.0,
        *,
        bias: bool = True,
        seed: int | Source | None = None,
        std: float | None = None,
        std_out: float | None = None,
    ) -> None:
        width, heads = _sizes(width, heads, "CrossAttention")
        numbers = initial.source(seed)
        wide = width if memory_width is None else memory_width
        self.query = Linear(width, width, bias, seed=numbers, std=std)
        self.memory = Linear(wide, 2 * width, bias, seed=numbers, std=std)
        self.out = Linear(width, width, bias, seed=numbers, std=std_out)
        self.dropout = Dropout(dropout)
        self.heads = heads

    def __call__(
        self,
        x: Array,
        memory: Array,
        mask: Mask | Array | None = None,
        lengths: Array | None = None,
    ) -> Array:
        checks.last_axis(x, self.query.weight.shape[0], "CrossAttention")
        checks.last_axis(memory, self.memory.weight.shape[0], "CrossAttention (its memory)")
        _check_rank(x, "CrossAttention")
        _check_rank(memory, "CrossAttention (its memory)")
        if not dims.same(x.shape[0], memory.shape[0]):
            raise ShapeError(
                f"{where()}x is {checks.shown(x)} and the memory {checks.shown(memory)}: they have "
                "one batch"
            )
        if lengths is not None:
            memory = within(memory, lengths)
        rules = open_to(mask, lengths, None, None, False)
        width = x.shape[-1]
        both = self.memory(memory)
        q, k, v = (
            _split(part, self.heads)
            for part in (self.query(x), both[:, :, :width], both[:, :, width:])
        )
        allowed = None
        if rules is not None:
            allowed = rules.array(x.shape[1], memory.shape[1], heads=True)
        return self.dropout(self.out(_joined(attention(q, k, v, allowed))))


def _split(x: Array, heads: int) -> Array:
    """[batch, time, width] -> [batch, heads, time, size]."""
    batch, time, width = x.shape
    return rnp.transpose(rnp.reshape(x, (batch, time, heads, width // heads)), (0, 2, 1, 3))


def _check_rank(x: Array, layer: str) -> None:
    if len(x.shape) != 3:
        raise ShapeError(f"{where()}{layer} takes [batch, time, width], got {checks.shown(x)}")


def rotary_of(rotary: bool | Rotary, size: int) -> Rotary | None:
    """A rotation of heads of this size; None where there is none."""
    if isinstance(rotary, Rotary):
        if rotary.width != size:
            raise ShapeError(f"{where()}a Rotary of {rotary.width} for heads of {size}")
        return rotary
    return Rotary(size) if rotary else None


def open_to(
    mask: Mask | Array | None,
    lengths: Array | None,
    segments: Array | None,
    window: int | None,
    causal: bool,
) -> Mask | None:
    """All of these as one mask; None where nothing is closed.  Of a window of n, n - 1 lie before a
    place, and as many behind it unless the attention is `causal`."""
    rules: list[Mask] = []
    if mask is not None:
        rules.append(masks.as_mask(mask))
    if lengths is not None:
        rules.append(masks.padding(lengths))
    if segments is not None:
        rules.append(masks.segments(segments))
    if window is not None:
        rules.append(masks.window(window - 1, 0 if causal else window - 1))
    return functools.reduce(operator.and_, rules) if rules else None


def within(x: Array, lengths: Array) -> Array:
    """x [batch, time, ...] with zeros beyond each row's length: 0 * NaN would be NaN, in the
    products of the gradient too."""
    if len(lengths.shape) != 1 or not dims.same(lengths.shape[0], x.shape[0]):
        raise ShapeError(
            f"{where()}the lengths are {checks.shown(lengths)}: one for each of {x.shape[0]} rows"
        )
    inside = rnp.less(rnp.arange(x.shape[1]), rnp.expand_dims(lengths, 1))
    inside = rnp.reshape(inside, (*x.shape[:2], *(1,) * (len(x.shape) - 2)))
    return rnp.where(inside, x, rnp.zeros_like(x))
