"""Sums, means, extremes and running totals: an array -> fewer elements, or a running result.

Invariant: `axis` None means all of them; sums of small integers and booleans come in i32 or u32,
means of integers in f32; f16 and bf16 are summed in f32 and rounded once.
"""

from __future__ import annotations

from typing import Any

from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.expr import Expr, cast
from retrograde.compiler.ir.registry import lookup
from retrograde.numpy import elementwise as e
from retrograde.numpy import primitives as p
from retrograde.numpy.dispatch import function
from retrograde.numpy.logic import equal, isclose, not_equal
from retrograde.numpy.primitives import Array, ArrayLike, Axes, Axis

__all__ = [
    "all",
    "allclose",
    "amax",
    "amin",
    "any",
    "array_equal",
    "average",
    "count_nonzero",
    "cummax",
    "cummin",
    "cumprod",
    "cumsum",
    "cumulative_prod",
    "cumulative_sum",
    "diff",
    "max",
    "mean",
    "min",
    "prod",
    "ptp",
    "std",
    "sum",
    "var",
]


def _masked(x: Expr, where: ArrayLike | None, neutral: bool | float) -> Expr:
    return x if where is None else p.select(where, x, neutral)


def _typed(x: ArrayLike, dtype: Any) -> Expr:
    out = p.array(x)
    return out if dtype is None else cast(out, dtypes.dtype(dtype))


@function
def sum(
    x: ArrayLike,
    axis: Axes = None,
    dtype: Any = None,
    *,
    keepdims: bool = False,
    initial: ArrayLike | None = None,
    where: ArrayLike | None = None,
) -> Array:
    """The sum over `axis`, of the elements where `where` holds, plus `initial`."""
    x = _typed(x, dtype)
    if where is not None and x.dtype is dtypes.bool_:
        x = cast(x, dtypes.i32)
    out: Any = p.reduce("sum", _masked(x, where, 0), axis, keepdims)
    return out if initial is None else out + initial


@function
def prod(
    x: ArrayLike,
    axis: Axes = None,
    dtype: Any = None,
    *,
    keepdims: bool = False,
    initial: ArrayLike | None = None,
    where: ArrayLike | None = None,
) -> Array:
    """The product over `axis`, of the elements where `where` holds, times `initial`."""
    x = _typed(x, dtype)
    if where is not None and x.dtype is dtypes.bool_:
        x = cast(x, dtypes.i32)
    out: Any = p.reduce("prod", _masked(x, where, 1), axis, keepdims)
    return out if initial is None else out * initial


def _extreme(name: str, lowest: bool) -> Any:
    pick = e.maximum if lowest else e.minimum

    def call(
        x: ArrayLike,
        axis: Axes = None,
        *,
        keepdims: bool = False,
        initial: Any = None,
        where: ArrayLike | None = None,
    ) -> Array:
        x = p.array(x)
        if where is not None and initial is None:
            raise p.misfit(f"{name}(where=...) needs initial=, the result where nothing is chosen")
        if where is not None:
            x = p.select(where, *p.common([x, initial]))
        if initial is None:
            return p.reduce(name, x, axis, keepdims)
        if any_empty(x, axis):
            shape = p.reduce("sum", x, axis, keepdims).shape
            return p.broadcast_to(p.common([x, initial])[1], shape)
        return pick(p.reduce(name, x, axis, keepdims), initial)

    word = "largest" if lowest else "smallest"
    call.__name__ = call.__qualname__ = name
    call.__doc__ = f"The {word} over `axis`, or `initial` if that is more extreme."
    return function(call)


def any_empty(x: Expr, axis: Axes) -> bool:
    """Whether one of the axes is known to have no elements."""
    return not all_true(not dims.same(x.shape[i], 0) for i in p.all_axes(axis, x.ndim))


all_true = all  # the builtin, before its name is taken
max = amax = _extreme("max", True)
min = amin = _extreme("min", False)


