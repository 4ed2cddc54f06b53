"""Blocks of attention and feed-forward parts, one upon the other: [B, T, width] -> the same.

Input: x with its lengths or segments, and for decoders a memory [B, S, memory_width]; output: x
after the last norm.  Source: Vaswani et al. 2017; pre-norm: Xiong et al. 2020.  Invariant: a causal
trunk makes what stands at t from x up to t (and the whole memory) alone.
"""

from __future__ import annotations

import math
import os

from retrograde import masks
from retrograde.compiler.errors import ShapeError
from retrograde.compiler.ir.location import skip_frames_under, where
from retrograde.masks import Mask
from retrograde.models.parts import Positions, one_of
from retrograde.nn import (
    MLP,
    CrossAttention,
    Dropout,
    LayerNorm,
    Module,
    MultiHeadAttention,
    SwiGLU,
    checks,
)
from retrograde.nn.initial import Source, source
from retrograde.numpy.primitives import Array

skip_frames_under(os.path.abspath(__file__))

NORMS = ("pre", "post")
MLPS = ("gelu", "swiglu")


class TransformerBlock(Module):
    """Self-attention, attention to a memory if there is one, and a feed-forward part, each added to
    x; the norm is taken before each part (`pre`) or after each sum (`post`)."""

    attention: MultiHeadAttention
    attention_norm: LayerNorm
    cross: CrossAttention | None
    cross_norm: LayerNorm | None
    mlp: MLP | SwiGLU
    mlp_norm: LayerNorm
    dropout: Dropout
    norm: str

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        causal: bool,
        layers: int,
        dropout: float,
        norm: str,
        mlp: str,
        kv_heads: int | None,
        window: int | None,
        rotary: bool,
        memory_width: int | None,
        numbers: Source,
    ) -> None:
        # The branches of all layers add up in the residual stream.
        residual = 1.0 / math.sqrt((2 if memory_width is None else 3) * max(layers, 1))
        out = residual / math.sqrt(width)
        self.attention = MultiHeadAttention(
            width, heads, causal, 0.0, kv_heads, rotary, window, seed=numbers, std_out=out
        )
        self.attention_norm = LayerNorm(width)
        self.cross = self.cross_norm = None
        if memory_width is not None:
            self.cross = CrossAttention(width, heads, memory_width, seed=numbers, std_out=out)
            self.cross_norm = LayerNorm(width)
        if mlp == "gelu":
            down = residual / math.sqrt(4 * width)
            self.mlp = MLP(width, seed=numbers, std_down=down)
        else:
            self.mlp = SwiGLU(width, seed=numbers, std_down=residual / math.sqrt(8 * width / 3))
        self.mlp_norm = LayerNorm(width)
        self.dropout = Dropout(dropout)
        self.norm = norm

    def __call__(
        self,
        x: Array,
        mask: Mask | Array | None = None,
        lengths: Array | None = None,
        segments: Array | None = None,
        positions: Array | None = None,
        memory: Array | None = None,
        memory_mask: Mask | Array | None = None,
        memory_lengths: Array | None = None,
    ) -> Array:
        pre = self.norm == "pre"
        given = self.attention_norm(x) if pre else x
        x = x + self.dropout(self.attention(given, mask, lengths, segments, positions))
        x = x if pre else self.attention_norm(x)
        if self.cross is not None and self.cross_norm is not None:
            if memory is None:
                raise ShapeError(f"{where()}a decoder takes the memory of an encoder")
            given = self.cross_norm(x) if pre else x
            x = x + self.dropout(self.cross(given, memory, memory_mask, memory_lengths))
            x = x if pre else self.cross_norm(x)
        x = x + self.dropout(self.mlp(self.mlp_norm(x) if pre else x))
        return x if pre else self.mlp_norm(x)


class Transformer(Module):
    """Positions, blocks, and with `pre` norms a last one: x [B, T, width] -> [B, T, width].

    `mask`, `lengths`, `segments` and `positions` are those of MultiHeadAttention; positions count
    from 0 in each segment unless they are given.  With `memory_width` every block attends to a
    memory [B, S, memory_width] too, within `memory_lengths` and where `memory_mask` allows it."""

    positions: Positions
    blocks: tuple[TransformerBlock, ...]
    final_norm: LayerNorm | None
    width: int

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        *,
        causal: bool,
        positions: str = "sinusoidal",
        context: int | None = None,
        norm: str = "pre",
        mlp: str = "gelu",
        kv_heads: int | None = None,
        window: int | None = None,
        memory_width: int | None = None,
        dropout: float = 0.0,
        seed: int | Source | None = None,
    ) -> None:
        width = checks.positive(width, "the width")
        layers = checks.positive(layers, "the number of layers")
        one_of(norm, NORMS, "the norm")
        one_of(mlp, MLPS, "the mlp")
        numbers = source(seed)
        self.positions = Positions(positions, width, context, dropout, numbers)
        self.blocks = tuple(
            TransformerBlock(
                width, heads, causal=causal, layers=layers, dropout=dropout, norm=norm, mlp=mlp,
                kv_heads=kv_heads, window=window, rotary=positions == "rotary",
                memory_width=memory_width, numbers=numbers,
            )
            for _ in range(layers)
        )  # fmt: skip
        self.final_norm = LayerNorm(width) if norm == "pre" else None
        self.width = width

    def __call__(
        self,
        x: Array,
        mask: Mask | Array | None = None,
        lengths: Array | None = None,
        segments: Array | None = None,
        positions: Array | None = None,
        memory: Array | None = None,
        memory_mask: Mask | Array | None = None,
        memory_lengths: Array | None = None,
    ) -> Array:
        if positions is None and segments is not None:
            positions = masks.positions(segments)
        x = self.positions(x, positions)
        for block in self.blocks:
            x = block(
                x, mask, lengths, segments, positions, memory, memory_mask, memory_lengths
            )
        return x if self.final_norm is None else self.final_norm(x)
