"""How the next token is chosen: logits -> chances -> a token, from a stream of each row's own.

Invariant: what a row draws depends on the seed, the row's number and its own logits alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde.compiler.errors import DataError

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


class Stream:
    """The choices of one row."""

    def __init__(self, sampling: Sampling, row: int = 0) -> None:
        self.sampling = sampling
        # Raw words of Philox are fixed for good (NEP 19); choices made by NumPy's Generator are
        # not.  A key has 128 bits: the seed, and the row above it.
        self._words = np.random.Philox(key=(sampling.seed % 2**64) + (row << 64))

    def choose(self, logits: Array, never: Sequence[int] = ()) -> int:
        """A token for logits [V], none of those in `never`."""
        if never:
            logits = logits.copy()
            logits[list(never)] = -np.inf
        ladder = np.cumsum(self.sampling.probabilities(logits))
        draw = (int(self._words.random_raw()) >> 11) * 2.0**-53 * ladder[-1]
        return int(np.searchsorted(ladder, draw, side="right"))
