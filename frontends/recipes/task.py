"""What the recipes of tasks have in common: a saved run -> its model, figures, pictures, answers.

Invariant: what `evaluate` and `predict` work on is made from the checkpoint alone, and no figure
that is shown as a result was used to train or to choose.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

import retrograde as rg
from retrograde import metrics
from retrograde.cli.recipe import LOOP, Batch, Settings, Training
from retrograde.cli.settings import Setting
from retrograde.compiler.errors import CheckpointError, DataError

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Saved:
    """A trained model, the settings of its run, and what the recipe noted of the data."""

    model: Any
    settings: Settings
    noted: Mapping[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """How good a model is on what it has never seen.

    `figures` are its own, `baselines` the same ones for each way that learns nothing, `pictures`
    are SVG by file name."""

    part: str
    figures: Mapping[str, float]
    baselines: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    pictures: Mapping[str, str] = field(default_factory=dict)
    text: str = ""

    def table(self) -> str:
        """One line a figure: the model's, then that of each baseline."""
        heads = ["", "model", *self.baselines]
        rows = [heads]
        for name in dict.fromkeys(
            [*self.figures, *(n for b in self.baselines.values() for n in b)]
        ):
            every = [self.figures, *self.baselines.values()]
            rows.append([name, *(_shown(figures.get(name)) for figures in every)])
        wide = [max(len(row[k]) for row in rows) for k in range(len(heads))]
        lines = []
        for head, *numbers in rows:
            columns = [x.rjust(w) for x, w in zip(numbers, wide[1:], strict=True)]
            lines.append("  ".join([head.ljust(wide[0]), *columns]).rstrip())
        return "\n".join(lines)


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


class Task(ABC):
    """A recipe of a task.

    `build` notes in `Training.meta["noted"]`, as JSON, all of the data that `make_model` and
    `predict` need: vocabularies, means."""

    name: str
    settings: tuple[Setting, ...]

    @abstractmethod
    def build(self, settings: Settings) -> Training:
        """The model, loss and batches."""

    @abstractmethod
    def make_model(self, settings: Settings, noted: Mapping[str, Any]) -> Any:
        """The model of these settings, untrained."""

    @abstractmethod
    def evaluate(self, saved: Saved) -> Evaluation:
        """The figures on the part that was held out to the end."""

    @abstractmethod
    def predict(self, saved: Saved, inputs: Sequence[str]) -> Iterable[str]:
        """What the model says to each of the inputs."""

    def restore(self, tensors: Mapping[str, Array], run: Mapping[str, Any]) -> Saved:
        """What a run of this recipe saved."""
        values = run_settings(self.settings, run)
        noted = run.get("noted")
        if not isinstance(noted, dict):
            raise CheckpointError("the checkpoint does not describe its data")
        try:
            model = self.make_model(values, noted)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"the checkpoint does not describe its run: {error}") from error
        return Saved(with_tensors(model, tensors), values, noted)


def run_settings(known: Sequence[Setting], run: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a checkpoint of a run tells."""
    settings = run.get("settings")
    try:
        if not isinstance(settings, dict):
            raise DataError("it has no settings")
        # How a run went on does not matter here, and an older one may not tell all of it.
        given = {**{s.name: s.default for s in LOOP}, **settings}
        return {s.name: s.check(given[s.name], "checkpoint") for s in known}
    except (DataError, KeyError) as error:
        raise CheckpointError(f"the checkpoint does not describe its run: {error}") from error


def with_tensors(model: Any, tensors: Mapping[str, Array]) -> Any:
    """The model with the parameters of a checkpoint."""
    arrays = {}
    for name, array in model.parameters().items():
        # Where a running average is kept, it is the model that was evaluated.
        saved = tensors.get(f"optimizer.averaged.{name}", tensors.get(f"model.{name}"))
        if saved is None or saved.shape != array.shape:
            got = "missing" if saved is None else f"{saved.dtype}{list(saved.shape)}"
            raise CheckpointError(
                f"the checkpoint is of another model: {name} is {got}, not "
                f"{array.dtype}{list(array.shape)}"
            )
        arrays[name] = np.asarray(saved, array.dtype)
    return model.replace(arrays)


class Totals:
    """Means over many batches: `fn(model, **batch)` gives `{"name": Mean}` of one batch.

    Sums and counts are totalled before they are divided.  Compiled when it is asked for first."""

    def __init__(
        self,
        fn: Callable[..., Mapping[str, Any]],
        batches: Callable[[], Iterable[Batch]],
        specs: Mapping[str, Any],
        at: Mapping[str, int],
        backend: str = "auto",
    ) -> None:
        self._fn = fn
        self._batches = batches
        self._specs, self._at, self._backend = dict(specs), dict(at), backend
        self._compiled: Any = None

    def __call__(self, model: Any) -> dict[str, float]:
        """The figures of the model with dropout off."""
        model = model.eval()
        if self._compiled is None:
            self._compiled = rg.compile(
                self._terms, model, self._specs, at=self._at, backend=self._backend
            )
        totals: dict[str, list[float]] = {}
        for batch in self._batches():
            for name, (added, counted) in self._compiled(model, dict(batch)).items():
                total = totals.setdefault(name, [0.0, 0.0])
                total[0] += float(added)
                total[1] += float(counted)
        if not totals:
            raise DataError("there is no batch to evaluate on")
        return {name: s / n for name, (s, n) in totals.items() if n}

    def _terms(self, model: Any, batch: Batch) -> dict[str, tuple[Any, Any]]:
        return {name: (m.sum, m.count) for name, m in self._fn(model, **batch).items()}


def outputs(
    fn: Callable[..., Any],
    model: Any,
    batches: Iterable[Batch],
    specs: Mapping[str, Any],
    at: Mapping[str, int],
    backend: str = "auto",
) -> Iterable[tuple[Batch, Any]]:
    """Each batch with what `fn(model, **batch)` gives, dropout off; `specs` are what is used."""
    model = model.eval()
    compiled = rg.compile(
        lambda model, batch: fn(model, **batch), model, dict(specs), at=dict(at), backend=backend
    )
    for batch in batches:
        yield batch, compiled(model, {name: batch[name] for name in specs})


def macro_f1(said: Array, truth: Array) -> float:
    """The mean F1 over the classes."""
    found = metrics.f1(said, truth, average="macro")
    assert isinstance(found, float)
    return found


def schedule(settings: Settings) -> Any:
    """Up to `learning_rate` within `warmup` steps, then down to a fiftieth along half a cosine."""
    steps = max(1, settings["steps"])
    peak = settings["learning_rate"]
    return rg.optim.warmup_cosine(peak, min(settings["warmup"], steps - 1), steps, peak / 50)


def training_settings(learning_rate: float, **more: Any) -> tuple[Setting, ...]:
    """What all of these recipes have of the optimizer, with the defaults that are given."""
    return (
        Setting("learning_rate", learning_rate, float, "at its highest"),
        Setting("warmup", more.get("warmup", 50), int, "steps on which the learning rate rises"),
        Setting("weight_decay", more.get("weight_decay", 0.01), float, "of AdamW"),
        Setting("clip_norm", 1.0, float, "longest gradient", optional=True),
        Setting("dropout", more.get("dropout", 0.0), float, "chance of a number to be dropped"),
    )


def adamw(settings: Settings) -> Any:
    """The optimizer of these recipes."""
    return rg.optim.AdamW(
        schedule(settings), betas=(0.9, 0.98), weight_decay=settings["weight_decay"]
    )
