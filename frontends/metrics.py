"""What fields measure their models by, in NumPy: predictions and what is true -> a number.

Nothing here is differentiated.  Invariant: a mask leaves out what it is false for, whatever stands
there; a metric of nothing at all is NaN.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde.compiler.errors import ShapeError, UnsupportedError
from retrograde.compiler.ir.location import skip_frames_under, where

skip_frames_under(os.path.abspath(__file__))

Array = npt.NDArray[Any]
Tokens = Sequence[Hashable]

__all__ = [
    "accuracy",
    "bits_per_byte",
    "bleu",
    "edit_distance",
    "error_rate",
    "f1",
    "mae",
    "mase",
    "pinball",
    "word_error",
]


def accuracy(predicted: Any, targets: Any, mask: Any = None) -> float:
    """The share of class numbers that are right, of equal shapes."""
    p, t = _kept(predicted, targets, mask)
    return float(np.mean(p == t)) if p.size else math.nan


def f1(
    predicted: Any, targets: Any, mask: Any = None, *, average: str = "macro"
) -> float | dict[int, float]:
    """2 precision recall / (precision + recall) = 2 TP / (2 TP + FP + FN) of class numbers.

    `average` "macro" is the mean over the classes that occur among predictions or targets, "micro"
    of all decisions together (for one class an element: the accuracy), "none" gives each class
    (van Rijsbergen 1979)."""
    p, t = _kept(predicted, targets, mask)
    if average not in ("macro", "micro", "none"):
        raise UnsupportedError(f"{where()}f1: average={average!r}: it is macro, micro or none")
    if average == "micro":
        return float(np.mean(p == t)) if p.size else math.nan
    each: dict[int, float] = {}
    for c in np.union1d(p, t).tolist():
        right, said, true = (np.count_nonzero(x) for x in ((p == c) & (t == c), p == c, t == c))
        each[int(c)] = float(2.0 * right / (said + true))
    if average == "none":
        return each
    return float(np.mean(list(each.values()))) if each else math.nan


# --- sequences of tokens


def edit_distance(a: Tokens, b: Tokens) -> int:
    """The fewest insertions, deletions and substitutions that make `b` of `a`.

    Source: Levenshtein 1966."""
    before = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row = [i]
        for j, y in enumerate(b, 1):
            row.append(min(row[-1] + 1, before[j] + 1, before[j - 1] + (x != y)))
        before = row
    return before[-1]


def error_rate(predicted: Sequence[Tokens], targets: Sequence[Tokens]) -> float:
    """All edit distances over the length of all targets: the word, character or phoneme error rate,
    by what the tokens are."""
    _paired(predicted, targets)
    size = sum(map(len, targets))
    edits = sum(edit_distance(p, t) for p, t in zip(predicted, targets, strict=True))
    return edits / size if size else math.nan


def word_error(predicted: Sequence[Tokens], targets: Sequence[Any]) -> float:
    """The share of sequences that are not wholly right, as pronunciations are judged by the word.

    A target may be a `set` or `frozenset` of tuples, each of which is right."""
    _paired(predicted, targets)
    wrong = 0
    for p, t in zip(predicted, targets, strict=True):
        right = t if isinstance(t, (set, frozenset)) else {tuple(t)}
        wrong += tuple(p) not in {tuple(r) for r in right}
    return wrong / len(targets) if len(targets) else math.nan


def bleu(
    predicted: Sequence[Tokens],
    references: Sequence[Tokens],
    *,
    longest: int = 4,
    smooth: bool = False,
) -> float:
    """From 0 to 100: the geometric mean of the clipped n-gram precisions of the whole corpus, n up
    to `longest`, times the brevity penalty (Papineni et al. 2002), one reference each.

    `smooth` adds 1 to matches and totals of n > 1 (Lin & Och 2004).  Without it, no match of some n
    is 0."""
    _paired(predicted, references)
    found, there = [0] * longest, [0] * longest
    for p, r in zip(predicted, references, strict=True):
        for n in range(1, longest + 1):
            said, true = _grams(p, n), _grams(r, n)
            found[n - 1] += sum((said & true).values())
            there[n - 1] += sum(said.values())
    size, true_size = sum(map(len, predicted)), sum(map(len, references))
    logs = 0.0
    for n, (hits, total) in enumerate(zip(found, there, strict=True)):
        more = int(smooth and n > 0)
        if not hits + more or not total + more:
            return 0.0
        logs += math.log((hits + more) / (total + more)) / longest
    brevity = min(0.0, 1.0 - true_size / size)
    return 100.0 * math.exp(brevity + logs)


def _grams(tokens: Tokens, n: int) -> Counter[tuple[Hashable, ...]]:
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


def bits_per_byte(nats: float, size: int) -> float:
    """The summed negative log likelihood of a text, in nats, as bits for each of its bytes."""
    return nats / (size * math.log(2.0)) if size else math.nan


# --- series


def mae(predicted: Any, targets: Any, mask: Any = None) -> float:
    """The mean of |prediction - target|."""
    p, t = _kept(predicted, targets, mask)
    return float(np.mean(np.abs(p - t))) if p.size else math.nan


def mase(
    predicted: Any, targets: Any, history: Any, *, season: int = 1, mask: Any = None
) -> float:
    """The mean absolute error over that of the seasonal naive forecast within the history.

    `history` is [..., time]; the naive forecast says what was `season` steps before (Hyndman &
    Koehler 2006).  Places of the history that are NaN are left out."""
    past = np.asarray(history, np.float64)
    if season < 1 or past.ndim < 1 or past.shape[-1] <= season:
        raise ShapeError(
            f"{where()}mase: a history of {list(past.shape)} for a season of {season}: it takes "
            "more than one season"
        )
    naive = np.abs(past[..., season:] - past[..., :-season])
    naive = naive[~np.isnan(naive)]
    scale = float(np.mean(naive)) if naive.size else math.nan
    return mae(predicted, targets, mask) / scale if scale else math.nan


def pinball(predicted: Any, targets: Any, quantiles: Sequence[float], mask: Any = None) -> float:
    """The mean of max(q e, (q - 1) e), e = target - prediction: [..., Q], [...] (Koenker & Bassett
    1978)."""
    q = np.asarray(quantiles, np.float64)
    p, t = np.asarray(predicted, np.float64), np.asarray(targets, np.float64)
    if p.shape != (*t.shape, *q.shape):
        raise ShapeError(
            f"{where()}pinball: predictions {list(p.shape)}, targets {list(t.shape)} and {q.size} "
            "quantiles: predictions have one more axis, the quantiles, behind those of the targets"
        )
    e = t[..., None] - p
    loss = np.maximum(q * e, (q - 1.0) * e)
    return mae(loss, np.zeros_like(loss), _stretched(mask, loss.shape))


# --- masks


def _kept(predicted: Any, targets: Any, mask: Any) -> tuple[Array, Array]:
    p, t = np.asarray(predicted), np.asarray(targets)
    if p.shape != t.shape:
        raise ShapeError(
            f"{where()}predictions {list(p.shape)} and targets {list(t.shape)} are of unequal shape"
        )
    kept = _stretched(mask, p.shape)
    return (p.ravel(), t.ravel()) if kept is None else (p[kept], t[kept])


def _stretched(mask: Any, shape: tuple[int, ...]) -> Array | None:
    """The mask, which covers leading axes, in this shape."""
    if mask is None:
        return None
    given = np.asarray(mask).astype(bool)
    if given.shape != shape[: given.ndim]:
        raise ShapeError(
            f"{where()}the mask {list(given.shape)} does not cover {list(shape)} from the left"
        )
    out: Array = np.broadcast_to(
        given.reshape(*given.shape, *(1,) * (len(shape) - given.ndim)), shape
    )
    return out


def _paired(predicted: Sequence[Any], targets: Sequence[Any]) -> None:
    if len(predicted) != len(targets):
        raise ShapeError(
            f"{where()}there are {len(predicted)} predictions and {len(targets)} targets"
        )
