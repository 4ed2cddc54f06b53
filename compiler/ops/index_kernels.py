"""The index ops on buffers: each writes into `out` through an array module `xp` (NumPy, CuPy).

Invariant: with NumPy the bits are those of the references in `index` (updates are added in the
order of the indices), and temporaries stay within 64 KB beside a few machine indices per index,
where `x` and `out` lie in row-major order.  CuPy adds by atomics: its order of summation is not
fixed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from retrograde.compiler.errors import DataError

BLOCK_BYTES = 1 << 16
NARROW = 16  # elements of a row: below that, and of one element, NumPy sums in another order
SHORT_RUN = 8  # equal indices: below that on average, runs are not worth a call each


def check_range(idx: Any, size: int, axis: int, wrap: bool = True) -> None:
    """DataError unless every index lies in 0 … size-1, or with `wrap` in -size … size-1."""
    if not idx.size:
        return
    low, high = idx.min().item(), idx.max().item()
    least = -size if wrap else 0
    if low >= least and high < size:
        return
    bad = high if high >= size else low
    valid = f"{least} to {size - 1}" if size else "there is none"
    raise DataError(f"index {bad} is out of range for axis {axis} of size {size} ({valid})")


def take_rows(xp: Any, out: Any, x: Any, idx: Any, wrap: bool = True) -> None:
    """out = x[idx] for one index array (any shape) along axis 0."""
    check_range(idx, x.shape[0], 0, wrap)
    if not out.size:
        return
    if xp is np:  # mode="raise" would gather into a buffer of its own first
        np.take(x, idx, axis=0, out=out, mode="wrap")
    else:
        xp.take(x, idx, axis=0, out=out)


def add_rows(xp: Any, out: Any, idx: Any, rows: Any, wrap: bool = True) -> None:
    """out[idx[i]] += rows[i] for one index array along axis 0, duplicates one after another.

    Where indices come back often, each run of equal ones is added up by one reduction; else the
    rows' indices are written out element by element, a block at a time, because NumPy's `add.at` is
    ten times faster on one axis than on rows.  (A one-hot matmul over 65 rows would be as fast as
    the runs, and a NaN in one row would spoil it for all.)"""
    check_range(idx, out.shape[0], 0, wrap)
    if not rows.size:
        return
    if xp is not np:
        _add_on_device(xp, out, idx, rows)
    elif out.dtype.itemsize == 2 and out.dtype.kind not in "iu":
        _add_halves(out, idx.reshape(-1), rows)
    else:
        _add_ordered(out, idx.reshape(-1), rows)


def _add_ordered(out: Any, idx: Any, rows: Any) -> None:
    """Adds row by row, by runs of equal indices where those are long."""
    width = out.size // out.shape[0]
    if width < NARROW:
        _add_flat(out, idx, rows)
        return
    places = np.where(idx < 0, idx + out.shape[0], idx)
    order = np.argsort(places, kind="stable")
    found = places[order]
    starts = np.flatnonzero(np.r_[True, found[1:] != found[:-1]])
    if len(idx) < SHORT_RUN * len(starts):
        _add_flat(out, idx, rows)
        return
    rows, flat = rows.reshape(len(idx), width), out.reshape(len(out), width)
    count = max(2, BLOCK_BYTES // (rows.itemsize * width))
    block = np.empty((count, width), out.dtype)
    for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(idx)], strict=True):
        target = flat[found[start]]
        for first in range(start, end, count - 1):
            part = order[first : min(first + count - 1, end)]
            block[0] = target  # the sum goes on from what is there, in the order of the indices
            np.take(rows, part, axis=0, out=block[1 : 1 + len(part)], mode="wrap")
            np.add.reduce(block[: 1 + len(part)], axis=0, out=target)


def _add_flat(out: Any, idx: Any, rows: Any) -> None:
    width = out.size // out.shape[0]
    flat = out.reshape(-1)
    rows = rows.reshape(len(idx), width)
    count = min(len(idx), max(1, BLOCK_BYTES // (16 * width)))
    columns = np.empty((count, width), np.intp)
    columns[...] = np.arange(width)
    block = np.empty_like(columns)
    for first in range(0, len(idx), count):
        part = idx[first : first + count].astype(np.intp)
        part *= width  # what counts from the end of the rows counts from the end of `flat` too
        at = block[: len(part)]
        at[...] = part[:, None]  # a broadcast sum instead would allocate buffers of its own
        at += columns[: len(part)]
        np.add.at(flat, at.reshape(-1), rows[first : first + count].reshape(-1))


def _add_halves(out: Any, idx: Any, rows: Any) -> None:
    """f16 and bf16: some columns at a time are summed in f32 and rounded once."""
    size = out.shape[0]
    width = out.size // size
    out = out.reshape(size, width)
    rows = rows.reshape(len(idx), width)
    count = max(1, BLOCK_BYTES // (4 * max(size, len(idx))))
    for first in range(0, width, count):
        columns = slice(first, first + count)
        total = out[:, columns].astype(np.float32)
        _add_flat(total, idx, rows[:, columns].astype(np.float32))
        out[:, columns] = total


def _add_on_device(xp: Any, out: Any, idx: Any, rows: Any) -> None:
    target, kind = out, out.dtype.kind
    if kind in "iu" and out.dtype.itemsize == 8:
        target, rows = out.view(xp.uint64), rows.view(xp.uint64)  # the same bits, and has atomics
    elif out.dtype.itemsize < 4:
        wide = xp.float32 if kind not in "iu" else xp.int32
        target, rows = out.astype(wide), rows.astype(wide)
    xp.add.at(target, idx, rows)
    if target.dtype.itemsize != out.dtype.itemsize:
        out[...] = target.astype(out.dtype)


def flat_index(xp: Any, sizes: Sequence[int], indices: Sequence[Any], wrap: bool = True) -> Any:
    """One index into the axes of `sizes` taken together, from one non-flat index an axis."""
    flat: Any = None
    for axis, (size, idx) in enumerate(zip(sizes, indices, strict=True)):
        check_range(idx, size, axis, wrap)
        part = idx.astype(np.intp)
        part += (part < 0) * part.dtype.type(size)
        if flat is None:
            flat = part
        else:
            flat *= size
            flat += part
    return flat


def _leading(x: Any, axes: Sequence[int]) -> bool:
    """Whether `axes` of `x` can be taken together as one axis of rows without a copy."""
    return tuple(axes) == tuple(range(len(axes))) and bool(x.flags.c_contiguous)


def _as_rows(xp: Any, x: Any, indices: Sequence[Any], wrap: bool) -> tuple[Any, Any]:
    """`x` with its leading axes as one, and the index into that."""
    k = len(indices)
    if k == 1:
        return x, indices[0]
    sizes = x.shape[:k]
    rows = x.reshape(math.prod(sizes), *x.shape[k:])
    return rows, flat_index(xp, sizes, indices, wrap)


def _checked(x: Any, axes: Sequence[int], indices: Sequence[Any], wrap: bool) -> None:
    for axis, idx in zip(axes, indices, strict=True):
        check_range(idx, x.shape[axis], axis, wrap)


def gather_into(
    xp: Any, out: Any, x: Any, axes: Sequence[int], indices: Sequence[Any], wrap: bool = True
) -> None:
    """out = the elements of `x` at `indices` along `axes`."""
    if _leading(x, axes):
        rows, idx = _as_rows(xp, x, indices, wrap)
        take_rows(xp, out, rows, idx, wrap)
        return
    _checked(x, axes, indices, wrap)
    out[...] = xp.moveaxis(x, axes, range(len(axes)))[tuple(indices)]


def scatter_add_into(
    xp: Any, out: Any, updates: Any, axes: Sequence[int], indices: Sequence[Any], wrap: bool = True
) -> None:
    """out += `updates` at `indices` along `axes`; `out` holds the operand that is added to."""
    if _leading(out, axes):
        rows, idx = _as_rows(xp, out, indices, wrap)
        add_rows(xp, rows, idx, updates, wrap)
        return
    _checked(out, axes, indices, wrap)
    moved = xp.ascontiguousarray(xp.moveaxis(out, axes, range(len(axes))))
    scatter_add_into(xp, moved, updates, range(len(axes)), indices, wrap)
    out[...] = xp.moveaxis(moved, range(len(axes)), axes)


def scatter_set_into(
    xp: Any, out: Any, updates: Any, axes: Sequence[int], indices: Sequence[Any], wrap: bool = True
) -> None:
    """out = `updates` at `indices` along `axes`, the last of duplicates; elsewhere as it was."""
    sizes = [out.shape[a] for a in axes]
    _checked(out, axes, indices, wrap)
    flat = flat_index(xp, sizes, indices, wrap).reshape(-1)
    if not flat.size:
        return
    # A sort by place that keeps the order of duplicates: the last of each run is the winner.
    order = xp.argsort(flat, kind="stable")
    places = flat[order]
    last = xp.ones(places.shape, bool)
    last[:-1] = places[1:] != places[:-1]
    winners = order[last]
    rows = updates.reshape(len(flat), *updates.shape[indices[0].ndim :])
    moved = xp.moveaxis(out, axes, range(len(axes)))
    moved[tuple(idx.reshape(-1)[winners] for idx in indices)] = rows[winners]
