"""Counter-based random bits: key, position -> bits.  Nothing is stored, so nothing can drift.

Generator: Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3,
SC 2011).  Invariant: an element's bits depend on the key, its global row and its place in the row
alone; a batch cut into rows, computed again, or spread over machines draws the same bits.

Counter words: (element // 4 in the row, row low, row high, use); `use` is 0 for `random_bits` and
1 for `random_fold`.  An element takes word `element % 4` of its block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from retrograde.compiler.errors import DTypeError, ShapeError
from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.graph import Attrs, TensorType, same_shape
from retrograde.compiler.ir.op import Op
from retrograde.compiler.ir.registry import Kind, NotDifferentiable, register

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF
_ROUNDS = 10
_CHUNK = 1 << 14  # blocks at a time: 65536 elements, temporaries of about 1 MB
_BITS, _FOLD = 0, 1  # the fourth counter word


def philox(xp: Any, key: Any, counter: Sequence[Any], shape: tuple[int, ...]) -> list[Any]:
    """The four output words of each of `shape` blocks.

    `key` is u32[2]; `counter` holds four u64 arrays of 32-bit words that broadcast to `shape`.
    Returns four u64 arrays of 32-bit words."""
    c0, c1, c2, c3, high0, high1 = (xp.empty(shape, dtype=xp.uint64) for _ in range(6))
    for word, value in zip((c0, c1, c2, c3), counter, strict=True):
        word[...] = value
    k0, k1 = (key[i : i + 1].astype(xp.uint64) for i in (0, 1))
    for step in range(_ROUNDS):
        if step:
            k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
        xp.multiply(c0, _MULTIPLIERS[0], out=c0)  # in place: three times as fast
        xp.multiply(c2, _MULTIPLIERS[1], out=c2)
        _mix(xp, c2, c1, k0, high1)
        _mix(xp, c0, c3, k1, high0)
        c0, high1 = high1, c0
        c2, high0 = high0, c2
    return [c0, c1, c2, c3]


def _mix(xp: Any, product: Any, word: Any, key: Any, high: Any) -> None:
    """high := high half of `product` ^ word ^ key; word := its low half."""
    xp.right_shift(product, 32, out=high)
    xp.bitwise_xor(high, word, out=high)
    xp.bitwise_xor(high, key, out=high)
    xp.bitwise_and(product, _LOW, out=word)


def philox_bits(xp: Any, key: Any, row: Any, shape: Sequence[int], out: Any = None) -> Any:
    """u32 bits of `shape`, whose axis 0 counts global rows from `row` (i64, 0-d).

    `xp` is the array module; temporaries stay bounded.  `out`, if given, is a C-contiguous u32
    array of `shape` and is returned."""
    if out is None:
        out = xp.empty(tuple(shape), dtype=xp.uint32)
    rows, width = (shape[0] if shape else 1), 1
    for size in shape[1:]:
        width *= size
    if rows * width == 0:
        return out
    flat = out.reshape(rows, width)
    blocks = -(-width // 4)
    down = max(1, _CHUNK // blocks)
    first = row.reshape(1, 1).astype(xp.uint64)
    use = xp.full((1, 1), _BITS, dtype=xp.uint64)
    for top in range(0, rows, down):
        place = first + xp.arange(top, min(top + down, rows), dtype=xp.uint64)[:, None]
        for left in range(0, blocks, _CHUNK):
            block = xp.arange(left, min(left + _CHUNK, blocks), dtype=xp.uint64)[None, :]
            counter = (block, place & _LOW, place >> 32, use)
            words = philox(xp, key, counter, (place.shape[0], block.shape[1]))
            into = flat[top : top + down, 4 * left : 4 * (left + _CHUNK)]
            for i, word in enumerate(words):
                column = into[:, i::4]
                column[...] = word[:, : column.shape[1]]
    return out


def philox_fold(xp: Any, key: Any, data: Any, out: Any = None) -> Any:
    """The key u32[2] that `key` and the 0-d integer `data` make."""
    if out is None:
        out = xp.empty((2,), dtype=xp.uint32)
    number = data.reshape(1).astype(xp.uint64)
    zero = xp.zeros((1,), dtype=xp.uint64)
    words = philox(xp, key, (number & _LOW, number >> 32, zero, zero + _FOLD), (1,))
    out[0:1] = words[0]
    out[1:2] = words[1]
    return out


def _check_key(key: TensorType) -> None:
    if key.dtype is not dtypes.u32 or not same_shape(key.shape, (2,)):
        raise DTypeError(f"the key is {key}, not u32[2]: make one with rg.random.key(seed)")


def _check_number(number: TensorType, what: str, allowed: Sequence[dtypes.DType]) -> None:
    if number.dtype not in allowed:
        raise DTypeError(f"{what} is {number}, not {' or '.join(map(str, allowed))}")
    if number.shape:
        raise ShapeError(f"{what} is {number}, not a scalar")


def _infer_bits(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    key, row = types
    _check_key(key)
    _check_number(row, "the first row", (dtypes.i64,))
    if attrs["dtype"] is not dtypes.u32:
        raise DTypeError(f"bits come as u32, not {attrs['dtype']}")
    shape: tuple[Dim, ...] = tuple(attrs["shape"])
    return (TensorType(dtypes.u32, shape),)


def _infer_fold(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    key, data = types
    _check_key(key)
    _check_number(data, "the number folded in", (dtypes.i64, dtypes.u32))
    return (key,)


def _bits(attrs: Attrs, key: Any, row: Any) -> Any:
    return philox_bits(np, np.asarray(key), np.asarray(row), attrs["shape"])


def _fold(attrs: Attrs, key: Any, data: Any) -> Any:
    return philox_fold(np, np.asarray(key), np.asarray(data))


_RANDOM = NotDifferentiable("random bits do not depend on parameters")

random_bits = register(
    Op(
        "random_bits",
        Kind.RANDOM,
        _infer_bits,
        _bits,
        _RANDOM,
        doc="u32 bits of `shape` from a key and the global row that axis 0 starts at",
        convention="Philox4x32-10; 0-d is one element of one row; rows count modulo 2^64",
        cost=lambda inputs, outputs, attrs: dims.product(outputs[0].shape) * 25,
        defaults={"dtype": dtypes.u32},
    )
)
random_fold = register(
    Op(
        "random_fold",
        Kind.RANDOM,
        _infer_fold,
        _fold,
        _RANDOM,
        doc="a new key from a key and a number",
        convention="Philox4x32-10, apart from the counters of random_bits; negative numbers count "
        "modulo 2^64",
        cost=lambda inputs, outputs, attrs: 100,
    )
)
