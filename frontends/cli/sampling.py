"""Text from a language model: a prompt -> its continuation, character by character.

Each token is fed once: the model is made over to go step by step (`retrograde.generation`).
Invariant: the text depends on the model, the prompt and the options alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde.generation.choosing import Sampling
from retrograde.generation.decoder import longest_of
from retrograde.generation.generating import stream
from retrograde.runtime.data.text import Vocabulary

__all__ = ["Sampling", "next_tokens", "text"]

Array = npt.NDArray[Any]


def next_tokens(
    model: Any,
    prompt: Array,
    sampling: Sampling,
    never: tuple[int, ...] = (),
    keep: int | None = None,
) -> Iterator[int]:
    """Tokens that follow `prompt`, without end; those in `never` are not chosen.

    Of a text longer than the model's context it sees the last tokens; `keep`: how many stay in
    sight when the context is full (see `rg.generate`)."""
    following: Iterator[int] = stream(
        model, np.asarray(prompt, np.int64), never=never, keep=keep, seed=sampling.seed,
        temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p,
    )  # fmt: skip
    return following


def text(
    model: Any, vocabulary: Vocabulary, prompt: str, count: int, sampling: Sampling
) -> Iterator[str]:
    """`count` characters that follow `prompt`, one by one.  An empty prompt is a new line.

    When the context is full, its older half goes out of sight: so most characters cost one step."""
    tokens = vocabulary.encode(prompt or "\n")
    longest = longest_of(model)
    keep = None if longest is None else longest // 2
    following = next_tokens(model, tokens, sampling, never=(0,), keep=keep)
    for _ in range(count):
        yield vocabulary.decode([next(following)])
