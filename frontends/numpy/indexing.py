"""NumPy's indexing: an array and an index expression -> the selected elements, or an update there.

Basic parts (slices, integers, None, ...) become one window; index arrays become one gather of the
window, with NumPy's rule for where their axes go.  Invariant: reading and writing share one plan,
so `x.at[i].set(v)` changes just the elements that `x[i]` reads.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from retrograde.compiler.errors import DTypeError, TraceError
from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.dims import Dim, Poly
from retrograde.compiler.ir.expr import Expr, as_expr
from retrograde.compiler.ir.location import where
from retrograde.compiler.ir.registry import lookup
from retrograde.numpy import primitives as p
from retrograde.numpy.dispatch import function
from retrograde.numpy.primitives import Array, ArrayLike, Axis
from retrograde.numpy.windows import Bounds, bounds, position

__all__ = ["take", "take_along_axis"]


@dataclass(frozen=True)
class Part:
    """One item of an index expression.

    `new` is None, which makes an axis of size 1; `gap` an Ellipsis that stands for no axis, and
    still keeps index arrays apart."""

    kind: Literal["slice", "integer", "array", "new", "gap"]
    item: Any = None


@dataclass(frozen=True)
class Plan:
    """An index expression on one array, ready to read or write.

    The array is reshaped to `shape` (a mask merges the axes it covers), the axes `flips` are
    reversed, `windows` cut, the axes `dropped` removed; `indices` select along `axes` of what is
    left, their `count` axes go behind `place` others, and the result gets the shape `final`."""

    shape: tuple[Dim, ...]
    windows: tuple[Bounds, ...]
    dropped: tuple[int, ...]
    axes: tuple[int, ...]
    indices: tuple[Expr, ...]
    place: int
    new: tuple[int, ...]
    distinct: bool

    @property
    def flips(self) -> tuple[int, ...]:
        return tuple(i for i, w in enumerate(self.windows) if w.reverse)

    @property
    def count(self) -> int:
        return self.indices[0].ndim if self.indices else 0

    def window(self, x: Expr) -> Expr:
        """The part of `x` that the basic items select, with the dropped axes still there."""
        x = p.flip(p.reshape(x, self.shape), self.flips)
        return p.slice_(
            x,
            [w.start for w in self.windows],
            [w.stop for w in self.windows],
            [w.step for w in self.windows],
        )

    def without_dropped(self, region: Expr) -> Expr:
        return p.reshape(region, [d for i, d in enumerate(region.shape) if i not in self.dropped])

    def read(self, x: Expr) -> Expr:
        """The selected elements."""
        out = self.without_dropped(self.window(x))
        if self.indices:
            out = p.gather(out, self.indices, self.axes)
        return self.arrange(out)

    def arrange(self, selected: Expr) -> Expr:
        """What gather gives, as NumPy orders it."""
        out = p.move_front(selected, self.count, self.place)
        shape = list(out.shape)
        for i in self.new:
            shape.insert(i, 1)
        return p.reshape(out, shape)

    def disarrange(self, result: Expr) -> Expr:
        """The inverse of `arrange`."""
        out = p.reshape(result, [d for i, d in enumerate(result.shape) if i not in self.new])
        front = range(self.place, self.place + self.count)
        rest = (*range(self.place), *range(self.place + self.count, out.ndim))
        return p.transpose(out, (*front, *rest))

    def write(self, x: Expr, change: Callable[[Expr], Expr]) -> Expr:
        """`x` with its window, without the dropped axes, replaced by `change` of it."""
        region = self.window(x)
        changed = p.reshape(change(self.without_dropped(region)), region.shape)
        merged = p.flip(p.reshape(x, self.shape), self.flips)
        if not all(map(dims.same, region.shape, merged.shape)):
            start = [w.start for w in self.windows]
            changed = p.set_slice(merged, changed, start, [w.step for w in self.windows])
        return p.reshape(p.flip(changed, self.flips), x.shape)


# --- from an index expression to a plan


def plan(x: Expr, index: Any) -> Plan:
    """The plan of `index` on `x`; ShapeError or TraceError for what cannot be one."""
    items = list(index) if isinstance(index, tuple) else [index]
    parts, shape, masks = _parts(items, x)
    windows: list[Bounds] = []
    dropped: list[int] = []
    arrays: dict[int, Expr] = {}
    for part in parts:
        axis = len(windows)
        if part.kind in ("new", "gap"):
            continue
        size = shape[axis]
        if part.kind == "slice":
            windows.append(bounds(part.item, size))
        elif part.kind == "integer":
            start = position(part.item, size, axis)
            windows.append(Bounds(start, start + 1))
            dropped.append(axis)
        else:
            arrays[axis] = part.item
            windows.append(Bounds(0, size))
    axes = tuple(a - sum(d < a for d in dropped) for a in arrays)
    indices = tuple(p.broadcast(list(arrays.values()))) if arrays else ()
    count = indices[0].ndim if indices else 0
    place, new = _places(parts, count)
    distinct = count == 0 or (masks > 0 and sum(i.ndim > 0 for i in arrays.values()) == 1)
    return Plan(shape, tuple(windows), tuple(dropped), axes, indices, place, new, distinct)


def _places(parts: Sequence[Part], count: int) -> tuple[int, tuple[int, ...]]:
    """Behind how many kept axes the axes of the index arrays go, and where new axes are."""
    advanced = [i for i, part in enumerate(parts) if part.kind in ("array", "integer")]
    first = advanced[0] if advanced else 0
    together = all(b - a == 1 for a, b in itertools.pairwise(advanced))
    front = first if together else 0  # NumPy: apart from each other, their axes go to the front
    place, axis = 0, 0 if front else count
    new: list[int] = []
    for i, part in enumerate(parts):
        if front and i == front:
            axis += count
        if part.kind == "new":
            new.append(axis)
        if part.kind in ("slice", "new"):
            axis += 1
        if part.kind == "slice" and i < front:
            place += 1
    return place, tuple(new)


def _parts(items: list[Any], x: Expr) -> tuple[list[Part], tuple[Dim, ...], int]:
    """The items, one an axis of the returned shape; and how many of them are masks."""
    found = [_classify(item) for item in items]
    used = sum(_covered(item) for item in found)
    if used > x.ndim:
        raise p.misfit(f"too many indices for {x.type}: {used} for {x.ndim} axes")
    fill: list[Any] = [slice(None)] * (x.ndim - used)
    ellipses = [i for i, item in enumerate(found) if item is Ellipsis]
    if len(ellipses) > 1:
        raise p.misfit("an index may hold only one Ellipsis (...)")
    at = ellipses[0] if ellipses else len(found)
    found = [*found[:at], *(fill or [Ellipsis]), *found[at + 1 :]]
    parts: list[Part] = []
    shape: list[Dim] = []
    axis = masks = 0
    for item in found:
        covered = _covered(item)
        sizes = x.shape[axis : axis + covered]
        axis += covered
        if item is None or item is Ellipsis:
            parts.append(Part("new" if item is None else "gap"))
            continue
        shape.append(dims.product(sizes))
        if isinstance(item, slice):
            parts.append(Part("slice", item))
        elif isinstance(item, (int, Poly)):
            parts.append(Part("integer", item))
        elif isinstance(item, np.ndarray) and item.dtype == np.bool_:
            parts.append(Part("array", _mask_places(item, sizes)))
            masks += 1
        else:
            parts.append(Part("array", as_expr(item)))
    return parts, tuple(shape), masks


def _covered(item: Any) -> int:
    """How many axes an item stands for."""
    if item is None or item is Ellipsis:
        return 0
    is_mask = isinstance(item, np.ndarray) and item.dtype == np.bool_
    return int(item.ndim) if is_mask else 1


def _classify(item: Any) -> Any:
    """An item as None, Ellipsis, slice, integer, mask, or array of integers."""
    if item is None or item is Ellipsis or isinstance(item, (slice, Poly)):
        return item
    if isinstance(item, (bool, np.bool_)):
        raise p.misfit("a single boolean is no index: use rnp.where(condition, x, y)")
    if isinstance(item, (int, np.integer)):
        return int(item)
    if isinstance(item, (list, tuple, range)):
        item = _listed(item)
    if isinstance(item, Expr) and item.dtype is dtypes.bool_:
        raise TraceError(
            f"{where()}a traced mask selects as many elements as its data says, and a compiled "
            "program has fixed shapes: use rnp.where(mask, x, 0), or multiply by the mask"
        )
    if not isinstance(item, (Expr, np.ndarray)):
        raise p.misfit(
            f"{item!r} is no index: give integers, slices, None, ... or arrays of integers"
        )
    if item.ndim == 0 and isinstance(item, np.ndarray):
        return _classify(item[()])
    kind = dtypes.dtype(item.dtype).kind
    if kind == "float":
        raise DTypeError(f"{where()}indices are integers, got {item.dtype}: x.astype('i32')")
    return item


def _listed(item: Any) -> Any:
    if p.holds_arrays(item):
        return p.array(item)
    try:
        flat = np.array(item)
    except ValueError:
        raise p.misfit("an index of rows of unequal lengths: use one array per axis") from None
    return flat if flat.size else flat.astype(np.int32)


def _mask_places(mask: np.ndarray[Any, Any], sizes: Sequence[Dim]) -> Expr:
    """The places (of the merged axes) where `mask` is true, as many as there are now.

    The mask is read again at each run; with another count the places are out of range, which the
    selection refuses: never the elements of a mask that is gone."""
    if mask.ndim == 0:
        raise p.misfit("a single boolean is no index: use rnp.where(condition, x, y)")
    if not all(map(dims.same, mask.shape, sizes)):
        listed = ", ".join(map(str, sizes))
        raise p.misfit(f"a mask of shape {list(mask.shape)} on axes of sizes [{listed}]")
    flat = p.reshape(as_expr(mask), (mask.size,))
    order = lookup("argsort")(flat, axis=0, descending=True)  # stable: true first, in rising order
    count = int(np.count_nonzero(mask))
    unchanged: Any = p.reduce("sum", flat, (0,), False) == count
    return p.select(unchanged, p.slice_axis(order, 0, 0, count), mask.size)


# --- reading


def getitem(x: Expr, index: Any) -> Expr:
    """`x[index]`."""
    return plan(x, index).read(x)


@function
def take(x: ArrayLike, indices: ArrayLike, axis: Axis = None) -> Array:
    """The elements of `x` at `indices` along `axis` (None: of the flattened array)."""
    x, places = p.array(x), _integers(indices)
    if axis is None:
        return p.take_axis(p.reshape(x, (x.size,)), places, 0)
    return p.take_axis(x, places, p.one_axis(axis, x.ndim))


@function
def take_along_axis(x: ArrayLike, indices: ArrayLike, axis: Axis = -1) -> Array:
    """`x` at `indices` along `axis`, and at its own place along all others."""
    x, places = p.array(x), _integers(indices)
    if axis is None:
        return p.take_axis(p.reshape(x, (x.size,)), p.reshape(places, (places.size,)), 0)
    at_axis = p.one_axis(axis, x.ndim)
    if places.ndim != x.ndim:
        raise p.misfit(f"take_along_axis of {x.type} with {places.type}: the ranks differ")
    all_places = []
    for i, size in enumerate(x.shape):
        column = [1] * x.ndim
        if i == at_axis:
            all_places.append(places)
        elif dims.same(size, 1):  # stretched, as NumPy does
            all_places.append(p.broadcast_to(p.array(0), column))
        else:
            own = [size if j == i else 1 for j in range(x.ndim)]
            all_places.append(p.reshape(p.iota(size), own))
    return p.gather(x, p.broadcast(all_places), tuple(range(x.ndim)))


def _integers(indices: ArrayLike) -> Expr:
    out = p.array(_listed(indices) if isinstance(indices, (list, tuple, range)) else indices)
    if not out.dtype.is_integer:
        raise DTypeError(f"{where()}indices are integers, got {out.type}: x.astype('i32')")
    return out
