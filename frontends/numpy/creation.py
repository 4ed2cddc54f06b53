"""Making arrays: shapes and numbers -> arrays.  Sizes may be symbolic; defaults are f32 and i32.

Invariant: nothing here holds more than numbers: a large constant is computed by the program.
"""

from __future__ import annotations

import math
import numbers
from typing import Any

import numpy as np

from retrograde.compiler.errors import TraceError
from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.dims import Dim, Poly
from retrograde.compiler.ir.dtypes import DType
from retrograde.compiler.ir.expr import Expr, cast
from retrograde.compiler.ir.location import where
from retrograde.numpy import primitives as p
from retrograde.numpy.dispatch import function
from retrograde.numpy.primitives import Array, ArrayLike

__all__ = [
    "arange",
    "array",
    "asarray",
    "astype",
    "copy",
    "empty",
    "empty_like",
    "eye",
    "full",
    "full_like",
    "identity",
    "linspace",
    "meshgrid",
    "one_hot",
    "ones",
    "ones_like",
    "tri",
    "tril",
    "triu",
    "zeros",
    "zeros_like",
]


@function
def asarray(x: ArrayLike, dtype: Any = None, *, copy: bool | None = None) -> Array:
    """`x` as an array; lists, also of traced values, are stacked. Numbers become i32 or f32."""
    return p.array(x, dtype)


@function
def array(x: ArrayLike, dtype: Any = None, *, copy: bool = True, ndmin: int = 0) -> Array:
    """As `asarray`, with at least `ndmin` dimensions."""
    out = p.array(x, dtype)
    return p.reshape(out, (1,) * (ndmin - out.ndim) + out.shape)


@function
def copy(x: ArrayLike) -> Array:
    """`x` itself: traced values never change."""
    return p.array(x)


@function
def astype(x: ArrayLike, dtype: Any, /, *, copy: bool = True) -> Array:
    """The elements of `x` as `dtype`."""
    return p.array(x, dtype)


# --- filled with one number


@function
def full(shape: Any, fill_value: ArrayLike, dtype: Any = None) -> Array:
    """An array of `shape` that holds `fill_value` (a number, or an array that is stretched)."""
    return p.broadcast_to(p.array(fill_value, dtype), p.as_size(shape))


@function
def zeros(shape: Any, dtype: Any = dtypes.f32) -> Array:
    """Zeros of `shape`, f32 unless said otherwise."""
    return _filled(shape, 0, dtype)


@function
def ones(shape: Any, dtype: Any = dtypes.f32) -> Array:
    """Ones of `shape`, f32 unless said otherwise."""
    return _filled(shape, 1, dtype)


@function
def empty(shape: Any, dtype: Any = dtypes.f32) -> Array:
    """Zeros: no array is left undefined."""
    return _filled(shape, 0, dtype)


def _filled(shape: Any, value: int, dtype: Any) -> Expr:
    return p.broadcast_to(p.array(value, dtypes.f32 if dtype is None else dtype), p.as_size(shape))


@function
def full_like(
    x: ArrayLike, fill_value: ArrayLike, dtype: Any = None, *, shape: Any = None
) -> Array:
    """`fill_value` in the shape and dtype of `x`."""
    like = p.array(x)
    size = like.shape if shape is None else p.as_size(shape)
    return p.broadcast_to(p.array(fill_value, like.dtype if dtype is None else dtype), size)


@function
def zeros_like(x: ArrayLike, dtype: Any = None, *, shape: Any = None) -> Array:
    """Zeros in the shape and dtype of `x`."""
    return full_like(x, 0, dtype, shape=shape)


@function
def ones_like(x: ArrayLike, dtype: Any = None, *, shape: Any = None) -> Array:
    """Ones in the shape and dtype of `x`."""
    return full_like(x, 1, dtype, shape=shape)


@function
def empty_like(x: ArrayLike, dtype: Any = None, *, shape: Any = None) -> Array:
    """Zeros in the shape and dtype of `x`."""
    return full_like(x, 0, dtype, shape=shape)


# --- ranges


@function
def arange(start: Any, stop: Any = None, step: Any = 1, dtype: Any = None) -> Array:
    """`start`, `start + step` … below `stop`; sizes may be symbolic. i32, or f32 for floats."""
    if stop is None:
        start, stop = 0, start
    for x in (start, stop, step):
        if isinstance(x, Expr):
            raise TraceError(
                f"{where()}arange with a traced value has a length that depends on data: give "
                "sizes (x.shape[0], rg.dim), and add the traced value: start + rnp.arange(n)"
            )
        if not isinstance(x, (numbers.Real, Poly, np.number)):
            raise p.misfit(f"arange takes numbers and sizes, not {type(x).__name__}")
    if all(_whole(x) for x in (start, stop, step)):
        return _int_range(p.as_dim(start), p.as_dim(stop), p.as_dim(step), dtype)
    if any(isinstance(x, Poly) for x in (start, stop, step)):
        raise p.misfit("arange of symbolic sizes takes whole numbers: scale the result instead")
    if step == 0:
        raise p.misfit("arange with step 0 never ends")
    count = max(0, math.ceil((stop - start) / step))
    target = dtypes.f32 if dtype is None else dtypes.dtype(dtype)
    made = p.iota(count, dtypes.f64) * float(step) + float(start)
    return cast(made, target)


