"""A recipe's name -> its training as a problem: first weights, real batches, rates, settings.

`prepared` reads the data and draws the weights, once, so that every contender gets the same arrays
and PyTorch's process needs none of ours.  Invariant: one step of a contender is one pass over
`batches` batches, the first of the recipe's own, in their order."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = dict[str, npt.NDArray[Any]]
TINY = {
    "width": 4, "heads": 2, "layers": 1, "batch": 2, "merges": 20, "steps": 4, "warmup": 1
}  # fmt: skip


@dataclass(frozen=True)
class Given:
    """What is read and drawn before anything is measured.

    `rates` has the learning rate of each step, after which the last one stays."""

    weights: Arrays
    batches: list[Arrays]
    settings: Mapping[str, Any]
    rates: list[float]
    betas: tuple[float, float]


@dataclass(frozen=True)
class RecipeProblem:
    """A training of a recipe with its default settings, but for those in `changed`.

    `cache` is the folder that the data are in, which a contender's own cache is not."""

    recipe: str
    batches: int = 8
    changed: tuple[tuple[str, Any], ...] = ()
    cache: str | None = None
    given: Given | None = field(default=None, compare=False, repr=False)
    flops: float = 0.0  # not counted: the batches have many sizes

    @property
    def kind(self) -> str:
        """What tells two of these problems apart."""
        return self.recipe

    def prepared(self) -> RecipeProblem:
        """With its arrays.  Raises what building the recipe raises, such as for missing data."""
        from retrograde.runtime.data import packages

        training, settings = self.built("numpy", 1)
        optimizer = training.optimizer
        steps = np.arange(settings["steps"], dtype=np.int64)
        given = Given(
            {name: np.array(x) for name, x in training.model.parameters().items()},
            [dict(next(training.batches)) for _ in range(self.batches)],
            dict(settings),
            np.asarray(optimizer.learning_rate(steps), np.float64).tolist(),
            optimizer.betas,
        )
        return replace(self, given=given, cache=self.cache or str(packages.folder().parent))

    def built(self, backend: str, threads: int) -> tuple[Any, Any]:
        """The recipe's training and its settings."""
        from retrograde.cli.recipes import RECIPES
        from retrograde.cli.settings import resolve

        recipe = RECIPES[self.recipe]
        asked = {**dict(self.changed), "backend": backend, "threads": threads}
        pairs = [f"{name}={value}" for name, value in asked.items()]
        settings = resolve(recipe.settings, self.recipe, {}, pairs, environment={})
        with _cache(self.cache):
            return recipe.build(settings), settings

    def with_settings(self, **changed: Any) -> RecipeProblem:
        """With other settings of the recipe; those that it lacks are left out."""
        from retrograde.cli.recipes import RECIPES

        known = {s.name for s in RECIPES[self.recipe].settings}
        mine = {**dict(self.changed), **{k: v for k, v in changed.items() if k in known}}
        return replace(self, changed=tuple(mine.items()), given=None)

    def tiny(self) -> RecipeProblem:
        """The same program on next to nothing, of the same data."""
        return replace(self, batches=1).with_settings(**TINY).prepared()

    @property
    def arrays(self) -> Given:
        """What `prepared` has read."""
        assert self.given is not None, "this problem is not prepared"
        return self.given

    @property
    def dropout(self) -> float:
        """The chance of a number to be dropped."""
        return float(self.arrays.settings.get("dropout", 0.0))

    @property
    def persistent_bytes(self) -> int:
        """What must outlive an AdamW step in float32: the parameters and two moments of each."""
        return 3 * sum(x.nbytes for x in self.arrays.weights.values())

    @property
    def rows(self) -> int:
        """How many examples a pass trains on; 0 before it is prepared."""
        if self.given is None:
            return 0
        return sum(len(next(iter(batch.values()))) for batch in self.given.batches)

    def __str__(self) -> str:
        changed = "".join(f", {name}={value}" for name, value in self.changed)
        shown = f", {self.rows} rows" if self.rows else ""
        return f"{self.batches} steps of {self.recipe}{shown}{changed}"


@contextmanager
def _cache(folder: str | None) -> Iterator[None]:
    """While entered, data are read from this cache folder."""
    before = os.environ.get("RETROGRADE_CACHE_DIR")
    if folder is not None:
        os.environ["RETROGRADE_CACHE_DIR"] = folder
    try:
        yield
    finally:
        if before is not None:
            os.environ["RETROGRADE_CACHE_DIR"] = before
        elif folder is not None:
            del os.environ["RETROGRADE_CACHE_DIR"]
