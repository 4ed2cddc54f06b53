"""Figures of merit: labels, sequences or numbers beside the true ones -> one number, in NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def confusion(truth: Array, said: Array, classes: int) -> Array:
    """counts[true, said], int64[classes, classes]."""
    pairs = np.asarray(truth, np.int64) * classes + np.asarray(said, np.int64)
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def accuracy(counts: Array) -> float:
    """The share on the diagonal."""
    return float(np.trace(counts) / counts.sum())


def macro_f1(counts: Array) -> float:
    """The mean over the classes that occur of 2 hits / (2 hits + misses + false alarms)."""
    hits = np.diag(counts)
    parts = counts.sum(axis=0) + counts.sum(axis=1)
    present = counts.sum(axis=1) > 0
    return float(np.mean(2 * hits[present] / parts[present]))


def pinball(quantiles: Array, said: Array, truth: Array) -> Array:
    """max(q e, (q - 1) e) of e = truth - said: said [..., quantiles], truth [...] -> as said.

    Source: Koenker and Bassett 1978."""
    error = truth[..., None] - said
    return np.maximum(quantiles * error, (quantiles - 1.0) * error)


def edit_distance(a: Sequence[Any], b: Sequence[Any]) -> int:
    """The fewest insertions, removals and replacements that make `b` of `a` (Levenshtein 1966)."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]
