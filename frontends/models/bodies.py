"""What runs over a sequence inside of a model, one interface for all: [B, T, width] -> the same T.

Called with x, lengths and segments; `out_width` says how wide the result is.  Invariant: a body
that is not bidirectional makes what stands at t from x up to t alone; what stands beyond lengths
changes no bit within them, and a segment does not depend on the others.
"""

from __future__ import annotations

import os
from typing import Any

import retrograde.numpy as rnp
from retrograde.compiler.errors import UnsupportedError
from retrograde.compiler.ir.location import skip_frames_under, where
from retrograde.models.parts import one_of
from retrograde.models.rnnlm import CELLS
from retrograde.models.transformer import Transformer
from retrograde.nn import Conv1d, DiagonalSSM, Dropout, LayerNorm, Linear, Module, checks
from retrograde.nn.initial import Source, source
from retrograde.nn.stacked import Stack
from retrograde.numpy.primitives import Array

skip_frames_under(os.path.abspath(__file__))

BODIES = ("attention", *CELLS, "tcn", "ssm")


class RecurrentBody(Module):
    """Layers of a cell, with dropout after the last."""

    rnn: Stack
    dropout: Dropout
    out_width: int

    def __init__(
        self,
        cell: str,
        width: int,
        layers: int,
        *,
        bidirectional: bool = False,
        dropout: float = 0.0,
        seed: int | Source | None = None,
    ) -> None:
        make = CELLS[one_of(cell, CELLS, "the cell")]
        self.rnn = make(
            width, width, layers, bidirectional=bidirectional, dropout=dropout, seed=seed
        )
        self.dropout = Dropout(dropout)
        self.out_width = width * (2 if bidirectional else 1)

    def __call__(self, x: Array, lengths: Any = None, segments: Any = None) -> Array:
        return self.dropout(self.rnn(x, None, lengths, segments)[0])


class AttentionBody(Module):
    """A Transformer; its options are those of it."""

    trunk: Transformer
    out_width: int

    def __init__(self, width: int, layers: int, heads: int, **options: Any) -> None:
        self.trunk = Transformer(width, layers, heads, **options)
        self.out_width = width

    def __call__(self, x: Array, lengths: Any = None, segments: Any = None) -> Array:
        return self.trunk(x, None, lengths, segments)


class TCNBlock(Module):
    """x + conv(relu(conv(norm(x)))), both of one dilation."""

    norm: LayerNorm
    first: Conv1d
    second: Conv1d
    dropout: Dropout

    def __init__(
        self, width: int, size: int, dilation: int, causal: bool, dropout: float, numbers: Source
    ) -> None:
        self.norm = LayerNorm(width)
        self.first = Conv1d(width, width, size, causal=causal, dilation=dilation, seed=numbers)
        self.second = Conv1d(width, width, size, causal=causal, dilation=dilation, seed=numbers)
        self.dropout = Dropout(dropout)

    def __call__(self, x: Array, lengths: Any = None, segments: Any = None) -> Array:
        y = self.dropout(rnp.relu(self.first(self.norm(x), lengths, segments)))
        return x + self.dropout(self.second(y, lengths, segments))


class TCNBody(Module):
    """Blocks of convolutions with dilations 1, 2, 4, …: block i reaches 2 (size - 1) 2^i further.

    Source: Bai, Kolter & Koltun 2018, with a layer norm before each block in place of weight
    norm."""

    blocks: tuple[TCNBlock, ...]
    final_norm: LayerNorm
    out_width: int

    def __init__(
        self,
        width: int,
        layers: int,
        *,
        size: int = 3,
        causal: bool = True,
        dropout: float = 0.0,
        seed: int | Source | None = None,
    ) -> None:
        layers = checks.positive(layers, "the number of layers")
        numbers = source(seed)
        self.blocks = tuple(
            TCNBlock(width, size, 2**i, causal, dropout, numbers) for i in range(layers)
        )
        self.final_norm = LayerNorm(width)
        self.out_width = width

    @property
    def reach(self) -> int:
        """How many steps a result sees, its own included (of both sides, unless causal)."""
        size = int(self.blocks[0].first.weight.shape[0])
        return 1 + 2 * (size - 1) * ((1 << len(self.blocks)) - 1)

    def __call__(self, x: Array, lengths: Any = None, segments: Any = None) -> Array:
        for block in self.blocks:
            x = block(x, lengths, segments)
        return self.final_norm(x)


class SSMBlock(Module):
    """x + a * sigmoid(b) of (a, b) = Linear(gelu(ssm(norm(x)))), as in S4 (Gu, Goel & Ré 2022)."""

    norm: LayerNorm
    ssm: DiagonalSSM
    mix: Linear
    dropout: Dropout

    def __init__(self, width: int, state: int, dropout: float, numbers: Source) -> None:
        self.norm = LayerNorm(width)
        self.ssm = DiagonalSSM(width, state, seed=numbers)
        self.mix = Linear(width, 2 * width, seed=numbers)
        self.dropout = Dropout(dropout)

    def __call__(self, x: Array, lengths: Any = None, segments: Any = None) -> Array:
        y, _ = self.ssm(self.norm(x), None, lengths, segments)
        a, b = rnp.split(self.mix(self.dropout(rnp.gelu(y))), 2, axis=-1)
        return x + self.dropout(a * rnp.sigmoid(b))


class SSMBody(Module):
    """Blocks of diagonal state spaces, and a last norm."""

    blocks: tuple[SSMBlock, ...]
    final_norm: LayerNorm
    out_width: int

    def __init__(
        self,
        width: int,
        layers: int,
        *,
        state: int = 16,
        dropout: float = 0.0,
        seed: int | Source | None = None,
    ) -> None:
        layers = checks.positive(layers, "the number of layers")
        numbers = source(seed)
        self.blocks = tuple(SSMBlock(width, state, dropout, numbers) for _ in range(layers))
        self.final_norm = LayerNorm(width)
        self.out_width = width

    def __call__(self, x: Array, lengths: Any = None, segments: Any = None) -> Array:
        for block in self.blocks:
            x = block(x, lengths, segments)
        return self.final_norm(x)


def body_of(
    kind: str,
    width: int,
    layers: int,
    *,
    bidirectional: bool,
    heads: int,
    dropout: float,
    numbers: Source,
    options: dict[str, Any],
) -> RecurrentBody | AttentionBody | TCNBody | SSMBody:
    """The body of this name; `options` are its own (positions, size, state, …)."""
    one_of(kind, BODIES, "the body")
    width = checks.positive(width, "the width")
    try:
        if kind == "attention":
            return AttentionBody(
                width, layers, heads, causal=not bidirectional, dropout=dropout, seed=numbers,
                **options,
            )  # fmt: skip
        if kind == "tcn":
            return TCNBody(
                width, layers, causal=not bidirectional, dropout=dropout, seed=numbers, **options
            )
        if kind == "ssm":
            if bidirectional:
                raise UnsupportedError(
                    f"{where()}a state space looks back alone: bidirectional=False"
                )
            return SSMBody(width, layers, dropout=dropout, seed=numbers, **options)
        return RecurrentBody(
            kind, width, layers, bidirectional=bidirectional, dropout=dropout, seed=numbers,
            **options,
        )  # fmt: skip
    except TypeError as error:
        raise UnsupportedError(f"{where()}the body {kind!r}: {error}") from None
