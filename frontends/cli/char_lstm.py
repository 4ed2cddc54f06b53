"""The recipe `char-lstm`: a recurrent model that learns a text character by character."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import retrograde as rg
from retrograde.cli.char_text import CharText, text_settings
from retrograde.cli.recipe import Settings
from retrograde.cli.settings import Setting


@dataclass(frozen=True)
class CharLSTM(CharText):
    """The recipe."""

    name: str = "char-lstm"
    settings: tuple[Setting, ...] = text_settings(
        Setting("cell", "lstm", str, "lstm, gru or rnn"),
        Setting("layers", 1, int, "of cells"),
        width=256,
        batch=32,
        length=128,
        learning_rate=6e-3,
        steps=1000,
        time_limit=180.0,
        validate_every=500,
        save_every=500,
        threads=1,  # two wait for each other at every product of the loop
    )

    def evaluation_length(self, settings: Settings) -> int:
        """Longer than in training: what was read before is carried along, however long ago."""
        length: int = settings["length"]
        return max(1024, length)

    def make_model(self, settings: Settings, vocab: int) -> Any:
        return rg.models.RNNLM(
            vocab=vocab,
            width=settings["width"],
            layers=settings["layers"],
            cell=settings["cell"],
            seed=settings["seed"],
            dropout=settings["dropout"],
            tied=settings["tied"],
        )
