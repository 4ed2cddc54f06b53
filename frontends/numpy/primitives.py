"""The ops under the names of this front end, and how arguments become operands, axes and shapes.

Input: what users pass (arrays, numbers, lists, sizes, axes from the end); output: expressions and
attributes as the ops take them.  Invariant: attributes of ops are spelled here and nowhere else in
the front end; every misfit names the user's line.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from retrograde.compiler.errors import DTypeError, ShapeError, TraceError
from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.dims import Dim, Poly
from retrograde.compiler.ir.dtypes import DType
from retrograde.compiler.ir.expr import (
    SCALARS,
    Expr,
    as_expr,
    broadcast_shapes,
    cast,
    in_mixed_precision,
)
from retrograde.compiler.ir.graph import same_shape
from retrograde.compiler.ir.location import where
from retrograde.compiler.ir.registry import lookup

Array = Any  # an expression inside a trace, a NumPy array outside of one
ArrayLike = Any  # such an array, a number, a symbolic size, or nested lists of these
Axis = int | None
Axes = int | Sequence[int] | None


# --- operands


def array(x: ArrayLike, dtype: Any = None) -> Expr:
    """`x` as an expression; numbers and sizes become i32 or f32, an array keeps its dtype."""
    target = None if dtype is None else dtypes.dtype(dtype)
    if isinstance(x, (list, tuple, range)):
        return _from_list(list(x), target)
    if isinstance(x, SCALARS):
        return as_expr(x, target or _default(dtypes.weak_kind(x)))
    out = as_expr(x)
    if target is None and out.weak:
        target = _default(kind_of(out))
    return out if target is None else cast(out, target)


def operand(x: ArrayLike) -> Any:
    """`x` as the ops take it: lists become arrays, numbers stay weak."""
    return array(x) if isinstance(x, (list, tuple, range)) else x


def factors(items: Iterable[ArrayLike]) -> list[Expr]:
    """The operands of a product as expressions of one dtype."""
    return common(items, "dot_general")


def common(items: Iterable[ArrayLike], op: str = "add") -> list[Expr]:
    """The items as expressions of one dtype; numbers and sizes are weak.  Where precision is mixed,
    `op` says how they meet."""
    xs = in_mixed_precision(lookup(op), [operand(x) for x in items])
    strong: list[DType] = []
    weak: list[str] = []
    for x in xs:
        if isinstance(x, SCALARS):
            weak.append(dtypes.weak_kind(x))
        elif isinstance(x, Poly) or (isinstance(x, Expr) and x.weak):
            weak.append(kind_of(x))
        else:
            strong.append(as_expr(x).dtype)
    target = dtypes.result_type(strong, weak)
    return [cast(as_expr(x, target), target) for x in xs]


def floating(x: ArrayLike) -> Expr:
    """`x` as an array of floats: integers and booleans become f32."""
    out = array(x)
    return out if out.dtype.is_float else cast(out, dtypes.f32)


def kind_of(x: Expr | Poly) -> str:
    """The kind (bool, int, float) that a weak expression or size counts as."""
    if isinstance(x, Poly) or x.dtype.is_integer:
        return "int"
    return x.dtype.kind


def _default(kind: str) -> DType:
    return dtypes.result_type([], [kind])


def _from_list(items: list[Any], target: DType | None) -> Expr:
    if any(map(holds_arrays, items)):
        parts = common([_from_list(list(x), None) if _is_list(x) else x for x in items])
        out = concatenate([reshape(x, (1, *x.shape)) for x in parts], 0)
        return out if target is None else cast(out, target)
    try:
        made = np.array(items)
    except ValueError:
        raise ShapeError(f"{where()}a list of rows of unequal lengths: pad them first") from None
    kind = {"b": "bool", "i": "int", "u": "int", "f": "float"}.get(made.dtype.kind)
    if kind is None:
        raise TraceError(f"{where()}a list holding {made.dtype} is no array: give numbers")
    final = target or _default(kind)
    if kind == "int" and final.is_integer and made.size:
        info = np.iinfo(final.numpy)
        if int(made.min()) < info.min or int(made.max()) > info.max:
            raise DTypeError(f"{where()}numbers that do not fit in {final}: give a dtype")
    return as_expr(made.astype(final.numpy))


def _is_list(x: Any) -> bool:
    return isinstance(x, (list, tuple, range))


def holds_arrays(x: Any) -> bool:
    """Whether nested lists hold arrays, traced values or symbolic sizes."""
    if isinstance(x, (list, tuple)):
        return any(map(holds_arrays, x))
    return isinstance(x, (Expr, Poly, np.ndarray))


# --- axes and shapes


def misfit(message: str) -> ShapeError:
    """A ShapeError with the user's line."""
    return ShapeError(f"{where()}{message}")


def one_axis(axis: Any, rank: int) -> int:
    """`axis` counted from the front."""
    try:
        index = operator.index(axis)
    except TypeError:
        raise misfit(f"{axis!r} is no axis: give an integer") from None
    if not -rank <= index < rank:
        raise misfit(f"axis {index} of an array of {rank} dimensions: use {-rank} to {rank - 1}")
    return index % rank


def all_axes(axes: Any, rank: int) -> tuple[int, ...]:
    """`axes` (an integer, several, or None for all) from the front, in the order given."""
    if axes is None:
        return tuple(range(rank))
    given = axes if isinstance(axes, (tuple, list)) else (axes,)
    found = tuple(one_axis(a, rank) for a in given)
    if len(set(found)) != len(found):
        raise misfit(f"axes {tuple(given)} name an axis twice")
    return found


