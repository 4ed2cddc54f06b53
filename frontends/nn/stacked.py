"""Layers of cells over time: Stack of any, and RNN, LSTM and GRU of those in `cells`.

Input: x [B, T, inputs], a carry, lengths and segments, as in `recurrent`; output: y [B, T, width]
of the last layer and all carries.  Invariant: a layer of one direction computes y at t from x up to
t alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import retrograde.numpy as rnp
from retrograde import random
from retrograde.compiler.errors import ShapeError, UnsupportedError
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.location import skip_frames_under, where
from retrograde.nn import cells, checks, context, initial
from retrograde.nn.initial import Source
from retrograde.nn.layers import Dropout
from retrograde.nn.module import Module
from retrograde.nn.recurrent import Recurrent
from retrograde.numpy.primitives import Array

skip_frames_under(os.path.abspath(__file__))


class SequenceDropout(Module):
    """Dropout with one mask for a whole sequence: [B, T, ...], equal at all T steps.

    Source: Gal & Ghahramani 2016."""

    rate: float

    def __init__(self, rate: float) -> None:
        self.rate = checks.rate(rate, "the rate of SequenceDropout")

    def __call__(self, x: Array) -> Array:
        key = context.dropout_key() if self.rate and self.training else None
        if key is None:
            return x
        kept = random.bernoulli(key, 1.0 - self.rate, (x.shape[0], 1, *x.shape[2:]))
        return rnp.where(kept, x * (1.0 / (1.0 - self.rate)), 0.0)


class Stack(Module):
    """Cells one upon the other: x [B, T, inputs] -> (y [B, T, width], carries).

    With cells in `backward`, each layer runs both ways, and its y is that of `forward` followed by
    that of `backward`.  Carries are a tuple with that of each layer; where layers run both ways,
    with a pair (forward, backward).  `dropout` acts between the layers; `variational` has it drop
    the same numbers at every step of a sequence."""

    forward: tuple[Recurrent, ...]
    backward: tuple[Recurrent, ...]
    dropout: Dropout | SequenceDropout

    def __init__(
        self,
        forward: Sequence[Any],
        backward: Sequence[Any] = (),
        *,
        dropout: float = 0.0,
        variational: bool = False,
    ) -> None:
        if backward and len(backward) != len(forward):
            raise ShapeError(
                f"{where()}there are {len(forward)} cells forward and {len(backward)} backward"
            )
        self.forward = tuple(map(Recurrent, forward))
        self.backward = tuple(map(Recurrent, backward))
        self.dropout = SequenceDropout(dropout) if variational else Dropout(dropout)

    def initial(self, batch: Dim) -> tuple[Any, ...]:
        """The first carries for `batch` rows."""
        ahead = tuple(layer.initial(batch) for layer in self.forward)
        if not self.backward:
            return ahead
        return tuple(
            zip(ahead, (layer.initial(batch) for layer in self.backward), strict=True)
        )

    def __call__(
        self, x: Array, carry: Any = None, lengths: Any = None, segments: Any = None
    ) -> tuple[Array, tuple[Any, ...]]:
        given = self._given(carry)
        after: list[Any] = []
        for k, layer in enumerate(self.forward):
            x = self.dropout(x) if k else x
            if not self.backward:
                x, last = layer(x, given[k], lengths, segments=segments)
            else:
                ahead, c = layer(x, given[k][0], lengths, segments=segments)
                back, d = self.backward[k](x, given[k][1], lengths, True, segments)
                x, last = rnp.concatenate([ahead, back], axis=-1), (c, d)
            after.append(last)
        return x, tuple(after)

    def _given(self, carry: Any) -> Sequence[Any]:
        count = len(self.forward)
        if carry is None:
            return [(None, None) if self.backward else None] * count
        pairs = not self.backward or all(
            isinstance(c, (tuple, list)) and len(c) == 2 for c in carry
        )
        if not isinstance(carry, (tuple, list)) or len(carry) != count or not pairs:
            each = "a pair (forward, backward)" if self.backward else "one carry"
            raise ShapeError(
                f"{where()}{type(self).__name__} takes {each} for each of its {count} layers, as "
                "it returns them"
            )
        return carry


def _stacked(
    make: Callable[[int], Any], inputs: int, out: int, layers: int, bidirectional: bool
) -> tuple[list[Any], list[Any]]:
    """Cells of each layer, forward and backward; `make` takes the number of inputs."""
    layers = checks.positive(layers, "the number of layers")
    forward, backward = [], []
    for k in range(layers):
        wide = inputs if k == 0 else out * (2 if bidirectional else 1)
        forward.append(make(wide))
        if bidirectional:
            backward.append(make(wide))
    return forward, backward


class RNN(Stack):
    """Layers of RNNCell, `nonlinearity` tanh or relu.

    `recurrent_dropout` drops numbers of the state on its way to the next step, the same ones at
    every step; all else is explained at Stack and at the cell."""

    def __init__(
        self,
        inputs: int,
        width: int,
        layers: int = 1,
        *,
        nonlinearity: str = "tanh",
        bias: bool = True,
        bidirectional: bool = False,
        dropout: float = 0.0,
        variational: bool = False,
        recurrent_dropout: float = 0.0,
        seed: int | Source | None = None,
    ) -> None:
        numbers = initial.source(seed)

        def make(wide: int) -> Any:
            return cells.RNNCell(
                wide, width, nonlinearity=nonlinearity, bias=bias, dropout=recurrent_dropout,
                seed=numbers,
            )  # fmt: skip

        both = _stacked(make, inputs, width, layers, bidirectional)
        super().__init__(*both, dropout=dropout, variational=variational)


class LSTM(Stack):
    """Layers of LSTMCell, or with `layer_norm` of LayerNormLSTMCell; as RNN."""

    def __init__(
        self,
        inputs: int,
        width: int,
        layers: int = 1,
        *,
        bias: bool = True,
        peephole: bool = False,
        projection: int | None = None,
        layer_norm: bool = False,
        forget_bias: float = 1.0,
        bidirectional: bool = False,
        dropout: float = 0.0,
        variational: bool = False,
        recurrent_dropout: float = 0.0,
        seed: int | Source | None = None,
    ) -> None:
        numbers = initial.source(seed)
        if layer_norm and (peephole or projection is not None or not bias):
            raise UnsupportedError(
                f"{where()}layer_norm goes with neither peephole, projection nor bias=False: write "
                "such a cell, and give it to Stack"
            )

        def make(wide: int) -> Any:
            if layer_norm:
                return cells.LayerNormLSTMCell(
                    wide, width, forget_bias=forget_bias, dropout=recurrent_dropout, seed=numbers
                )
            return cells.LSTMCell(
                wide, width, bias=bias, peephole=peephole, projection=projection,
                forget_bias=forget_bias, dropout=recurrent_dropout, seed=numbers,
            )  # fmt: skip

        out = width if projection is None else projection
        both = _stacked(make, inputs, out, layers, bidirectional)
        super().__init__(*both, dropout=dropout, variational=variational)


class GRU(Stack):
    """Layers of GRUCell, or with `layer_norm` of LayerNormGRUCell; as RNN."""

    def __init__(
        self,
        inputs: int,
        width: int,
        layers: int = 1,
        *,
        bias: bool = True,
        reset: str = "after",
        layer_norm: bool = False,
        bidirectional: bool = False,
        dropout: float = 0.0,
        variational: bool = False,
        recurrent_dropout: float = 0.0,
        seed: int | Source | None = None,
    ) -> None:
        numbers = initial.source(seed)
        if layer_norm and (reset != "after" or not bias):
            raise UnsupportedError(
                f"{where()}layer_norm goes with reset='after' and a bias: write another cell, and "
                "give it to Stack"
            )

        def make(wide: int) -> Any:
            if layer_norm:
                return cells.LayerNormGRUCell(wide, width, dropout=recurrent_dropout, seed=numbers)
            return cells.GRUCell(
                wide, width, bias=bias, reset=reset, dropout=recurrent_dropout, seed=numbers
            )

        both = _stacked(make, inputs, width, layers, bidirectional)
        super().__init__(*both, dropout=dropout, variational=variational)
