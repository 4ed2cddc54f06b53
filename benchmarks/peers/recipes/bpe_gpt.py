"""The model of `bpe-gpt` is that of `char-gpt`, with one table for tokens and logits."""

from __future__ import annotations

from benchmarks.peers.recipes.char_gpt import Text

model = Text
