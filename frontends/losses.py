"""Losses: predictions and targets -> `Mean(sum, count)`.

A mask covers the elements, or their leading axes: [B, T] for [B, T, 5].  Where it is false or 0,
elements add nothing to sum or count and get zero gradients, whatever is in them, NaN included; a
mask of numbers weighs the others.  Invariant: the sums of two batches over their counts are the
loss of both as one batch.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import retrograde.numpy as rnp
from retrograde.compiler.errors import DTypeError, ShapeError
from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.expr import dim_number
from retrograde.compiler.ir.graph import same_shape
from retrograde.compiler.ir.location import skip_frames_under, where
from retrograde.compiler.ir.registry import lookup
from retrograde.mean import Mean
from retrograde.numpy.dispatch import function
from retrograde.numpy.primitives import ArrayLike, array, floating

skip_frames_under(os.path.abspath(__file__))

__all__ = ["bce", "cross_entropy", "huber", "mae", "mse"]


def cross_entropy(
    logits: ArrayLike,
    targets: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
    weights: ArrayLike | None = None,
) -> Mean:
    """The negative log likelihood of the targets, in nats: [..., classes], integers [...] -> Mean.

    `mask` covers the targets; where it is false, or the target is `ignore_index`, a target may be
    any number.  `label_smoothing` e mixes the targets with e of the uniform distribution (Szegedy
    et al. 2016).  `weights` [classes] weigh each element by its class, in sum and count.  A target
    beyond the classes is a DataError when the program runs."""
    if not 0.0 <= label_smoothing <= 1.0:
        raise ShapeError(f"{where()}label_smoothing is {label_smoothing}: it lies from 0 to 1")
    return Mean(
        *_cross_entropy(logits, targets, mask, float(label_smoothing), ignore_index, weights)
    )


@function
def _cross_entropy(
    logits: Any, targets: Any, mask: Any, smoothing: float, ignored: int | None, weights: Any
) -> tuple[Any, Any]:
    logits, targets = floating(logits), array(targets)
    if not targets.dtype.is_integer:
        raise DTypeError(f"{where()}the targets are {targets.type}: class numbers are integers")
    fits = logits.ndim == targets.ndim + 1 and all(map(dims.same, logits.shape, targets.shape))
    if not fits:
        raise ShapeError(
            f"{where()}logits {logits.type} and targets {targets.type}: logits have one more axis, "
            "the classes, behind those of the targets"
        )
    kept = None if mask is None else _covering(mask, targets)
    if ignored is not None:
        present = rnp.not_equal(targets, ignored)
        kept = present if kept is None else rnp.where(present, kept, rnp.zeros_like(kept))
    targets = _cleared(targets, kept)
    logits = _cleared(logits, kept)
    nll, lse = lookup("token_nll")(logits, targets)
    wide = rnp.astype(logits, nll.dtype)
    by_class = None if weights is None else _class_weights(weights, wide)
    of_target = None if by_class is None else rnp.take(by_class, targets)
    loss = nll if of_target is None else nll * of_target
    if smoothing:
        loss = loss * (1.0 - smoothing) + _uniform_nll(wide, lse, by_class) * smoothing
    total = rnp.sum(_weighed(loss, kept))
    return total, _count(targets, kept) if of_target is None else rnp.sum(_weighed(of_target, kept))


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


def mse(predictions: ArrayLike, targets: ArrayLike, mask: ArrayLike | None = None) -> Mean:
    """(prediction - target)^2, over all elements."""
    return _elementwise(lambda p, t: rnp.square(p - t), predictions, targets, mask)


def mae(predictions: ArrayLike, targets: ArrayLike, mask: ArrayLike | None = None) -> Mean:
    """|prediction - target|, over all elements; the gradient at 0 is 0."""
    return _elementwise(lambda p, t: rnp.abs(p - t), predictions, targets, mask)


def huber(
    predictions: ArrayLike,
    targets: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    delta: float = 1.0,
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

    return _elementwise(loss, predictions, targets, mask)


def bce(logits: ArrayLike, targets: ArrayLike, mask: ArrayLike | None = None) -> Mean:
    """The cross-entropy of probabilities sigmoid(logits) with targets from 0 to 1, in nats."""
    return _elementwise(
        # Each part is exact far out, where log(1 - sigmoid) would be log 0.
        lambda x, t: (1.0 - t) * rnp.softplus(x) + t * rnp.softplus(-x),
        logits,
        targets,
        mask,
    )


def _elementwise(
    loss: Callable[[Any, Any], Any], predictions: Any, targets: Any, mask: Any
) -> Mean:
    return Mean(*_elementwise_parts(loss, predictions, targets, mask))


@function
def _elementwise_parts(
    loss: Callable[[Any, Any], Any], predictions: Any, targets: Any, mask: Any
) -> tuple[Any, Any]:
    p, t = floating(predictions), array(targets)
    t = t if t.dtype.is_float else rnp.astype(t, p.dtype)
    if not same_shape(p.shape, t.shape):
        raise ShapeError(
            f"{where()}predictions {p.type} and targets {t.type} are of unequal shape; a loss "
            "stretches neither (reshape, or index with None)"
        )
    kept = None if mask is None else _covering(mask, t)
    values = loss(_cleared(p, kept), _cleared(t, kept))
    return rnp.sum(_weighed(values, kept)), _count(t, kept)


# --- masks


def _covering(mask: Any, x: Any) -> Any:
    """The mask in the shape of `x`: one with fewer axes covers the leading ones."""
    given = array(mask)
    if given.ndim > x.ndim:
        raise ShapeError(f"{where()}the mask {given.type} has more axes than {x.type}")
    shape = (*given.shape, *(1,) * (x.ndim - given.ndim))
    fits = all(dims.same(a, b) or dims.same(a, 1) for a, b in zip(shape, x.shape, strict=True))
    if not fits:
        raise ShapeError(f"{where()}the mask {given.type} does not cover {x.type} from the left")
    return rnp.broadcast_to(rnp.reshape(given, shape), x.shape)


def _truth(mask: Any) -> Any:
    return mask if mask.dtype is dtypes.bool_ else rnp.not_equal(mask, 0)


def _cleared(x: Any, kept: Any) -> Any:
    """`x` with zeros where it is left out: 0 * NaN would be NaN, in values and in gradients."""
    if kept is None:
        return x
    inside = _truth(kept)
    inside = rnp.reshape(inside, (*inside.shape, *(1,) * (x.ndim - inside.ndim)))
    return rnp.where(inside, x, rnp.zeros_like(x))


def _weighed(x: Any, kept: Any) -> Any:
    """`x` times the mask."""
    if kept is None:
        return x
    if kept.dtype is dtypes.bool_:
        return rnp.where(kept, x, rnp.zeros_like(x))
    return x * rnp.astype(kept, x.dtype)


def _count(x: Any, kept: Any) -> Any:
    """How many elements count, or the sum of their weights."""
    if kept is None:
        return dim_number(x.size)
    return rnp.sum(kept if kept.dtype.is_float else rnp.astype(kept, dtypes.i64))
