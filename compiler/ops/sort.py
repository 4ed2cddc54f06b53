"""Sorting: sort, argsort and top_k along one axis; evaluated by their reference.

Invariant: equal elements keep their order, in both directions; NaN counts as the largest.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde.compiler.errors import DataError, ShapeError
from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.expr import Expr, cast, zeros
from retrograde.compiler.ir.graph import Attrs, TensorType
from retrograde.compiler.ir.op import Op, VjpContext
from retrograde.compiler.ir.registry import Kind, lookup, register
from retrograde.compiler.ops.cumulative import check_axis
from retrograde.compiler.ops.declare import INTEGERS, TRANSCENDENTAL, work

Array = npt.NDArray[Any]


def _order(x: Array, axis: int, descending: bool) -> Array:
    if dtypes.dtype(x.dtype) is dtypes.bf16:
        x = x.astype(np.float32)  # ml_dtypes' argsort scatters NaN
    if not descending:
        return np.argsort(x, axis=axis, kind="stable")
    flipped = np.argsort(np.flip(x, axis), axis=axis, kind="stable")
    return np.asarray(x.shape[axis] - 1 - np.flip(flipped, axis))


def _sort(attrs: Attrs, x: Array) -> Array:
    order = _order(x, attrs["axis"], attrs["descending"])
    return np.take_along_axis(x, order, attrs["axis"])


def _argsort(attrs: Attrs, x: Array) -> Array:
    return _order(x, attrs["axis"], attrs["descending"]).astype(np.int32)


def _top_k(attrs: Attrs, x: Array) -> tuple[Array, Array]:
    k = attrs["k"]
    if k > x.shape[-1]:
        raise DataError(f"top_k takes the {k} largest of {x.shape[-1]}")
    order = _order(x, x.ndim - 1, True)[..., :k]
    return np.take_along_axis(x, order, -1), order.astype(np.int32)


def _infer_sort(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    check_axis(types[0], attrs["axis"])
    return types


def _infer_argsort(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    check_axis(types[0], attrs["axis"])
    return (TensorType(dtypes.i32, types[0].shape),)


def _infer_top_k(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    (x,), k = types, attrs["k"]
    if not x.shape:
        raise ShapeError(f"top_k of {x}: a scalar has no axis to search along")
    if dims.decide_le(k, x.shape[-1]) is False or dims.decide_le(0, k) is False:
        raise ShapeError(f"top_k takes the {k} largest of {x.shape[-1]}")
    shape = (*x.shape[:-1], k)
    return TensorType(x.dtype, shape), TensorType(dtypes.i32, shape)


def _flat_places(indices: Expr, size: Dim) -> Expr:
    """Indices into the last axis, of `size`, as a vector of indices into the flattened array."""
    *lead, count = indices.shape
    rows = dims.product(lead)
    first = lookup("iota")(size=rows, dtype=dtypes.i64) * size
    table = lookup("reshape")(cast(indices, dtypes.i64), shape=(rows, count))
    places = table + lookup("reshape")(first, shape=(rows, 1))
    out: Expr = lookup("reshape")(places, shape=(rows * count,))
    return out


def _flat(x: Expr) -> Expr:
    out: Expr = lookup("reshape")(x, shape=(x.size,))
    return out


def _sort_vjp(ctx: VjpContext, cotangents: tuple[Expr | None, ...]) -> list[Expr | None]:
    # Element i went to place inverse[i], the order that sorts the order.
    (x,), (g,), axis = ctx.inputs, cotangents, ctx.attrs["axis"]
    order = argsort(x, axis=axis, descending=ctx.attrs["descending"])
    inverse = argsort(order, axis=axis, descending=False)
    swap = [i for i in range(x.ndim) if i != axis] + [axis]
    back = tuple(swap.index(i) for i in range(x.ndim))
    transpose = lookup("transpose")
    places = _flat_places(transpose(inverse, perm=tuple(swap)), x.shape[axis])
    moved = transpose(g, perm=tuple(swap))
    taken = lookup("gather")(_flat(moved), places, axes=(0,), wrap=False)
    return [transpose(lookup("reshape")(taken, shape=moved.shape), perm=back)]


def _top_k_vjp(ctx: VjpContext, cotangents: tuple[Expr | None, ...]) -> list[Expr | None]:
    (x,), (_, indices), g = ctx.inputs, ctx.outputs, cotangents[0]
    if g is None:
        return [None]
    places = _flat_places(indices, x.shape[-1])
    nothing = zeros(TensorType(x.dtype, (x.size,)))
    put = lookup("scatter_add")(nothing, _flat(g), places, axes=(0,), wrap=False)
    return [lookup("reshape")(put, shape=x.shape)]


sort = register(
    Op(
        "sort",
        Kind.OPAQUE,
        _infer_sort,
        _sort,
        _sort_vjp,
        doc="the elements in order along `axis`",
        convention="stable, also descending; NaN is the largest; a derivative goes where its "
        "element came from, so ties do not share",
        cost=work(TRANSCENDENTAL),
        defaults={"descending": False},
    )
)
argsort = register(
    Op(
        "argsort",
        Kind.OPAQUE,
        _infer_argsort,
        _argsort,
        INTEGERS,
        doc="the places (i32) whose elements are in order along `axis`",
        convention="stable, also descending; NaN is the largest",
        cost=work(TRANSCENDENTAL),
        defaults={"descending": False},
    )
)
top_k = register(
    Op(
        "top_k",
        Kind.OPAQUE,
        _infer_top_k,
        _top_k,
        _top_k_vjp,
        doc="the k largest along the last axis, falling, and their places (i32)",
        convention="of equals the first; NaN is the largest; ties do not share a derivative",
        cost=work(TRANSCENDENTAL),
        checks_data=True,
    )
)
