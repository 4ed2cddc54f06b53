"""Settings that make any recipe small: of a task, of text, of a user's file."""

from __future__ import annotations

from typing import Any

from retrograde.cli.char_text import CharText
from tests.recipes.small import TINY

TEXT_FILE = "text.txt"  # in the working directory, of TEXT
TEXT = " ".join(f"{k} is {'odd' if k % 2 else 'even'}, not {k * k}" for k in range(200))
OF_TEXT = {
    "data": TEXT_FILE,
    "batch": 4,
    "length": 8,
    "width": 8,
    "layers": 1,
    "heads": 2,
    "vocabulary": 270,
    "validation_batches": 2,
}
USUAL = {"warmup": 2, "learning_rate": 0.02, "dropout": 0.2, "threads": 1}


def anything(name: str, recipe: Any, **more: Any) -> dict[str, Any]:
    """The settings of `recipe`; those of the usual ones that it lacks are left out."""
    own = OF_TEXT if isinstance(recipe, CharText) else TINY[name][0] if name in TINY else {}
    known = {s.name for s in recipe.settings}
    return {**{key: x for key, x in {**USUAL, **own}.items() if key in known}, **more}