@function
def any(
    x: ArrayLike, axis: Axes = None, *, keepdims: bool = False, where: ArrayLike | None = None
) -> Array:
    """Whether one element is true (not 0) over `axis`."""
    x = cast(p.array(x), dtypes.bool_)
    return p.reduce("any", _masked(x, where, False), axis, keepdims)


@function
def all(
    x: ArrayLike, axis: Axes = None, *, keepdims: bool = False, where: ArrayLike | None = None
) -> Array:
    """Whether all elements are true (not 0) over `axis`."""
    x = cast(p.array(x), dtypes.bool_)
    return p.reduce("all", _masked(x, where, True), axis, keepdims)


@function
def count_nonzero(x: ArrayLike, axis: Axes = None, *, keepdims: bool = False) -> Array:
    """How many elements are not 0 over `axis` (i32)."""
    return p.reduce("sum", cast(p.array(x), dtypes.bool_), axis, keepdims)


@function
def ptp(x: ArrayLike, axis: Axes = None, *, keepdims: bool = False) -> Array:
    """The largest minus the smallest over `axis`."""
    return max(x, axis, keepdims=keepdims) - min(x, axis, keepdims=keepdims)


@function
def allclose(
    a: ArrayLike, b: ArrayLike, rtol: float = 1e-05, atol: float = 1e-08, equal_nan: bool = False
) -> Array:
    """Whether all elements are close, as `isclose` says."""
    return p.reduce("all", isclose(a, b, rtol, atol, equal_nan), None, False)


@function
def array_equal(a: ArrayLike, b: ArrayLike) -> Array:
    """Whether the shapes and all elements are equal."""
    left, right = p.common([a, b])
    if left.ndim != right.ndim or not all_true(map(dims.same, left.shape, right.shape)):
        return p.array(False)
    return p.reduce("all", equal(left, right), None, False)


# --- moments


def _size(x: Expr, axis: Axes) -> Dim:
    return dims.product(x.shape[i] for i in p.all_axes(axis, x.ndim))


def _wide(x: ArrayLike, dtype: Any) -> tuple[Expr, dtypes.DType]:
    """`x` in the type its mean is computed in, and the type of the result."""
    out = p.floating(_typed(x, dtype))
    return (cast(out, dtypes.f32) if out.dtype.bytes == 2 else out), out.dtype


@function
def mean(
    x: ArrayLike,
    axis: Axes = None,
    dtype: Any = None,
    *,
    keepdims: bool = False,
    where: ArrayLike | None = None,
) -> Array:
    """The mean over `axis`, of the elements where `where` holds; NaN of no elements."""
    x, final = _wide(x, dtype)
    if where is None:
        total: Any = p.reduce("sum", x, axis, keepdims)
        return cast(total / _size(x, axis), final)
    total = p.reduce("sum", p.select(where, x, 0.0), axis, keepdims)
    chosen = p.broadcast_to(p.array(where, dtypes.bool_), x.shape)
    return cast(total / p.reduce("sum", cast(chosen, x.dtype), axis, keepdims), final)


@function
def average(
    x: ArrayLike, axis: Axes = None, weights: ArrayLike | None = None, *, keepdims: bool = False
) -> Array:
    """The mean over `axis`, weighted by `weights` (of the shape of `x`, or of the one axis)."""
    if weights is None:
        return mean(x, axis, keepdims=keepdims)
    x, w = p.common([p.floating(x), weights])
    if w.ndim == 1 and x.ndim > 1 and isinstance(axis, int):
        at = p.one_axis(axis, x.ndim)
        w = p.reshape(w, tuple(w.shape[0] if i == at else 1 for i in range(x.ndim)))
    w = p.broadcast_to(w, x.shape)
    weighted: Any = p.reduce("sum", e.multiply(x, w), axis, keepdims)
    return weighted / p.reduce("sum", w, axis, keepdims)


