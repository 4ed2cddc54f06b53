"""What a recipe gives to the commands: settings -> a model with its loss, data and batches.

Invariant: building the same recipe with the same settings gives the same model and batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import retrograde as rg
from retrograde.cli.settings import Setting
from retrograde.compiler.errors import DataError
from retrograde.mean import Mean

Batch = Mapping[str, Any]
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Training:
    """All that training needs.

    `specs` declare the batch, `at` the sizes that the plan is made for.  `validate(model)` gives
    metrics, of which `watch` is to become lower, or higher where `highest`; `sample(model)` a text
    to show at the end.  `meta` goes into the checkpoint."""

    model: Any
    loss: Callable[..., Any]
    optimizer: Any
    specs: Mapping[str, Any]
    at: Mapping[str, int]
    batches: Iterator[Batch]
    clip_norm: float | None = None
    validate: Callable[[Any], Mapping[str, float]] | None = None
    sample: Callable[[Any], str] | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    watch: str = "loss"
    highest: bool = False


class Recipe(Protocol):
    """A way to train: its name, its settings, and what they make."""

    @property
    def name(self) -> str: ...

    @property
    def settings(self) -> tuple[Setting, ...]: ...

    def build(self, settings: Settings) -> Training: ...


# What every recipe has: the settings of the training loop.
LOOP = (
    Setting("steps", 1000, int, "steps in all, with those before resuming"),
    Setting("accumulate", 1, int, "parts that a batch is worked on in, one by one"),
    Setting("seed", 0, int, "of weights, batches and dropout"),
    Setting("time_limit", None, float, "seconds after which the training ends", optional=True),
    Setting("validate_every", 0, int, "steps from one validation to the next; 0: at the end"),
    Setting("save_every", 0, int, "steps from one checkpoint to the next; 0: at the end"),
    Setting("patience", 0, int, "validations without a better one, after which it ends; 0: never"),
    Setting("ema", None, float, "decay of the running average that is evaluated", optional=True),
    Setting("precision", None, str, "bf16 or f16: activations in 16 bits", optional=True),
    Setting("budget", None, str, "most memory of a step, such as 64MiB", optional=True),
    Setting("events", None, str, "folder for TensorBoard's event files", optional=True),
    Setting("backend", "auto", str, "auto, native, numpy or cupy"),
    Setting("threads", None, int, "of the matrix products", optional=True),
)


def settings_of(own: tuple[Setting, ...], **defaults: Any) -> tuple[Setting, ...]:
    """A recipe's own settings and those of the loop, with other defaults where given."""
    loop = [replace(s, default=defaults.get(s.name, s.default)) for s in LOOP]
    names = {s.name for s in own}
    return (*own, *(s for s in loop if s.name not in names))


class Validation:
    """The loss over all of some batches: sums and counts are totalled before they are divided.

    Compiled when it is asked for first."""

    def __init__(
        self,
        loss: Callable[..., Any],
        batches: Callable[[], Iterable[Batch]],
        specs: Mapping[str, Any],
        at: Mapping[str, int],
        backend: str = "auto",
    ) -> None:
        self._loss = loss
        self._batches = batches
        self._specs = dict(specs)
        self._at = dict(at)
        self._backend = backend
        self._compiled: Any = None

    def __call__(self, model: Any) -> Mapping[str, float]:
        """`{"loss": …}` of the model with dropout off."""
        model = model.eval()
        if self._compiled is None:
            self._compiled = rg.compile(
                self._terms, model, self._specs, at=self._at, backend=self._backend
            )
        totals: list[list[float]] = []
        for batch in self._batches():
            terms = self._compiled(model, dict(batch))
            totals = totals or [[0.0, 0.0, 0.0] for _ in terms]
            for total, (weight, added, counted) in zip(totals, terms, strict=True):
                total[0] = float(weight)
                total[1] += float(added)
                total[2] += float(counted)
        if not totals:
            raise DataError("there is no batch to validate on")
        return {"loss": sum(weight * s / n for weight, s, n in totals if n)}

    def _terms(self, model: Any, batch: Batch) -> list[tuple[Any, Any, Any]]:
        value = self._loss(model, **batch)
        return list(value.terms) if isinstance(value, Mean) else [(1.0, value, 1.0)]
