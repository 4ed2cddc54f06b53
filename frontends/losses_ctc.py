"""Connectionist temporal classification: logits and unaligned labels -> the likelihood of these.

Source: Graves, Fernández, Gomez & Schmidhuber 2006: a path says a label or a blank at each step;
equal labels in a row are one, blanks go.  The forward variables of all paths run over time in one
loop, as logarithms; the gradient is that of the loop.  Invariant: what stands beyond the lengths of
logits and labels, NaN and infinities included, changes no bit of any result or gradient.
"""

from __future__ import annotations

import os
from typing import Any

import retrograde.numpy as rnp
from retrograde.compiler.errors import DTypeError, ShapeError, UnsupportedError
from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.expr import dim_number
from retrograde.compiler.ir.location import skip_frames_under, where
from retrograde.loops import scan
from retrograde.mean import Mean
from retrograde.numpy.dispatch import function
from retrograde.numpy.primitives import ArrayLike, array, floating, slice_axis
from retrograde.ragged import steps_within

skip_frames_under(os.path.abspath(__file__))

NEVER = -1e30  # the logarithm of no chance: finite, for the differences of two of them


def ctc(
    logits: ArrayLike,
    targets: ArrayLike,
    logit_lengths: ArrayLike | None = None,
    target_lengths: ArrayLike | None = None,
    *,
    blank: int = 0,
    per: str = "sequence",
    impossible: str = "infinite",
) -> Mean:
    """The negative log likelihood of labels without their times, in nats: logits [B, T, classes],
    targets [B, S] (no blanks) -> Mean.

    `per` "sequence" counts rows, "token" the labels of all rows; the sum is the same.  A row with
    fewer steps than its labels need (one each, and a blank between equal ones) has no path:
    `impossible` "infinite" makes its loss infinite, "ignored" leaves it out of sum and count; in
    both its gradient is 0.  A label beyond the classes is a DataError when the program runs."""
    if per not in ("sequence", "token"):
        raise UnsupportedError(f"{where()}ctc: per={per!r}: it is 'sequence' or 'token'")
    if impossible not in ("infinite", "ignored"):
        raise UnsupportedError(
            f"{where()}ctc: impossible={impossible!r}: it is 'infinite' or 'ignored'"
        )
    total, rows, labels = _ctc(
        logits, targets, logit_lengths, target_lengths, int(blank), impossible == "ignored"
    )
    return Mean(total, rows if per == "sequence" else labels)


@function
def _ctc(
    logits: Any, targets: Any, ends: Any, sizes: Any, blank: int, ignored: bool
) -> tuple[Any, Any, Any]:
    """The sum over the rows, how many there are, and how many labels they have."""
    logits, targets = floating(logits), array(targets)
    _check(logits, targets, blank)
    batch, time, _ = logits.shape
    count = targets.shape[1]
    if ends is not None:  # 0 * NaN would be NaN, in the gradient of the softmax too
        inside = rnp.swapaxes(steps_within(array(ends), batch, time), 0, 1)
        logits = rnp.where(rnp.expand_dims(inside, -1), logits, rnp.zeros_like(logits))
    if sizes is None:
        sizes = rnp.full((batch,), 1, dtype=rnp.int32) * count
    else:
        sizes = rnp.clip(array(sizes), 0, count)
        inside = rnp.swapaxes(steps_within(sizes, batch, count), 0, 1)
        targets = rnp.where(inside, targets, rnp.full_like(targets, blank))
    # Blanks around and between the labels: [B, 2 S + 1].
    gaps = rnp.full_like(targets, blank)
    pairs = rnp.reshape(rnp.stack([gaps, targets], axis=-1), (batch, 2 * count))
    said = rnp.concatenate([pairs, rnp.expand_dims(rnp.full_like(sizes, blank), 1)], axis=1)
    places = rnp.arange(2 * count + 1)
    # Past a blank, from one label to the next, unless they are equal.
    before = _later(said, 2, blank)
    skips = rnp.logical_and(rnp.not_equal(said, blank), rnp.not_equal(said, before))
    chances = rnp.log_softmax(logits, axis=-1)
    if chances.dtype.bytes < 4:
        chances = rnp.astype(chances, dtypes.f32)
    start = rnp.where(rnp.equal(places, 0), 0.0, NEVER)
    start = rnp.broadcast_to(rnp.astype(start, chances.dtype), said.shape)

    def step(paths: Any, chance: Any) -> tuple[Any, None]:
        stay = rnp.logaddexp(paths, _later(paths, 1, NEVER))
        skip = rnp.where(skips, _later(paths, 2, NEVER), NEVER)
        now = rnp.take_along_axis(chance, said, axis=1)
        return rnp.maximum(rnp.logaddexp(stay, skip) + now, NEVER), None

    steps = rnp.swapaxes(chances, 0, 1)
    paths, _ = scan(step, start, steps, lengths=None if ends is None else array(ends))
    end = 2 * rnp.expand_dims(sizes, 1)
    last = rnp.logical_or(rnp.equal(places, end), rnp.equal(places, end - 1))
    likely = rnp.logsumexp(rnp.where(last, paths, NEVER), axis=1)
    there = rnp.greater(likely, 0.5 * NEVER)
    loss = rnp.where(there, -likely, 0.0 if ignored else rnp.inf)
    if not ignored:
        return rnp.sum(loss), dim_number(batch), rnp.sum(rnp.astype(sizes, dtypes.i64))
    kept = rnp.astype(there, dtypes.i64)
    return rnp.sum(loss), rnp.sum(kept), rnp.sum(kept * rnp.astype(sizes, dtypes.i64))


def _later(x: Any, by: int, first: float) -> Any:
    """`x` [B, N] moved on by so many places."""
    edge = rnp.full((x.shape[0], by), first, dtype=x.dtype)
    return slice_axis(rnp.concatenate([edge, x], axis=1), 1, 0, x.shape[1])


def _check(logits: Any, targets: Any, blank: int) -> None:
    if not targets.dtype.is_integer:
        raise DTypeError(f"{where()}the targets are {targets.type}: class numbers are integers")
    fits = logits.ndim == 3 and targets.ndim == 2 and dims.same(logits.shape[0], targets.shape[0])
    if not fits:
        raise ShapeError(
            f"{where()}logits {logits.type} and targets {targets.type}: ctc takes logits [batch, "
            "time, classes] and targets [batch, labels]"
        )
    classes = logits.shape[2]
    if isinstance(classes, int) and not 0 <= blank < classes:
        raise ShapeError(f"{where()}the blank is {blank}: one of the {classes} classes")
