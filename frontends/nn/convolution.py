"""Convolution over time: [B, T, inputs] -> [B, T, outputs].

Input: x with its lengths or segments; output: as many steps.  Invariant: a causal one makes what
stands at t from x up to t alone; before the first step, beyond a row's length and in other segments
there are zeros.
"""

from __future__ import annotations

import math
import os

import retrograde.numpy as rnp
from retrograde.compiler.errors import ShapeError
from retrograde.compiler.ir import dims
from retrograde.compiler.ir.location import skip_frames_under, where
from retrograde.nn import checks, initial
from retrograde.nn.attention import within
from retrograde.nn.initial import Source
from retrograde.nn.module import Module
from retrograde.numpy.primitives import Array

skip_frames_under(os.path.abspath(__file__))


class Conv1d(Module):
    """y[t] = sum over k of x[t - (size - 1 - k) dilation] weight[k], plus a bias.

    `weight` is [size, inputs, outputs], normal with variance 1/(size inputs); `weight[-1]` meets
    the step itself.  Without `causal` the taps lie around the step, and `size` is odd: `weight[size
    // 2]` meets it.  All taps are one matrix product."""

    weight: Array
    bias: Array | None
    causal: bool
    dilation: int

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        *,
        causal: bool = True,
        dilation: int = 1,
        bias: bool = True,
        seed: int | Source | None = None,
        std: float | None = None,
    ) -> None:
        inputs = checks.positive(inputs, "the number of inputs of Conv1d")
        outputs = checks.positive(outputs, "the number of outputs of Conv1d")
        size = checks.positive(size, "the size of Conv1d")
        if not causal and size % 2 == 0:
            raise ShapeError(f"{where()}a Conv1d around its step has an odd size, not {size}")
        spread = 1.0 / math.sqrt(size * inputs) if std is None else std
        self.weight = initial.source(seed).normal((size, inputs, outputs), spread)
        self.bias = initial.zeros(outputs) if bias else None
        self.causal = bool(causal)
        self.dilation = checks.positive(dilation, "the dilation of Conv1d")

    def __call__(
        self, x: Array, lengths: Array | None = None, segments: Array | None = None
    ) -> Array:
        size, inputs, outputs = self.weight.shape
        checks.last_axis(x, inputs, "Conv1d")
        if len(x.shape) != 3:
            raise ShapeError(f"{where()}Conv1d takes [B, T, {inputs}], got {checks.shown(x)}")
        if lengths is not None:
            x = within(x, lengths)
        taps = self._taps(x, segments) if size > 1 else x
        out = rnp.matmul(taps, rnp.reshape(self.weight, (size * inputs, outputs)))
        return out if self.bias is None else out + self.bias

    def _taps(self, x: Array, segments: Array | None) -> Array:
        """[B, T, size inputs]: what each weight meets, side by side."""
        size, time = self.weight.shape[0], x.shape[1]
        reach = (size - 1) * self.dilation
        before = reach if self.causal else reach // 2
        wide = rnp.pad(x, ((0, 0), (before, reach - before), (0, 0)))
        starts = [k * self.dilation for k in range(size)]
        taps = [wide[:, start : start + time] for start in starts]
        if segments is not None:
            if len(segments.shape) != 2 or not all(map(dims.same, segments.shape, x.shape)):
                raise ShapeError(
                    f"{where()}the segments are {checks.shown(segments)}: one number for each step "
                    f"of {checks.shown(x)}"
                )
            ids = rnp.pad(segments, ((0, 0), (before, reach - before)))
            own = [rnp.equal(ids[:, start : start + time], segments) for start in starts]
            taps = [
                tap if start == before else rnp.where(rnp.expand_dims(s, -1), tap, 0.0)
                for start, tap, s in zip(starts, taps, own, strict=True)
            ]
        return rnp.concatenate(taps, axis=-1)
