"""Joining arrays and cutting them up: several arrays -> one, one -> several.

Invariant: sizes may be symbolic; how many results there are is a plain integer.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from retrograde.compiler.ir import dims
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.expr import Expr
from retrograde.numpy import primitives as p
from retrograde.numpy.dispatch import function
from retrograde.numpy.manipulation import atleast_1d, atleast_2d
from retrograde.numpy.primitives import Array, ArrayLike, Axis
from retrograde.numpy.windows import bounds

__all__ = [
    "append",
    "array_split",
    "column_stack",
    "concat",
    "concatenate",
    "hstack",
    "split",
    "stack",
    "unstack",
    "vstack",
]


@function
def concatenate(xs: Sequence[ArrayLike], /, axis: Axis = 0, *, dtype: Any = None) -> Array:
    """The arrays one behind the other along `axis` (None: flattened)."""
    parts = p.common(_several(xs), "concatenate")
    if axis is None:
        parts, axis = [p.reshape(x, (x.size,)) for x in parts], 0
    out = p.concatenate(parts, p.one_axis(axis, parts[0].ndim))
    return out if dtype is None else p.array(out, dtype)


concat = concatenate


def _several(xs: Any) -> list[Any]:
    items = list(xs) if isinstance(xs, (tuple, list)) else list(unstack(xs))
    if not items:
        raise p.misfit("nothing to join: give at least one array")
    return items


@function
def stack(xs: Sequence[ArrayLike], /, axis: int = 0) -> Array:
    """Arrays of one shape along a new axis."""
    parts = p.common(_several(xs), "concatenate")
    first = parts[0]
    at = p.one_axis(axis, first.ndim + 1)
    for x in parts:
        if x.ndim != first.ndim or not all(map(dims.same, x.shape, first.shape)):
            shapes = ", ".join(str(x.type) for x in parts)
            raise p.misfit(f"stack takes arrays of one shape, got {shapes}")
    return p.concatenate([p.reshape(x, (*x.shape[:at], 1, *x.shape[at:])) for x in parts], at)


@function
def hstack(xs: Sequence[ArrayLike], /) -> Array:
    """Side by side: along axis 1, or axis 0 of vectors."""
    parts = [atleast_1d(x) for x in p.common(_several(xs), "concatenate")]
    return p.concatenate(parts, 0 if parts[0].ndim == 1 else 1)


@function
def vstack(xs: Sequence[ArrayLike], /) -> Array:
    """One below the other: along axis 0, vectors as rows."""
    return p.concatenate([atleast_2d(x) for x in p.common(_several(xs), "concatenate")], 0)


@function
def column_stack(xs: Sequence[ArrayLike], /) -> Array:
    """Side by side, vectors as columns."""
    parts = p.common(_several(xs), "concatenate")
    return p.concatenate([p.reshape(x, (x.size, 1)) if x.ndim < 2 else x for x in parts], 1)


@function
def append(x: ArrayLike, values: ArrayLike, axis: Axis = None) -> Array:
    """`values` behind `x` along `axis` (None: flattened)."""
    return concatenate([x, values], axis)


@function
def unstack(x: ArrayLike, /, *, axis: int = 0) -> tuple[Array, ...]:
    """The slices along an axis of static size."""
    x = p.array(x)
    at = p.one_axis(axis, x.ndim)
    count = _static_size(x, at, "unstack")
    shape = (*x.shape[:at], *x.shape[at + 1 :])
    return tuple(p.reshape(p.slice_axis(x, at, i, i + 1), shape) for i in range(count))


@function
def split(x: ArrayLike, indices_or_sections: Any, axis: int = 0) -> list[Array]:
    """`x` cut along `axis` into so many equal parts, or at the given places."""
    x = p.array(x)
    at = p.one_axis(axis, x.ndim)
    if isinstance(indices_or_sections, (tuple, list)):
        return _cut(x, at, [p.as_dim(i) for i in indices_or_sections])
    count = p.static(indices_or_sections, "the number of parts")
    part = dims.divide_exact(x.shape[at], count)
    if count < 1 or part is None:
        raise p.misfit(
            f"axis {at} of {x.type} does not split into {count} equal parts: use rnp.array_split"
        )
    return _cut(x, at, [part * i for i in range(1, count)])


@function
def array_split(x: ArrayLike, indices_or_sections: Any, axis: int = 0) -> list[Array]:
    """As `split`; parts of an axis of static size may differ by one."""
    x = p.array(x)
    at = p.one_axis(axis, x.ndim)
    if isinstance(indices_or_sections, (tuple, list)):
        return split(x, indices_or_sections, at)
    count = p.static(indices_or_sections, "the number of parts")
    if count < 1:
        raise p.misfit(f"{count} parts: give at least 1")
    part, more = divmod(_static_size(x, at, "array_split"), count)
    return _cut(x, at, [part * i + min(i, more) for i in range(1, count)])


def _static_size(x: Expr, axis: int, what: str) -> int:
    size = x.shape[axis]
    if not isinstance(size, int):
        raise p.misfit(
            f"{what} along axis {axis} of {x.type}: the size is symbolic, and the number of "
            "results must be known: use rg.scan over the axis, or fix its size"
        )
    return size


def _cut(x: Expr, axis: int, places: list[Dim]) -> list[Array]:
    edges: list[Any] = [0, *places, None]
    cuts = [bounds(slice(a, b), x.shape[axis]) for a, b in itertools.pairwise(edges)]
    return [p.slice_axis(x, axis, cut.start, cut.stop) for cut in cuts]
