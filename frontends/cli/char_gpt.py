"""The recipe `char-gpt`: a GPT that learns a text character by character."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import retrograde as rg
from retrograde.cli.char_text import CharText, text_settings
from retrograde.cli.recipe import Settings
from retrograde.cli.settings import Setting


@dataclass(frozen=True)
class CharGPT(CharText):
    """The recipe."""

    name: str = "char-gpt"
    settings: tuple[Setting, ...] = text_settings(
        Setting("length", 64, int, "characters a window; also the longest context"),
        Setting("layers", 4, int, "blocks of the model"),
        Setting("heads", 4, int, "of attention"),
        steps=2500,
        time_limit=180.0,
        validate_every=500,
        save_every=500,
        threads=1,  # two are a quarter faster, but many times slower beside another busy process
    )

    def longest(self, settings: Settings) -> int | None:
        length: int = settings["length"]
        return length

    def make_model(self, settings: Settings, vocab: int) -> Any:
        return rg.models.GPT(
            vocab=vocab,
            width=settings["width"],
            layers=settings["layers"],
            heads=settings["heads"],
            context=settings["length"],
            seed=settings["seed"],
            dropout=settings["dropout"],
            tied=settings["tied"],
        )
