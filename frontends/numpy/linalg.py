"""Products of arrays, diagonals and norms; what needs a factorisation is refused by name.

Invariant: every product is one `dot_general`, or an elementwise product where nothing is summed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from retrograde.compiler.errors import UnsupportedError
from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir import expr as ir
from retrograde.compiler.ir.expr import Expr, cast
from retrograde.compiler.ir.location import where
from retrograde.numpy import elementwise as e
from retrograde.numpy import primitives as p
from retrograde.numpy.dispatch import function
from retrograde.numpy.manipulation import matrix_transpose
from retrograde.numpy.primitives import Array, ArrayLike, Axes

__all__ = [
    "cross",
    "diag",
    "diagonal",
    "dot",
    "inner",
    "kron",
    "matmul",
    "matrix_norm",
    "matrix_transpose",
    "matvec",
    "norm",
    "outer",
    "tensordot",
    "trace",
    "vdot",
    "vecdot",
    "vecmat",
    "vector_norm",
]


# --- products


@function
def matmul(a: ArrayLike, b: ArrayLike, /) -> Array:
    """The product of matrices; vectors are rows or columns, leading axes run along."""
    return ir.matmul(*p.factors([a, b]))


@function
def dot(a: ArrayLike, b: ArrayLike, /) -> Array:
    """The sum over the last axis of `a` and the last but one of `b`; a product with a scalar."""
    left, right = p.factors([a, b])
    if left.ndim == 0 or right.ndim == 0:
        return e.multiply(left, right)
    axis = right.ndim - 2 if right.ndim > 1 else 0
    return p.dot_general(left, right, ((left.ndim - 1,), (axis,)))


@function
def inner(a: ArrayLike, b: ArrayLike, /) -> Array:
    """The sum over the last axes of both; a product with a scalar."""
    left, right = p.factors([a, b])
    if left.ndim == 0 or right.ndim == 0:
        return e.multiply(left, right)
    return p.dot_general(left, right, ((left.ndim - 1,), (right.ndim - 1,)))


@function
def vdot(a: ArrayLike, b: ArrayLike, /) -> Array:
    """The sum of the products of all elements."""
    left, right = (p.reshape(x, (x.size,)) for x in p.factors([a, b]))
    return p.dot_general(left, right, ((0,), (0,)))


@function
def outer(a: ArrayLike, b: ArrayLike, /) -> Array:
    """All products of an element of `a` and one of `b`, as a matrix."""
    left, right = p.factors([a, b])
    return e.multiply(p.reshape(left, (left.size, 1)), p.reshape(right, (1, right.size)))


@function
def vecdot(a: ArrayLike, b: ArrayLike, /, *, axis: int = -1) -> Array:
    """The sum of the products along `axis`; the other axes are stretched."""
    left, right = p.factors([a, b])
    left, right = (_axis_last(x, axis) for x in (left, right))
    if not dims.same(left.shape[-1], right.shape[-1]):
        raise p.misfit(f"vecdot of {left.type} and {right.type}: the summed axes differ")
    return _batched(left, right)


def _axis_last(x: Expr, axis: int) -> Expr:
    at = p.one_axis(axis, x.ndim)
    return p.transpose(x, [*(i for i in range(x.ndim) if i != at), at])


def _batched(left: Expr, right: Expr) -> Expr:
    left, right = p.broadcast([left, right])
    n = left.ndim - 1
    lead = tuple(range(n))
    return p.dot_general(left, right, ((n,), (n,)), (lead, lead))


@function
def matvec(a: ArrayLike, b: ArrayLike, /) -> Array:
    """Matrices times vectors along the last axis of `b`."""
    product = matmul(a, p.reshape(right := p.array(b), (*right.shape, 1)))
    return p.reshape(product, product.shape[:-1])


@function
def vecmat(a: ArrayLike, b: ArrayLike, /) -> Array:
    """Vectors along the last axis of `a` times matrices."""
    left = p.array(a)
    product = matmul(p.reshape(left, (*left.shape[:-1], 1, left.shape[-1])), b)
    return p.reshape(product, (*product.shape[:-2], product.shape[-1]))


@function
def tensordot(a: ArrayLike, b: ArrayLike, axes: Any = 2) -> Array:
    """The sum over `axes`: so many last of `a` and first of `b`, or two lists of axes."""
    left, right = p.factors([a, b])
    if isinstance(axes, (tuple, list)):
        pairs = [tuple(i) if isinstance(i, (tuple, list)) else (i,) for i in axes]
        ours, theirs = (p.all_axes(i, x.ndim) for i, x in zip(pairs, (left, right), strict=True))
    else:
        n = p.static(axes, "the number of axes")
        if not 0 <= n <= min(left.ndim, right.ndim):
            raise p.misfit(f"tensordot over {n} axes of {left.type} and {right.type}")
        ours, theirs = tuple(range(left.ndim - n, left.ndim)), tuple(range(n))
    return p.dot_general(left, right, (ours, theirs))


@function
def kron(a: ArrayLike, b: ArrayLike, /) -> Array:
    """`b` times each element of `a`, laid out as blocks."""
    left, right = p.factors([a, b])
    rank = max(left.ndim, right.ndim)
    left, right = (p.reshape(x, (1,) * (rank - x.ndim) + x.shape) for x in (left, right))
    blocks: Expr = e.multiply(
        p.reshape(left, [d for n in left.shape for d in (n, 1)]),
        p.reshape(right, [d for n in right.shape for d in (1, n)]),
    )
    return p.reshape(blocks, [a * b for a, b in zip(left.shape, right.shape, strict=True)])


@function
def cross(a: ArrayLike, b: ArrayLike, axis: int = -1) -> Array:
    """The vector product of vectors of 3 along `axis`."""
    left, right = (_axis_last(x, axis) for x in p.factors([a, b]))
    if not all(dims.same(x.shape[-1], 3) for x in (left, right)):
        raise p.misfit(f"cross takes vectors of 3, got {left.type} and {right.type}")
    left, right = p.broadcast([left, right])
    last = left.ndim - 1

    def turned(x: Expr, by: int) -> Any:
        parts = [p.slice_axis(x, last, by, 3), p.slice_axis(x, last, 0, by)]
        return p.concatenate(parts, last)

    out: Expr = turned(left, 1) * turned(right, 2) - turned(left, 2) * turned(right, 1)
    at = p.one_axis(axis, out.ndim)
    return p.transpose(out, [*range(at), last, *range(at, last)])


# --- diagonals


@function
def diagonal(x: ArrayLike, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Array:
    """The elements whose places on two axes differ by `offset`, as a last axis."""
    x, k = p.array(x), p.static(offset, "the offset")
    i, j = p.one_axis(axis1, x.ndim), p.one_axis(axis2, x.ndim)
    if i == j:
        raise p.misfit(f"diagonal over axis {i} twice")
    rows, columns = x.shape[i] - max(-k, 0), x.shape[j] - max(k, 0)
    n = dims.dim_min(dims.dim_max(rows, 0), dims.dim_max(columns, 0))
    steps: Any = p.iota(n)
    places = {i: steps + max(-k, 0), j: steps + max(k, 0)}
    axes = tuple(sorted(places))
    out = p.gather(x, [places[a] for a in axes], axes)
    return p.move_front(out, 1, x.ndim - 2)


@function
def trace(x: ArrayLike, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Array:
    """The sum of a diagonal."""
    return p.reduce("sum", diagonal(x, offset, axis1, axis2), (-1,), False)


@function
def diag(x: ArrayLike, k: int = 0) -> Array:
    """The matrix with the vector `x` on diagonal `k`, or diagonal `k` of the matrix `x`."""
    v = p.array(x)
    if v.ndim == 2:
        return diagonal(v, k)
    if v.ndim != 1:
        raise p.misfit(f"diag takes a vector or a matrix, got {v.type}")
    k, n = p.static(k, "the diagonal"), v.shape[0]
    zero = False if v.dtype is dtypes.bool_ else 0
    rows: Any = p.reshape(p.iota(n), (n, 1))
    square = p.select(rows == p.iota(n), v, zero)
    low, high = (max(-k, 0), max(k, 0)), (max(k, 0), max(-k, 0))
    return p.pad_constant(square, low, high, zero) if k else square


# --- norms


@function
def norm(x: ArrayLike, ord: Any = None, axis: Axes = None, keepdims: bool = False) -> Array:
    """The 2-norm of all elements (`ord` None); of vectors along `axis`; of matrices, two axes.

    Vectors: any number, inf or -inf.  Matrices: "fro", 1, -1, inf, -inf."""
    x = p.floating(x)
    axes = p.all_axes(axis, x.ndim)
    if ord is None or (ord == "fro" and len(axes) == 2) or (len(axes) == 1 and ord == 2):
        return e.sqrt(p.reduce("sum", e.square(x), axes, keepdims))
    if len(axes) == 1:
        return _vector_norm(x, ord, axes, keepdims)
    if len(axes) == 2:
        return _matrix_norm(x, ord, axes, keepdims)
    raise p.misfit(f"a norm of order {ord} over {len(axes)} axes: name one axis, or two")


def _vector_norm(x: Expr, ord: Any, axes: Sequence[int], keepdims: bool) -> Array:
    size: Any = e.abs(x)
    if ord == math.inf:
        return p.reduce("max", size, tuple(axes), keepdims)
    if ord == -math.inf:
        return p.reduce("min", size, tuple(axes), keepdims)
    if ord == 0:
        return cast(p.reduce("sum", cast(x, dtypes.bool_), tuple(axes), keepdims), x.dtype)
    if ord == 1:
        return p.reduce("sum", size, tuple(axes), keepdims)
    if not isinstance(ord, (int, float)):
        raise p.misfit(f"a vector norm of order {ord!r}: give a number, inf or -inf")
    return e.power(p.reduce("sum", e.power(size, ord), tuple(axes), keepdims), 1.0 / ord)


def _matrix_norm(x: Expr, ord: Any, axes: Sequence[int], keepdims: bool) -> Array:
    rows, columns = axes
    if ord in (1, -1):
        summed, chosen = rows, columns
    elif ord in (math.inf, -math.inf):
        summed, chosen = columns, rows
    else:
        raise _factorisation(f"a matrix norm of order {ord!r}")
    totals = p.reduce("sum", e.abs(x), (summed,), True)
    out = p.reduce("max" if ord > 0 else "min", totals, (chosen,), True)
    return (
        out if keepdims else p.reshape(out, [d for i, d in enumerate(out.shape) if i not in axes])
    )


@function
def vector_norm(
    x: ArrayLike, /, *, axis: Axes = None, keepdims: bool = False, ord: Any = 2
) -> Array:
    """The norm of the elements along `axis` as one vector."""
    x = p.floating(x)
    axes = p.all_axes(axis, x.ndim)
    if ord == 2:
        return e.sqrt(p.reduce("sum", e.square(x), axes, keepdims))
    return _vector_norm(x, ord, axes, keepdims)


@function
def matrix_norm(x: ArrayLike, /, *, keepdims: bool = False, ord: Any = "fro") -> Array:
    """The norm of the matrices in the last two axes."""
    return norm(x, ord, (-2, -1), keepdims)


def _factorisation(what: str) -> UnsupportedError:
    return UnsupportedError(
        f"{where()}{what} needs a matrix factorisation, which is not among the ops: compute it "
        "with numpy outside of the compiled function and pass it in"
    )


def _refused(name: str) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        raise _factorisation(f"linalg.{name}")

    call.__name__ = call.__qualname__ = name
    call.__doc__ = f"Not supported: numpy.linalg.{name} needs a matrix factorisation."
    return call


cholesky = _refused("cholesky")
det = _refused("det")
eigh = _refused("eigh")
inv = _refused("inv")
qr = _refused("qr")
solve = _refused("solve")
svd = _refused("svd")
