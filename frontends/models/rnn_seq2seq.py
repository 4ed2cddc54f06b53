"""Recurrent encoder and decoder with attention: source, tokens [B, T] -> logits [B, T, vocab].

The encoder runs both ways; the decoder begins with a carry made from the mean of the memory
(Bahdanau, Cho & Bengio 2015 make it from one end), and mixes each of its states with what
it attends to (global attention with a general score: Luong, Pham & Manning 2015, without input
feeding, so that teacher forcing is one loop).  Invariant: logits at t depend on the source within
its length and on tokens up to t alone; `model(source, tokens, n)` is `model.decode(tokens,
model.encode(source, n), n)`.
"""

from __future__ import annotations

import os
from typing import Any

import retrograde.numpy as rnp
from retrograde.compiler.ir.location import skip_frames_under
from retrograde.models.parts import (
    FrameEmbedding,
    TokenEmbedding,
    check_tokens,
    input_embedding,
    one_of,
)
from retrograde.models.pooling import masked_mean
from retrograde.models.rnnlm import CELLS
from retrograde.nn import Dropout, Linear, Module, attention
from retrograde.nn.attention import open_to, within
from retrograde.nn.initial import Source, source
from retrograde.nn.stacked import Stack
from retrograde.numpy.primitives import Array

skip_frames_under(os.path.abspath(__file__))


class RNNSeq2Seq(Module):
    """The model: `layers` of an LSTM, GRU or RNN each; `tied` shares the table of the decoder's
    embedding with the head.

    `query` [W, 2W] makes what is compared with the memory [B, S, 2W], `bridge` [2W, …] the first
    carry, `mix` [3W, W] a state and what it attends to into one."""

    source_embedding: TokenEmbedding | FrameEmbedding
    encoder: Stack
    embedding: TokenEmbedding
    bridge: Linear
    decoder: Stack
    query: Linear
    mix: Linear
    dropout: Dropout
    head: Linear | None

    def __init__(
        self,
        *,
        vocab: int,
        width: int,
        layers: int = 1,
        cell: str = "lstm",
        source_vocab: int | None = None,
        source_inputs: int | None = None,
        dropout: float = 0.0,
        tied: bool = False,
        seed: int | Source = 0,
    ) -> None:
        make = CELLS[one_of(cell, CELLS, "the cell")]
        numbers = source(seed)
        self.source_embedding = input_embedding(
            source_vocab, source_inputs, width, numbers, "RNNSeq2Seq"
        )
        self.encoder = make(
            width, width, layers, bidirectional=True, dropout=dropout, seed=numbers
        )
        self.embedding = TokenEmbedding(vocab, width, seed=numbers)
        carries = layers * (2 if cell == "lstm" else 1)
        self.bridge = Linear(2 * width, carries * width, seed=numbers)
        self.decoder = make(width, width, layers, dropout=dropout, seed=numbers)
        self.query = Linear(width, 2 * width, bias=False, seed=numbers)
        self.mix = Linear(3 * width, width, seed=numbers)
        self.dropout = Dropout(dropout)
        self.head = None if tied else Linear(width, vocab, bias=False, seed=numbers)

    @property
    def vocab(self) -> int:
        """How many tokens the decoder knows."""
        return self.embedding.vocab

    def encode(self, source: Array, source_lengths: Array | None = None) -> Array:
        """The memory [B, S, 2 width] of a source [B, S] or [B, S, inputs]."""
        x = self.dropout(self.source_embedding(source, source_lengths))
        return self.encoder(x, None, source_lengths)[0]

    def initial(self, memory: Array, source_lengths: Array | None = None) -> Any:
        """The decoder's carry before the first token: tanh of the bridge of the mean memory."""
        flat = rnp.tanh(self.bridge(masked_mean(memory, source_lengths)))
        return carries_of(flat, len(self.decoder.forward), self.mix.weight.shape[1])

    def decode(
        self,
        tokens: Array,
        memory: Array,
        source_lengths: Array | None = None,
        lengths: Array | None = None,
    ) -> Array:
        """Logits [B, T, vocab] of what follows each of the tokens [B, T]."""
        check_tokens(tokens, "RNNSeq2Seq")
        if source_lengths is not None:
            memory = within(memory, source_lengths)
        x = self.dropout(self.embedding(tokens, lengths))
        h, _ = self.decoder(x, self.initial(memory, source_lengths), lengths)
        rules = open_to(None, source_lengths, None, None, False)
        allowed = None if rules is None else rules.array(h.shape[1], memory.shape[1])
        seen = attention(self.query(h), memory, memory, allowed)
        x = self.dropout(rnp.tanh(self.mix(rnp.concatenate([h, seen], axis=-1))))
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


def carries_of(flat: Array, layers: int, width: int) -> Any:
    """[B, n width] as the carries of so many layers, each of one array, or of two."""
    parts = [flat[:, i * width : (i + 1) * width] for i in range(flat.shape[1] // width)]
    if len(parts) == layers:
        return tuple(parts)
    return tuple((parts[2 * i], parts[2 * i + 1]) for i in range(layers))
