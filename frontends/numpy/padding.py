"""`pad`: an array and widths -> the array with a border, constant or made from its own elements.

Invariant: a border made from elements needs an axis long enough for it, provably.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from retrograde.compiler.ir import dims
from retrograde.compiler.ir.dims import Dim, Poly
from retrograde.compiler.ir.expr import SCALARS, Expr
from retrograde.numpy import primitives as p
from retrograde.numpy.dispatch import function
from retrograde.numpy.primitives import Array, ArrayLike

__all__ = ["pad"]

Pair = tuple[Dim, Dim]


@function
def pad(x: ArrayLike, pad_width: Any, mode: str = "constant", *, constant_values: Any = 0) -> Array:
    """`x` with `pad_width` (n, (low, high), or a pair per axis) more elements around it.

    `mode`: constant, edge, reflect (without the edge), symmetric (with it) or wrap."""
    x = p.array(x)
    widths = [tuple(map(p.as_dim, pair)) for pair in _pairs(pad_width, x.ndim)]
    if any(dims.decide_le(0, d) is False for pair in widths for d in pair):
        raise p.misfit(f"pad by {pad_width}: widths cannot be negative, slice instead")
    if mode == "constant":
        return _constant(x, widths, constant_values)
    if mode not in _BORDERS:
        raise p.misfit(f"pad mode {mode!r}: constant, {', '.join(_BORDERS)}")
    for axis, (low, high) in enumerate(widths):
        if not (dims.same(low, 0) and dims.same(high, 0)):
            x = _BORDERS[mode](x, axis, low, high)
    return x


def _pairs(given: Any, rank: int) -> list[tuple[Any, Any]]:
    """One value, one pair, or a pair per axis, as a pair per axis."""
    if hasattr(given, "tolist"):
        given = given.tolist()
    if not isinstance(given, (tuple, list)):
        return [(given, given)] * rank
    items = [tuple(i) if isinstance(i, (tuple, list)) else i for i in given]
    if items and all(not isinstance(i, tuple) for i in items):
        if len(items) > 2:
            raise p.misfit(f"{given}: give one number, a pair, or a pair per axis")
        return [(items[0], items[-1])] * rank
    pairs = [i if isinstance(i, tuple) else (i,) for i in items]
    if len(pairs) not in (1, rank) or any(len(i) not in (1, 2) for i in pairs):
        raise p.misfit(f"{given} for {rank} axes: give one number, a pair, or a pair per axis")
    full = [(i[0], i[-1]) for i in pairs]
    return full * rank if len(full) == 1 else full


def _constant(x: Expr, widths: list[Any], values: Any) -> Expr:
    pairs = _pairs(values, x.ndim)
    flat = [v for pair in pairs for v in pair]
    if all(isinstance(v, SCALARS) and v == flat[0] for v in flat):
        value = flat[0].item() if hasattr(flat[0], "item") else flat[0]
        if not x.dtype.is_float:
            value = int(value) if x.dtype.is_integer else bool(value)
        return p.pad_constant(x, [a for a, _ in widths], [b for _, b in widths], value)
    for axis, (width, pair) in enumerate(zip(widths, pairs, strict=True)):
        parts = []
        for size, value in zip(width, pair, strict=True):
            if isinstance(value, Poly) or hasattr(value, "ndim"):
                raise p.misfit("pad takes one number per side as constant_values")
            shape = [size if i == axis else d for i, d in enumerate(x.shape)]
            parts.append(p.broadcast_to(p.array(value, x.dtype), shape))
        x = p.concatenate([parts[0], x, parts[1]], axis)
    return x


# --- borders from elements: (x, axis, low, high) -> the longer array


def _edge(x: Expr, axis: int, low: Dim, high: Dim) -> Expr:
    n = x.shape[axis]
    _need(x, axis, 1)
    ends = []
    for place, width in ((0, low), (n - 1, high)):
        end = p.slice_axis(x, axis, place, place + 1)
        ends.append(p.broadcast_to(end, [*x.shape[:axis], width, *x.shape[axis + 1 :]]))
    return p.concatenate([ends[0], x, ends[1]], axis)


def _mirrored(skip: int) -> Callable[[Expr, int, Dim, Dim], Expr]:
    def border(x: Expr, axis: int, low: Dim, high: Dim) -> Expr:
        n = x.shape[axis]
        _need(x, axis, low + skip, high + skip)
        front = p.slice_axis(x, axis, skip, low + skip)
        back = p.slice_axis(x, axis, n - high - skip, n - skip)
        return p.concatenate([p.flip(front, (axis,)), x, p.flip(back, (axis,))], axis)

    return border


def _wrap(x: Expr, axis: int, low: Dim, high: Dim) -> Expr:
    n = x.shape[axis]
    _need(x, axis, low, high)
    parts = [p.slice_axis(x, axis, n - low, n), x, p.slice_axis(x, axis, 0, high)]
    return p.concatenate(parts, axis)


def _need(x: Expr, axis: int, *sizes: Dim) -> None:
    for size in sizes:
        if not dims.dominates(x.shape[axis], size):
            raise p.misfit(
                f"this pad needs at least {size} elements on axis {axis} of {x.type}: bound the "
                "size with rg.dim(name, min=...), or pad in several steps"
            )


_BORDERS: dict[str, Callable[[Expr, int, Dim, Dim], Expr]] = {
    "edge": _edge,
    "reflect": _mirrored(1),
    "symmetric": _mirrored(0),
    "wrap": _wrap,
}
