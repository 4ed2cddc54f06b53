"""Every recipe of the command line under random budgets: what is planned is what is taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from retrograde.cli.char_text import CharText
from retrograde.cli.recipe import Training
from retrograde.cli.recipes import RECIPES
from tests.cli.budgets import check_random_budgets

TEXT = "".join(f"line {i}: {'abcdefg'[i % 7 :]} of {i * i}\n" for i in range(400))
SMALL = {"length": 40, "batch": 3, "width": 24, "validation_batches": 1, "steps": 3}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt": ("char-gpt", {"layers": 3, "heads": 2}),
    "gpt tied, dropout": ("char-gpt", {"layers": 2, "heads": 2, "tied": True, "dropout": 0.2}),
    "lstm": ("char-lstm", {}),
    "gru": ("char-lstm", {"cell": "gru", "layers": 2}),
    "rnn tied": ("char-lstm", {"cell": "rnn", "tied": True}),
    "byte pairs": ("bpe-gpt", {"layers": 2, "heads": 2, "vocabulary": 280}),
}
# Those of text; the others are in tests/recipes.
TEXTS = sorted(name for name, recipe in RECIPES.items() if isinstance(recipe, CharText))
CASES |= {name: (name, {}) for name in TEXTS if name not in {of for of, _ in CASES.values()}}
NATIVE = ("gpt", "lstm")  # for whose kernels the C compiler takes seconds


def built(case: str, folder: Path) -> Training:
    name, own = CASES[case]
    recipe = RECIPES[name]
    path = folder / "text.txt"
    path.write_text(TEXT)
    defaults = {s.name: s.default for s in recipe.settings}
    return recipe.build({**defaults, **SMALL, **own, "data": str(path)})


@pytest.mark.parametrize(
    "case,backend",
    [*((case, "numpy") for case in CASES), *((case, "native") for case in NATIVE)],
)
def test_random_budgets(case: str, backend: str, tmp_path: Path) -> None:
    training = built(case, tmp_path)
    batches = [next(training.batches) for _ in range(2)]
    assert check_random_budgets(training, batches, backend, len(case)) > 1
