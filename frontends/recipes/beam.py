"""Beam search: log probabilities of the next token -> the likeliest sequences found.

All rows of a batch go on together; a sequence that has ended keeps its score.  Invariant: with one
beam it is the greedy choice, and what is found depends on the scores alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Next = Callable[[Array], Array]


def search(
    following: Next, rows: int, *, end: int, most: int, beams: int, penalty: float = 0.6
) -> list[list[int]]:
    """The best sequence of each row, without `end`, of at most `most` tokens.

    `following(tokens int32[rows * beams, T])` gives log probabilities [rows * beams, tokens] of
    what comes next; `end` is also what a sequence starts with.  Scores are divided by ((5 + n) /
    6)^penalty of n tokens (Wu et al. 2016)."""
    tokens = np.full((rows * beams, 1), end, np.int32)
    # At first all beams of a row are the same: only the first one counts.
    scores = np.where(np.arange(rows * beams) % beams == 0, 0.0, -np.inf)
    ended = np.zeros(rows * beams, bool)
    lengths = np.zeros(rows * beams)
    for _ in range(most):
        logs = following(tokens).astype(np.float64)
        count = logs.shape[1]
        logs[ended] = -np.inf
        logs[ended, end] = 0.0
        grown = np.where(ended, lengths, lengths + 1)
        totals = scores[:, None] + logs
        ranked = totals / (((5.0 + grown) / 6.0) ** penalty)[:, None]
        ranked = ranked.reshape(rows, beams * count)
        # A stable order: of equal ones the first.
        best = np.argsort(-ranked, axis=1, kind="stable")[:, :beams]
        source = (best // count + np.arange(rows)[:, None] * beams).ravel()
        token = (best % count).ravel().astype(np.int32)
        scores = totals[source, token]
        lengths = grown[source]
        ended = ended[source] | (token == end)
        tokens = np.concatenate([tokens[source], token[:, None]], axis=1)
        if ended.all():
            break
    first = tokens[::beams, 1:]  # beams are in order
    return [row[: _before(row, end)].tolist() for row in first]


def _before(row: Array, end: int) -> int:
    found = np.flatnonzero(row == end)
    return int(found[0]) if found.size else row.size


def log_softmax(logits: Array) -> Array:
    """Log probabilities over the last axis."""
    x = logits.astype(np.float64)
    x = x - x.max(axis=-1, keepdims=True)
    return np.asarray(x - np.log(np.exp(x).sum(axis=-1, keepdims=True)))
