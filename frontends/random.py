"""Random numbers without state: a key and a position -> a draw.

A key is a u32[2] array.  What an element draws depends on the key, its global row (axis 0) and its
place in the row, and on nothing else: a batch cut by rows draws, with `row` the number of its first
row, what the whole batch does.  Invariant: two draws from one key are not independent: use `split`
or `fold_in` to make a key for each use.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import numpy.typing as npt

import retrograde.numpy as rnp
from retrograde.compiler.errors import DTypeError
from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.dtypes import DType
from retrograde.compiler.ir.expr import SCALARS, Expr, as_expr, cast
from retrograde.compiler.ir.location import skip_frames_under, where
from retrograde.compiler.ir.registry import lookup
from retrograde.numpy import primitives as p
from retrograde.numpy.dispatch import function
from retrograde.numpy.primitives import Array, ArrayLike

skip_frames_under(os.path.abspath(__file__))

# Which part of a batch is at work: its number, and how many rows each part has.
_part: ContextVar[tuple[Expr, Dim] | None] = ContextVar("retrograde_part", default=None)

_WORD = 0xFFFFFFFF
_SPLIT = -(1 << 63)  # folded in by `split`: a number that no one counts to
# For draws that take several words, and for those of a part of a batch.
_MORE = tuple(_SPLIT + i for i in (1, 2, 3, 4))


def key(seed: int | ArrayLike) -> Array:
    """The key of a seed: an integer of up to 64 bits, or a traced one."""
    if isinstance(seed, Expr):
        number = cast(seed, dtypes.i64)
        return rnp.stack([rnp.astype(number >> shift, dtypes.u32) for shift in (0, 32)])
    value = _integer(seed)
    words: npt.NDArray[Any] = np.array([value & _WORD, value >> 32 & _WORD], np.uint32)
    return words


def _integer(seed: Any) -> int:
    if isinstance(seed, np.ndarray) and seed.ndim == 0:
        seed = seed[()]
    if not isinstance(seed, (int, np.integer)) or isinstance(seed, bool):
        raise DTypeError(f"{where()}a seed is an integer, got {seed!r}")
    return int(seed)


@function
def split(key: Array, n: Any = 2) -> Array:
    """`n` new keys, u32[n, 2], independent of each other and of draws from `key`."""
    return _words(_fold(key, _SPLIT), (p.as_dim(n), 2), 0)


@function
def fold_in(key: Array, data: Any) -> Array:
    """The key that `key` and an integer (a step, an index; also traced) or a name make."""
    return _fold(key, data)


def _fold(key: Array, data: Any) -> Expr:
    if isinstance(data, str):
        data = int.from_bytes(hashlib.sha256(data.encode()).digest()[:8], "little")
    if isinstance(data, (int, np.integer)):
        number = (int(data) + (1 << 63)) % (1 << 64) - (1 << 63)
        return lookup("random_fold")(_key(key), as_expr(number, dtypes.i64))  # type: ignore[no-any-return]
    given = p.array(data)
    if not given.dtype.is_integer:
        raise DTypeError(f"{where()}a key takes in integers, got {given.type}")
    out: Expr = lookup("random_fold")(_key(key), cast(given, dtypes.i64))
    return out


def _key(key: Array) -> Expr:
    if isinstance(key, SCALARS):
        raise DTypeError(f"{where()}{key!r} is no key: make one with rg.random.key(seed)")
    return p.array(key)


def _words(key: Array, shape: tuple[Any, ...], row: Any) -> Expr:
    first, key = cast(as_expr(row, dtypes.i64), dtypes.i64), _key(key)
    part = _part.get()
    if part is not None:
        key, first = _of_part(*part, key, shape, first)
    out: Expr = lookup("random_bits")(key, first, shape=shape, dtype=dtypes.u32)
    return out


@contextmanager
def part_of_batch(index: Expr, rows: Dim) -> Iterator[None]:
    """Draws made inside are those of part `index` of a batch, i64, whose parts have `rows` rows.

    Where axis 0 counts the rows of the batch (or of it and inner axes), they are the draws that the
    whole batch has there.  Draws of other shapes that hold `rows` differ from part to part, and
    those of shapes without it are the same in all parts."""
    token = _part.set((index, rows))
    try:
        yield
    finally:
        _part.reset(token)


def _of_part(
    index: Expr, rows: Dim, key: Expr, shape: tuple[Any, ...], first: Expr
) -> tuple[Expr, Expr]:
    """The key and the first row of a draw in a part of a batch."""
    if shape and dims.divide_exact(shape[0], rows) is not None:
        return key, first + index * as_expr(shape[0], dtypes.i64)
    names = {s.name for s in dims.symbols(rows)}
    if any(s.name in names for d in shape for s in dims.symbols(d)):
        return lookup("random_fold")(_fold(key, _MORE[3]), index), first
    return key, first


@function
def bits(key: Array, shape: Any = (), *, row: Any = 0) -> Array:
    """Random u32 words; axis 0 counts rows from `row`."""
    return _words(key, p.as_size(shape), row)


# --- uniform


@function
def uniform(
    key: Array,
    shape: Any = (),
    low: ArrayLike = 0.0,
    high: ArrayLike = 1.0,
    dtype: Any = dtypes.f32,
    *,
    row: Any = 0,
) -> Array:
    """Evenly spread in [low, high), which rounding may close where `low` is not 0."""
    target = _float(dtype)
    unit: Any = _unit(key, p.as_size(shape), row, target)
    if isinstance(low, SCALARS) and low == 0:
        return unit if isinstance(high, SCALARS) and high == 1 else unit * _as(high, target)
    return unit * (_as(high, target) - _as(low, target)) + _as(low, target)


def _as(x: ArrayLike, target: DType) -> Any:
    return x if isinstance(x, SCALARS) else p.array(x, target)


def _float(dtype: Any) -> DType:
    found = dtypes.dtype(dtypes.f32 if dtype is None else dtype)
    if not found.is_float:
        raise DTypeError(f"{where()}these draws are floats, not {found}: use randint or bits")
    return found


def _unit(key: Array, shape: tuple[Any, ...], row: Any, target: DType) -> Expr:
    """Multiples of 2^-digits in [0, 1): every value the type has room for, and never 1."""
    if target is dtypes.f64:
        high = cast(_words(key, shape, row) >> 5, target)
        low = cast(_words(_fold(key, _MORE[0]), shape, row) >> 6, target)
        return (high * 2.0**26 + low) * 2.0**-53  # type: ignore[no-any-return]
    digits = {"f32": 24, "f16": 11, "bf16": 8}[target.name]
    return cast(_words(key, shape, row) >> (32 - digits), target) * 2.0**-digits  # type: ignore[no-any-return]


def _open_unit(key: Array, shape: tuple[Any, ...], row: Any, target: DType) -> Expr:
    """In (0, 1], fine near 0: what a logarithm takes. Of f32, or f64."""
    if target is dtypes.f64:
        return 1.0 - _unit(key, shape, row, target)  # type: ignore[no-any-return]
    return cast(_words(key, shape, row), target) * 2.0**-32 + 2.0**-33  # type: ignore[no-any-return]


@function
def randint(
    key: Array,
    shape: Any = (),
    low: int = 0,
    high: int = 2,
    dtype: Any = dtypes.i32,
    *,
    row: Any = 0,
) -> Array:
    """Integers from `low` up to `high` - 1, each within 2^-32 of equally likely."""
    target = dtypes.dtype(dtype)
    span = p.static(high, "high") - p.static(low, "low")
    if not 1 <= span <= 1 << 32:
        raise p.misfit(f"randint from {low} to {high}: give between 1 and 2^32 numbers")
    wide: Any = cast(_words(key, p.as_size(shape), row), dtypes.u64)
    picked = (wide * span) >> 32
    return cast(cast(picked, dtypes.i64) + low, target)


# --- shapes made of uniform draws


@function
def normal(
    key: Array,
    shape: Any = (),
    mean: ArrayLike = 0.0,
    std: ArrayLike = 1.0,
    dtype: Any = dtypes.f32,
    *,
    row: Any = 0,
) -> Array:
    """Normally distributed (Box and Muller, 1958; one draw of the pair is used)."""
    target = _float(dtype)
    wide = dtypes.f64 if target is dtypes.f64 else dtypes.f32
    size = p.as_size(shape)
    radius = rnp.sqrt(-2.0 * rnp.log(_open_unit(key, size, row, wide)))
    angle = _unit(_fold(key, _MORE[1]), size, row, wide)
    out = cast(radius * rnp.cos(angle * (2.0 * math.pi)), target)
    if not (isinstance(std, SCALARS) and std == 1):
        out = out * _as(std, target)
    return out if isinstance(mean, SCALARS) and mean == 0 else out + _as(mean, target)


@function
def exponential(key: Array, shape: Any = (), dtype: Any = dtypes.f32, *, row: Any = 0) -> Array:
    """Exponentially distributed with mean 1."""
    target = _float(dtype)
    wide = dtypes.f64 if target is dtypes.f64 else dtypes.f32
    return cast(-rnp.log(_open_unit(key, p.as_size(shape), row, wide)), target)


@function
def gumbel(key: Array, shape: Any = (), dtype: Any = dtypes.f32, *, row: Any = 0) -> Array:
    """Gumbel distributed: what added to logits makes their argmax a categorical draw; finite."""
    target = _float(dtype)
    wide = dtypes.f64 if target is dtypes.f64 else dtypes.f32
    fine = _open_unit(key, p.as_size(shape), row, wide)
    below_one = rnp.minimum(fine, 1.0 - 2.0 ** (-53 if wide is dtypes.f64 else -24))
    # log1p: draws near 0 are the finest, and they are the large results, which decide.
    return cast(-rnp.log(-rnp.log1p(-below_one)), target)


@function
def bernoulli(key: Array, p_true: ArrayLike = 0.5, shape: Any = None, *, row: Any = 0) -> Array:
    """True with probability `p_true`; `shape` defaults to that of `p_true`."""
    chance = p.floating(p_true)
    size = chance.shape if shape is None else p.as_size(shape)
    wide = dtypes.f64 if chance.dtype is dtypes.f64 else dtypes.f32
    return _unit(key, size, row, wide) < chance


@function
def categorical(
    key: Array, logits: ArrayLike, axis: int = -1, shape: Any = None, *, row: Any = 0
) -> Array:
    """Indices (i32) along `axis` with probabilities softmax(logits); `shape`: that of the result.

    A logit of -inf is never drawn.  Rows count along axis 0 of `logits`."""
    scores = p.floating(logits)
    if scores.dtype.bytes == 2:
        scores = cast(scores, dtypes.f32)
    at = p.one_axis(axis, scores.ndim)
    if shape is not None:
        size = list(p.as_size(shape))
        at = at + len(size) + 1 - scores.ndim
        if at < 0:
            raise p.misfit(f"categorical of {scores.type} in the shape {shape}: too few axes")
        size.insert(at, scores.shape[p.one_axis(axis, scores.ndim)])
        scores = p.broadcast_to(scores, size)
    noise = gumbel(key, scores.shape, scores.dtype, row=row)
    return rnp.argmax(scores + noise, at)


@function
def permutation(key: Array, x: ArrayLike, axis: int = 0) -> Array:
    """The slices of `x` along `axis` in random order; for a size, 0 … x - 1 in random order."""
    given = p.operand(x)
    if isinstance(given, (Expr, np.ndarray)) and given.ndim:
        source = p.array(given)
        at = p.one_axis(axis, source.ndim)
        return p.take_axis(source, _shuffled(key, source.shape[at]), at)
    return _shuffled(key, p.as_dim(x))


def _shuffled(key: Array, n: Any) -> Expr:
    # Two words each: equal first words, one pair in 2^32, would keep their order.
    first = lookup("argsort")(_words(key, (n,), 0), axis=0, descending=False)
    order = lookup("argsort")(
        p.gather(_words(_fold(key, _MORE[2]), (n,), 0), (first,), (0,)), axis=0, descending=False
    )
    return p.gather(first, (order,), (0,))
