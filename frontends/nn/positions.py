"""Positions as numbers that a model can use: integers -> waves, or a rotation of queries and keys.

Input: positions [...] or [batch, time]; output: [..., width].  Invariant: neither has parameters or
a longest position; the waves are computed in float32, or float64 where the data are.
"""

from __future__ import annotations

import math
import os

import retrograde.numpy as rnp
from retrograde.compiler.errors import ShapeError
from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.location import skip_frames_under, where
from retrograde.nn import checks
from retrograde.nn.module import Module
from retrograde.numpy.primitives import Array

skip_frames_under(os.path.abspath(__file__))


def sinusoidal(positions: Array, width: int, *, base: float = 10000.0) -> Array:
    """Sines, then cosines, of a position times base^(-2i/width): [...] -> f32 [..., width].

    Source: Vaswani et al. 2017, section 3.5; positions may be any numbers, time stamps too."""
    width = checks.positive(width, "the width of sinusoidal")
    if width % 2:
        raise ShapeError(f"{where()}the width {width} of sinusoidal is odd: it holds pairs")
    angles = _angles(positions, width, base, False)
    return rnp.concatenate([rnp.sin(angles), rnp.cos(angles)], axis=-1)


class Rotary(Module):
    """Turns pairs of numbers by their position, so that q k^T depends on distances alone.

    Called with [..., time, width], or [batch, heads, time, width] and `positions` [time] or [batch,
    time] (counted from 0 without them).  The pair i is (x[i], x[i + width/2]), its angle the
    position times base^(-2i/width).  Source: Su et al. 2021, with pairs laid out as GPT-NeoX
    does."""

    width: int
    base: float

    def __init__(self, width: int, *, base: float = 10000.0) -> None:
        self.width = checks.positive(width, "the width of Rotary")
        if self.width % 2:
            raise ShapeError(f"{where()}the width {width} of Rotary is odd: it turns pairs")
        if not base > 0:
            raise ShapeError(f"{where()}the base of Rotary is {base}: it is positive")
        self.base = float(base)

    def __call__(self, x: Array, positions: Array | None = None) -> Array:
        checks.last_axis(x, self.width, "Rotary")
        time = x.shape[-2]
        places = rnp.arange(time) if positions is None else positions
        fits = len(places.shape) in (1, 2) and dims.same(places.shape[-1], time)
        if not fits or (len(places.shape) == 2 and len(x.shape) != 4):
            raise ShapeError(
                f"{where()}Rotary turns {checks.shown(x)} by positions [{time}], or by [batch, "
                f"{time}] of [batch, heads, {time}, {self.width}], got {checks.shown(places)}"
            )
        angles = _angles(places, self.width, self.base, dtypes.dtype(x.dtype) is dtypes.f64)
        if len(places.shape) == 2:
            angles = rnp.expand_dims(angles, 1)
        cos, sin = rnp.cos(angles), rnp.sin(angles)
        a, b = x[..., : self.width // 2], x[..., self.width // 2 :]
        return rnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def _angles(positions: Array, width: int, base: float, double: bool) -> Array:
    """[...] -> [..., width/2]."""
    wide = rnp.float64 if double else rnp.float32
    # In float64, few as they are: an error here is multiplied by the position.
    exponent = rnp.arange(width // 2, dtype=rnp.float64) * (-2.0 * math.log(base) / width)
    rates = rnp.astype(rnp.exp(exponent), wide)
    return rnp.expand_dims(rnp.astype(positions, wide), -1) * rates