def _whole(x: Any) -> bool:
    return isinstance(x, (int, np.integer, Poly))


def _int_range(start: Dim, stop: Dim, step: Dim, dtype: Any) -> Expr:
    if dims.decide_eq(step, 0) is not False:
        raise p.misfit(f"arange with step {step}, which may be 0, never ends")
    span = stop - start
    if dims.dominates(step, 0):
        count = dims.floordiv(span + step - 1, step)
    elif dims.dominates(0, step):
        count = dims.floordiv(-span - step - 1, -step)
    else:
        raise p.misfit(f"arange with step {step}: whether it rises cannot be decided")
    if not dims.dominates(count, 0):
        count = dims.dim_max(count, 0)
    target = dtypes.i32 if dtype is None else dtypes.dtype(dtype)
    out: Any = p.iota(count, target)
    if not dims.same(step, 1):
        out = out * _as_number(step, target)
    if not dims.same(start, 0):
        out = out + _as_number(start, target)
    return cast(out, target)


def _as_number(d: Dim, target: DType) -> Expr:
    return p.array(d, target)


@function
def linspace(
    start: ArrayLike, stop: ArrayLike, num: Any = 50, endpoint: bool = True, dtype: Any = None
) -> Array:
    """`num` evenly spaced numbers from `start` to `stop` (with it, if `endpoint`), along axis 0."""
    count = p.as_dim(num)
    first, last = p.broadcast([p.floating(x) for x in (start, stop)])
    first, last = p.common([first, last])
    final = first.dtype if dtype is None else dtypes.dtype(dtype)
    target = final if final.is_float else dtypes.f32
    numbers_ = p.reshape(p.iota(count, target), (count, *(1,) * first.ndim))
    gaps = count - 1 if endpoint else count
    if dims.same(gaps, 0):
        gaps = 1
    out: Any = first + numbers_ * ((last - first) / p.array(gaps, target))
    if endpoint and not dims.same(count, 1):
        out = p.select(numbers_ == _as_number(count - 1, target), last, out)
    return cast(out, final)


# --- matrices


@function
def eye(N: Any, M: Any = None, k: Any = 0, dtype: Any = dtypes.f32) -> Array:
    """Ones on diagonal `k` of an N by M matrix, zeros elsewhere."""
    rows, columns = p.as_dim(N), p.as_dim(N if M is None else M)
    return cast(_row_numbers(rows) + k == p.iota(columns), _dtype(dtype))


@function
def identity(n: Any, dtype: Any = dtypes.f32) -> Array:
    """The n by n unit matrix."""
    return eye(n, dtype=dtype)


@function
def tri(N: Any, M: Any = None, k: Any = 0, dtype: Any = dtypes.f32) -> Array:
    """Ones on and below diagonal `k` of an N by M matrix, zeros above."""
    return cast(_lower(p.as_dim(N), p.as_dim(N if M is None else M), k), _dtype(dtype))


@function
def tril(x: ArrayLike, k: Any = 0) -> Array:
    """`x` with zeros above diagonal `k` of its last two axes."""
    x = _matrix(x)
    return p.select(_lower(x.shape[-2], x.shape[-1], k), x, False if x.dtype is dtypes.bool_ else 0)


@function
def triu(x: ArrayLike, k: Any = 0) -> Array:
    """`x` with zeros below diagonal `k` of its last two axes."""
    x = _matrix(x)
    return p.select(
        _lower(x.shape[-2], x.shape[-1], k - 1), False if x.dtype is dtypes.bool_ else 0, x
    )


def _dtype(dtype: Any) -> DType:
    return dtypes.f32 if dtype is None else dtypes.dtype(dtype)


def _matrix(x: ArrayLike) -> Expr:
    out = p.array(x)
    if out.ndim < 2:
        raise p.misfit(f"{out.type} is no matrix: it takes at least two axes")
    return out


def _row_numbers(rows: Dim) -> Any:
    return p.reshape(p.iota(rows), (rows, 1))


def _lower(rows: Dim, columns: Dim, k: Any) -> Any:
    return p.iota(columns) <= _row_numbers(rows) + k


@function
def meshgrid(*xs: ArrayLike, indexing: str = "xy") -> list[Array]:
    """Coordinate arrays of the grid over the vectors `xs` ("xy": the first two axes swapped)."""
    if indexing not in ("xy", "ij"):
        raise p.misfit(f"meshgrid indexing {indexing!r}: 'xy' or 'ij'")
    vectors = [p.array(x) for x in xs]
    order = list(range(len(vectors)))
    if indexing == "xy" and len(vectors) > 1:
        order[:2] = [1, 0]
    spread = []
    for i, v in enumerate(vectors):
        axis = order.index(i)
        size = v.size
        spread.append(p.reshape(v, tuple(size if j == axis else 1 for j in range(len(order)))))
    return list(p.broadcast(spread)) if spread else []


@function
def one_hot(x: ArrayLike, num_classes: Any, *, dtype: Any = dtypes.f32) -> Array:
    """A new last axis of `num_classes`: 1 at the index `x`, else 0; all 0 for indices outside."""
    x = p.array(x)
    if not x.dtype.is_integer:
        raise p.misfit(f"one_hot takes integers, got {x.type}")
    classes = p.iota(p.as_dim(num_classes), x.dtype)
    return cast(p.reshape(x, (*x.shape, 1)) == classes, _dtype(dtype))
