"""A policy learned from logged trajectories: returns to go, states, actions -> the next actions.

Three tokens a step, in this order, and a causal Transformer over all of them; what is made of the
token of a state says the action (the decision transformer: Chen et al. 2021).  Invariant: the
action at t is made from returns and states up to t and from actions before t alone.
"""

from __future__ import annotations

import os
from typing import Any

import retrograde.numpy as rnp
from retrograde import masks
from retrograde.compiler.errors import ShapeError
from retrograde.compiler.ir import dims
from retrograde.compiler.ir.location import skip_frames_under, where
from retrograde.models.parts import FrameEmbedding, TokenEmbedding, check_frames
from retrograde.models.transformer import Transformer
from retrograde.nn import Dropout, Linear, Module, checks, sinusoidal
from retrograde.nn.attention import within
from retrograde.nn.initial import Source, source
from retrograde.numpy.primitives import Array

skip_frames_under(os.path.abspath(__file__))


class TrajectoryTransformer(Module):
    """The model: returns [B, T], states [B, T, states], actions -> [B, T, actions].

    `actions` are classes, given as integers [B, T], and logits come out; with `continuous` they are
    so many numbers [B, T, actions], and so is what comes out.  The action at the last step may be
    anything: nothing sees it.  `times` [B, T] are the steps of the episode (counted from 0 without
    them, in each of the `segments`), `lengths` how many steps each row has.  Returns are divided by
    `scale`."""

    returns: Linear
    states: FrameEmbedding
    actions: TokenEmbedding | FrameEmbedding
    dropout: Dropout
    trunk: Transformer
    head: Linear
    scale: float

    def __init__(
        self,
        *,
        states: int,
        actions: int,
        width: int,
        layers: int,
        heads: int,
        continuous: bool = False,
        scale: float = 1.0,
        norm: str = "pre",
        mlp: str = "gelu",
        dropout: float = 0.0,
        seed: int | Source = 0,
    ) -> None:
        numbers = source(seed)
        self.returns = Linear(1, width, seed=numbers)
        self.states = FrameEmbedding(states, width, seed=numbers)
        embedding = FrameEmbedding if continuous else TokenEmbedding
        self.actions = embedding(actions, width, seed=numbers)
        self.dropout = Dropout(dropout)
        self.trunk = Transformer(
            width, layers, heads, causal=True, positions="none", norm=norm, mlp=mlp,
            dropout=dropout, seed=numbers,
        )  # fmt: skip
        self.head = Linear(width, actions, seed=numbers)
        if not scale > 0:
            raise ShapeError(f"{where()}the scale is {scale}: it is positive")
        self.scale = float(scale)

    def __call__(
        self,
        returns: Array,
        states: Array,
        actions: Array,
        times: Array | None = None,
        lengths: Array | None = None,
        segments: Array | None = None,
    ) -> Array:
        check_frames(states, self.states.projection.weight.shape[0], "TrajectoryTransformer")
        batch, time, _ = states.shape
        named = [("returns", returns, 2), ("actions", actions, len(actions.shape))]
        named += [(n, x, 2) for n, x in (("times", times), ("segments", segments)) if x is not None]
        for name, x, rank in named:
            if len(x.shape) != rank or not all(map(dims.same, x.shape[:2], (batch, time))):
                raise ShapeError(
                    f"{where()}the {name} are {checks.shown(x)}: one for each step of the states "
                    f"{checks.shown(states)}"
                )
        if lengths is not None:
            returns = within(returns, lengths)
            times = None if times is None else within(times, lengths)
        if times is None:
            times = rnp.arange(time) if segments is None else masks.positions(segments)
        s = self.states(states, lengths)
        when = rnp.astype(sinusoidal(times, s.shape[-1]), s.dtype)
        r = self.returns(rnp.expand_dims(returns * (1.0 / self.scale), -1))
        a = self.actions(actions, lengths)
        tokens = rnp.stack([r + when, s + when, a + when], axis=2)
        wide: Any = (batch, time, 3, s.shape[-1])
        x = self.dropout(rnp.reshape(tokens, (batch, 3 * time, s.shape[-1])))
        x = self.trunk(
            x,
            lengths=None if lengths is None else lengths * 3,
            segments=None if segments is None else _thrice(segments),
        )
        return self.head(rnp.reshape(x, wide)[:, :, 1])


def _thrice(segments: Array) -> Array:
    """[B, T] -> [B, 3 T], each three times in a row."""
    batch, time = segments.shape
    wide = rnp.broadcast_to(rnp.expand_dims(segments, -1), (batch, time, 3))
    return rnp.reshape(wide, (batch, 3 * time))
