"""The recipe `python-tags`: tokens of Python's standard library -> what each is"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from retrograde.cli.recipe import Settings
from retrograde.cli.settings import Setting
from retrograde.compiler.errors import DataError
from retrograde.recipes.tagging import PARTS, Tagged, Tagging, tagging_settings
from retrograde.runtime.data.sets import python_tokens


@dataclass(frozen=True)
class PythonTags(Tagging):
    """The recipe; its data need no network."""

    name: str = "python-tags"
    settings: tuple[Setting, ...] = tagging_settings(
        Setting("files", 300, int, "of the standard library that are read"),
        steps=300,
        time_limit=500.0,
        validate_every=100,
        threads=1,
    )

    def sentences(self, settings: Settings) -> Mapping[str, list[Tagged]]:
        data = python_tokens.load(settings["files"])
        return {
            part: [Tagged(line.words, line.roles) for line in getattr(data, part)] for part in PARTS
        }

    def split(self, text: str) -> list[str]:
        found = python_tokens.lines(text, "input")
        if len(found) != 1:
            raise DataError(f"{text!r} is {len(found)} lines of Python: give one logical line")
        return list(found[0].words)
