"""Attention of several heads, as a function of a fused projection and as a layer.

Input: [batch, time, width]; output: the same.  Source: Vaswani et al. 2017.  Invariant: where a
query may attend to no key at all, it gets zeros.
"""

from __future__ import annotations

import os
from typing import Any

import retrograde.numpy as rnp
from retrograde.compiler.errors import ShapeError
from retrograde.compiler.ir import dims
from retrograde.compiler.ir.location import skip_frames_under, where
from retrograde.compiler.ir.registry import lookup
from retrograde.nn import checks, initial
from retrograde.nn.initial import Source
from retrograde.nn.layers import Dropout, Linear
from retrograde.nn.module import Module
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
    qkv: Array, heads: int, *, causal: bool, mask: Array | None = None
) -> Array:
    """Attention of each of the `heads`: [batch, time, 3 width] -> [batch, time, width].

    Along the last axis lie all queries, then all keys, then all values, head after head."""
    batch, time, fused = qkv.shape
    width = fused // 3
    split = (batch, time, heads, width // heads)
    q, k, v = (
        rnp.transpose(rnp.reshape(qkv[:, :, i * width : (i + 1) * width], split), (0, 2, 1, 3))
        for i in range(3)
    )
    mixed = attention(q, k, v, mask, causal=causal)
    return rnp.reshape(rnp.transpose(mixed, (0, 2, 1, 3)), (batch, time, width))


class MultiHeadAttention(Module):
    """Self-attention of `heads` heads with a fused projection to queries, keys and values.

    `qkv` is Linear(width, 3 width), `out` Linear(width, width).  Dropout is applied to the result.
    Call it with `mask` (true where a query may attend to a key: [time, time], [batch, time, time]
    or [batch, heads, time, time]) or with `lengths` [batch], beyond which keys count for nothing;
    with both, both hold."""

    qkv: Linear
    out: Linear
    dropout: Dropout
    heads: int
    causal: bool

    def __init__(
        self,
        width: int,
        heads: int,
        causal: bool = True,
        dropout: float = 0.0,
        *,
        bias: bool = True,
        seed: int | Source | None = None,
    ) -> None:
        width = checks.positive(width, "the width of MultiHeadAttention")
        heads = checks.positive(heads, "the number of heads")
        if width % heads:
            raise ShapeError(f"{where()}the width {width} is no multiple of {heads} heads")
        numbers = initial.source(seed)
        self.qkv = Linear(width, 3 * width, bias, seed=numbers)
        self.out = Linear(width, width, bias, seed=numbers)
        self.dropout = Dropout(dropout)
        self.heads = heads
        self.causal = bool(causal)

    def __call__(
        self, x: Array, mask: Array | None = None, lengths: Array | None = None
    ) -> Array:
        checks.last_axis(x, self.out.weight.shape[0], "MultiHeadAttention")
        if len(x.shape) != 3:
            raise ShapeError(
                f"{where()}MultiHeadAttention takes [batch, time, width], got {checks.shown(x)}"
            )
        allowed = _per_head(mask, x.shape[1])
        if lengths is not None:
            within = _within(lengths, x.shape)
            allowed = within if allowed is None else rnp.logical_and(allowed, within)
        mixed = self_attention(self.qkv(x), self.heads, causal=self.causal, mask=allowed)
        return self.dropout(self.out(mixed))


def _per_head(mask: Array | None, time: Any) -> Array | None:
    if mask is None:
        return None
    if len(mask.shape) not in (2, 3, 4) or not all(dims.same(d, time) for d in mask.shape[-2:]):
        raise ShapeError(
            f"{where()}the mask is {checks.shown(mask)}: it is [time, time], [batch, time, time] "
            f"or [batch, heads, time, time], with time {time}"
        )
    return rnp.expand_dims(mask, 1) if len(mask.shape) == 3 else mask


def _within(lengths: Array, shape: tuple[Any, ...]) -> Array:
    """[batch, 1, 1, time]: whether a key lies within the length of its row."""
    if len(lengths.shape) != 1 or not dims.same(lengths.shape[0], shape[0]):
        raise ShapeError(
            f"{where()}the lengths are {checks.shown(lengths)}: one for each of {shape[0]} rows"
        )
    places = rnp.arange(shape[1])
    return rnp.less(places, rnp.reshape(lengths, (shape[0], 1, 1, 1)))
