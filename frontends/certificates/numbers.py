"""Comparing arrays: results, what they should be -> the worst error and its bound.

The bound of a float result is 16 times the error that the traced graph itself makes in the same
precision, op by op, and 64 units in the last place of its largest number: kernels sum in other
orders, and may not be worse than that.  Invariant: where one side is no number, so is the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
STAGE = 1e-9  # of the largest number: what an order of summation may change in float64


@dataclass(frozen=True)
class Distance:
    """How far a result is from what it should be."""

    error: float
    bound: float
    which: int = 0

    @property
    def ok(self) -> bool:
        return self.error <= self.bound


def distance(got: Array, reference: Array, own: Array | None) -> Distance:
    """`got` against `reference`; `own` is what the traced graph gives in the precision of `got`,
    None where both are in float64."""
    if got.shape != reference.shape:
        return Distance(float("inf"), 0.0)
    if not is_float(got):
        wrong = float(np.sum(got != reference))
        # Integers made of floats (an argmax) may fall the other way where rounding decides.
        allowed = 0.0 if own is None else 2.0 * float(np.sum(own != reference))
        return Distance(wrong, allowed)
    a, b = got.astype(np.float64), reference.astype(np.float64)
    error, scale = _apart(a, b)
    if own is None:
        return Distance(error, STAGE * scale + 1e-200)
    mine, _ = _apart(own.astype(np.float64), b)
    eps = _EPS.get(got.dtype.name, 2.0**-52)
    if not np.isfinite(mine):
        mine = 0.0 if np.isfinite(error) else mine
    return Distance(error, 16 * mine + 64 * eps * scale + 1e-37)


def is_float(x: Array) -> bool:
    return x.dtype.kind == "f" or x.dtype.name == "bfloat16"


def _apart(a: Array, b: Array) -> tuple[float, float]:
    """The largest difference of finite numbers, and the largest of them; infinite where one is
    finite and the other is not."""
    if not a.size:
        return 0.0, 0.0
    finite = np.isfinite(b)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(all="ignore"):
        gap = np.where(same, 0.0, np.abs(a - b))
    gap = np.where(np.isnan(gap) | (~finite & ~same), np.inf, gap)
    scale = float(np.max(np.abs(b[finite]), initial=0.0))
    return float(np.max(gap)), scale


def worst(distances: Sequence[Distance]) -> Distance:
    """The one that is farthest beyond its bound."""
    found = Distance(0.0, 0.0)
    most = -1.0
    for i, d in enumerate(distances):
        used = d.error / d.bound if d.bound else (float("inf") if d.error else 0.0)
        if used > most:
            found, most = Distance(d.error, d.bound, i), used
    return found
