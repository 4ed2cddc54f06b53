"""Reductions: one result element from all elements along some axes.

Attributes: `axes`, the axes from the front in rising order; `keepdims`, whether they stay with
size 1.  Invariant: f16 and bf16 are summed and multiplied in f32 and rounded once.
Over no elements a sum is 0, a product 1, `any` false, `all` true; max, min and the arg-reductions
have no answer there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde.compiler.errors import DataError, ShapeError
from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.dtypes import DType
from retrograde.compiler.ir.expr import Expr, cast
from retrograde.compiler.ir.graph import Attrs, TensorType
from retrograde.compiler.ir.op import Op, Vjp, VjpContext
from retrograde.compiler.ir.registry import Kind, NotDifferentiable, lookup, register
from retrograde.compiler.ops.cumulative import exclusive_product
from retrograde.compiler.ops.declare import INTEGERS, LOGIC, require, total_dtype, where, wide

Array = npt.NDArray[Any]


def reduced_shape(shape: Sequence[Dim], axes: Sequence[int], keepdims: bool) -> tuple[Dim, ...]:
    """`shape` with `axes` removed, or of size 1; ShapeError unless they are valid and rising."""
    rank = len(shape)
    if any(not 0 <= a < rank for a in axes) or list(axes) != sorted(set(axes)):
        raise ShapeError(f"axes {tuple(axes)} are not rising axes of a shape of {rank} dimensions")
    if keepdims:
        return tuple(1 if i in axes else d for i, d in enumerate(shape))
    return tuple(d for i, d in enumerate(shape) if i not in axes)


def spread(x: Expr, ctx: VjpContext) -> Expr:
    """A reduction's result (or cotangent) stretched back over its operand's shape."""
    shape = ctx.inputs[0].shape
    if not ctx.attrs["keepdims"]:
        kept = reduced_shape(shape, ctx.attrs["axes"], True)
        x = lookup("reshape")(x, shape=kept)
    out: Expr = lookup("broadcast_to")(x, shape=shape)
    return out


def _total(ufunc: Any) -> Callable[..., Any]:
    def evaluate(attrs: Attrs, x: Array) -> Any:
        result = total_dtype(dtypes.dtype(x.dtype))
        total = ufunc.reduce(
            x, axis=attrs["axes"], keepdims=attrs["keepdims"], dtype=wide(result).numpy
        )
        return np.asarray(total).astype(result.numpy, copy=False)

    return evaluate


def _no_empty(shape: Sequence[Dim], axes: Sequence[int], error: type[Exception]) -> None:
    for axis in axes:
        if isinstance(size := shape[axis], int) and size == 0:
            raise error(f"axis {axis} has size 0: there is no extreme of no elements")


def _plain(fn: Any, *, nonempty: bool = False) -> Callable[..., Any]:
    def evaluate(attrs: Attrs, x: Array) -> Any:
        if nonempty:
            _no_empty(x.shape, attrs["axes"], DataError)
        return fn(x, axis=attrs["axes"], keepdims=attrs["keepdims"])

    return evaluate


def _declare(
    name: str,
    evaluate: Callable[..., Any],
    vjp: Vjp | NotDifferentiable,
    *,
    doc: str,
    convention: str,
    of: str = "any",
    result: Callable[[DType], DType] = lambda dtype: dtype,
    nonempty: bool = False,
    mixed: str = "",
) -> Op:
    def infer(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
        (x,) = types
        require(x, of)
        shape = reduced_shape(x.shape, attrs["axes"], attrs["keepdims"])
        if nonempty:
            _no_empty(x.shape, attrs["axes"], ShapeError)
        return (TensorType(result(x.dtype), shape),)

    return register(
        Op(
            name,
            Kind.REDUCE,
            infer,
            evaluate,
            vjp,
            doc=doc,
            convention=convention,
            promotion="bool" if of == "bool" else "none",
            mixed=mixed,
            defaults={"keepdims": False},
        )
    )


def _sum_vjp(ctx: VjpContext, cotangents: tuple[Expr | None, ...]) -> list[Expr | None]:
    (g,) = cotangents
    assert g is not None
    return [spread(g, ctx)]


def _prod_vjp(ctx: VjpContext, cotangents: tuple[Expr | None, ...]) -> list[Expr | None]:
    # The product of all other elements, from both sides: right where elements are zero, and (as
    # the derivative of cumprod is) again when differentiated.
    x, (g,), axes = ctx.inputs[0], cotangents, ctx.attrs["axes"]
    assert g is not None
    rest = [i for i in range(x.ndim) if i not in axes]
    order = (*rest, *axes)
    kept = tuple(x.shape[i] for i in rest)
    moved = lookup("transpose")(x, perm=order)
    flat = lookup("reshape")(moved, shape=(*kept, dims.product(x.shape[i] for i in axes)))
    last = len(rest)
    others = exclusive_product(flat, last, False) * exclusive_product(flat, last, True)
    others = lookup("reshape")(others, shape=moved.shape)
    back = tuple(order.index(i) for i in range(x.ndim))
    return [spread(g, ctx) * lookup("transpose")(others, perm=back)]


def _extreme_vjp(ctx: VjpContext, cotangents: tuple[Expr | None, ...]) -> list[Expr | None]:
    (x,), (y,), (g,) = ctx.inputs, ctx.outputs, cotangents
    assert g is not None
    hit = x == spread(y, ctx)
    ties = lookup("sum")(cast(hit, x.dtype), axes=ctx.attrs["axes"], keepdims=ctx.attrs["keepdims"])
    return [where(hit, spread(g / ties, ctx), 0.0)]


sum_ = _declare(
    "sum", _total(np.add), _sum_vjp, result=total_dtype, mixed="wide", doc="the sum over axes",
    convention="0 over no elements; booleans and integers below 32 bits are summed in i32 or u32; "
    "f16 and bf16 are summed in f32",
)  # fmt: skip
prod = _declare(
    "prod", _total(np.multiply), _prod_vjp, result=total_dtype, mixed="wide",
    doc="the product over axes",
    convention="1 over no elements; result types as for sum; the derivative is exact at zeros",
)  # fmt: skip
max_ = _declare(
    "max", _plain(np.max, nonempty=True), _extreme_vjp, nonempty=True, doc="the largest over axes",
    convention="NaN where any is; an error over no elements; the derivative splits evenly at ties",
)  # fmt: skip
min_ = _declare(
    "min", _plain(np.min, nonempty=True), _extreme_vjp, nonempty=True, doc="the smallest over axes",
    convention="NaN where any is; an error over no elements; the derivative splits evenly at ties",
)  # fmt: skip
any_ = _declare(
    "any", _plain(np.any), LOGIC, of="bool", doc="whether one is true over axes",
    convention="false over no elements",
)  # fmt: skip
all_ = _declare(
    "all", _plain(np.all), LOGIC, of="bool", doc="whether all are true over axes",
    convention="true over no elements",
)  # fmt: skip


def _infer_arg(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    (x,) = types
    axes = (attrs["axis"],)
    shape = reduced_shape(x.shape, axes, attrs["keepdims"])
    _no_empty(x.shape, axes, ShapeError)
    return (TensorType(dtypes.i32, shape),)


def _arg(name: str, fn: Any, doc: str) -> Op:
    def evaluate(attrs: Attrs, x: Array) -> Any:
        _no_empty(x.shape, (attrs["axis"],), DataError)
        return np.asarray(fn(x, axis=attrs["axis"], keepdims=attrs["keepdims"])).astype(np.int32)

    return register(
        Op(
            name,
            Kind.OPAQUE,  # takes one `axis`
            _infer_arg,
            evaluate,
            INTEGERS,
            doc=doc,
            convention="the first of several; of NaNs the first; an error over no elements",
            defaults={"keepdims": False},
        )
    )


argmax = _arg("argmax", np.argmax, "where along `axis` the largest is (i32)")
argmin = _arg("argmin", np.argmin, "where along `axis` the smallest is (i32)")
