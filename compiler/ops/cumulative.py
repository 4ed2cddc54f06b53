"""Running sums, products and extremes along one axis, and the linear recurrence behind them.

Attributes: `axis`, from the front; `reverse`, whether the run starts at the end.  Invariant: every
gradient is made of these ops again, so it is exact at zeros and ties and differentiable itself.
f16 and bf16 are carried in f32 and rounded once per element.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde.compiler.errors import ShapeError
from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.dtypes import DType
from retrograde.compiler.ir.expr import Expr, cast
from retrograde.compiler.ir.graph import Attrs, TensorType, same_shape
from retrograde.compiler.ir.op import Op, Vjp, VjpContext
from retrograde.compiler.ir.registry import Kind, lookup, register
from retrograde.compiler.ops.declare import one_dtype, require, total_dtype, where, wide

Array = npt.NDArray[Any]


def check_axis(type: TensorType, axis: int) -> None:
    """ShapeError unless `axis` counts an axis of `type` from the front."""
    if not 0 <= axis < type.ndim:
        raise ShapeError(f"axis {axis} of {type}: it has {type.ndim} axes")


def _along(fn: Callable[[Array], Array], x: Array, attrs: Attrs) -> Array:
    """`fn` with the axis in front, running forwards."""
    moved = np.moveaxis(x, attrs["axis"], 0)
    out = fn(moved[::-1])[::-1] if attrs["reverse"] else fn(moved)
    return np.moveaxis(out, 0, attrs["axis"])


def _running(ufunc: Any, result: Callable[[DType], DType]) -> Callable[..., Any]:
    def evaluate(attrs: Attrs, x: Array) -> Array:
        final = result(dtypes.dtype(x.dtype))
        run = _along(lambda a: ufunc.accumulate(a, dtype=wide(final).numpy), x, attrs)
        return run.astype(final.numpy)

    return evaluate


def _declare(
    name: str,
    ufunc: Any,
    vjp: Vjp,
    *,
    doc: str,
    convention: str,
    result: Callable[[DType], DType] = lambda dtype: dtype,
) -> Op:
    def infer(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
        (x,) = types
        check_axis(x, attrs["axis"])
        return (TensorType(result(x.dtype), x.shape),)

    return register(
        Op(
            name,
            Kind.CUMULATIVE,
            infer,
            _running(ufunc, result),
            vjp,
            mixed="wide",
            doc=doc,
            convention=convention,
            defaults={"reverse": False},
        )
    )


def _step(x: Expr, axis: int, reverse: bool, fill: float) -> Expr:
    """`x` one step later in the run: element i is the one before it, the first is `fill`."""
    ndim, nothing = x.ndim, (0,) * x.ndim
    one = tuple(int(i == axis) for i in range(ndim))
    low, high = (nothing, one) if reverse else (one, nothing)
    longer = lookup("pad")(x, low=low, high=high, interior=nothing, value=fill)
    stop = tuple(a + d for a, d in zip(high, x.shape, strict=True))
    out: Expr = lookup("slice")(longer, start=high, stop=stop, step=(1,) * ndim)
    return out


def exclusive_product(x: Expr, axis: int, reverse: bool) -> Expr:
    """The product of what comes before each element in the run; 1 at its start."""
    out: Expr = cumprod(_step(x, axis, reverse, 1.0), axis=axis, reverse=reverse)
    return out


def _cumsum_vjp(ctx: VjpContext, cotangents: tuple[Expr | None, ...]) -> list[Expr | None]:
    axis, reverse = ctx.attrs["axis"], ctx.attrs["reverse"]
    return [cumsum(cotangents[0], axis=axis, reverse=not reverse)]


def _cumprod_vjp(ctx: VjpContext, cotangents: tuple[Expr | None, ...]) -> list[Expr | None]:
    # y_k = x_0 … x_k; what x_i multiplies is (x_0 … x_{i-1}) s_i, where s_i = g_i + x_{i+1} s_{i+1}
    # gathers the cotangents of everything later: no division, so zeros are no special case.
    (x,), axis, reverse = ctx.inputs, ctx.attrs["axis"], ctx.attrs["reverse"]
    later = _step(x, axis, not reverse, 0.0)
    sums = linear_recurrence(later, cotangents[0], axis=axis, reverse=not reverse)
    return [exclusive_product(x, axis, reverse) * sums]


def _extreme_vjp(ctx: VjpContext, cotangents: tuple[Expr | None, ...]) -> list[Expr | None]:
    # y_k belongs in equal parts to the elements up to k that equal it.  They lie in one stretch of
    # equal y: count them from its start, then sum the parts from its end.
    (x,), (y,), (g,) = ctx.inputs, ctx.outputs, cotangents
    axis, reverse = ctx.attrs["axis"], ctx.attrs["reverse"]
    hit = x == y
    before = _step(y, axis, reverse, float("nan"))
    after = _step(y, axis, not reverse, float("nan"))
    same_before, same_after = cast(y == before, x.dtype), cast(y == after, x.dtype)
    count = linear_recurrence(same_before, cast(hit, x.dtype), axis=axis, reverse=reverse)
    parts = linear_recurrence(same_after, g / count, axis=axis, reverse=not reverse)
    return [where(hit, parts, 0.0)]


cumsum = _declare(
    "cumsum", np.add, _cumsum_vjp, result=total_dtype, doc="running sums along `axis`",
    convention="booleans and integers below 32 bits are summed in i32 or u32",
)  # fmt: skip
cumprod = _declare(
    "cumprod", np.multiply, _cumprod_vjp, result=total_dtype, doc="running products along `axis`",
    convention="result types as for cumsum; the derivative is exact at zeros",
)  # fmt: skip
cummax = _declare(
    "cummax", np.maximum, _extreme_vjp, doc="the largest so far along `axis`",
    convention="NaN from the first NaN on; the derivative splits evenly at ties",
)  # fmt: skip
cummin = _declare(
    "cummin", np.minimum, _extreme_vjp, doc="the smallest so far along `axis`",
    convention="NaN from the first NaN on; the derivative splits evenly at ties",
)  # fmt: skip


def _infer_recurrence(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    a, b = types
    one_dtype(types)
    require(a, "float")
    if not same_shape(a.shape, b.shape):
        raise ShapeError(f"operands of unequal shapes: {a} and {b}")
    check_axis(a, attrs["axis"])
    return (a,)


def _recur(attrs: Attrs, a: Array, b: Array) -> Array:
    """h_i = a_i h_{i-1} + b_i, with nothing before the first: no product with an infinity there."""
    carried = np.result_type(a.dtype, np.float32)
    pair = np.stack([a, b], axis=-1).astype(carried)

    def run(steps: Array) -> Array:
        out = np.empty(steps.shape[:-1], carried)
        for i in range(len(steps)):
            out[i] = steps[i, ..., 0] * out[i - 1] + steps[i, ..., 1] if i else steps[i, ..., 1]
        return out

    return _along(run, pair, attrs).astype(a.dtype)


def _recurrence_vjp(ctx: VjpContext, cotangents: tuple[Expr | None, ...]) -> list[Expr | None]:
    (a, _), (h,), axis, reverse = ctx.inputs, ctx.outputs, ctx.attrs["axis"], ctx.attrs["reverse"]
    later = _step(a, axis, not reverse, 0.0)
    sums = linear_recurrence(later, cotangents[0], axis=axis, reverse=not reverse)
    return [sums * _step(h, axis, reverse, 0.0) if ctx.needs[0] else None, sums]


linear_recurrence = register(
    Op(
        "linear_recurrence",
        Kind.OPAQUE,  # a running op of two operands
        _infer_recurrence,
        _recur,
        _recurrence_vjp,
        mixed="wide",
        doc="h_i = a_i h_{i-1} + b_i along `axis`",
        convention="the first a is not read: h starts at b",
        promotion="common",
        cost=lambda inputs, outputs, attrs: dims.product(outputs[0].shape) * 2,
        defaults={"reverse": False},
    )
)
