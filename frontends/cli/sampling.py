"""Text from a language model: a prompt -> its continuation, token by token.

Each token is fed once: the model is made over to go step by step (`retrograde.generation`).
Invariant: the text depends on the model, the prompt and the options alone.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde.generation.choosing import Sampling
from retrograde.generation.decoder import longest_of
from retrograde.generation.generating import stream
from retrograde.runtime.data.bpe import BytePairs
from retrograde.runtime.data.text import Vocabulary

__all__ = ["Sampling", "Tokens", "content", "next_tokens", "text"]

Array = npt.NDArray[Any]
Tokens = Vocabulary | BytePairs


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
    model: Any, vocabulary: Tokens, prompt: str, count: int, sampling: Sampling
) -> Iterator[str]:
    """What `count` tokens that follow `prompt` stand for, piece by piece.  An empty prompt is a
    new line.  Bytes that are no UTF-8 become U+FFFD, and a letter comes when its last byte does.

    When the context is full, its older half goes out of sight: so most tokens cost one step."""
    tokens = vocabulary.encode(prompt or "\n")
    longest = longest_of(model)
    keep = None if longest is None else longest // 2
    never = (0,) if isinstance(vocabulary, Vocabulary) else ()  # the unknown character
    following = next_tokens(model, tokens, sampling, never=never, keep=keep)
    letters = codecs.getincrementaldecoder("utf-8")("replace")
    for _ in range(count):
        token = next(following)
        if isinstance(vocabulary, Vocabulary):
            yield vocabulary.decode([token])
        elif piece := letters.decode(vocabulary.decode_bytes([token])):
            yield piece
    if rest := letters.decode(b"", final=True):
        yield rest


def content(vocabulary: Tokens, whole: str, targets: Array) -> bytes:
    """The UTF-8 that `targets` stand for: tokens of `whole` from the second one on."""
    if isinstance(vocabulary, BytePairs):
        return vocabulary.decode_bytes(targets)
    # One token a character, and a character that is not known is there in the text alone.
    return whole[1 : 1 + targets.size].encode("utf-8", "surrogatepass")
