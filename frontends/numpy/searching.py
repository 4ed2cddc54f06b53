"""Sorting and searching: arrays -> elements in order, or where they are.

Invariant: shapes never depend on data: what would need that says what to write instead.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from retrograde.compiler.errors import TraceError
from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.builder import current
from retrograde.compiler.ir.expr import Expr, cast
from retrograde.compiler.ir.location import where
from retrograde.compiler.ir.registry import lookup
from retrograde.numpy import primitives as p
from retrograde.numpy.dispatch import function
from retrograde.numpy.primitives import Array, ArrayLike, Axis

__all__ = [
    "argmax",
    "argmin",
    "argsort",
    "argwhere",
    "compress",
    "extract",
    "flatnonzero",
    "median",
    "nonzero",
    "searchsorted",
    "sort",
    "top_k",
    "unique",
    "unique_values",
]


def _flat(x: ArrayLike, axis: Axis) -> tuple[Expr, int]:
    out = p.array(x)
    if axis is None:
        return p.reshape(out, (out.size,)), 0
    return out, p.one_axis(axis, out.ndim)


def _extreme_place(name: str, x: ArrayLike, axis: Axis, keepdims: bool) -> Array:
    whole = p.array(x)
    flat, at = _flat(whole, axis)
    out = lookup(name)(flat, axis=at, keepdims=keepdims and axis is not None)
    return p.reshape(out, (1,) * whole.ndim) if keepdims and axis is None else out


@function
def argmax(x: ArrayLike, axis: Axis = None, *, keepdims: bool = False) -> Array:
    """Where the largest is along `axis`, the first of several (i32)."""
    return _extreme_place("argmax", x, axis, keepdims)


@function
def argmin(x: ArrayLike, axis: Axis = None, *, keepdims: bool = False) -> Array:
    """Where the smallest is along `axis`, the first of several (i32)."""
    return _extreme_place("argmin", x, axis, keepdims)


@function
def sort(
    x: ArrayLike,
    axis: Axis = -1,
    kind: str | None = None,
    *,
    descending: bool = False,
    stable: bool = True,
) -> Array:
    """The elements in order along `axis`; always stable."""
    flat, at = _flat(x, axis)
    return lookup("sort")(flat, axis=at, descending=bool(descending))


@function
def argsort(
    x: ArrayLike,
    axis: Axis = -1,
    kind: str | None = None,
    *,
    descending: bool = False,
    stable: bool = True,
) -> Array:
    """The places (i32) whose elements are in order along `axis`; always stable."""
    flat, at = _flat(x, axis)
    return lookup("argsort")(flat, axis=at, descending=bool(descending))


@function
def top_k(x: ArrayLike, k: Any, axis: int = -1) -> tuple[Array, Array]:
    """The `k` largest along `axis`, falling, and their places (i32)."""
    x = p.array(x)
    at = p.one_axis(axis, x.ndim)
    swap = list(range(x.ndim))
    swap[at], swap[-1] = swap[-1], swap[at]
    values, places = lookup("top_k")(p.transpose(x, swap), k=p.as_dim(k))
    return p.transpose(values, swap), p.transpose(places, swap)


@function
def median(x: ArrayLike, axis: Axis = None, *, keepdims: bool = False) -> Array:
    """The middle of the elements in order along `axis`, or the mean of the two middle ones."""
    whole = p.floating(x)
    flat, at = _flat(whole, axis)
    n = flat.shape[at]
    ordered = lookup("sort")(flat, axis=at, descending=False)
    low = dims.floordiv(n - 1, 2)
    parts = [p.slice_axis(ordered, at, i, i + 1) for i in (low, dims.floordiv(n, 2))]
    total: Any = p.concatenate(parts, at)
    middle = p.reduce("sum", total * 0.5, (at,), keepdims)
    # NaN sorts to the end: one there means that there is one.
    last = p.reduce("sum", p.slice_axis(ordered, at, n - 1, n), (at,), keepdims)
    out = p.select(lookup("isnan")(last), last, middle)
    return p.reshape(out, (1,) * whole.ndim) if keepdims and axis is None else out


@function
def searchsorted(a: ArrayLike, v: ArrayLike, side: str = "left") -> Array:
    """How many elements of the rising vector `a` lie below each of `v` (i32); "right": up to it."""
    if side not in ("left", "right"):
        raise p.misfit(f"searchsorted side {side!r}: 'left' or 'right'")
    edges, values = p.common([a, v])
    if edges.ndim != 1:
        raise p.misfit(f"searchsorted looks in a vector, got {edges.type}")
    wanted = p.reshape(values, (*values.shape, 1))
    below: Any = edges < wanted if side == "left" else edges <= wanted
    return p.reduce("sum", cast(below, dtypes.i32), (values.ndim,), False)


# --- shapes that depend on data


def data_dependent(what: str, instead: str) -> TraceError:
    """The error of a function whose result has a shape that only data tells."""
    return TraceError(
        f"{where()}{what} has a shape that depends on data, which a compiled program cannot hold: "
        f"{instead}"
    )


_CHOOSE = "use rnp.where(mask, x, 0), multiply by the mask, or sort and take a fixed number"


def _untraceable(name: str, instead: str) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        if current() is not None:
            raise data_dependent(f"{name}()", instead)
        return getattr(np, name)(*args, **kwargs)

    call.__name__ = call.__qualname__ = name
    call.__doc__ = f"numpy.{name}; TraceError in a trace: its shape depends on data."
    return call


argwhere = _untraceable("argwhere", _CHOOSE)
compress = _untraceable("compress", _CHOOSE)
extract = _untraceable("extract", _CHOOSE)
flatnonzero = _untraceable("flatnonzero", _CHOOSE)
nonzero = _untraceable("nonzero", _CHOOSE)
unique = _untraceable("unique", "use rnp.sort, or rnp.one_hot(x, n).sum(0) to count classes")
unique_values = _untraceable("unique_values", "use rnp.sort, or count classes with rnp.one_hot")
