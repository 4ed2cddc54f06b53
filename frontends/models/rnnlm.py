"""A recurrent language model: tokens [B, T] -> logits [B, T, vocab].

An embedding, layers of a cell, and a head without a bias that may share the table of the embedding;
dropout on the embedding, between the layers and before the head (Zaremba, Sutskever & Vinyals
2014).  Invariant: logits at time t depend on tokens up to t alone, and a text in pieces, the carry
of one given to the next, has the logits of the whole.

Names and shapes of the arrays (W width, V vocab, G gates side by side: 4 in an LSTM, 3 in a GRU, 1
in an RNN; a GRU also has `recurrent_bias` [W]):

    embedding.weight [V, W]                              head.weight [W, V]  (absent when tied)
    rnn.forward.{i}.cell.weight_input [W, G W]           rnn.forward.{i}.cell.bias [G W]
    rnn.forward.{i}.cell.weight_recurrent [W, G W]
"""

from __future__ import annotations

import math
from typing import Any

import retrograde.numpy as rnp
from retrograde.compiler.ir.dims import Dim
from retrograde.models.parts import check_tokens, one_of
from retrograde.nn import GRU, LSTM, RNN, Dropout, Embedding, Linear, Module, checks
from retrograde.nn.initial import source
from retrograde.nn.stacked import SequenceDropout, Stack
from retrograde.numpy.primitives import Array
from retrograde.ragged import steps_within

CELLS: dict[str, type[RNN] | type[LSTM] | type[GRU]] = {"lstm": LSTM, "gru": GRU, "rnn": RNN}


class RNNLM(Module):
    """The model.  `variational` has every dropout drop the same numbers at all steps of a row.

    `lengths` [B] says how many tokens each row has; beyond them tokens may be any number, logits
    are 0, and the carry is that of the row's end.  `segments` [B, T] begins anew, from the initial
    carry, wherever its number changes: texts packed into one row.  The embedding is normal with
    standard deviation 0.1, or 1/sqrt(width) if the head shares it; the head has variance
    1/width."""

    embedding: Embedding
    input_dropout: Dropout | SequenceDropout
    rnn: Stack
    output_dropout: Dropout | SequenceDropout
    head: Linear | None

    def __init__(
        self,
        *,
        vocab: int,
        width: int,
        layers: int,
        cell: str = "lstm",
        seed: int = 0,
        dropout: float = 0.0,
        variational: bool = False,
        tied: bool = False,
    ) -> None:
        for name, size in {"vocab": vocab, "width": width}.items():
            checks.positive(size, name)
        one_of(cell, CELLS, "the cell")
        numbers = source(seed)
        std = 1.0 / math.sqrt(width) if tied else 0.1
        outside = SequenceDropout if variational else Dropout
        self.embedding = Embedding(vocab, width, seed=numbers, std=std)
        self.input_dropout = outside(dropout)
        self.rnn = CELLS[cell](
            width, width, layers, dropout=dropout, variational=variational, seed=numbers
        )
        self.output_dropout = outside(dropout)
        self.head = None if tied else Linear(width, vocab, bias=False, seed=numbers)

    @property
    def vocab(self) -> int:
        """How many tokens there are."""
        return int(self.embedding.weight.shape[0])

    def initial(self, batch: Dim) -> tuple[Any, ...]:
        """The carry before the first token of `batch` rows."""
        return self.rnn.initial(batch)

    def __call__(self, tokens: Array, lengths: Any = None, segments: Any = None) -> Array:
        return self._logits(tokens, None, lengths, segments)[0]

    def advance(self, tokens: Array, carry: Any, lengths: Any = None) -> tuple[Array, Any]:
        """The logits of tokens that follow those that `carry` comes from, and the next carry."""
        return self._logits(tokens, carry, lengths)

    def _logits(
        self, tokens: Array, carry: Any, lengths: Any, segments: Any = None
    ) -> tuple[Array, Any]:
        check_tokens(tokens, "RNNLM")
        if lengths is not None:  # beyond a row's end there may be any number
            inside = rnp.swapaxes(steps_within(lengths, *tokens.shape), 0, 1)
            tokens = rnp.where(inside, tokens, 0)
        x = self.input_dropout(self.embedding(tokens))
        x, carry = self.rnn(x, carry, lengths, segments)
        x = self.output_dropout(x)
        return self.embedding.attend(x) if self.head is None else self.head(x), carry
