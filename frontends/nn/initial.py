"""First values of parameters: a source of numbers and a shape -> a float32 array.

Invariant: one seed gives the same values on every machine and NumPy: the words of Philox are fixed
for good (NEP 19), and what is made of them here uses +, * and the logarithm and cosine of float64.

    weights of Linear       normal, variance 1/inputs (LeCun, Bottou, Orr & Mueller 1998)
    weights of Embedding    normal, standard deviation 0.02 (Radford et al. 2019)
    gains 1, biases 0
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde.compiler.errors import DTypeError
from retrograde.compiler.ir.location import skip_frames_under, where

skip_frames_under(os.path.abspath(__file__))

Array = npt.NDArray[Any]


class Source:
    """A stream of random numbers that layers draw their first values from, one after the other."""

    def __init__(self, seed: int) -> None:
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
            raise DTypeError(f"{where()}a seed is an integer, got {seed!r}")
        self._words = np.random.Philox(key=int(seed) % (1 << 128))

    def normal(self, shape: Sequence[int], std: float) -> Array:
        """Normally distributed around 0 (Box and Muller, 1958)."""
        count = math.prod(shape)
        pairs = -(-count // 2)
        radius = np.sqrt(-2.0 * np.log(self._unit(pairs, 1)))
        angle = 2.0 * math.pi * self._unit(pairs, 0)
        both = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
        return (std * both[:count]).astype(np.float32).reshape(shape)

    def uniform(self, shape: Sequence[int], low: float, high: float) -> Array:
        """Evenly spread in [low, high)."""
        unit = self._unit(math.prod(shape), 0)
        return (low + (high - low) * unit).astype(np.float32).reshape(shape)

    def _unit(self, count: int, offset: int) -> Array:
        """Multiples of 2^-53 from `offset` of them up: in [0, 1) for 0, in (0, 1] for 1."""
        words = self._words.random_raw(count) >> np.uint64(11)
        out: Array = (words.astype(np.float64) + offset) * 2.0**-53
        return out


# Layers that are given no seed share a stream that begins alike in every process: two layers of
# one shape differ, and a program that is run again starts from the same values.
_shared = Source(0)


def source(seed: int | Source | None) -> Source:
    """The stream of a seed; the stream itself; the shared stream for None."""
    if seed is None:
        return _shared
    return seed if isinstance(seed, Source) else Source(seed)


def zeros(*shape: int) -> Array:
    """Zeros."""
    return np.zeros(shape, np.float32)


def ones(*shape: int) -> Array:
    """Ones."""
    return np.ones(shape, np.float32)
