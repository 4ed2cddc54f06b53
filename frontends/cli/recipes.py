"""Recipes by name: a name or a Python file -> the recipe and its resolved settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import retrograde as rg
from retrograde.cli.bpe_gpt import BPEGPT
from retrograde.cli.char_gpt import CharGPT
from retrograde.cli.char_lstm import CharLSTM
from retrograde.cli.recipe import Recipe, Training
from retrograde.cli.settings import Resolved, resolve
from retrograde.cli.user_file import UserFile
from retrograde.compiler.errors import DataError
from retrograde.recipes.bible import Bible
from retrograde.recipes.brown_tags import BrownTags
from retrograde.recipes.cartpole import CartPole
from retrograde.recipes.cmudict import CMUdict
from retrograde.recipes.japanese_vowels import JapaneseVowels
from retrograde.recipes.python_tags import PythonTags
from retrograde.recipes.weather import Weather

_ALL: tuple[Recipe, ...] = (
    CharGPT(),
    CharLSTM(),
    BPEGPT(),
    JapaneseVowels(),
    PythonTags(),
    BrownTags(),
    Weather(),
    CartPole(),
    CMUdict(),
    Bible(),
)
RECIPES: dict[str, Recipe] = {r.name: r for r in _ALL}


def find(name: str) -> Recipe:
    """The recipe of this name, or that a Python file defines."""
    if name in RECIPES:
        return RECIPES[name]
    if name.endswith(".py"):
        return UserFile(Path(name))
    raise DataError(
        f"there is no recipe {name!r}: there is {', '.join(RECIPES)}, or name a Python file "
        "(my_model.py) that defines a model, a loss and batches"
    )


def settled(
    recipe: Recipe,
    given: Mapping[str, Any],
    pairs: Sequence[str],
    config: str | None,
    stored: Mapping[str, Any] | None = None,
) -> Resolved:
    """The settings of the recipe.  Options that it lacks may not be given."""
    known = {s.name for s in recipe.settings}
    for name, value in given.items():
        if value is not None and name not in known:
            raise DataError(f"--{name.replace('_', '-')}: the recipe {recipe.name} has no {name!r}")
    own = {name: value for name, value in given.items() if name in known}
    return resolve(recipe.settings, recipe.name, own, pairs, file=config, stored=stored)


def compiled_step(
    training: Training,
    settings: Mapping[str, Any],
    budget: str | None = None,
    at: Mapping[str, int] | None = None,
) -> Any:
    """The compiled training step, within a budget; made for the sizes `at` where they are given."""
    return rg.compile_training(
        training.loss,
        training.model,
        training.optimizer,
        batch=dict(training.specs),
        budget=settings["budget"] if budget is None else budget,
        at={**training.at, **(at or {})} or None,
        backend=settings["backend"],
        threads=settings["threads"],
        clip_norm=training.clip_norm,
        accumulate=settings["accumulate"],
        seed=settings["seed"],
        ema=settings["ema"],
        precision=settings["precision"],
    )
