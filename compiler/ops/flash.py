"""Tiled attention: q, k, v and what closes pairs -> out and the log-sum-exp of each query's scores.

`flash_attention` is softmax(scale q k^T + bias, closed pairs left out) v, and its gradient rule is
one op, `flash_attention_grad`, which computes the weights again from the log-sum-exp.  Nothing of
the size queries x keys is kept, and the references work on rows of at most `ROWS` queries, so
memory is linear in the number of queries and of keys.  Dao et al. 2022 (FlashAttention), 2023
(FlashAttention-2); Rabe & Staats 2021; Milakov & Gimelshein 2018.  Invariant: a query without open
keys gets zeros, -inf and zero gradients; the dropped weights are those that `random_bits` of the
shape of the scores drops.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde.compiler.errors import DTypeError, ShapeError
from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.graph import Attrs, TensorType, same_shape, same_type
from retrograde.compiler.ir.op import Op, VjpContext
from retrograde.compiler.ir.registry import Kind, lookup, register
from retrograde.compiler.ops.attention import scale_of
from retrograde.compiler.ops.composite import widened_array
from retrograde.compiler.ops.declare import TRANSCENDENTAL, one_dtype, require, wide
from retrograde.compiler.ops.flash_dense import dense, dense_gradients
from retrograde.compiler.ops.move import Cotangents, listed
from retrograde.compiler.ops.random import philox

Array = npt.NDArray[Any]

ROWS = 128  # queries at a time in the references

# What may come after q, k, v, in this order; `extras` names those that do.
EXTRAS = ("lengths", "query_segments", "key_segments", "mask", "bias", "drop_key", "drop_row")
DEFAULTS: Attrs = {"scale": None, "low": None, "high": None, "extras": (), "keep": 1.0}


def named(attrs: Attrs, operands: Sequence[Any]) -> dict[str, Any]:
    """The operands after q, k, v by name."""
    return dict(zip(attrs["extras"], operands, strict=True))


# --- shapes


def _check_heads(q: TensorType, k: TensorType, v: TensorType) -> None:
    fits = (
        q.ndim == k.ndim == v.ndim == 4
        and dims.same(q.shape[0], k.shape[0])
        and dims.same(q.shape[3], k.shape[3])
        and same_shape(k.shape[:3], v.shape[:3])
    )
    if not fits:
        raise ShapeError(
            f"q {q}, k {k}, v {v} are not [batch, heads, queries, d], [batch, key heads, keys, d], "
            "[batch, key heads, keys, e]"
        )
    heads, shared = q.shape[1], k.shape[1]
    if dims.same(heads, shared):
        return
    if not (isinstance(heads, int) and isinstance(shared, int) and shared and not heads % shared):
        raise ShapeError(f"{heads} heads of q do not share {shared} heads of k and v evenly")


def _check_extra(name: str, t: TensorType, scores: tuple[Dim, ...], dtype: dtypes.DType) -> None:
    batch, _, queries, keys = scores
    wanted = {
        "lengths": TensorType(dtypes.i32, (batch,)),
        "query_segments": TensorType(dtypes.i32, (batch, queries)),
        "key_segments": TensorType(dtypes.i32, (batch, keys)),
        "drop_key": TensorType(dtypes.u32, (2,)),
        "drop_row": TensorType(dtypes.i64, ()),
    }.get(name)
    if wanted is not None:
        if not same_type(t, wanted):
            raise ShapeError(f"the {name.replace('_', ' ')} are {t}, not {wanted}")
        return
    element = dtypes.bool_ if name == "mask" else dtype
    if t.dtype is not element:
        raise DTypeError(f"the {name} is {t}: it takes {element}")
    stretches = (dims.same(a, b) or dims.same(a, 1) for a, b in zip(t.shape, scores, strict=False))
    if t.ndim != 4 or not all(stretches):
        raise ShapeError(f"the {name} {t} does not stretch to the scores {listed(scores)}")


def _infer(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    extras = tuple(attrs["extras"])
    if extras != tuple(name for name in EXTRAS if name in extras):
        raise ShapeError(f"extras {extras}: some of {EXTRAS}, in this order")
    for pair in (("query_segments", "key_segments"), ("drop_key", "drop_row")):
        if (pair[0] in extras) != (pair[1] in extras):
            raise ShapeError(f"{pair[0]} and {pair[1]} come together")
    if len(types) != 3 + len(extras):
        raise ShapeError(f"takes q, k, v and {extras}, got {len(types)} operands")
    q, k, v = types[:3]
    require(q, "float")
    one_dtype((q, k, v))
    _check_heads(q, k, v)
    scores = (*q.shape[:3], k.shape[2])
    for name, t in named(attrs, types[3:]).items():
        _check_extra(name, t, scores, q.dtype)
    if not 0.0 < attrs["keep"] <= 1.0:
        raise ShapeError(f"the chance to keep a weight is {attrs['keep']}, not in (0, 1]")
    out = TensorType(q.dtype, (*q.shape[:3], v.shape[3]))
    return out, TensorType(wide(q.dtype), q.shape[:3])


def _infer_grad(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    n = 3 + len(attrs["extras"])
    out, lse = _infer(types[:n], attrs)
    wanted = (out, lse, out)
    for t, like in zip(types[n:], wanted, strict=False):
        if t.dtype is not like.dtype:
            raise DTypeError(f"a result of flash_attention is {t}, not {like}")
    if len(types) != n + 3 or not all(map(same_type, types[n:], wanted)):
        raise ShapeError(f"after these come out {out}, its log-sum-exp {lse} and d out {out}")
    return types[:3]


# --- references


class _Rows:
    """The scores of a few queries at a time, in the type that is computed in."""

    def __init__(self, attrs: Attrs, q: Array, k: Array, v: Array, extras: Sequence[Array]) -> None:
        self.attrs, self.extras = attrs, named(attrs, extras)
        self.q, self.k, self.v = (widened_array(x) for x in (q, k, v))
        self.batch, self.heads, self.queries, self.width = q.shape
        self.shared, self.keys = k.shape[1], k.shape[2]

    def blocks(self) -> Iterator[tuple[int, slice, slice, Array]]:
        """Batch row, queries, the keys that band and length leave, scores [heads, n, m]."""
        low, high = self.attrs["low"], self.attrs["high"]
        lengths = self.extras.get("lengths")
        for b in range(self.batch):
            limit = self.keys if lengths is None else min(self.keys, max(0, int(lengths[b])))
            for i in range(0, self.queries, ROWS):
                end = min(i + ROWS, self.queries)
                first = 0 if low is None else max(0, i + low)
                last = limit if high is None else min(limit, end + high)
                rows, columns = slice(i, end), slice(first, max(first, last))
                yield b, rows, columns, self._scores(b, rows, columns)

    def _scores(self, b: int, rows: slice, columns: slice) -> Array:
        scale = self.q.dtype.type(scale_of(self.attrs, self.width))
        scores = self.stacked(self.q[b, :, rows]) @ self.k[b, :, columns].swapaxes(-1, -2)
        scores = self.apart(scores * scale, rows)
        if (bias := self._part("bias", b, rows, columns)) is not None:
            scores = scores + widened_array(bias)
        gap = np.arange(columns.start, columns.stop) - np.arange(rows.start, rows.stop)[:, None]
        open_: Array = np.ones(gap.shape, bool)
        if self.attrs["low"] is not None:
            open_ &= gap >= self.attrs["low"]
        if self.attrs["high"] is not None:
            open_ &= gap <= self.attrs["high"]
        if "query_segments" in self.extras:
            own = self.extras["query_segments"][b, rows]
            open_ &= own[:, None] == self.extras["key_segments"][b, columns]
        if (mask := self._part("mask", b, rows, columns)) is not None:
            open_ = open_ & mask
        return np.where(open_, scores, -np.inf)

    def _part(self, name: str, b: int, rows: slice, columns: slice) -> Array | None:
        x = self.extras.get(name)
        if x is None:
            return None
        whole = np.broadcast_to(x, (self.batch, self.heads, self.queries, self.keys))
        part: Array = whole[b, :, rows, columns]
        return part

    def stays(self, b: int, rows: slice, columns: slice) -> Array | None:
        """What each weight [heads, n, m] is multiplied by; None without dropout."""
        if "drop_key" not in self.extras:
            return None
        key, first = self.extras["drop_key"], self.extras["drop_row"]
        keep, count = self.attrs["keep"], rows.stop - rows.start
        bits = [
            _bits_between(key, first, b, at, at + count * self.keys)
            for at in ((h * self.queries + rows.start) * self.keys for h in range(self.heads))
        ]
        words = np.stack(bits).reshape(self.heads, count, self.keys)[:, :, columns]
        unit = (words >> 8).astype(np.float32) * np.float32(2.0**-24)
        wide_type = self.q.dtype.type
        out: Array = np.where(unit < np.float32(keep), wide_type(1.0 / keep), wide_type(0.0))
        return out

    def stacked(self, x: Array) -> Array:
        """[heads, n, …] with the heads that share keys on each other: [key heads, group n, …]."""
        group = self.heads // max(1, self.shared)
        return x.reshape(self.shared, group * x.shape[1], x.shape[2])

    def apart(self, x: Array, rows: slice) -> Array:
        """The way back."""
        return x.reshape(self.heads, rows.stop - rows.start, x.shape[-1])


def _bits_between(key: Array, first: Array, row: int, start: int, stop: int) -> Array:
    """The u32 bits that the elements [start, stop) of a row draw."""
    if stop <= start:
        return np.zeros(0, np.uint32)
    low = 0xFFFFFFFF
    place = (int(first) + row) % (1 << 64)
    blocks = np.arange(start // 4, (stop - 1) // 4 + 1, dtype=np.uint64)
    ends = (np.array([n], np.uint64) for n in (place & low, place >> 32, 0))
    words = philox(np, np.asarray(key), (blocks, *ends), blocks.shape)
    flat = np.stack(words, -1).reshape(-1).astype(np.uint32)
    return flat[start % 4 :][: stop - start]


def _evaluate(attrs: Attrs, q: Array, k: Array, v: Array, *extras: Array) -> tuple[Array, Array]:
    rows = _Rows(attrs, q, k, v, extras)
    out = np.zeros((*q.shape[:3], v.shape[3]), q.dtype)
    lse = np.full(q.shape[:3], -np.inf, rows.q.dtype)
    for b, some, keys, scores in rows.blocks():
        top = scores.max(-1, keepdims=True, initial=-np.inf)
        with np.errstate(all="ignore"):
            weights = np.exp(scores - np.where(np.isneginf(top), 0, top))
            total = weights.sum(-1, keepdims=True)
            lse[b, :, some] = (np.where(total == 0, 0, top) + np.log(total))[..., 0]
            weights = weights / np.where(total == 0, 1, total)
        stays = rows.stays(b, some, keys)
        if stays is not None:
            weights = weights * stays
        out[b, :, some] = rows.apart(rows.stacked(weights) @ rows.v[b, :, keys], some)
    return out, lse


def _evaluate_grad(
    attrs: Attrs, q: Array, k: Array, v: Array, *rest: Array
) -> tuple[Array, Array, Array]:
    *extras, out, lse, dout = rest
    rows = _Rows(attrs, q, k, v, extras)
    out, dout = widened_array(out), widened_array(dout)
    dq, dk, dv = (np.zeros(x.shape, rows.q.dtype) for x in (q, k, v))
    scale = rows.q.dtype.type(scale_of(attrs, q.shape[3]))
    for b, some, keys, scores in rows.blocks():
        level = lse[b, :, some, None]
        with np.errstate(all="ignore"):
            weights = np.exp(scores - np.where(np.isneginf(level), np.inf, level))
        g = dout[b, :, some]
        delta = (g * out[b, :, some]).sum(-1, keepdims=True)
        slopes = rows.apart(rows.stacked(g) @ rows.v[b, :, keys].swapaxes(-1, -2), some)
        kept = weights
        stays = rows.stays(b, some, keys)
        if stays is not None:
            slopes, kept = slopes * stays, weights * stays
        slopes = rows.stacked(weights * (slopes - delta) * scale)
        dq[b, :, some] = rows.apart(slopes @ rows.k[b, :, keys], some)
        dk[b, :, keys] += slopes.swapaxes(-1, -2) @ rows.stacked(rows.q[b, :, some])
        dv[b, :, keys] += rows.stacked(kept).swapaxes(-1, -2) @ rows.stacked(g)
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype)


# --- gradients


def _vjp(ctx: VjpContext, cotangents: Cotangents) -> list[Any]:
    (q, k, v, *extras), (out, lse) = ctx.inputs, ctx.outputs
    g, d_lse = cotangents
    if g is None:
        g = lookup("mul")(out, 0.0)
    more = named(ctx.attrs, extras)
    place = ctx.attrs["extras"].index("bias") if "bias" in more else None
    trained_bias = place is not None and ctx.needs[3 + place]
    results: list[Any] = [None] * len(ctx.inputs)
    if d_lse is None:
        attrs = dict(ctx.attrs)
        results[:3] = lookup("flash_attention_grad")(q, k, v, *extras, out, lse, g, **attrs)
    if d_lse is not None or trained_bias:  # the gradient of a bias is as large as the scores
        gradients = dense_gradients(ctx.attrs, q, k, v, more, out, lse, g, d_lse)
        if d_lse is not None:
            results[:3] = gradients[:3]
        if trained_bias and place is not None:
            results[3 + place] = gradients[3]
    return results


def _grad_decompose(attrs: Attrs, q: Any, k: Any, v: Any, *rest: Any) -> tuple[Any, ...]:
    *extras, out, lse, g = rest
    return dense_gradients(attrs, q, k, v, named(attrs, extras), out, lse, g, None)[:3]


def _pairs(inputs: Sequence[TensorType]) -> tuple[Dim, Dim, Dim]:
    q, k, v = inputs[:3]
    return dims.product(q.shape[:3]) * k.shape[2], q.shape[3], v.shape[3]


def _cost(inputs: Sequence[TensorType], outputs: Sequence[TensorType], attrs: Attrs) -> Dim:
    pairs, d, e = _pairs(inputs)
    return pairs * (2 * d + 2 * e + TRANSCENDENTAL + 6)


def _grad_cost(inputs: Sequence[TensorType], outputs: Sequence[TensorType], attrs: Attrs) -> Dim:
    pairs, d, e = _pairs(inputs)
    return pairs * (6 * d + 4 * e + TRANSCENDENTAL + 6)


def _decompose(attrs: Attrs, q: Any, k: Any, v: Any, *extras: Any) -> tuple[Any, Any]:
    return dense(attrs, q, k, v, named(attrs, extras))


_CONVENTION = (
    "key j is open to query i where `low` <= j - i <= `high`, j < lengths[batch], the segments are "
    "equal and the mask is true; heads share key heads in runs; a weight is kept with the chance "
    "`keep`; zeros and -inf for a query without keys"
)

flash_attention = register(
    Op(
        "flash_attention",
        Kind.OPAQUE,
        _infer,
        _evaluate,
        _vjp,
        doc="softmax(`scale` q k^T + bias, open pairs) v and the log of the softmax's sums, a tile "
        "at a time; q, k, v are [batch, heads, time, width], `extras` names what comes after them "
        "(Dao et al. 2022)",
        convention=_CONVENTION,
        cost=_cost,
        decompose=_decompose,
        defaults=DEFAULTS,
    )
)
flash_attention_grad = register(
    Op(
        "flash_attention_grad",
        Kind.OPAQUE,
        _infer_grad,
        _evaluate_grad,
        vjp=None,
        doc="the cotangents of q, k, v from those, the extras, the results of `flash_attention` "
        "and the cotangent of the first (Dao et al. 2022)",
        convention="the weights are computed again; differentiated as the untiled formulas",
        cost=_grad_cost,
        decompose=_grad_decompose,
        defaults=DEFAULTS,
    )
)