@function
def var(
    x: ArrayLike,
    axis: Axes = None,
    dtype: Any = None,
    *,
    ddof: float = 0,
    keepdims: bool = False,
    correction: float | None = None,
) -> Array:
    """The mean squared distance from the mean over `axis`; the count is reduced by `ddof`."""
    x, final = _wide(x, dtype)
    distance: Any = x - mean(x, axis, keepdims=True)
    less = ddof if correction is None else correction
    total: Any = p.reduce("sum", distance * distance, axis, keepdims)
    size: Any = _size(x, axis)
    count: Any = size - less
    if isinstance(count, (int, float)) and count < 0:
        count = 0
    return cast(total / count, final)


@function
def std(
    x: ArrayLike,
    axis: Axes = None,
    dtype: Any = None,
    *,
    ddof: float = 0,
    keepdims: bool = False,
    correction: float | None = None,
) -> Array:
    """The square root of `var`."""
    wide, final = _wide(x, dtype)
    spread = var(wide, axis, ddof=ddof, keepdims=keepdims, correction=correction)
    return cast(e.sqrt(spread), final)


# --- running results


def _running(name: str, x: Expr, axis: Axis) -> Array:
    if axis is None:
        x, axis = p.reshape(x, (x.size,)), 0
    return lookup(name)(x, axis=p.one_axis(axis, x.ndim), reverse=False)


@function
def cumsum(x: ArrayLike, axis: Axis = None, dtype: Any = None) -> Array:
    """Running sums along `axis` (None: of the flattened array)."""
    return _running("cumsum", _typed(x, dtype), axis)


@function
def cumprod(x: ArrayLike, axis: Axis = None, dtype: Any = None) -> Array:
    """Running products along `axis` (None: of the flattened array)."""
    return _running("cumprod", _typed(x, dtype), axis)


@function
def cummax(x: ArrayLike, axis: Axis = None) -> Array:
    """The largest so far along `axis` (None: of the flattened array)."""
    return _running("cummax", p.array(x), axis)


@function
def cummin(x: ArrayLike, axis: Axis = None) -> Array:
    """The smallest so far along `axis` (None: of the flattened array)."""
    return _running("cummin", p.array(x), axis)


def _cumulative(name: str, start: int, x: Expr, axis: Axis, include_initial: bool) -> Array:
    if axis is None:
        if x.ndim != 1:
            raise p.misfit(f"name the axis to run along: {x.type} has {x.ndim}")
        axis = 0
    out = _running(name, x, axis)
    if not include_initial:
        return out
    at = p.one_axis(axis, x.ndim)
    low = tuple(int(i == at) for i in range(x.ndim))
    return p.pad_constant(out, low, (0,) * x.ndim, start)


@function
def cumulative_sum(
    x: ArrayLike, /, *, axis: Axis = None, dtype: Any = None, include_initial: bool = False
) -> Array:
    """Running sums along `axis`, which only a vector need not name; 0 first if asked for."""
    return _cumulative("cumsum", 0, _typed(x, dtype), axis, include_initial)


@function
def cumulative_prod(
    x: ArrayLike, /, *, axis: Axis = None, dtype: Any = None, include_initial: bool = False
) -> Array:
    """Running products along `axis`, which only a vector need not name; 1 first if asked for."""
    return _cumulative("cumprod", 1, _typed(x, dtype), axis, include_initial)


@function
def diff(x: ArrayLike, n: int = 1, axis: int = -1) -> Array:
    """Each element minus the one before it along `axis`, `n` times."""
    out: Any = p.array(x)
    at = p.one_axis(axis, out.ndim)
    for _ in range(p.static(n, "the order of diff")):
        size = out.shape[at]
        if dims.same(size, 0):
            return out
        later, before = p.slice_axis(out, at, 1, size), p.slice_axis(out, at, 0, size - 1)
        out = not_equal(later, before) if out.dtype is dtypes.bool_ else later - before
    return out
