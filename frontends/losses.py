"""Losses: predictions and targets -> `Mean(sum, count)`.

A mask covers the elements, or their leading axes: [B, T] for [B, T, 5].  Where it is false or 0,
elements add nothing to sum or count and get zero gradients, whatever is in them, NaN included; a
mask of numbers weighs the others.  `per` is "token" (the mean over all elements that count),
"sequence" (each row weighs the same, as the mean of its elements; with `segments` [B, T] each
segment of packed rows does) or "sum" (the sum over a row, and the mean of that over rows).
Invariant: the sums of two batches over their counts are the loss of both as one batch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import retrograde.numpy as rnp
from retrograde.compiler.errors import DTypeError, ShapeError
from retrograde.compiler.ir import dims
from retrograde.compiler.ir.graph import same_shape
from retrograde.compiler.ir.location import skip_frames_under, where
from retrograde.compiler.ir.registry import lookup
from retrograde.loss_sums import check_per, cleared, covering, totals
from retrograde.losses_ctc import ctc
from retrograde.mean import Mean
from retrograde.numpy.dispatch import function
from retrograde.numpy.primitives import ArrayLike, array, floating

skip_frames_under(os.path.abspath(__file__))

__all__ = ["bce", "cross_entropy", "ctc", "huber", "mae", "mse", "pinball"]


def cross_entropy(
    logits: ArrayLike,
    targets: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
    weights: ArrayLike | None = None,
    per: str = "token",
    segments: ArrayLike | None = None,
) -> Mean:
    """The negative log likelihood of the targets, in nats: [..., classes], integers [...] -> Mean.

    `mask` covers the targets; where it is false, or the target is `ignore_index`, a target may be
    any number.  `label_smoothing` e mixes the targets with e of the uniform distribution (Szegedy
    et al. 2016).  `weights` [classes] weigh each element by its class, in sum and count.  A target
    beyond the classes is a DataError when the program runs."""
    if not 0.0 <= label_smoothing <= 1.0:
        raise ShapeError(f"{where()}label_smoothing is {label_smoothing}: it lies from 0 to 1")
    check_per(per, segments)
    smoothing = float(label_smoothing)
    return Mean(
        *_cross_entropy(logits, targets, mask, smoothing, ignore_index, weights, per, segments)
    )


@function
def _cross_entropy(
    logits: Any, targets: Any, mask: Any, smoothing: float, ignored: int | None, weights: Any,
    per: str, segments: Any,
) -> tuple[Any, Any]:  # fmt: skip
    logits, targets = floating(logits), array(targets)
    if not targets.dtype.is_integer:
        raise DTypeError(f"{where()}the targets are {targets.type}: class numbers are integers")
    fits = logits.ndim == targets.ndim + 1 and all(map(dims.same, logits.shape, targets.shape))
    if not fits:
        raise ShapeError(
            f"{where()}logits {logits.type} and targets {targets.type}: logits have one more axis, "
            "the classes, behind those of the targets"
        )
    kept = None if mask is None else covering(mask, targets)
    if ignored is not None:
        present = rnp.not_equal(targets, ignored)
        kept = present if kept is None else rnp.where(present, kept, rnp.zeros_like(kept))
    targets = cleared(targets, kept)
    logits = cleared(logits, kept)
    nll, lse = lookup("token_nll")(logits, targets)
    wide = rnp.astype(logits, nll.dtype)
    by_class = None if weights is None else _class_weights(weights, wide)
    of_target = None if by_class is None else rnp.take(by_class, targets)
    loss = nll if of_target is None else nll * of_target
    if smoothing:
        loss = loss * (1.0 - smoothing) + _uniform_nll(wide, lse, by_class) * smoothing
    return totals(loss, kept, of_target, per=per, segments=segments)


def _uniform_nll(logits: Any, lse: Any, by_class: Any) -> Any:
    """The mean over the classes of each one's negative log likelihood, weighed by class."""
    if by_class is None:
        return lse - rnp.mean(logits, axis=-1)
    classes = rnp.astype(array(logits.shape[-1]), logits.dtype)
    return (lse * rnp.sum(by_class) - rnp.matmul(logits, by_class)) / classes


def _class_weights(weights: Any, logits: Any) -> Any:
    given = array(weights)
    if given.ndim != 1 or not dims.same(given.shape[0], logits.shape[-1]):
        raise ShapeError(
            f"{where()}the weights are {given.type}: one for each of {logits.shape[-1]} classes"
        )
    return rnp.astype(given, logits.dtype)


# --- element by element


