"""An encoder: tokens [B, T] or frames [B, T, inputs] -> [B, T, width], each from all of its row.

Source: Vaswani et al. 2017.  Invariant: what stands beyond a row's length changes no bit of what
lies within, nor of any gradient.

Names of the arrays: `embedding.table.weight` [V, W] (frames: `embedding.projection.weight`
[inputs, W], `.bias`), and under `trunk` those of `Transformer`.
"""

from __future__ import annotations

import os

from retrograde.compiler.ir.location import skip_frames_under
from retrograde.models.parts import FrameEmbedding, TokenEmbedding, input_embedding
from retrograde.models.transformer import Transformer
from retrograde.nn import Module
from retrograde.nn.initial import Source, source
from retrograde.numpy.primitives import Array

skip_frames_under(os.path.abspath(__file__))


class Encoder(Module):
    """The model: `vocab` for tokens, or `inputs` for frames of so many numbers.

    `positions` is "sinusoidal", "learned" (with `context` of them), "rotary" or "none"; `norm`
    "pre" or "post"; `mlp` "gelu" or "swiglu"; `kv_heads`, `window` as at MultiHeadAttention;
    `causal` keeps each place to those before it."""

    embedding: TokenEmbedding | FrameEmbedding
    trunk: Transformer

    def __init__(
        self,
        *,
        width: int,
        layers: int,
        heads: int,
        vocab: int | None = None,
        inputs: int | None = None,
        positions: str = "sinusoidal",
        context: int | None = None,
        norm: str = "pre",
        mlp: str = "gelu",
        kv_heads: int | None = None,
        window: int | None = None,
        causal: bool = False,
        dropout: float = 0.0,
        seed: int | Source = 0,
    ) -> None:
        numbers = source(seed)
        self.embedding = input_embedding(vocab, inputs, width, numbers, "Encoder")
        self.trunk = Transformer(
            width, layers, heads, causal=causal, positions=positions, context=context, norm=norm,
            mlp=mlp, kv_heads=kv_heads, window=window, dropout=dropout, seed=numbers,
        )  # fmt: skip

    @property
    def width(self) -> int:
        """The width of what comes out."""
        return self.trunk.width

    def __call__(
        self,
        x: Array,
        lengths: Array | None = None,
        segments: Array | None = None,
        positions: Array | None = None,
    ) -> Array:
        embedded = self.embedding(x, lengths)
        return self.trunk(embedded, None, lengths, segments, positions)
