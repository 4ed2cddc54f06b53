"""A run between two steps <-> its checkpoint: the step's state, the data's and the loop's own.

Invariant: a checkpoint is written only of numbers; one whose tensors turned NaN is refused, so the
last good one stays.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from retrograde.compiler.errors import CheckpointError, RetrogradeError
from retrograde.runtime.training import checkpoint

Tensors = dict[str, npt.NDArray[Any]]

# The loop's own entries in a checkpoint's metadata; all others are the step's.
TRAINING = "training"
RUN = "run"
BEST = "best"  # the folder of the checkpoint with the best validation


# What a step made by compile_training can be asked.
FINDING = (
    "With parameters that are still numbers, step.first_nonfinite(**batch) names the line and the "
    "time step that the first NaN comes from, and step.gradient_norms(**batch) shows where "
    "gradients explode."
)


class DivergenceError(RetrogradeError):
    """The training has left the numbers: `step` is the first one that shows it."""

    def __init__(self, message: str, *, step: int) -> None:
        super().__init__(message)
        self.step = step


class TrainStep(Protocol):
    """One update of a model.  Its state is all that later calls depend on beside their batch."""

    @property
    def peak_bytes(self) -> int:
        """The high-water mark of the step's memory."""

    def __call__(self, **batch: Any) -> Mapping[str, float]:
        """Update the model on one batch; the metrics, with at least `loss`."""

    def state(self) -> tuple[Tensors, dict[str, Any]]:
        """Parameters, optimizer state and counters: arrays, and JSON for the rest."""

    def set_state(self, tensors: Tensors, meta: dict[str, Any]) -> None:
        """Put a state back; raises `CheckpointError`, with nothing changed, if it does not fit."""


@runtime_checkable
class Resumable(Protocol):
    """Batches that know where they are."""

    def state(self) -> dict[str, Any]:
        """The position, as JSON."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a position; raises `CheckpointError` if it is that of other data."""


@dataclass
class Reached:
    """How far a run is."""

    step: int = 0
    tokens: int = 0
    metrics_position: int | None = None  # bytes of the metrics file; None without one
    validated_step: int | None = None
    validation: dict[str, float] = field(default_factory=dict)
    best: float | None = None  # of the metric that is watched, at `best_step`
    best_step: int | None = None
    stale: int = 0  # validations since then


class Saver:
    """Saves a run to `path` and takes it back from there."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        step: TrainStep,
        batches: Resumable,
        run_meta: Mapping[str, Any],
    ) -> None:
        self.path = Path(path)
        self.saved_step: int | None = None
        self._step = step
        self._batches = batches
        self._run_meta = dict(run_meta)
        self._not_numbers: frozenset[str] | None = None

    def save(self, reached: Reached) -> None:
        """Write a checkpoint; raises `DivergenceError` instead where a tensor has turned NaN."""
        self._save(self.path, reached)
        self.saved_step = reached.step

    def save_best(self, reached: Reached) -> None:
        """Write the checkpoint of the best validation, beside the run's own."""
        self._save(self.path / BEST, reached)

    def _save(self, path: Path, reached: Reached) -> None:
        tensors, meta = self._step.state()
        if meta.keys() & {TRAINING, RUN}:
            raise CheckpointError(
                f"the names {TRAINING!r} and {RUN!r} in a checkpoint's metadata are the training "
                "loop's; the step's own metadata must use others"
            )
        self._refuse_new_nans(tensors, reached.step)
        own = {**asdict(reached), "data": self._batches.state()}
        checkpoint.save(path, tensors, {**meta, TRAINING: own, RUN: self._run_meta})

    def restore(self) -> Reached:
        """Set the step and the batches to what `path` holds."""
        tensors, meta = checkpoint.load(self.path)
        own = meta.pop(TRAINING, None)
        run_meta = meta.pop(RUN, {})
        try:
            data = own.pop("data")
            reached = Reached(**own)
        except (AttributeError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{self.path}: a checkpoint, but not one of a training run: it says neither the "
                "step nor the place in the data. Start a new run from it instead of resuming."
            ) from error
        # The data first: it only compares, so a mismatch leaves the model as it was.
        self._batches.restore(data)
        self._not_numbers = _with_nan(tensors)  # before the step takes them over
        self._step.set_state(tensors, meta)
        self._run_meta = self._run_meta or run_meta
        self.saved_step = reached.step
        return reached

    @property
    def way_out(self) -> str:
        """What to do about a divergence."""
        text = "Lower the learning rate, or clip the gradients harder"
        if self.saved_step is None:
            return f"{text}. {FINDING}"
        return f"{text}. {self.path} still holds step {self.saved_step} to resume from. {FINDING}"

    def _refuse_new_nans(self, tensors: Tensors, step: int) -> None:
        # The loss of a step can be a number when the update it gave is not.
        found = _with_nan(tensors)
        if self._not_numbers is None:
            self._not_numbers = found  # a state may start with NaN as a mark of its own
        if new := sorted(found - self._not_numbers):
            raise DivergenceError(
                f"step {step}: the training diverged, {new[0]!r} holds NaN after the update. "
                f"{self.way_out}",
                step=step,
            )


def _with_nan(tensors: Tensors) -> frozenset[str]:
    return frozenset(
        name
        for name, tensor in tensors.items()
        # To NumPy, bfloat16 is of no floating kind.
        if (tensor.dtype.kind in "fc" or tensor.dtype.name == "bfloat16") and np.isnan(tensor).any()
    )