def mse(
    predictions: ArrayLike,
    targets: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    per: str = "token",
    segments: ArrayLike | None = None,
) -> Mean:
    """(prediction - target)^2, over all elements."""
    return _elementwise(lambda p, t: rnp.square(p - t), predictions, targets, mask, per, segments)


def mae(
    predictions: ArrayLike,
    targets: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    per: str = "token",
    segments: ArrayLike | None = None,
) -> Mean:
    """|prediction - target|, over all elements; the gradient at 0 is 0."""
    return _elementwise(lambda p, t: rnp.abs(p - t), predictions, targets, mask, per, segments)


def huber(
    predictions: ArrayLike,
    targets: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    delta: float = 1.0,
    per: str = "token",
    segments: ArrayLike | None = None,
) -> Mean:
    """e^2/2 where |e| <= delta, else delta (|e| - delta/2), of e = prediction - target.

    Source: Huber 1964."""
    if not delta > 0:
        raise ShapeError(f"{where()}delta is {delta}: it is positive")

    def loss(p: Any, t: Any) -> Any:
        # With c = |e| cut at delta, both branches are c (|e| - c/2).
        size = rnp.abs(p - t)
        cut = rnp.minimum(size, delta)
        return cut * (size - cut * 0.5)

    return _elementwise(loss, predictions, targets, mask, per, segments)


def bce(
    logits: ArrayLike,
    targets: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    per: str = "token",
    segments: ArrayLike | None = None,
) -> Mean:
    """The cross-entropy of probabilities sigmoid(logits) with targets from 0 to 1, in nats."""
    return _elementwise(
        # Each part is exact far out, where log(1 - sigmoid) would be log 0.
        lambda x, t: (1.0 - t) * rnp.softplus(x) + t * rnp.softplus(-x),
        logits,
        targets,
        mask,
        per,
        segments,
    )


def pinball(
    predictions: ArrayLike,
    targets: ArrayLike,
    quantiles: Sequence[float],
    mask: ArrayLike | None = None,
    *,
    per: str = "token",
    segments: ArrayLike | None = None,
) -> Mean:
    """max(q e, (q - 1) e), e = target - prediction, of quantiles q: [..., Q], [...] -> Mean.

    Its minimum is at the q-th quantile.  Source: Koenker & Bassett 1978.  `mask` covers the
    targets; each of the Q predictions counts."""
    levels = tuple(float(q) for q in quantiles)
    if not levels or not all(0.0 < q < 1.0 for q in levels):
        raise ShapeError(f"{where()}the quantiles are {quantiles}: they lie between 0 and 1")
    return Mean(*_pinball(predictions, targets, levels, mask, per, segments))


@function
def _pinball(
    predictions: Any, targets: Any, levels: tuple[float, ...], mask: Any, per: str, segments: Any
) -> tuple[Any, Any]:
    p, t = floating(predictions), array(targets)
    fits = p.ndim == t.ndim + 1 and all(map(dims.same, p.shape, (*t.shape, len(levels))))
    if not fits:
        raise ShapeError(
            f"{where()}predictions {p.type} and targets {t.type}: predictions have one more axis, "
            f"the {len(levels)} quantiles, behind those of the targets"
        )
    wide = rnp.broadcast_to(rnp.expand_dims(t, -1), p.shape)
    places = [rnp.full((1,), q, dtype=p.dtype) for q in levels]
    q = rnp.concatenate(places, axis=0) if len(places) > 1 else places[0]

    def loss(p: Any, t: Any) -> Any:
        e = t - p
        return rnp.maximum(q * e, (q - 1.0) * e)

    return _elementwise_parts(loss, p, wide, mask, per, segments)


def _elementwise(
    loss: Callable[[Any, Any], Any], predictions: Any, targets: Any, mask: Any, per: str,
    segments: Any,
) -> Mean:  # fmt: skip
    return Mean(*_elementwise_parts(loss, predictions, targets, mask, per, segments))


@function
def _elementwise_parts(
    loss: Callable[[Any, Any], Any], predictions: Any, targets: Any, mask: Any, per: str,
    segments: Any,
) -> tuple[Any, Any]:  # fmt: skip
    check_per(per, segments)
    p, t = floating(predictions), array(targets)
    t = t if t.dtype.is_float else rnp.astype(t, p.dtype)
    if not same_shape(p.shape, t.shape):
        raise ShapeError(
            f"{where()}predictions {p.type} and targets {t.type} are of unequal shape; a loss "
            "stretches neither (reshape, or index with None)"
        )
    kept = None if mask is None else covering(mask, t)
    values = loss(cleared(p, kept), cleared(t, kept))
    return totals(values, kept, per=per, segments=segments)
