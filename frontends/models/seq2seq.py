"""An encoder and a decoder that attends to it: source, tokens [B, T] -> logits [B, T, vocab].

Source: Vaswani et al. 2017.  Invariant: logits at t depend on the source within its length and on
tokens up to t alone; `model(source, tokens, n)` is `model.decode(tokens, model.encode(source, n),
n)`.
"""

from __future__ import annotations

import os

from retrograde.compiler.ir.location import skip_frames_under
from retrograde.models.encoder import Encoder
from retrograde.models.parts import TokenEmbedding, check_tokens
from retrograde.models.transformer import Transformer
from retrograde.nn import Linear, Module
from retrograde.nn.initial import Source, source
from retrograde.numpy.primitives import Array

skip_frames_under(os.path.abspath(__file__))


class Seq2Seq(Module):
    """The model: `layers` blocks of each (or `decoder_layers` of the decoder).

    `source_vocab` for tokens, or `source_inputs` for frames; the tokens that the decoder is fed are
    those that it should say, moved on by one (teacher forcing).  `tied` shares the table of the
    decoder's embedding with the head.  All else is as at Encoder."""

    encoder: Encoder
    embedding: TokenEmbedding
    decoder: Transformer
    head: Linear | None

    def __init__(
        self,
        *,
        vocab: int,
        width: int,
        layers: int,
        heads: int,
        source_vocab: int | None = None,
        source_inputs: int | None = None,
        decoder_layers: int | None = None,
        positions: str = "sinusoidal",
        context: int | None = None,
        norm: str = "pre",
        mlp: str = "gelu",
        kv_heads: int | None = None,
        dropout: float = 0.0,
        tied: bool = False,
        seed: int | Source = 0,
    ) -> None:
        numbers = source(seed)
        self.encoder = Encoder(
            width=width, layers=layers, heads=heads, vocab=source_vocab, inputs=source_inputs,
            positions=positions, context=context, norm=norm, mlp=mlp, kv_heads=kv_heads,
            dropout=dropout, seed=numbers,
        )  # fmt: skip
        self.embedding = TokenEmbedding(vocab, width, seed=numbers)
        self.decoder = Transformer(
            width, layers if decoder_layers is None else decoder_layers, heads, causal=True,
            positions=positions, context=context, norm=norm, mlp=mlp, kv_heads=kv_heads,
            memory_width=width, dropout=dropout, seed=numbers,
        )  # fmt: skip
        self.head = None if tied else Linear(width, vocab, bias=False, seed=numbers)

    @property
    def vocab(self) -> int:
        """How many tokens the decoder knows."""
        return self.embedding.vocab

    def encode(self, source: Array, source_lengths: Array | None = None) -> Array:
        """The memory [B, S, width] of a source [B, S] or [B, S, inputs]."""
        return self.encoder(source, source_lengths)

    def decode(
        self,
        tokens: Array,
        memory: Array,
        source_lengths: Array | None = None,
        lengths: Array | None = None,
    ) -> Array:
        """Logits [B, T, vocab] of what follows each of the tokens [B, T]."""
        check_tokens(tokens, "Seq2Seq")
        x = self.embedding(tokens, lengths)
        x = self.decoder(x, lengths=lengths, memory=memory, memory_lengths=source_lengths)
        return self.embedding.attend(x) if self.head is None else self.head(x)

    def __call__(
        self,
        source: Array,
        tokens: Array,
        source_lengths: Array | None = None,
        lengths: Array | None = None,
    ) -> Array:
        memory = self.encode(source, source_lengths)
        return self.decode(tokens, memory, source_lengths, lengths)
