"""Batches whose rows end at different steps: lengths -> a mask of steps, a body that keeps to it.

Every carry, every slice and every step result then has the batch as its first axis.  Invariant:
past a row's end the body sees zeros, the row's carry stays as it is and its results are zero, so
that what stands there, NaN and infinities included, changes no bit of any result or gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import retrograde.numpy as rnp
from retrograde import tree
from retrograde.compiler.errors import DTypeError, ShapeError
from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.graph import same_shape
from retrograde.compiler.ir.location import where
from retrograde.numpy.primitives import Array

Body = Callable[[Any, Any], tuple[Any, Any]]


def steps_within(lengths: Any, batch: Dim, time: Dim) -> Array:
    """[time, batch]: whether a step lies within the length of its row.

    A length below 0 counts as 0, one beyond `time` as `time`."""
    given = np.asarray(lengths) if isinstance(lengths, (list, tuple)) else lengths
    if not hasattr(given, "shape"):
        raise ShapeError(
            f"{where()}the lengths are a {type(given).__name__}: an array, one for each row"
        )
    if len(given.shape) != 1 or not dims.same(given.shape[0], batch):
        raise ShapeError(
            f"{where()}the lengths are {_shown(given)}: one for each of {batch} rows"
        )
    if not dtypes.dtype(given.dtype).is_integer:
        raise DTypeError(f"{where()}the lengths are {_shown(given)}: they are integers")
    return rnp.less(rnp.reshape(rnp.arange(time), (time, 1)), given)


def masked(body: Body, init: Any, xs: Any, lengths: Any, time: Dim) -> tuple[Body, Any]:
    """(`body` within each row's length, what it runs over): the mask is the last leaf of that.

    Raises ShapeError for a leaf of `init` or `xs` that has no batch axis, naming it."""
    batch = _batch(init, xs, lengths)
    within = steps_within(lengths, batch, time)
    for name, x in zip(_names("carry", init), tree.leaves(init), strict=True):
        shape = getattr(x, "shape", ())
        if not shape or not dims.same(shape[0], batch):
            raise ShapeError(
                f"{where()}with lengths the carry of a row stays where the row ends, so all of it "
                f"has the batch, {batch}, as its first axis: {name} has the shape {_listed(shape)}"
            )
    for name, x in zip(_names("xs", xs), tree.leaves(xs), strict=True):
        if len(x.shape) < 2 or not dims.same(x.shape[1], batch):
            raise ShapeError(
                f"{where()}with lengths all that scan runs over is [time, batch, ...], for a batch "
                f"of {batch} rows: {name} has the shape {_listed(x.shape)}"
            )

    def guarded(carry: Any, given: Any) -> Any:
        x, alive = given
        # 0 * NaN is NaN, in the products of the gradient too: x itself is cleared.
        x = tree.map(lambda x: _cleared(alive, x), x)
        return _where_alive(alive, body(carry, x), carry)

    return guarded, (xs, within)


def _batch(init: Any, xs: Any, lengths: Any) -> Dim:
    """The number of rows, as the data have it; as the lengths have it where there are none."""
    for x in tree.leaves(xs):
        if len(x.shape) > 1:
            return _size(x, 1)
    for x in tree.leaves(init):
        if getattr(x, "shape", ()):
            return _size(x, 0)
    shape = getattr(lengths, "shape", None)
    return len(lengths) if shape is None else shape[0] if shape else 1


def _size(x: Any, axis: int) -> Dim:
    found: Dim = x.shape[axis]
    return found


def _where_alive(alive: Array, result: Any, carry: Any) -> Any:
    """What a body returned, with the old carry and zeros in the rows that have ended."""
    if not (isinstance(result, tuple) and len(result) == 2):
        return result  # scan says what it should be
    after, y = result
    if tree.structure(after) == tree.structure(carry):
        after = tree.map(lambda new, old: _unless_ended(alive, new, old), after, carry)
    for name, leaf in zip(_names("y", y), tree.leaves(y), strict=True):
        shape = getattr(leaf, "shape", ())
        if not shape or not dims.same(shape[0], alive.shape[0]):
            raise ShapeError(
                f"{where()}with lengths the step results of a row are zero past its end, so all of "
                f"them have the batch, {alive.shape[0]}, as their first axis: {name} has the shape "
                f"{_listed(shape)}"
            )
    return after, tree.map(lambda y: _cleared(alive, y), y)


def _unless_ended(alive: Array, new: Any, old: Array) -> Any:
    if not same_shape(getattr(new, "shape", old.shape), old.shape):
        return new  # scan names the leaf; a selection would stretch it
    kept = rnp.where(_rows(alive, old), new, old)
    return kept if rnp.result_type(new, old.dtype) == old.dtype else new


def _cleared(alive: Array, x: Array) -> Array:
    return rnp.where(_rows(alive, x), x, rnp.zeros_like(x))


def _rows(alive: Array, x: Array) -> Array:
    return rnp.reshape(alive, (alive.shape[0], *(1,) * (len(x.shape) - 1)))


def _names(root: str, of: Any) -> list[str]:
    return [f"{root}.{path}" if path else root for path in tree.paths(of)]


def _listed(shape: Any) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _shown(x: Any) -> str:
    return f"{dtypes.dtype(x.dtype)}[{','.join(map(str, x.shape))}]"
