"""A diagonal linear state space for each channel, run over time: [B, T, width] -> the same.

Source: S4D-Lin (Gu, Goel, Gupta & Ré 2022): with a complex diagonal A = -exp(decay) + i frequency,
B = 1 and steps of length dt, zero-order hold gives

    h' = exp(dt A) h + (exp(dt A) - 1) / A x        y = 2 Re(C h) + D x

here with C (exp(dt A) - 1) / A as one factor, so that h' = exp(dt A) h + x.  Complex numbers are
pairs of real ones.  Invariant: what stands at t is made from x up to t alone; |exp(dt A)| < 1.
"""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np

import retrograde.numpy as rnp
from retrograde.compiler.errors import ShapeError
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.location import skip_frames_under, where
from retrograde.nn import checks, initial
from retrograde.nn.attention import within
from retrograde.nn.initial import Source
from retrograde.nn.module import Module
from retrograde.nn.recurrent import Recurrent
from retrograde.numpy.primitives import Array

skip_frames_under(os.path.abspath(__file__))

Carry = tuple[Array, Array]


class _Steps(Module):
    """One step of all states: the carry is their real and imaginary parts, [B, width, state]."""

    rate_real: Array
    rate_imag: Array
    out_real: Array
    out_imag: Array

    def initial(self, *batch: Dim) -> Carry:
        shape = (*batch, *self.rate_real.shape)
        return rnp.zeros(shape, dtype=rnp.float32), rnp.zeros(shape, dtype=rnp.float32)

    def __call__(self, carry: Carry, x: Array) -> tuple[Carry, Array]:
        real, imag = carry
        after = (
            real * self.rate_real - imag * self.rate_imag + rnp.expand_dims(x, -1),
            real * self.rate_imag + imag * self.rate_real,
        )
        y = rnp.sum(after[0] * self.out_real - after[1] * self.out_imag, axis=-1)
        return after, y


class DiagonalSSM(Module):
    """`state` complex numbers for each of `width` channels, which do not meet.

    `log_dt` [width] begins even between the logarithms of `dt`, `log_decay` [width, state] as that
    of 1/2, `frequency` [width, state] as pi n, `out` [2, width, state] (C, real and imaginary)
    normal with variance 1/2, `skip` D [width] as 1.  Call it with a carry as it returns it to go
    on; `lengths` and `segments` are as in a recurrent layer."""

    log_dt: Array
    log_decay: Array
    frequency: Array
    out: Array
    skip: Array

    def __init__(
        self,
        width: int,
        state: int = 16,
        *,
        dt: tuple[float, float] = (0.001, 0.1),
        seed: int | Source | None = None,
    ) -> None:
        width = checks.positive(width, "the width of DiagonalSSM")
        state = checks.positive(state, "the number of states of DiagonalSSM")
        if not 0 < dt[0] <= dt[1]:
            raise ShapeError(f"{where()}dt is {dt}: the shortest and the longest step, positive")
        numbers = initial.source(seed)
        self.log_dt = numbers.uniform((width,), math.log(dt[0]), math.log(dt[1]))
        self.log_decay = np.full((width, state), math.log(0.5), np.float32)
        self.frequency = np.tile(np.float32(math.pi) * np.arange(state, dtype=np.float32),
                                 (width, 1))  # fmt: skip
        self.out = numbers.normal((2, width, state), math.sqrt(0.5))
        self.skip = initial.ones(width)

    def initial(self, batch: Dim) -> Carry:
        """The carry before the first step: zeros, two of [batch, width, state]."""
        return self._steps().initial(batch)

    def _steps(self) -> _Steps:
        dt = rnp.expand_dims(rnp.exp(self.log_dt), -1)
        real, imag = -rnp.exp(self.log_decay), self.frequency  # A
        size = rnp.exp(dt * real)
        rate_real, rate_imag = size * rnp.cos(dt * imag), size * rnp.sin(dt * imag)
        # 2 C (exp(dt A) - 1) / A, the division by A as a product with its conjugate.
        norm = 2.0 / (real * real + imag * imag)
        up, across = rate_real - 1.0, rate_imag
        held_real = (up * real + across * imag) * norm
        held_imag = (across * real - up * imag) * norm
        c_real, c_imag = self.out[0], self.out[1]
        return _Steps(
            rate_real, rate_imag,
            c_real * held_real - c_imag * held_imag, c_real * held_imag + c_imag * held_real,
        )  # fmt: skip

    def __call__(
        self, x: Array, carry: Any = None, lengths: Any = None, segments: Any = None
    ) -> tuple[Array, Carry]:
        checks.last_axis(x, self.skip.shape[0], "DiagonalSSM")
        if len(x.shape) != 3:
            raise ShapeError(f"{where()}DiagonalSSM takes [B, T, width], got {checks.shown(x)}")
        y, after = Recurrent(self._steps())(x, carry, lengths, segments=segments)
        if lengths is not None:
            x = within(x, lengths)
        return y + x * self.skip, after
