"""A sequence as one vector: x [B, T, width] within lengths -> [B, width].

Invariant: what stands beyond a row's length changes no bit of any result or gradient; a row of no
steps at all is zeros.
"""

from __future__ import annotations

import math
import os

import retrograde.numpy as rnp
from retrograde.compiler.ir.location import skip_frames_under
from retrograde.models.parts import one_of
from retrograde.nn import Module, checks
from retrograde.nn.attention import within
from retrograde.nn.initial import Source, source
from retrograde.numpy.primitives import Array

skip_frames_under(os.path.abspath(__file__))

POOLINGS = ("mean", "last", "attention")


def masked_mean(x: Array, lengths: Array | None = None) -> Array:
    """The mean over the steps of each row."""
    if lengths is None:
        return rnp.mean(x, axis=1)
    total = rnp.sum(within(x, lengths), axis=1)
    count = rnp.clip(lengths, 1, None)
    return total / rnp.astype(rnp.expand_dims(count, 1), total.dtype)


def last(x: Array, lengths: Array | None = None) -> Array:
    """The last step of each row."""
    if lengths is None:
        return x[:, -1]
    places = rnp.reshape(rnp.clip(lengths - 1, 0, x.shape[1] - 1), (x.shape[0], 1, 1))
    return rnp.take_along_axis(within(x, lengths), places, axis=1)[:, 0]


class Pooling(Module):
    """`mean`, `last`, or `attention`: a mean weighed by softmax of x times a learned vector.

    Source of the last: Yang et al. 2016, without the layer before the product."""

    score: Array | None
    kind: str

    def __init__(self, kind: str, width: int, *, seed: int | Source | None = None) -> None:
        self.kind = one_of(kind, POOLINGS, "the pooling")
        width = checks.positive(width, "the width of Pooling")
        learned = kind == "attention"
        self.score = source(seed).normal((width,), 1.0 / math.sqrt(width)) if learned else None

    def __call__(self, x: Array, lengths: Array | None = None) -> Array:
        if self.kind == "mean":
            return masked_mean(x, lengths)
        if self.score is None:
            return last(x, lengths)
        x = x if lengths is None else within(x, lengths)
        scores = rnp.matmul(x, rnp.expand_dims(self.score, 1))  # [B, T, 1]
        if lengths is not None:
            inside = rnp.less(rnp.arange(x.shape[1]), rnp.expand_dims(lengths, 1))
            scores = rnp.where(rnp.expand_dims(inside, -1), scores, -rnp.inf)
        return rnp.sum(rnp.softmax(scores, axis=1) * x, axis=1)
