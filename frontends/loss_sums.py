"""What losses sum and count: values of elements, a mask, a normalisation -> (sum, count).

`per` says what counts once: "token" each element (the mean over all that the mask keeps);
"sequence" each row, or each segment of packed rows, as the mean of its own elements; "sum" each
row, as the sum of its elements.  Invariant: where the mask is false or 0, values add nothing and
get zero gradients, whatever is in them; counts depend on masks and segments alone.
"""

from __future__ import annotations

import os
from typing import Any

import retrograde.numpy as rnp
from retrograde import masks
from retrograde.compiler.errors import ShapeError, UnsupportedError
from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.expr import dim_number
from retrograde.compiler.ir.location import skip_frames_under, where
from retrograde.numpy.primitives import array

skip_frames_under(os.path.abspath(__file__))

PER = ("token", "sequence", "sum")


def check_per(per: str, segments: Any = None) -> None:
    """UnsupportedError for a normalisation that there is not."""
    if per not in PER:
        raise UnsupportedError(f"{where()}per={per!r}: it is {', '.join(map(repr, PER))}")
    if segments is not None and per != "sequence":
        raise UnsupportedError(
            f"{where()}segments say what a sequence is, so they go with per='sequence', not {per!r}"
        )


def totals(
    values: Any, kept: Any, weights: Any = None, *, per: str = "token", segments: Any = None
) -> tuple[Any, Any]:
    """The sum and the count of `values`; `weights`, of their shape, count in place of ones, and
    are in the values already."""
    if per == "token":
        total = rnp.sum(weighed(values, kept))
        return total, _count(values, kept) if weights is None else rnp.sum(weighed(weights, kept))
    if values.ndim < 1:
        raise ShapeError(f"{where()}per={per!r} takes rows: what is compared is a single number")
    rows = values.shape[0]
    if per == "sum":
        return rnp.sum(weighed(values, kept)), dim_number(rows)
    each = rnp.ones_like(values) if weights is None else weights
    each, values = weighed(each, kept), weighed(values, kept)
    if segments is None:
        inner = tuple(range(1, values.ndim))
        size = rnp.sum(each, axis=inner, keepdims=True)
        return _shared(values, size, size)
    given = array(segments)
    fits = given.ndim == 2 and values.ndim >= 2 and all(
        map(dims.same, given.shape, values.shape)
    )
    if not fits:
        raise ShapeError(
            f"{where()}the segments are {given.type}: [batch, time] of what is compared, "
            f"{values.type}"
        )
    inner = tuple(range(2, values.ndim))
    each, values = (rnp.sum(x, axis=inner) if inner else x for x in (each, values))
    size, last = _segment_sums(each, given)
    return _shared(values, size, rnp.where(last, size, rnp.zeros_like(size)))


def _shared(values: Any, size: Any, once: Any) -> tuple[Any, Any]:
    """The sum of values / size, and how many of `once` are not 0."""
    there = rnp.not_equal(size, 0)
    share = rnp.where(there, values / rnp.where(there, size, rnp.ones_like(size)), 0.0)
    return rnp.sum(share), rnp.sum(rnp.astype(rnp.not_equal(once, 0), dtypes.i64))


def _segment_sums(x: Any, segments: Any) -> tuple[Any, Any]:
    """[B, T]: the sum of x >= 0 over the segment of each place, and whether a place is its last.

    Sums up to a place never fall, so that a running maximum of them, taken where segments begin,
    is the sum before the own segment; from the other end a minimum."""
    first = masks.changes(segments)
    last = masks.changes(segments, reverse=True)
    edge = rnp.equal(rnp.arange(x.shape[1]), x.shape[1] - 1)
    last = rnp.logical_or(last, edge)
    upto = rnp.cumsum(x, axis=1)
    before = rnp.cummax(rnp.where(first, upto - x, rnp.zeros_like(upto)), axis=1)
    beyond = rnp.where(last, upto, rnp.full_like(upto, rnp.inf))
    after = rnp.flip(rnp.cummin(rnp.flip(beyond, axis=1), axis=1), axis=1)
    return after - before, last


def covering(mask: Any, x: Any) -> Any:
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


def cleared(x: Any, kept: Any) -> Any:
    """`x` with zeros where it is left out: 0 * NaN would be NaN, in values and in gradients."""
    if kept is None:
        return x
    inside = _truth(kept)
    inside = rnp.reshape(inside, (*inside.shape, *(1,) * (x.ndim - inside.ndim)))
    return rnp.where(inside, x, rnp.zeros_like(x))


def weighed(x: Any, kept: Any) -> Any:
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
