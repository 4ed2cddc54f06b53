"""Who may attend to whom, as an algebra: `causal() & segments(ids) | allowed(extra)`.

Input: lengths, segment numbers, windows; output: a boolean that is true where a query may attend to
a key.  A mask is only a description; attention asks it for its array, which is written with
comparisons of places, so that tiled attention takes them as predicates and no array of queries x
keys is made (`|` and `allowed` do make one).  Invariant: `(a & b).array(...)` is a.array(...) and
b.array(...), element by element; so for `|`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import retrograde.numpy as rnp
from retrograde.compiler.errors import DTypeError, ShapeError
from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.location import skip_frames_under, where
from retrograde.numpy.indexing import getitem
from retrograde.numpy.primitives import Array

skip_frames_under(os.path.abspath(__file__))

__all__ = ["Mask", "allowed", "as_mask", "causal", "changes", "padding", "positions", "segments",
           "window"]  # fmt: skip


@dataclass(frozen=True, eq=False)
class Mask:
    """Which keys each query may attend to; made by the functions of this module."""

    make: Callable[[Dim, Dim, bool], Array]
    text: str

    def array(self, queries: Dim, keys: Dim, *, heads: bool = False) -> Array:
        """The boolean, which stretches to [batch, queries, keys], or with `heads` to [batch, heads,
        queries, keys]; where it is the same for all rows it has no batch axis."""
        return self.make(queries, keys, heads)

    def __and__(self, other: Mask) -> Mask:
        if not isinstance(other, Mask):
            return NotImplemented
        return self._joined(other, rnp.logical_and, "&")

    def __or__(self, other: Mask) -> Mask:
        if not isinstance(other, Mask):
            return NotImplemented
        return self._joined(other, rnp.logical_or, "|")

    def _joined(self, other: Mask, join: Callable[[Any, Any], Any], sign: str) -> Mask:
        def make(queries: Dim, keys: Dim, heads: bool) -> Array:
            return join(self.make(queries, keys, heads), other.make(queries, keys, heads))

        return Mask(make, f"({self.text} {sign} {other.text})")

    def __repr__(self) -> str:
        return self.text


def causal() -> Mask:
    """No key later than the query; the last query is aligned with the last key."""

    def make(queries: Dim, keys: Dim, heads: bool) -> Array:
        i, j = _places(queries, keys)
        return rnp.less_equal(j, i)

    return Mask(make, "causal()")


def window(back: int, ahead: int = 0) -> Mask:
    """At most `back` places before the query and `ahead` after it; its own place is always in.

    A sliding window of n tokens (Beltagy, Peters & Cohan 2020) is `window(n - 1)`."""
    for name, size in (("back", back), ("ahead", ahead)):
        if isinstance(size, bool) or not hasattr(size, "__index__") or size.__index__() < 0:
            raise ShapeError(f"{where()}window: {name} is {size!r}: a whole number, not negative")

    def make(queries: Dim, keys: Dim, heads: bool) -> Array:
        i, j = _places(queries, keys)
        return rnp.logical_and(rnp.less_equal(i - back, j), rnp.less_equal(j, i + ahead))

    return Mask(make, f"window({back}, {ahead})")


def padding(lengths: Any) -> Mask:
    """No key at or beyond the length of its row; `lengths` are integers [batch]."""
    lengths = _integers(lengths, "the lengths", 1)

    def make(queries: Dim, keys: Dim, heads: bool) -> Array:
        each = rnp.reshape(lengths, (lengths.shape[0], *(1,) * (3 if heads else 2)))
        return rnp.less(rnp.arange(keys), each)

    return Mask(make, "padding(lengths)")


def segments(ids: Any, keys: Any = None) -> Mask:
    """Only keys of the query's own segment: where the numbers `ids` [batch, time] are equal.

    `keys` are the numbers of the keys where these are others than the queries, as in attention to a
    memory.  Numbers are compared as 32-bit integers."""
    own = _integers(ids, "the segments", 2)
    other = own if keys is None else _integers(keys, "the segments of the keys", 2)
    own = _narrow(own)
    other = own if keys is None else _narrow(other)

    def make(queries: Dim, keys: Dim, heads: bool) -> Array:
        for x, size, what in ((own, queries, "queries"), (other, keys, "keys")):
            if not dims.same(x.shape[1], size):
                raise ShapeError(
                    f"{where()}the segments are {_shown(x)}: one number for each of {size} {what}"
                )
        one = (1,) if heads else ()
        i = rnp.reshape(own, (own.shape[0], *one, queries, 1))
        j = rnp.reshape(other, (other.shape[0], *one, 1, keys))
        return rnp.equal(i, j)

    return Mask(make, "segments(ids)")


def allowed(array: Any) -> Mask:
    """Any boolean: [queries, keys], [batch, queries, keys] or [batch, heads, queries, keys]."""
    rank = len(getattr(array, "shape", ()))
    if rank not in (2, 3, 4) or dtypes.dtype(array.dtype) is not dtypes.bool_:
        got = _shown(array) if hasattr(array, "shape") else type(array).__name__
        raise ShapeError(
            f"{where()}the mask is {got}: booleans, [queries, keys], [batch, queries, keys] or "
            "[batch, heads, queries, keys]"
        )

    def make(queries: Dim, keys: Dim, heads: bool) -> Array:
        if not all(map(dims.same, array.shape[-2:], (queries, keys))):
            raise ShapeError(
                f"{where()}the mask is {_shown(array)}: its last axes are those of {queries} "
                f"queries and {keys} keys"
            )
        if rank == 4 and not heads:
            raise ShapeError(
                f"{where()}the mask {_shown(array)} has an axis of heads: array(..., heads=True)"
            )
        return rnp.expand_dims(array, 1) if rank == 3 and heads else array

    return Mask(make, f"allowed({_shown(array)})")


def as_mask(mask: Any) -> Mask:
    """A mask as it is; an array as `allowed` of it."""
    return mask if isinstance(mask, Mask) else allowed(mask)


# --- what follows from segments


def positions(segments: Any) -> Array:
    """The place of each token in its segment, from 0: integers [batch, time] -> i32 [batch, time].

    A segment begins where the number differs from the one before, so a number that comes again
    later counts from 0 again."""
    ids = _integers(segments, "the segments", 2)
    places = rnp.arange(ids.shape[1])
    begins = rnp.where(changes(ids), places, rnp.zeros_like(places))
    return places - rnp.cummax(begins, axis=1)


def changes(segments: Any, *, reverse: bool = False) -> Array:
    """Whether a new segment begins at a place: integers [batch, time] -> booleans, false at the
    first place.  With `reverse` it is read from the end, and false at the last one."""
    ids = _integers(segments, "the segments", 2)
    first, before, after = (
        getitem(ids, (slice(None), part)) if isinstance(ids, Expr) else ids[:, part]
        for part in (slice(None, 1), slice(None, -1), slice(1, None))
    )
    inner = rnp.not_equal(after, before)
    edge = rnp.not_equal(first, first)  # nothing where there is no place at all
    return rnp.concatenate([inner, edge] if reverse else [edge, inner], axis=1)


def _places(queries: Dim, keys: Dim) -> tuple[Array, Array]:
    """The place of each query among the keys [queries, 1], and of each key [1, keys]."""
    i = rnp.reshape(rnp.arange(queries), (queries, 1))
    j = rnp.reshape(rnp.arange(keys), (1, keys))
    ahead = keys - queries
    return (i if dims.same(ahead, 0) else i + ahead), j


def _integers(x: Any, what: str, rank: int) -> Array:
    given = np.asarray(x) if isinstance(x, (list, tuple)) else x
    if len(getattr(given, "shape", ())) != rank:
        got = _shown(given) if hasattr(given, "shape") else type(given).__name__
        axes = "[batch]" if rank == 1 else "[batch, time]"
        raise ShapeError(f"{where()}{what} are {got}: integers {axes}")
    if not dtypes.dtype(given.dtype).is_integer:
        raise DTypeError(f"{where()}{what} are {_shown(given)}: they are integers")
    return given


def _narrow(ids: Array) -> Array:
    """As 32 bits, which kernels compare."""
    return ids if dtypes.dtype(ids.dtype) is dtypes.i32 else rnp.astype(ids, rnp.int32)


def _shown(x: Any) -> str:
    return f"{dtypes.dtype(x.dtype)}[{','.join(map(str, x.shape))}]"
