"""A forecaster: a past, what is known of the future, and what never changes -> quantiles.

Input: past [B, T, inputs] (the series itself and all that is observed), future [B, H, known]
(calendars, plans), static [B, fixed]; output: [B, H, targets, quantiles], without the axis of one
target.  All steps of the horizon are made at once (the direct form: Wen et al. 2017).  Invariant:
what stands beyond a row's past length changes no bit, and the last step of each row is its present.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import retrograde.numpy as rnp
from retrograde.compiler.errors import ShapeError
from retrograde.compiler.ir import dims
from retrograde.compiler.ir.location import skip_frames_under, where
from retrograde.models.bodies import RecurrentBody
from retrograde.models.parts import FrameEmbedding, check_frames, one_of
from retrograde.models.rnnlm import CELLS
from retrograde.models.transformer import Transformer
from retrograde.nn import Dropout, Linear, Module, checks, sinusoidal
from retrograde.nn.initial import Source, source
from retrograde.nn.stacked import Stack
from retrograde.numpy.primitives import Array

skip_frames_under(os.path.abspath(__file__))


class Forecaster(Module):
    """The model: an encoder over the past, a decoder over the horizon.

    `body` "attention": a Transformer over the past, positions counted back from the present, and
    one over the horizon that attends to it; "lstm", "gru" or "rnn": the carry of the past's last
    step begins the horizon.  `known` is how many covariates of the future there are, `static` how
    many numbers of each row; `quantiles` are what the last axis means (rg.losses.pinball); with
    `quantiles=None` there is one number and no last axis.  How many steps are asked for is the
    length of `future`; with known=0 an array [B, H, 0] says so."""

    past: FrameEmbedding
    future: FrameEmbedding | None
    static: Linear | None
    dropout: Dropout
    encoder: Transformer | RecurrentBody
    decoder: Transformer | Stack
    head: Linear
    targets: int
    quantiles: tuple[float, ...] | None

    def __init__(
        self,
        *,
        inputs: int,
        width: int,
        layers: int = 1,
        known: int = 0,
        static: int = 0,
        targets: int = 1,
        quantiles: Sequence[float] | None = (0.1, 0.5, 0.9),
        body: str = "attention",
        heads: int = 4,
        dropout: float = 0.0,
        seed: int | Source = 0,
        **options: Any,
    ) -> None:
        one_of(body, ("attention", *CELLS), "the body")
        levels = None if quantiles is None else tuple(float(q) for q in quantiles)
        if levels is not None and not (levels and all(0 < q < 1 for q in levels)):
            raise ShapeError(f"{where()}the quantiles are {quantiles}: they lie between 0 and 1")
        numbers = source(seed)
        self.past = FrameEmbedding(inputs, width, seed=numbers)
        self.future = FrameEmbedding(known, width, seed=numbers) if known else None
        self.static = Linear(static, width, seed=numbers) if static else None
        self.dropout = Dropout(dropout)
        if body == "attention":
            given: dict[str, Any] = {"dropout": dropout, "seed": numbers, **options}
            self.encoder = Transformer(width, layers, heads, causal=False, **given)
            self.decoder = Transformer(
                width, layers, heads, causal=False, memory_width=width, **given
            )
        else:
            self.encoder = RecurrentBody(body, width, layers, dropout=dropout, seed=numbers)
            self.decoder = CELLS[body](width, width, layers, dropout=dropout, seed=numbers)
        self.targets = checks.positive(targets, "the number of targets")
        self.quantiles = levels
        self.head = Linear(width, targets * (len(levels) if levels else 1), seed=numbers)

    def __call__(
        self,
        past: Array,
        future: Array,
        static: Array | None = None,
        past_lengths: Array | None = None,
    ) -> Array:
        x = self.past(past, past_lengths)
        batch, time = x.shape[0], x.shape[1]
        if len(future.shape) != 3 or not dims.same(future.shape[0], batch):
            raise ShapeError(
                f"{where()}the future is {checks.shown(future)}: [{batch}, horizon, known]"
            )
        if (static is None) != (self.static is None):
            said = "no static numbers" if static is None else "them, and was made without static="
            raise ShapeError(f"{where()}this Forecaster got {said}")
        steps = rnp.arange(future.shape[1])
        z = rnp.broadcast_to(
            rnp.astype(sinusoidal(steps, x.shape[-1]), x.dtype),
            (batch, future.shape[1], x.shape[-1]),
        )
        if self.future is not None:
            z = z + self.future(future)
        else:
            check_frames(future, 0, "a Forecaster without known= covariates")
        if self.static is not None and static is not None:
            fixed = rnp.expand_dims(self.static(static), 1)
            x, z = x + fixed, z + fixed
        x, z = self.dropout(x), self.dropout(z)
        h = self._decoded(x, z, past_lengths, time)
        out = self.head(h)
        shape: tuple[Any, ...] = (batch, future.shape[1])
        shape = shape if self.targets == 1 else (*shape, self.targets)
        if self.quantiles is not None:
            shape = (*shape, len(self.quantiles))
        return rnp.reshape(out, shape)

    def _decoded(self, x: Array, z: Array, lengths: Any, time: Any) -> Array:
        if isinstance(self.encoder, RecurrentBody):
            assert isinstance(self.decoder, Stack)
            _, carry = self.encoder.rnn(x, None, lengths)
            return self.dropout(self.decoder(z, carry)[0])
        assert isinstance(self.decoder, Transformer)
        places = rnp.arange(time)  # the present is at 0, and the horizon behind it
        present = time if lengths is None else rnp.expand_dims(lengths, 1)
        memory = self.encoder(x, lengths=lengths, positions=places - present)
        return self.decoder(z, memory=memory, memory_lengths=lengths)
