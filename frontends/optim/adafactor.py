"""Adafactor: second moments of a matrix as the product of a column and a row.

Source: Shazeer & Stern, Adafactor: Adaptive learning rates with sublinear memory cost, 2018; with
the choices and defaults of torch.optim.Adafactor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

import retrograde.numpy as rnp
from retrograde.compiler.errors import DataError
from retrograde.compiler.ir import dtypes
from retrograde.compiler.ir.location import where
from retrograde.optim.base import Optimizer
from retrograde.optim.parts import (
    Arrays,
    Numbers,
    is_narrow,
    like,
    nonnegative,
    number,
    scaled,
    widened,
)
from retrograde.optim.schedules import Schedule

FactoredState = dict[str, list[Any]]


class Adafactor(Optimizer):
    """p -= a g / sqrt(V), by at most `clip` in the root mean square of g / sqrt(V).

    The step size is a = max(eps, rms(p)) min(rate, 1/sqrt(t)).  Of an array of two axes or more, V
    is held as the means of g^2 over its last axis (`row`) and over the one before (`column`): V =
    row column / mean(row), for an array [..., r, c] r + c numbers instead of r c.  Each mean moves
    by t^decay of the way to that of this step.  `weight_decay` is decoupled."""

    def __init__(
        self,
        learning_rate: float | Schedule = 1e-2,
        decay: float = -0.8,
        eps: float = 1e-3,
        clip: float = 1.0,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(learning_rate)
        if not decay < 0.0:
            raise DataError(f"{where()}decay is {decay!r}: it is an exponent below 0")
        if not clip > 0.0:
            raise DataError(f"{where()}clip is {clip!r}: it is above 0")
        self.decay, self.clip = decay, clip
        self.eps = nonnegative(eps, "eps")
        self.weight_decay = nonnegative(weight_decay, "weight_decay")

    def init(self, params: Sequence[Any]) -> FactoredState:
        state: FactoredState = {"row": [], "column": [], "v": []}
        for p in params:
            dtype = np.float32 if is_narrow(p) else p.dtype
            split = len(p.shape) > 1
            state["row"].append(np.zeros((*p.shape[:-1], 1), dtype) if split else None)
            state["column"].append(
                np.zeros((*p.shape[:-2], 1, p.shape[-1]), dtype) if split else None
            )
            state["v"].append(None if split else np.zeros(p.shape, dtype))
        return state

    def update(
        self, grads: Arrays, state: FactoredState, params: Arrays, step: Any, scale: Any = 1.0
    ) -> tuple[Arrays, FactoredState]:
        numbers = Numbers()
        rate, t = self.learning_rate(step), number(step) + 1.0
        share = t**self.decay
        size = rnp.minimum(rate, 1.0 / rnp.sqrt(t))
        keep = 1.0 - rate * self.weight_decay if self.weight_decay else 1.0
        made: FactoredState = {"row": [], "column": [], "v": []}
        out: Arrays = []
        for i, (p, g) in enumerate(zip(params, grads, strict=True)):
            wide, d = widened(p), scaled(widened(g), numbers.of(scale, widened(g)))
            part = numbers.of(share, d)
            held = {name: values[i] for name, values in state.items()}
            if len(p.shape) > 1:
                row = held["row"] + (rnp.mean(d * d, axis=-1, keepdims=True) - held["row"]) * part
                column = rnp.mean(d * d, axis=-2, keepdims=True)
                column = held["column"] + (column - held["column"]) * part
                level = rnp.mean(row, axis=-2, keepdims=True)
                second = row * (column / rnp.maximum(level, _smallest(d)))
                new = {"row": row, "column": column, "v": None}
            else:
                second = held["v"] + (d * d - held["v"]) * part
                new = {"row": None, "column": None, "v": second}
            for name, x in new.items():
                made[name].append(x)
            direction = d / rnp.sqrt(rnp.maximum(second, _smallest(d) ** 2))
            length = rnp.maximum(_rms(direction) / self.clip, 1.0)
            stride = rnp.maximum(_rms(wide), self.eps) * numbers.of(size, wide) / length
            moved = scaled(wide, numbers.of(keep, wide)) - direction * stride
            out.append(like(moved, p))
        return out, made


def _rms(x: Any) -> Any:
    count = math.prod(x.shape) or 1
    return rnp.sqrt(rnp.sum(x * x) / count)


def _smallest(x: Any) -> float:
    """What a mean of squares is at least: the distance of 1 to the next number."""
    return float(np.finfo(dtypes.dtype(x.dtype).numpy).eps)
