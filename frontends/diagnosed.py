"""A training step that tells what is wrong with it: gradients over time, the origin of a NaN.

Invariant: both look at the step as it would run next, with its parameters, counter and dropout key,
and change nothing of it.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from retrograde import random
from retrograde.execution import Array, Runnable
from retrograde.jitted import Jit
from retrograde.nn.context import dropout_keys
from retrograde.tracing import name_of
from retrograde.training_graph import StepParts, TracedStep, loss_of

if TYPE_CHECKING:  # imported where they are used: few steps are ever looked at
    from retrograde.carry_norms import Measured
    from retrograde.nonfinite import NonFinite
    from retrograde.norms_shown import GradientNorms


class Diagnosed:
    """What a training step needs to be looked at, and the two ways to look at it."""

    _lock: threading.Lock
    _parts: StepParts
    _traced: TracedStep
    _run: Runnable
    _key: Array
    _fixed: list[Array]
    _measuring: dict[bool, Jit]  # by per_row; made when asked for

    def _batch(self, batch: Mapping[str, Any]) -> list[Array]:
        raise NotImplementedError

    def _now(self) -> Sequence[Array]:
        raise NotImplementedError

    def gradient_norms(self, /, *, per_row: bool = False, **batch: Any) -> GradientNorms:
        """||dL/dh_t|| of this step's loss on a batch; `rg.diagnose.gradient_norms` says of what.

        With the parameters as they are and the dropout masks of the next update.  The first call
        compiles.  Raises what a step raises for a batch that does not fit."""
        arrays = self._batch(batch)
        parts = self._parts
        name = name_of(parts.loss)
        with self._lock:
            state = self._run.executable.state()
            run = self._measuring.get(per_row)
            if run is None:
                run = self._measuring[per_row] = Jit(parts.loss, _measuring(parts, per_row))
            params, counter = state[: len(parts.parameters)], state[-1]
            found: Measured = run(params, arrays, self._fixed, self._key, counter)
        return found.shown(name)

    def first_nonfinite(
        self, /, *, inf: bool = False, masked: bool = False, **batch: Any
    ) -> NonFinite | None:
        """Where the first NaN of an update on this batch comes from, or None; nothing is updated.

        The loss, its gradients and the optimizer run op by op, with the parameters as they are.
        `inf` and `masked` as in `rg.diagnose.first_nonfinite`."""
        from retrograde.nonfinite import search

        arrays = self._batch(batch)
        with self._lock:
            captured = self._now()
            state = self._run.executable.state()
            given = [*state, self._key, *arrays, *self._fixed, *captured]
            graph = self._traced.graph
        found = search(graph, given, inf=inf, masked=masked)
        if found is None:
            return None
        first = sorted(found.reaches, key=lambda name: name.startswith("new "))
        return replace(found, reaches=tuple(first))  # the loss before all it spoils


def _measuring(parts: StepParts, per_row: bool) -> Any:
    from retrograde.carry_norms import measured

    def call(params: Any, batch: Any, fixed: Any, key: Any, counter: Any) -> Measured:
        loss = loss_of(parts, fixed, batch)
        with dropout_keys(random.fold_in(key, counter)):
            return measured(lambda: loss(params), name_of(parts.loss), per_row)

    return call
