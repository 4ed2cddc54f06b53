"""A recurrent encoder and decoder that may copy: source, tokens [B, T] -> logits [B, T, vocab].

The next token is taken from the vocabulary with a probability that each state tells, else from the
source, from where the attention looks (the pointer-generator: See, Liu & Manning 2017, without
coverage); both are one distribution over one vocabulary of source and target.  Invariant: logits
are logarithms of probabilities, of which `nll` has those of the targets; at t they depend on the
source within its length and on tokens up to t alone.
"""

from __future__ import annotations

import math
import os
from typing import Any

import retrograde.numpy as rnp
from retrograde.compiler.errors import ShapeError
from retrograde.compiler.ir import dims
from retrograde.compiler.ir.location import skip_frames_under
from retrograde.compiler.ir.registry import lookup
from retrograde.models.parts import (
    TokenEmbedding,
    asked_at,
    check_tokens,
    one_of,
    tokens_within,
)
from retrograde.models.pooling import masked_mean
from retrograde.models.rnn_seq2seq import carries_of
from retrograde.models.rnnlm import CELLS
from retrograde.nn import Dropout, Linear, Module, checks
from retrograde.nn.attention import within
from retrograde.nn.initial import Source, source
from retrograde.nn.stacked import Stack
from retrograde.numpy.dispatch import function
from retrograde.numpy.primitives import Array, array, floating

skip_frames_under(os.path.abspath(__file__))
_CLOSED = -1e4  # a score that no probability is left of, in 16 bits too
_LEAST = 1e-30  # a probability whose logarithm can be told


