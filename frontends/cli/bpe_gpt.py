"""The recipe `bpe-gpt`: a GPT that learns a text by byte pairs, which stand for some characters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from retrograde.cli.char_gpt import CharGPT
from retrograde.cli.char_text import text_settings
from retrograde.cli.recipe import Settings
from retrograde.cli.sampling import Tokens
from retrograde.cli.settings import Setting
from retrograde.compiler.errors import DataError
from retrograde.runtime.data.bpe import BytePairs

_BYTES = len(BytePairs())


@dataclass(frozen=True)
class BPEGPT(CharGPT):
    """The recipe.  Every byte is a token, so there is no text that it does not know."""

    name: str = "bpe-gpt"
    settings: tuple[Setting, ...] = text_settings(
        Setting("length", 64, int, "tokens a window; also the longest context"),
        Setting("layers", 4, int, "blocks of the model"),
        Setting("heads", 4, int, "of attention"),
        Setting("vocabulary", 1024, int, "most tokens: 256 bytes, and pairs that are frequent"),
        batch=16,
        tied=True,  # the table of so many tokens is half of the model
        steps=2500,
        time_limit=180.0,
        validate_every=500,
        save_every=500,
        threads=1,
    )

    def tokens_of(self, training: str, settings: Settings) -> Tokens:
        if settings["vocabulary"] < _BYTES:
            raise DataError(
                f"the vocabulary is {settings['vocabulary']}: byte pairs begin with {_BYTES} bytes"
            )
        return BytePairs.train(training, settings["vocabulary"] - _BYTES)

    def tokens_from(self, data: Any) -> Tokens:
        return BytePairs.from_json(data)
