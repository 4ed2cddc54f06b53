"""Models that label sequences: a whole one, each step of one, or the next token.

Input: tokens [B, T] or frames [B, T, inputs], lengths [B], segments [B, T]; output: logits.  Every
one has an embedding, a body and a head; what the body is, is an option.  Invariant: what stands
beyond a row's length changes no bit of what lies within, nor of any gradient.
"""

from __future__ import annotations

import os
from typing import Any

from retrograde.compiler.ir.location import skip_frames_under
from retrograde.models.bodies import (
    AttentionBody,
    RecurrentBody,
    SSMBody,
    TCNBody,
    body_of,
)
from retrograde.models.parts import (
    FrameEmbedding,
    TokenEmbedding,
    input_embedding,
)
from retrograde.models.pooling import Pooling
from retrograde.nn import Dropout, Linear, Module
from retrograde.nn.initial import Source, source
from retrograde.numpy.primitives import Array

skip_frames_under(os.path.abspath(__file__))

Body = RecurrentBody | AttentionBody | TCNBody | SSMBody


class Classifier(Module):
    """A label for a sequence: tokens or frames -> logits [B, classes].

    `body` is "attention", "lstm", "gru", "rnn", "tcn" or "ssm" (which looks back alone, so
    `bidirectional` must be False); `pooling` "mean", "last" or "attention" over the steps within
    `lengths`.  More options are the body's: positions, norm, mlp, kv_heads, window, context of
    attention, size of tcn, state of ssm."""

    embedding: TokenEmbedding | FrameEmbedding
    dropout: Dropout
    body: Body
    pooling: Pooling
    head: Linear

    def __init__(
        self,
        *,
        classes: int,
        width: int,
        layers: int = 1,
        vocab: int | None = None,
        inputs: int | None = None,
        body: str = "gru",
        bidirectional: bool = True,
        heads: int = 4,
        pooling: str = "mean",
        dropout: float = 0.0,
        seed: int | Source = 0,
        **options: Any,
    ) -> None:
        numbers = source(seed)
        self.embedding = input_embedding(vocab, inputs, width, numbers, "Classifier")
        self.dropout = Dropout(dropout)
        self.body = body_of(
            body, width, layers, bidirectional=bidirectional, heads=heads, dropout=dropout,
            numbers=numbers, options=options,
        )  # fmt: skip
        self.pooling = Pooling(pooling, self.body.out_width, seed=numbers)
        self.head = Linear(self.body.out_width, classes, seed=numbers)

    def __call__(self, x: Array, lengths: Array | None = None) -> Array:
        h = self.body(self.dropout(self.embedding(x, lengths)), lengths)
        return self.head(self.pooling(h, lengths))


class Tagger(Module):
    """A label for each step: tokens or frames -> logits [B, T, tags].

    `body`, `bidirectional` and more options are as at Classifier; `segments` keep sequences apart
    that share a row."""

    embedding: TokenEmbedding | FrameEmbedding
    dropout: Dropout
    body: Body
    head: Linear

    def __init__(
        self,
        *,
        tags: int,
        width: int,
        layers: int = 1,
        vocab: int | None = None,
        inputs: int | None = None,
        body: str = "lstm",
        bidirectional: bool = True,
        heads: int = 4,
        dropout: float = 0.0,
        seed: int | Source = 0,
        **options: Any,
    ) -> None:
        numbers = source(seed)
        self.embedding = input_embedding(vocab, inputs, width, numbers, "Tagger")
        self.dropout = Dropout(dropout)
        self.body = body_of(
            body, width, layers, bidirectional=bidirectional, heads=heads, dropout=dropout,
            numbers=numbers, options=options,
        )  # fmt: skip
        self.head = Linear(self.body.out_width, tags, seed=numbers)

    def __call__(
        self, x: Array, lengths: Array | None = None, segments: Array | None = None
    ) -> Array:
        embedded = self.dropout(self.embedding(x, lengths))
        return self.head(self.body(embedded, lengths, segments))


class SSMLM(Module):
    """A language model of diagonal state spaces: tokens [B, T] -> logits [B, T, vocab].

    `state` complex numbers for each of `width` channels in each layer; `tied` shares the table of
    the embedding with the head."""

    embedding: TokenEmbedding
    dropout: Dropout
    body: SSMBody
    head: Linear | None

    def __init__(
        self,
        *,
        vocab: int,
        width: int,
        layers: int,
        state: int = 16,
        dropout: float = 0.0,
        tied: bool = False,
        seed: int | Source = 0,
    ) -> None:
        numbers = source(seed)
        self.embedding = TokenEmbedding(vocab, width, seed=numbers)
        self.dropout = Dropout(dropout)
        self.body = SSMBody(width, layers, state=state, dropout=dropout, seed=numbers)
        self.head = None if tied else Linear(width, vocab, bias=False, seed=numbers)

    @property
    def vocab(self) -> int:
        """How many tokens there are."""
        return self.embedding.vocab

    def __call__(
        self, tokens: Array, lengths: Array | None = None, segments: Array | None = None
    ) -> Array:
        h = self.body(self.dropout(self.embedding(tokens, lengths)), lengths, segments)
        return self.embedding.attend(h) if self.head is None else self.head(h)


class TCN(Module):
    """A temporal convolution network: tokens or frames -> [B, T, outputs].

    `outputs` is the number of tokens unless it is given, or the width for frames.  `causal` looks
    back alone, over `model.body.reach` steps."""

    embedding: TokenEmbedding | FrameEmbedding
    body: TCNBody
    head: Linear

    def __init__(
        self,
        *,
        width: int,
        layers: int,
        vocab: int | None = None,
        inputs: int | None = None,
        outputs: int | None = None,
        size: int = 3,
        causal: bool = True,
        dropout: float = 0.0,
        seed: int | Source = 0,
    ) -> None:
        numbers = source(seed)
        self.embedding = input_embedding(vocab, inputs, width, numbers, "TCN")
        self.body = TCNBody(
            width, layers, size=size, causal=causal, dropout=dropout, seed=numbers
        )
        self.head = Linear(width, outputs or vocab or width, seed=numbers)

    def __call__(
        self, x: Array, lengths: Array | None = None, segments: Array | None = None
    ) -> Array:
        return self.head(self.body(self.embedding(x, lengths), lengths, segments))
