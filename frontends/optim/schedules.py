"""Learning rates as functions of the step: a step counted from 0 -> a number, in f64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import retrograde.numpy as rnp
from retrograde.compiler.errors import DataError
from retrograde.compiler.ir.location import where
from retrograde.optim.parts import nonnegative, number, positive

Schedule = Callable[[Any], Any]

def constant(value: float) -> Schedule:
    """The same rate at every step."""
    return _Constant(nonnegative(value, "the learning rate"))


def linear(start: float, end: float, steps: int) -> Schedule:
    """From `start` at step 0 to `end` at step `steps`, in a straight line; `end` from then on."""
    return _Linear(start, end, positive(steps, "steps"))


def cosine(start: float, steps: int, end: float = 0.0) -> Schedule:
    """From `start` at step 0 to `end` at step `steps` along half a cosine; `end` from then on.

    Source: Loshchilov & Hutter, SGDR, 2017, without restarts."""
    return _WarmupCosine(start, 0, positive(steps, "steps"), end)


def warmup_cosine(peak: float, warmup: int, steps: int, end: float = 0.0) -> Schedule:
    """Up to `peak` in `warmup` equal steps, the first of which is not 0; then down to `end` at step
    `steps` along half a cosine."""
    if not 0 <= warmup < steps:
        raise DataError(
            f"{where()}warmup_cosine: {warmup} steps of warm-up in {steps}: the warm-up must be "
            "shorter than the whole"
        )
    return _WarmupCosine(peak, warmup, steps, end)


@dataclass(frozen=True)
class _Constant:
    value: float

    def __call__(self, step: Any) -> Any:
        return self.value


@dataclass(frozen=True)
class _Linear:
    start: float
    end: float
    steps: int

    def __call__(self, step: Any) -> Any:
        return self.start + (self.end - self.start) * _progress(step, 0, self.steps)


@dataclass(frozen=True)
class _WarmupCosine:
    peak: float
    warmup: int
    steps: int
    end: float

    def __call__(self, step: Any) -> Any:
        progress = _progress(step, self.warmup, self.steps)
        half = 0.5 * (1.0 + rnp.cos(math.pi * progress))
        down = self.end + (self.peak - self.end) * half
        if self.warmup == 0:
            return down
        up = self.peak * ((number(step) + 1.0) / self.warmup)
        return rnp.where(number(step) < self.warmup, up, down)


def _progress(step: Any, first: int, last: int) -> Any:
    """How much of the way from `first` to `last` is done, in [0, 1]."""
    return rnp.clip((number(step) - first) / (last - first), 0.0, 1.0)
