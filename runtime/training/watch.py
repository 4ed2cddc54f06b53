"""Which validation was the best so far, and whether it still gets better: figures -> a verdict.

Invariant: what it knows is part of `Reached`, so a resumed run judges as the uninterrupted one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from retrograde.compiler.errors import DataError
from retrograde.runtime.training.saver import Reached


@dataclass(frozen=True)
class Watch:
    """The metric of the validation that is watched, lower being better unless `highest`; after
    `patience` validations in a row without a better one the run ends (0: never)."""

    metric: str = "loss"
    highest: bool = False
    patience: int = 0

    def __post_init__(self) -> None:
        if self.patience < 0:
            raise DataError(f"patience is {self.patience}: it is not negative; 0 waits for ever")

    def is_better(self, values: Mapping[str, float], reached: Reached) -> bool:
        """Notes a validation in `reached`; whether it is the best so far."""
        if self.metric not in values:
            raise DataError(
                f"the validation gives {', '.join(sorted(values))} and no {self.metric!r}, which "
                "is watched: name one of these"
            )
        value = values[self.metric]
        before = reached.best
        better = math.isfinite(value) and (
            before is None or (value > before if self.highest else value < before)
        )
        if better:
            reached.best, reached.best_step, reached.stale = value, reached.step, 0
        else:
            reached.stale += 1
        return better

    def is_over(self, reached: Reached) -> bool:
        """Whether it has not become better for too long."""
        return 0 < self.patience <= reached.stale
