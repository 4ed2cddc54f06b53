"""The recipe `brown-tags`: English sentences of the Brown corpus -> parts of speech."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from retrograde.cli.recipe import Settings
from retrograde.cli.settings import Setting
from retrograde.compiler.errors import DataError
from retrograde.recipes.tagging import PARTS, Tagged, Tagging, tagging_settings
from retrograde.runtime.data.sets import brown

_WORD = re.compile(r"[A-Za-z0-9]+(?:['.,-][A-Za-z0-9]+)*|[^\sA-Za-z0-9]")


@dataclass(frozen=True)
class BrownTags(Tagging):
    """The recipe; tags are coarse: what is said of a word's place in a title is left out."""

    name: str = "brown-tags"
    settings: tuple[Setting, ...] = tagging_settings(
        steps=700,
        time_limit=500.0,
        validate_every=100,
        threads=1,
    )

    def sentences(self, settings: Settings) -> Mapping[str, list[Tagged]]:
        data = brown.load()
        return {
            part: [Tagged(s.words, tuple(map(brown.coarse, s.tags))) for s in getattr(data, part)]
            for part in PARTS
        }

    def split(self, text: str) -> list[str]:
        words = _WORD.findall(text)
        if not words:
            raise DataError(f"{text!r}: there is no word in it")
        return words