def as_dim(size: Any) -> Dim:
    """A size: an integer or a symbolic one."""
    if isinstance(size, Poly):
        return size
    try:
        return operator.index(size)
    except TypeError:
        raise misfit(f"{size!r} is no size: sizes are integers or symbolic sizes") from None


def as_shape(shape: Any) -> tuple[Dim, ...]:
    """A shape from one size or several."""
    if isinstance(shape, (tuple, list)):
        return tuple(map(as_dim, shape))
    if isinstance(shape, np.ndarray) and shape.ndim == 1:
        return tuple(map(as_dim, shape.tolist()))
    return (as_dim(shape),)


def as_size(shape: Any) -> tuple[Dim, ...]:
    """A shape of an array to be made: no size is negative."""
    found = as_shape(shape)
    if any(dims.decide_le(0, d) is False for d in found):
        raise misfit(f"the shape {shape} has a negative size")
    return found


def static(value: Any, what: str) -> int:
    """`value` as a plain integer."""
    try:
        return operator.index(value)
    except TypeError:
        raise misfit(f"{what} is {value!r}: give an integer") from None


# --- ops that move elements


def reshape(x: Expr, shape: Sequence[Dim]) -> Expr:
    shape = tuple(shape)
    if same_shape(shape, x.shape):
        return x
    return _one(lookup("reshape")(x, shape=shape))


def transpose(x: Expr, perm: Sequence[int]) -> Expr:
    perm = tuple(perm)
    if perm == tuple(range(x.ndim)):
        return x
    return _one(lookup("transpose")(x, perm=perm))


def broadcast_to(x: Expr, shape: Sequence[Dim]) -> Expr:
    shape = tuple(shape)
    if same_shape(shape, x.shape):
        return x
    return _one(lookup("broadcast_to")(x, shape=shape))


def broadcast(xs: Sequence[Expr]) -> list[Expr]:
    """The expressions stretched to their common shape."""
    try:
        shape = broadcast_shapes(*(x.shape for x in xs))
    except ShapeError as error:
        raise misfit(str(error)) from None
    return [broadcast_to(x, shape) for x in xs]


def slice_(x: Expr, start: Sequence[Dim], stop: Sequence[Dim], step: Sequence[int]) -> Expr:
    whole = all(dims.same(a, 0) for a in start) and all(s == 1 for s in step)
    if whole and same_shape(tuple(stop), x.shape):
        return x
    return _one(lookup("slice")(x, start=tuple(start), stop=tuple(stop), step=tuple(step)))


def slice_axis(x: Expr, axis: int, start: Dim, stop: Dim) -> Expr:
    """`x[start:stop]` along one axis, for bounds that are known to lie within it."""
    starts = [start if i == axis else 0 for i in range(x.ndim)]
    stops = [stop if i == axis else d for i, d in enumerate(x.shape)]
    return slice_(x, starts, stops, (1,) * x.ndim)


def set_slice(x: Expr, region: Expr, start: Sequence[Dim], step: Sequence[int]) -> Expr:
    return _one(lookup("set_slice")(x, region, start=tuple(start), step=tuple(step)))


def flip(x: Expr, axes: Sequence[int]) -> Expr:
    return _one(lookup("flip")(x, axes=tuple(axes))) if axes else x


def pad_constant(x: Expr, low: Sequence[Dim], high: Sequence[Dim], value: bool | float) -> Expr:
    gaps = (0,) * x.ndim
    return _one(lookup("pad")(x, low=tuple(low), high=tuple(high), interior=gaps, value=value))


def concatenate(xs: Sequence[Expr], axis: int) -> Expr:
    return xs[0] if len(xs) == 1 else _one(lookup("concatenate")(*xs, axis=axis))


def gather(x: Expr, indices: Sequence[Expr], axes: Sequence[int]) -> Expr:
    """Elements at index arrays of one shape: that shape first, then the axes that are left."""
    return _one(lookup("gather")(x, *indices, axes=tuple(axes)))


def take_axis(x: Expr, indices: Expr, axis: int) -> Expr:
    """The elements of `x` at `indices` along `axis`, in whose place the axes of `indices` come."""
    return move_front(gather(x, (indices,), (axis,)), indices.ndim, axis)


def move_front(x: Expr, count: int, place: int) -> Expr:
    """`x` with its first `count` axes moved behind the `place` axes that follow them."""
    order = (*range(count, count + place), *range(count), *range(count + place, x.ndim))
    return transpose(x, order)


def iota(size: Dim, dtype: DType = dtypes.i32) -> Expr:
    return _one(lookup("iota")(size=size, dtype=dtype))


def select(condition: Any, a: Any, b: Any) -> Expr:
    return _one(lookup("select")(condition, a, b))


def reduce(name: str, x: Expr, axes: Axes, keepdims: bool) -> Expr:
    found = tuple(sorted(all_axes(axes, x.ndim)))
    return _one(lookup(name)(x, axes=found, keepdims=bool(keepdims)))


def dot_general(
    a: Expr,
    b: Expr,
    contract: tuple[tuple[int, ...], tuple[int, ...]],
    batch: tuple[tuple[int, ...], tuple[int, ...]] = ((), ()),
) -> Expr:
    return _one(lookup("dot_general")(a, b, contract=contract, batch=batch))


def _one(result: Any) -> Expr:
    out: Expr = result
    return out
