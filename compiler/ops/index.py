"""Ops whose places come from data: gather, scatter_add, scatter_set.

`axes` are distinct rising axes of operand 0 and each has one index array, all of one shape: the
result of `gather` (and the updates of a scatter) has that shape followed by the axes that are left.
Negative indices count from the end, unless `wrap` is false.  A pass that makes indices which are in
range says so by an attribute `within`: then nothing has to wait for the check.  Invariant: an index
out of range is a DataError that names it and the size, never a read or write elsewhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde.compiler.errors import DTypeError, ShapeError
from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.expr import Expr, zeros
from retrograde.compiler.ir.graph import Attrs, TensorType, same_shape
from retrograde.compiler.ir.op import Op, VjpContext
from retrograde.compiler.ir.registry import Kind, lookup, register
from retrograde.compiler.ops.declare import one_dtype, where
from retrograde.compiler.ops.index_kernels import add_rows as add_rows
from retrograde.compiler.ops.index_kernels import check_range
from retrograde.compiler.ops.index_kernels import gather_into as gather_into
from retrograde.compiler.ops.index_kernels import scatter_add_into as scatter_add_into
from retrograde.compiler.ops.index_kernels import scatter_set_into as scatter_set_into
from retrograde.compiler.ops.index_kernels import take_rows as take_rows
from retrograde.compiler.ops.move import Cotangents, check_axes, listed, only

Array = npt.NDArray[Any]


def _gathered(x: TensorType, indices: tuple[TensorType, ...], attrs: Attrs) -> TensorType:
    """The type of what `indices` select from `x`."""
    axes = tuple(attrs["axes"])
    check_axes(axes, x.ndim)
    if not axes or list(axes) != sorted(axes):
        raise ShapeError(f"axes {axes}: give at least one, in rising order")
    if len(indices) != len(axes):
        raise ShapeError(f"{len(axes)} axes take as many index arrays, got {len(indices)}")
    first = indices[0]
    for t in indices:
        if not t.dtype.is_integer:
            raise DTypeError(f"an index is {t}: indices are integers")
        if not same_shape(t.shape, first.shape):
            shapes = ", ".join(listed(i.shape) for i in indices)
            raise ShapeError(f"index arrays of unequal shapes {shapes}: broadcast them first")
    rest = tuple(d for i, d in enumerate(x.shape) if i not in axes)
    return TensorType(x.dtype, (*first.shape, *rest))


def _moved(attrs: Attrs, x: Array, indices: tuple[Array, ...]) -> tuple[Array, tuple[Array, ...]]:
    """A view of `x` with the indexed axes first, and the indices, checked."""
    for axis, idx in zip(attrs["axes"], indices, strict=True):
        check_range(idx, x.shape[axis], axis, attrs["wrap"])
    view = np.moveaxis(x, attrs["axes"], range(len(indices)))
    return view, tuple(idx.astype(np.intp) for idx in indices)


def _work(inputs: Any, outputs: Any, attrs: Attrs) -> Dim:
    """One operation per selected element."""
    indices = inputs[1 if len(inputs) == len(attrs["axes"]) + 1 else 2 :]
    return _gathered(inputs[0], tuple(indices), attrs).size


# --- gather


def _gather_infer(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    return (_gathered(types[0], types[1:], attrs),)


def _gather(attrs: Attrs, x: Array, *indices: Array) -> Array:
    view, places = _moved(attrs, x, indices)
    return np.asarray(view[places])


def _gather_vjp(ctx: VjpContext, cotangents: Cotangents) -> list[Expr | None]:
    x, *indices = ctx.inputs
    gx = lookup("scatter_add")(zeros(x.type), only(cotangents), *indices, **ctx.attrs)
    return [gx, *(None for _ in indices)]


gather = register(
    Op(
        "gather",
        Kind.INDEX,
        _gather_infer,
        _gather,
        _gather_vjp,
        doc="the elements of operand 0 at the indices along `axes`",
        convention="negative indices count from the end unless `wrap` is false; out of range is a "
        "DataError",
        cost=_work,
        checks_data=True,
        defaults={"wrap": True},
    )
)

# --- scatters


def _scatter_infer(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    x, updates, *indices = types
    expected = _gathered(x, tuple(indices), attrs)
    one_dtype((x, updates))
    if not same_shape(updates.shape, expected.shape):
        raise ShapeError(f"the updates of {x} are {updates}, the indices select {expected}")
    return (x,)


def _scatter_add_infer(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    if types[0].dtype is dtypes.bool_:
        raise DTypeError("booleans are not added up: cast them to an integer type")
    return _scatter_infer(types, attrs)


def _scatter_add(attrs: Attrs, x: Array, updates: Array, *indices: Array) -> Array:
    half = dtypes.dtype(x.dtype).is_float and x.dtype.itemsize == 2
    out = x.astype(np.float32) if half else x.copy()
    view, places = _moved(attrs, out, indices)
    np.add.at(view, places, updates.astype(out.dtype))
    return out.astype(x.dtype)


def _scatter_add_vjp(ctx: VjpContext, cotangents: Cotangents) -> list[Expr | None]:
    g = only(cotangents)
    indices = ctx.inputs[2:]
    gathered = lookup("gather")(g, *indices, **ctx.attrs) if ctx.needs[1] else None
    return [g, gathered, *(None for _ in indices)]


scatter_add = register(
    Op(
        "scatter_add",
        Kind.INDEX,
        _scatter_add_infer,
        _scatter_add,
        _scatter_add_vjp,
        doc="operand 0 with operand 1 added at the indices along `axes`",
        convention="duplicates add up in the order of the indices, f16 and bf16 in f32 and rounded "
        "once; indices as for gather",
        cost=_work,
        inplace=(0,),
        checks_data=True,
        defaults={"wrap": True},
    )
)


def _scatter_set(attrs: Attrs, x: Array, updates: Array, *indices: Array) -> Array:
    out = x.copy()
    view, places = _moved(attrs, out, indices)
    for position in np.ndindex(indices[0].shape):  # NumPy promises no order for its assignment
        view[tuple(idx[position] for idx in places)] = updates[position]
    return out


def _scatter_set_vjp(ctx: VjpContext, cotangents: Cotangents) -> list[Expr | None]:
    g, (x, updates, *indices) = only(cotangents), ctx.inputs
    gx = lookup("scatter_set")(g, zeros(updates.type), *indices, **ctx.attrs)
    gu = None
    if ctx.needs[1]:
        # Number the updates, scatter the numbers: a winner reads its own number back.
        shape = indices[0].shape
        count = lookup("iota")(size=dims.product(shape), dtype=dtypes.i64)
        number = lookup("reshape")(count, shape=shape)
        places = {**ctx.attrs, "axes": tuple(range(len(indices)))}
        indexed = tuple(x.shape[a] for a in ctx.attrs["axes"])
        blank = zeros(TensorType(dtypes.i64, indexed))
        written = lookup("scatter_set")(blank, number, *indices, **places)
        won = lookup("gather")(written, *indices, **places) == number
        rest = (1,) * (updates.ndim - len(shape))
        won = lookup("reshape")(won, shape=(*shape, *rest))
        gu = where(won, lookup("gather")(g, *indices, **ctx.attrs), 0.0)
    return [gx, gu, *(None for _ in indices)]


scatter_set = register(
    Op(
        "scatter_set",
        Kind.INDEX,
        _scatter_infer,
        _scatter_set,
        _scatter_set_vjp,
        doc="operand 0 with operand 1 written at the indices along `axes`",
        convention="the last of duplicates wins, and takes the whole cotangent; indices as for "
        "gather",
        cost=_work,
        inplace=(0,),
        checks_data=True,
        defaults={"wrap": True},
    )
)
