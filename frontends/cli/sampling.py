"""Text from a language model: logits -> the next token, over and over.

A model that can `advance` a carry sees each token once; any other sees the last `context` tokens
and computes them anew for each.  The program is compiled once, for every length.  Invariant: the
text depends on the model, the prompt and the options alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

import retrograde as rg
from retrograde.compiler.errors import DataError
from retrograde.runtime.data.text import Vocabulary

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen.

    `temperature` divides the logits; 0 takes the most likely token.  `top_k` keeps the k most
    likely tokens, `top_p` the fewest whose probabilities reach p (Holtzman et al. 2020); equally
    likely ones at the border stay."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and np.isfinite(self.temperature)):
            raise DataError(f"the temperature is {self.temperature}: it is 0 or more")
        if self.top_k is not None and self.top_k < 1:
            raise DataError(f"top-k is {self.top_k}: it is at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise DataError(f"top-p is {self.top_p}: it lies above 0, up to 1")
        if self.seed < 0:
            raise DataError(f"the seed is {self.seed}: it is not negative")

    def probabilities(self, logits: Array) -> Array:
        """What each token's chance is, float64; sums to 1."""
        scores = logits.astype(np.float64)
        if not np.isfinite(scores.max()):
            raise DataError("the model gives no number for any next token: its weights have none")
        if self.temperature == 0:
            return _one_hot(int(np.argmax(scores)), scores.size)
        scores = (scores - scores.max()) / self.temperature
        if self.top_k is not None and self.top_k < scores.size:
            scores[scores < np.partition(scores, -self.top_k)[-self.top_k]] = -np.inf
        chances = np.exp(scores)
        chances /= chances.sum()
        if self.top_p is not None:
            ranked = np.sort(chances)[::-1]
            enough = int(np.searchsorted(np.cumsum(ranked), self.top_p - 1e-12))
            chances[chances < ranked[min(enough, ranked.size - 1)]] = 0.0
            chances /= chances.sum()
        out: Array = chances
        return out


def _one_hot(index: int, size: int) -> Array:
    out = np.zeros(size)
    out[index] = 1.0
    return out


def next_tokens(
    model: Any, prompt: Array, sampling: Sampling, never: tuple[int, ...] = ()
) -> Iterator[int]:
    """Tokens that follow `prompt`, without end; those in `never` are not chosen."""
    model = model.eval()
    tokens = [int(t) for t in prompt]
    if not tokens:
        raise DataError("the prompt is empty: there is nothing to go on from")
    follow = _by_carry(model) if hasattr(model, "advance") else _by_window(model)
    # Raw words of Philox are fixed for good (NEP 19); choices made by NumPy's Generator are not.
    words = np.random.Philox(key=sampling.seed)
    while True:
        logits = follow(tokens)
        logits[list(never)] = -np.inf
        ladder = np.cumsum(sampling.probabilities(logits))
        draw = (int(words.random_raw()) >> 11) * 2.0**-53 * ladder[-1]
        token = int(np.searchsorted(ladder, draw, side="right"))
        tokens.append(token)
        yield token


def _by_window(model: Any) -> Callable[[list[int]], Array]:
    """The logits after all tokens so far, from the last of them."""
    context = model.context

    def last_logits(model: Any, tokens: Any) -> Any:
        return model(tokens)[0, -1]

    length = rg.dim("T", max=context)  # the number 1 where the context is no longer
    at = {"T": context} if context > 1 else None
    compiled = rg.compile(last_logits, model, rg.spec("i32", 1, length), at=at)

    def follow(tokens: list[int]) -> Array:
        out: Array = compiled(model, np.array([tokens[-context:]], np.int32))
        return out

    return follow


def _by_carry(model: Any) -> Callable[[list[int]], Array]:
    """The logits after all tokens so far, from those that are new and a carry."""
    carry = model.initial(1)
    seen = 0

    def last_logits(model: Any, tokens: Any, carry: Any) -> Any:
        logits, carry = model.advance(tokens, carry)
        return logits[0, -1], carry

    compiled = rg.compile(last_logits, model, rg.spec("i32", 1, "T"), carry, at={"T": 1})

    def follow(tokens: list[int]) -> Array:
        nonlocal carry, seen
        logits: Array
        logits, carry = compiled(model, np.array([tokens[seen:]], np.int32), carry)
        seen = len(tokens)
        return logits

    return follow


def text(
    model: Any, vocabulary: Vocabulary, prompt: str, count: int, sampling: Sampling
) -> Iterator[str]:
    """`count` characters that follow `prompt`, one by one.  An empty prompt is a new line."""
    tokens = vocabulary.encode(prompt or "\n")
    following = next_tokens(model, tokens, sampling, never=(0,))
    for _ in range(count):
        yield vocabulary.decode([next(following)])
