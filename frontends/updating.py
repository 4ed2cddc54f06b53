"""What a training step keeps beside the parameters: the optimizer's state, the running average of
the parameters, the scale of the loss.

One tree of arrays: the optimizer's own, with the entries that were asked for added to it.
Invariant: without them the state is the optimizer's, and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from retrograde.compiler.errors import DataError
from retrograde.compiler.ir.dtypes import DType
from retrograde.compiler.ir.expr import Expr, cast
from retrograde.compiler.ir.location import where
from retrograde.precision import first_scale, is_scaled

AVERAGED, SCALING, WHOLE = "averaged", "loss_scale", "state"


@dataclass(frozen=True)
class Kept:
    """What is kept: `decay` of the running average of the parameters (None: there is none), and
    whether the loss is scaled for the 16-bit type `half`."""

    decay: float | None = None
    half: DType | None = None

    @property
    def scaled(self) -> bool:
        """Whether there is a scale of the loss."""
        return is_scaled(self.half)

    def first(self, own: Any, params: Sequence[Any]) -> Any:
        """The state before the first step, around the optimizer's `own`."""
        more: dict[str, Any] = {}
        if self.decay is not None:
            more[AVERAGED] = [np.array(p) for p in params]
        if self.scaled:
            more[SCALING] = first_scale()
        return self.joined(own, more)

    def joined(self, own: Any, more: dict[str, Any]) -> Any:
        """One tree of both."""
        if not more:
            return own
        if isinstance(own, dict) and not set(own) & {AVERAGED, SCALING, WHOLE}:
            return {**own, **more}
        return {WHOLE: own, **more}

    def parted(self, state: Any) -> tuple[Any, dict[str, Any]]:
        """The optimizer's own state, and what was added."""
        names = {AVERAGED: self.decay is not None, SCALING: self.scaled}
        chosen = [name for name, there in names.items() if there]
        if not chosen:
            return state, {}
        more = {name: state[name] for name in chosen}
        rest = {name: x for name, x in state.items() if name not in more}
        return (rest[WHOLE] if set(rest) == {WHOLE} else rest), more

    def averaged(self, before: Sequence[Expr], params: Sequence[Expr]) -> list[Expr]:
        """The averages after a step that made `params`: d a + (1 - d) p."""
        assert self.decay is not None
        keep, add = self.decay, 1.0 - self.decay
        return [
            cast(a * keep + p * add, p.dtype) for a, p in zip(before, params, strict=True)
        ]


def checked_decay(ema: float | None) -> float | None:
    """The decay of a running average; DataError for what is none."""
    if ema is None:
        return None
    if isinstance(ema, bool) or not isinstance(ema, (int, float)) or not 0.0 <= ema < 1.0:
        raise DataError(
            f"{where()}ema={ema!r}: the decay of the running average of the parameters lies from 0 "
            "to below 1, such as 0.999; None keeps no average"
        )
    return float(ema)
