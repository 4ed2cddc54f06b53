"""Words: what occurs in some data -> int32 tokens, and back.  Also for tags, phonemes and labels.

Invariant: the same counts give the same tokens, the most frequent word the lowest (of two equally
frequent the one that sorts first); tokens of specials come before those of words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde.compiler.errors import DataError


@dataclass(frozen=True)
class Words:
    """Tokens 0, 1, … are `specials`, then `words`.

    `unknown`, one of the specials, is what `encode` makes of a word that is not listed; without it
    such a word is an error.
    """

    words: tuple[str, ...]
    specials: tuple[str, ...] = ()
    unknown: str | None = None

    def __post_init__(self) -> None:
        listed = (*self.specials, *self.words)
        if len(set(listed)) != len(listed):
            twice = next(word for word, count in Counter(listed).items() if count > 1)
            raise DataError(f"{twice!r} is listed twice among the specials and words")
        if self.unknown is not None and self.unknown not in self.specials:
            raise DataError(f"unknown is {self.unknown!r}, which is not one of {self.specials}")

    @classmethod
    def of(
        cls,
        words: Iterable[str],
        *,
        minimum_count: int = 1,
        limit: int | None = None,
        specials: Sequence[str] = (),
        unknown: str | None = None,
    ) -> Words:
        """The words that occur `minimum_count` times or more, at most the `limit` most frequent."""
        if minimum_count < 1 or (limit is not None and limit < 1):
            raise DataError(
                f"minimum_count and limit must be at least 1, not {minimum_count} and {limit}"
            )
        counts = Counter(words)
        for special in specials:
            del counts[special]
        kept = [word for word, count in counts.items() if count >= minimum_count]
        kept.sort(key=lambda word: (-counts[word], word))
        return cls(tuple(kept[:limit]), tuple(specials), unknown)

    def __len__(self) -> int:
        return len(self.specials) + len(self.words)

    def __contains__(self, word: object) -> bool:
        return word in self._token_of

    def token(self, word: str) -> int:
        """The token of one word or special; `unknown`'s where it is not listed."""
        token = self._token_of.get(word)
        if token is not None:
            return token
        if self.unknown is None:
            raise DataError(
                f"{word!r} is not among the {len(self)} words, and there is no token for unknown "
                "ones: name a special one with unknown="
            )
        return self._token_of[self.unknown]

    def encode(self, words: Iterable[str]) -> npt.NDArray[np.int32]:
        """One token a word, int32[n]."""
        return np.array([self.token(word) for word in words], np.int32)

    def decode(self, tokens: npt.ArrayLike) -> list[str]:
        """The words and specials of `tokens`; raises `DataError` for one that there is not."""
        array = np.asarray(tokens).reshape(-1)
        if array.size == 0:
            return []
        if array.dtype.kind not in "iu" or array.min() < 0 or array.max() >= len(self):
            raise DataError(
                f"tokens from {array.min()} to {array.max()} do not fit {len(self)} words: they "
                "were made with others"
            )
        listed = (*self.specials, *self.words)
        return [listed[token] for token in array.tolist()]

    def to_json(self) -> dict[str, Any]:
        """A JSON object, as a checkpoint's metadata keeps it."""
        return {
            "kind": "words",
            "words": list(self.words),
            "specials": list(self.specials),
            "unknown": self.unknown,
        }

    @classmethod
    def from_json(cls, data: Any) -> Words:
        """What `to_json` gave; raises `DataError` for anything else."""
        if not isinstance(data, dict) or data.get("kind") != "words":
            raise DataError("this is not the JSON of words")
        lists = [data.get("words"), data.get("specials")]
        unknown = data.get("unknown")
        if not all(
            isinstance(found, list) and all(isinstance(w, str) for w in found) for found in lists
        ) or not isinstance(unknown, str | None):
            raise DataError("the JSON of words lacks its 'words' and 'specials', lists of strings")
        words, specials = (tuple(found or ()) for found in lists)
        return cls(words, specials, unknown)

    @cached_property
    def _token_of(self) -> dict[str, int]:
        return {word: token for token, word in enumerate((*self.specials, *self.words))}
