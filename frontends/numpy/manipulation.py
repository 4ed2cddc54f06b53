"""Shapes and places: arrays -> the same elements arranged otherwise.

Invariant: sizes may be symbolic wherever a size is meant; counts of results are plain integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from retrograde.compiler.errors import ShapeError
from retrograde.compiler.ir import dims
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.expr import broadcast_shapes as _broadcast_shapes
from retrograde.numpy import primitives as p
from retrograde.numpy.dispatch import function
from retrograde.numpy.primitives import Array, ArrayLike, Axes, Axis

__all__ = [
    "atleast_1d",
    "atleast_2d",
    "broadcast_arrays",
    "broadcast_shapes",
    "broadcast_to",
    "expand_dims",
    "flip",
    "fliplr",
    "flipud",
    "matrix_transpose",
    "moveaxis",
    "ndim",
    "permute_dims",
    "ravel",
    "repeat",
    "reshape",
    "roll",
    "shape",
    "size",
    "squeeze",
    "swapaxes",
    "tile",
    "transpose",
]


@function
def shape(x: ArrayLike) -> tuple[Dim, ...]:
    """The shape of `x`."""
    return p.array(x).shape


@function
def ndim(x: ArrayLike) -> int:
    """The number of axes of `x`."""
    return p.array(x).ndim


@function
def size(x: ArrayLike, axis: Axis = None) -> Dim:
    """The number of elements of `x`, or its size along `axis`."""
    given = p.array(x)
    return given.size if axis is None else given.shape[p.one_axis(axis, given.ndim)]


# --- shape


@function
def reshape(x: ArrayLike, /, shape: Any, order: str = "C", *, copy: bool | None = None) -> Array:
    """The elements in row-major order in another shape, where one size may be -1."""
    if order != "C":
        raise p.misfit(f"reshape order {order!r}: only 'C' (row-major); transpose first")
    x = p.array(x)
    wanted = p.as_shape(shape)
    open_axes = [i for i, d in enumerate(wanted) if isinstance(d, int) and d == -1]
    if not open_axes:
        return p.reshape(x, p.as_size(wanted))
    if len(open_axes) > 1:
        raise p.misfit(f"reshape to {_listed(wanted)}: only one size may be -1")
    rest = dims.product(d for i, d in enumerate(wanted) if i != open_axes[0])
    size = dims.divide_exact(x.size, rest)
    if size is None:
        raise p.misfit(
            f"cannot reshape {x.type} to {_listed(wanted)}: {x.size} elements are not a multiple "
            f"of {rest} for all sizes"
        )
    return p.reshape(x, tuple(size if i == open_axes[0] else d for i, d in enumerate(wanted)))


def _listed(shape: Sequence[Dim]) -> str:
    return f"[{', '.join(map(str, shape))}]"


@function
def ravel(x: ArrayLike) -> Array:
    """All elements as a vector."""
    x = p.array(x)
    return p.reshape(x, (x.size,))


@function
def expand_dims(x: ArrayLike, axis: Any) -> Array:
    """`x` with new axes of size 1 at the places `axis` of the result."""
    x = p.array(x)
    given = axis if isinstance(axis, (tuple, list)) else (axis,)
    new = p.all_axes(given, x.ndim + len(given))
    rest = iter(x.shape)
    return p.reshape(x, tuple(1 if i in new else next(rest) for i in range(x.ndim + len(new))))


@function
def squeeze(x: ArrayLike, axis: Axes = None) -> Array:
    """`x` without the axes `axis`, which have size 1 (None: all that do)."""
    x = p.array(x)
    if axis is None:
        gone = tuple(i for i, d in enumerate(x.shape) if dims.same(d, 1))
    else:
        gone = p.all_axes(axis, x.ndim)
    for i in gone:
        if not dims.same(x.shape[i], 1):
            raise p.misfit(f"cannot squeeze axis {i} of {x.type}: its size is {x.shape[i]}, not 1")
    return p.reshape(x, tuple(d for i, d in enumerate(x.shape) if i not in gone))


@function
def atleast_1d(x: ArrayLike) -> Array:
    """`x` with at least one axis."""
    x = p.array(x)
    return x if x.ndim else p.reshape(x, (1,))


@function
def atleast_2d(x: ArrayLike) -> Array:
    """`x` with at least two axes, new ones in front."""
    x = p.array(x)
    return p.reshape(x, (1,) * (2 - x.ndim) + x.shape)


@function
def broadcast_to(x: ArrayLike, shape: Any) -> Array:
    """`x` repeated along new leading axes and axes of size 1, up to `shape`."""
    return p.broadcast_to(p.array(x), p.as_size(shape))


@function
def broadcast_arrays(*xs: ArrayLike) -> list[Array]:
    """The arrays stretched to their common shape."""
    return list(p.broadcast([p.array(x) for x in xs]))


def broadcast_shapes(*shapes: Any) -> tuple[Dim, ...]:
    """The shape to which the shapes stretch; a symbol stretches only from a static 1."""
    try:
        return _broadcast_shapes(*map(p.as_shape, shapes))
    except ShapeError as error:
        raise p.misfit(str(error)) from None


# --- order of axes


@function
def transpose(x: ArrayLike, axes: Sequence[int] | None = None) -> Array:
    """`x` with its axes in the order `axes` (None: reversed)."""
    x = p.array(x)
    if axes is None:
        return p.transpose(x, range(x.ndim)[::-1])
    perm = p.all_axes(tuple(axes), x.ndim)
    if len(perm) != x.ndim:
        raise p.misfit(f"axes {tuple(axes)} do not order the {x.ndim} axes of {x.type}")
    return p.transpose(x, perm)


@function
def permute_dims(x: ArrayLike, /, axes: Sequence[int]) -> Array:
    """`x` with its axes in the order `axes`."""
    return transpose(x, axes)


@function
def matrix_transpose(x: ArrayLike, /) -> Array:
    """`x` with its last two axes swapped."""
    x = p.array(x)
    if x.ndim < 2:
        raise p.misfit(f"{x.type} is no matrix: it takes at least two axes")
    return swapaxes(x, -1, -2)


@function
def swapaxes(x: ArrayLike, axis1: int, axis2: int) -> Array:
    """`x` with two axes swapped."""
    x = p.array(x)
    i, j = p.one_axis(axis1, x.ndim), p.one_axis(axis2, x.ndim)
    perm = list(range(x.ndim))
    perm[i], perm[j] = perm[j], perm[i]
    return p.transpose(x, perm)


@function
def moveaxis(x: ArrayLike, source: Any, destination: Any) -> Array:
    """`x` with the axes `source` at the places `destination`, the others in their order."""
    x = p.array(x)
    come, go = (
        p.all_axes(a if isinstance(a, (tuple, list)) else (a,), x.ndim)
        for a in (source, destination)
    )
    if len(come) != len(go):
        raise p.misfit(f"moveaxis from {source} to {destination}: as many axes as places")
    at = dict(zip(go, come, strict=True))
    rest = (i for i in range(x.ndim) if i not in come)
    return p.transpose(x, [at[i] if i in at else next(rest) for i in range(x.ndim)])


# --- repeating and turning


@function
def flip(x: ArrayLike, axis: Axes = None) -> Array:
    """The elements in reverse order along `axis` (None: all axes)."""
    x = p.array(x)
    return p.flip(x, p.all_axes(axis, x.ndim))


@function
def flipud(x: ArrayLike) -> Array:
    """Reversed along axis 0."""
    return flip(x, 0)


@function
def fliplr(x: ArrayLike) -> Array:
    """Reversed along axis 1."""
    return flip(x, 1)


@function
def roll(x: ArrayLike, shift: Any, axis: Axes = None) -> Array:
    """The elements moved `shift` places along `axis`; what leaves at the end enters in front."""
    x = p.array(x)
    if axis is None:
        return p.reshape(_rolled(p.reshape(x, (x.size,)), shift, 0), x.shape)
    axes = p.all_axes(axis, x.ndim)
    shifts = shift if isinstance(shift, (tuple, list)) else (shift,) * len(axes)
    if len(shifts) != len(axes):
        raise p.misfit(f"roll by {shift} along {axis}: as many shifts as axes")
    for s, at in zip(shifts, axes, strict=True):
        x = _rolled(x, s, at)
    return x


def _rolled(x: Expr, shift: Any, axis: int) -> Expr:
    n = x.shape[axis]
    if dims.same(n, 0):
        return x
    if isinstance(shift, Expr):  # the places come from data
        places: Any = p.iota(n)
        return p.take_axis(x, (places - shift) % n, axis)
    moved = dims.mod(p.as_dim(shift), n)
    if dims.same(moved, 0):
        return x
    return p.concatenate(
        [p.slice_axis(x, axis, n - moved, n), p.slice_axis(x, axis, 0, n - moved)], axis
    )


@function
def tile(x: ArrayLike, reps: Any) -> Array:
    """`x` laid out `reps` times along each axis (counted from the last)."""
    x = p.array(x)
    counts = p.as_size(reps)
    rank = max(x.ndim, len(counts))
    counts = (1,) * (rank - len(counts)) + counts
    x = p.reshape(x, (1,) * (rank - x.ndim) + x.shape)
    pairs = list(zip(counts, x.shape, strict=True))
    apart = p.reshape(x, [d for _, size in pairs for d in (1, size)])
    spread = p.broadcast_to(apart, [d for pair in pairs for d in pair])
    return p.reshape(spread, [n * size for n, size in pairs])


@function
def repeat(x: ArrayLike, repeats: Any, axis: Axis = None) -> Array:
    """Each element `repeats` times in a row along `axis` (None: of the flattened array)."""
    x = p.array(x)
    if isinstance(repeats, (Expr, np.ndarray, list, tuple)):
        raise p.misfit("repeat takes one count for all elements: use rnp.take for different ones")
    (count,) = p.as_size(repeats)
    if axis is None:
        x, axis = p.reshape(x, (x.size,)), 0
    at = p.one_axis(axis, x.ndim)
    before, n, behind = x.shape[:at], x.shape[at], x.shape[at + 1 :]
    apart = p.reshape(x, (*before, n, 1, *behind))
    return p.reshape(
        p.broadcast_to(apart, (*before, n, count, *behind)), (*before, n * count, *behind)
    )
