"""Mixed precision: its name -> the 16-bit type, and the scale of the loss that f16 needs.

Activations and products are in 16 bits; parameters, their gradients, the optimizer, sums,
exponentials and the loss are in f32 (`compiler.ir.mixed` has the rules).  bf16 has the range of
f32.  f16 has not: small cotangents would vanish, so the loss is multiplied by a power of two before
it is differentiated, and the gradients are divided by it in f32, which is exact.  Source:
Micikevicius et al., Mixed precision training, 2018.  Invariant: a step whose gradients hold an
infinity or NaN changes no parameter, no state of the optimizer, no average and no counter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from retrograde import numpy as rnp
from retrograde.compiler.errors import UnsupportedError
from retrograde.compiler.ir import dtypes
from retrograde.compiler.ir.dtypes import DType
from retrograde.compiler.ir.expr import Expr, cast
from retrograde.compiler.ir.location import where

# As in PyTorch's GradScaler: halved where it is too high, doubled after so many good steps.
FIRST_SCALE = 2.0**16
GOOD_STEPS = 2000
LOWEST_SCALE = 2.0**-16  # below that the loss itself is no number
HIGHEST_SCALE = 2.0**24

_HALVES = {"bf16": dtypes.bf16, "f16": dtypes.f16}

State = dict[str, Any]


def checked_precision(precision: str | None) -> DType | None:
    """The 16-bit type that is mixed with f32, or None.  UnsupportedError for another name."""
    if precision is None:
        return None
    if not isinstance(precision, str) or precision not in _HALVES:
        raise UnsupportedError(
            f"{where()}precision={precision!r}: it is 'bf16' or 'f16', mixed with f32, or None, "
            "which keeps the dtypes that the model is written in"
        )
    return _HALVES[precision]


def is_scaled(half: DType | None) -> bool:
    """Whether the loss is scaled."""
    return half is dtypes.f16


def first_scale() -> State:
    """The state of scaling before the first step: the scale, and the good steps since it rose."""
    return {"scale": np.float32(FIRST_SCALE) * np.ones((), np.float32),
            "good_steps": np.zeros((), np.int32)}  # fmt: skip


def next_scale(state: State, finite: Expr) -> State:
    """The state of scaling after a step whose gradients were all `finite`."""
    scale, good = state["scale"], state["good_steps"] + 1
    rises = good >= GOOD_STEPS
    risen = rnp.minimum(rnp.where(rises, scale * 2.0, scale), HIGHEST_SCALE)
    fallen = rnp.maximum(scale * 0.5, LOWEST_SCALE)
    return {
        "scale": rnp.where(finite, risen, fallen),
        "good_steps": cast(rnp.where(rnp.logical_and(finite, good < GOOD_STEPS), good, 0),
                           dtypes.i32),
    }  # fmt: skip


def kept_where(finite: Expr, new: Sequence[Expr], old: Sequence[Expr]) -> list[Expr]:
    """What a step makes, or what was there where its gradients were not all finite."""
    return [rnp.where(finite, a, b) for a, b in zip(new, old, strict=True)]
