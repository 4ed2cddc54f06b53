"""Optimizers: gradients, state and parameters -> new parameters and state, inside the traced step.

An optimizer is any object with

    init(params)                               -> a tree of arrays
    update(grads, state, params, step, scale)  -> (new params, new state)
    learning_rate(step)                        -> a number, for the metrics

where `params` and `grads` are lists, `step` counts from 0 and `scale` is a factor of all gradients
(from clipping; an `update` without it gets scaled gradients).  Learning rates are numbers or
functions of the step.  Invariant: what depends on the step alone is computed once, as a number, in
f64; state of 16-bit parameters is f32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from retrograde.optim.parts import Arrays, nonnegative
from retrograde.optim.schedules import Schedule

State = dict[str, Arrays]


class Optimizer:
    """What the optimizers here share: a learning rate and state beside the parameters."""

    def __init__(self, learning_rate: float | Schedule) -> None:
        if not callable(learning_rate):
            nonnegative(learning_rate, "the learning rate")
        self._rate = learning_rate

    def learning_rate(self, step: Any) -> Any:
        """The rate at a step (counted from 0)."""
        return self._rate(step) if callable(self._rate) else float(self._rate)

    def init(self, params: Sequence[Any]) -> Any:
        """The state before the first step, for parameters of these shapes and dtypes."""
        raise NotImplementedError

    def update(
        self, grads: Arrays, state: Any, params: Arrays, step: Any, scale: Any = 1.0
    ) -> tuple[Arrays, Any]:
        """The parameters and the state after a step."""
        raise NotImplementedError

    def __repr__(self) -> str:
        settings = {"learning_rate": self._rate, **vars(self)}
        shown = (f"{name}={value!r}" for name, value in settings.items() if name != "_rate")
        return f"{type(self).__name__}({', '.join(shown)})"