class CopyingSeq2Seq(Module):
    """The model: `layers` of an LSTM, GRU or RNN each; one table embeds source and tokens and is
    the head.

    `query` [W, 2W] makes what is compared with the memory [B, S, 2W], `bridge` [2W, …] the first
    carry, `mix` [3W, W] a state and what it attends to into one, `gate` [W, 1] the odds of the
    vocabulary against copying."""

    embedding: TokenEmbedding
    encoder: Stack
    bridge: Linear
    decoder: Stack
    query: Linear
    mix: Linear
    gate: Linear
    dropout: Dropout

    def __init__(
        self,
        *,
        vocab: int,
        width: int,
        layers: int = 1,
        cell: str = "gru",
        dropout: float = 0.0,
        seed: int | Source = 0,
    ) -> None:
        make = CELLS[one_of(cell, CELLS, "the cell")]
        numbers = source(seed)
        self.embedding = TokenEmbedding(vocab, width, seed=numbers)
        self.encoder = make(width, width, layers, bidirectional=True, dropout=dropout, seed=numbers)
        carries = layers * (2 if cell == "lstm" else 1)
        self.bridge = Linear(2 * width, carries * width, seed=numbers)
        self.decoder = make(width, width, layers, dropout=dropout, seed=numbers)
        self.query = Linear(width, 2 * width, bias=False, seed=numbers)
        self.mix = Linear(3 * width, width, seed=numbers)
        self.gate = Linear(width, 1, seed=numbers)
        self.dropout = Dropout(dropout)

    @property
    def vocab(self) -> int:
        """How many tokens there are, of source and target."""
        return self.embedding.vocab

    def encode(self, source: Array, source_lengths: Array | None = None) -> Array:
        """The memory [B, S, 2 width] of a source [B, S]."""
        check_tokens(source, "CopyingSeq2Seq")
        x = self.dropout(self.embedding(source, source_lengths))
        return self.encoder(x, None, source_lengths)[0]

    def _looked(
        self, tokens: Array, memory: Array, source_lengths: Array | None, lengths: Array | None
    ) -> tuple[Array, Array, Array]:
        """What the vocabulary is compared with [B, T, W], scores of the places of the source
        [B, T, S], and the odds of the vocabulary, as a logarithm [B, T]."""
        check_tokens(tokens, "CopyingSeq2Seq")
        if source_lengths is not None:
            memory = within(memory, source_lengths)
        width = self.mix.weight.shape[1]
        flat = rnp.tanh(self.bridge(masked_mean(memory, source_lengths)))
        first = carries_of(flat, len(self.decoder.forward), width)
        x = self.dropout(self.embedding(tokens, lengths))
        h, _ = self.decoder(x, first, lengths)
        scores = rnp.matmul(self.query(h), rnp.matrix_transpose(memory)) / math.sqrt(2 * width)
        if source_lengths is not None:
            inside = rnp.less(rnp.arange(memory.shape[1]), source_lengths[:, None, None])
            scores = rnp.where(inside, scores, _CLOSED)
        seen = rnp.matmul(rnp.softmax(scores, axis=-1), memory)
        x = rnp.tanh(self.mix(rnp.concatenate([h, seen], axis=-1)))
        return self.dropout(x), scores, self.gate(x)[:, :, 0]

    def decode(
        self,
        tokens: Array,
        memory: Array,
        source: Array,
        source_lengths: Array | None = None,
        lengths: Array | None = None,
    ) -> Array:
        """Logarithms of probabilities [B, T, vocab] of what follows each of the tokens [B, T]."""
        x, scores, odds = self._looked(tokens, memory, source_lengths, lengths)
        known = rnp.expand_dims(tokens_within(source, source_lengths), -1)
        places = rnp.astype(rnp.equal(known, rnp.arange(self.vocab)), scores.dtype)
        copied = rnp.matmul(rnp.softmax(scores, axis=-1), places)
        copied = rnp.log(rnp.maximum(copied, _LEAST))
        made = rnp.log_softmax(self.embedding.attend(x), axis=-1)
        odds = rnp.expand_dims(odds, -1)
        return rnp.logaddexp(made - rnp.softplus(-odds), copied - rnp.softplus(odds))

    def nll(
        self,
        source: Array,
        tokens: Array,
        targets: Array,
        source_lengths: Array | None = None,
        lengths: Array | None = None,
    ) -> Array:
        """The negative log likelihood of each of the targets [B, T], in nats: what `decode` would
        tell of them, without the probabilities of all others.  It is 0 beyond the lengths."""
        check_tokens(targets, "CopyingSeq2Seq")
        if not all(map(dims.same, targets.shape, tokens.shape)):
            raise ShapeError(
                f"{asked_at()}tokens {checks.shown(tokens)} and targets {checks.shown(targets)}: "
                "there is a target for each of the tokens"
            )
        memory = self.encode(source, source_lengths)
        x, scores, odds = self._looked(tokens, memory, source_lengths, lengths)
        targets = tokens_within(targets, lengths)
        same = rnp.equal(rnp.expand_dims(targets, 2), rnp.expand_dims(source, 1))
        if source_lengths is not None:
            places = rnp.arange(source.shape[1])
            same = rnp.logical_and(same, rnp.less(places, source_lengths[:, None, None]))
        copied = rnp.logsumexp(rnp.where(same, scores, _CLOSED), axis=-1)
        copied = copied - rnp.logsumexp(scores, axis=-1)
        # As one list of rows, x is put in order once, and not what is sixteen times as wide.
        batch, time, width = x.shape
        logits = self.embedding.attend(rnp.reshape(x, (batch * time, width)))
        made = -rnp.reshape(_nll(logits, rnp.reshape(targets, (batch * time,))), (batch, time))
        found = -rnp.logaddexp(made - rnp.softplus(-odds), copied - rnp.softplus(odds))
        return found if lengths is None else within(found, lengths)

    def __call__(
        self,
        source: Array,
        tokens: Array,
        source_lengths: Array | None = None,
        lengths: Array | None = None,
    ) -> Array:
        memory = self.encode(source, source_lengths)
        return self.decode(tokens, memory, source, source_lengths, lengths)


@function
def _nll(logits: Any, targets: Any) -> Any:
    return lookup("token_nll")(floating(logits), array(targets))[0]
