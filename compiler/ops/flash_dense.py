"""Attention with the scores whole: the formulas that tiled attention is differentiated again by.

Input: operands of `flash_attention`; output: expressions.  Invariant: made of differentiable ops;
the same pairs are open and the same weights dropped as in the tiled form.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.expr import Expr, as_expr, cast, zeros
from retrograde.compiler.ir.graph import Attrs, TensorType
from retrograde.compiler.ir.op import unbroadcast
from retrograde.compiler.ir.registry import lookup
from retrograde.compiler.ops.attention import scale_of
from retrograde.compiler.ops.composite import lowest, reshaped, row_sum, softmax, widened
from retrograde.compiler.ops.contract import dot_general
from retrograde.compiler.ops.declare import where


def dense(attrs: Attrs, q: Expr, k: Expr, v: Expr, extras: Mapping[str, Expr]) -> tuple[Expr, Expr]:
    """out and the log-sum-exp."""
    scores = _scores(attrs, widened(q), widened(k), extras)
    weights = softmax(scores, axis=3)
    stays = _stays(attrs, scores, extras)
    if stays is not None:
        weights = weights * stays
    lse = lookup("logsumexp")(scores, axes=(3,), keepdims=False)
    return cast(_mixed(weights, widened(v)), q.dtype), lse


def dense_gradients(
    attrs: Attrs, q: Expr, k: Expr, v: Expr, extras: Mapping[str, Expr], out: Expr, lse: Expr,
    g: Expr, d_lse: Expr | None,
) -> tuple[Expr, Expr, Expr, Expr | None]:  # fmt: skip
    """The cotangents of q, k, v and the bias, given those of out and maybe of the log-sum-exp."""
    wq, wk, wv, wg = (widened(x) for x in (q, k, v, g))
    scores = _scores(attrs, wq, wk, extras)
    rows = (*lse.shape, 1)
    level = reshaped(where(lookup("less")(lse, lowest(lse.dtype)), math.inf, lse), rows)
    weights = lookup("exp")(scores - level)
    stays = _stays(attrs, scores, extras)
    slopes = _against(wg, wv)
    kept = weights
    if stays is not None:
        slopes, kept = slopes * stays, weights * stays
    delta = row_sum(wg * widened(out), (3,))
    if d_lse is not None:
        delta = delta - reshaped(d_lse, rows)
    slopes = weights * (slopes - delta)
    bias = extras.get("bias")
    d_bias = None if bias is None else cast(unbroadcast(slopes, bias.type), bias.dtype)
    slopes = slopes * scale_of(attrs, q.shape[3])
    dq, dk, dv = _mixed(slopes, wk), _gathered(slopes, wq, k), _gathered(kept, wg, v)
    return cast(dq, q.dtype), cast(dk, k.dtype), cast(dv, v.dtype), d_bias


# --- products of [batch, heads, …] with what has fewer heads


def _grouped(x: Expr, shared: Dim) -> Expr:
    """[batch, heads, n, m] as [batch, key heads, group, n, m]."""
    heads = x.shape[1]
    group = 1 if dims.same(heads, shared) else heads // shared
    return reshaped(x, (x.shape[0], shared, group, *x.shape[2:]))


_BATCH = ((0, 1), (0, 1))


def _against(x: Expr, y: Expr) -> Expr:
    """[batch, heads, n, d] . [batch, key heads, m, d] -> [batch, heads, n, m]."""
    made = dot_general(_grouped(x, y.shape[1]), y, contract=((4,), (3,)), batch=_BATCH)
    return reshaped(made, (*x.shape[:3], y.shape[2]))


def _mixed(weights: Expr, x: Expr) -> Expr:
    """[batch, heads, n, m] . [batch, key heads, m, d] -> [batch, heads, n, d]."""
    made = dot_general(_grouped(weights, x.shape[1]), x, contract=((4,), (2,)), batch=_BATCH)
    return reshaped(made, (*weights.shape[:3], x.shape[3]))


def _gathered(weights: Expr, x: Expr, like: Expr) -> Expr:
    """[batch, heads, n, m], [batch, heads, n, d] -> [batch, key heads, m, d]."""
    left, right = (_grouped(t, like.shape[1]) for t in (weights, x))
    made: Expr = dot_general(left, right, contract=((2, 3), (2, 3)), batch=_BATCH)
    return made


# --- scores


def _scores(attrs: Attrs, q: Expr, k: Expr, extras: Mapping[str, Expr]) -> Expr:
    scores = _against(q, k) * scale_of(attrs, q.shape[3])
    if "bias" in extras:
        scores = scores + widened(extras["bias"])
    for closed in _tests(attrs, scores, extras):
        scores = where(closed, scores, -math.inf)
    out: Expr = scores
    return out


def _places(size: Dim, rank: int, axis: int) -> Expr:
    line = lookup("iota")(size=size, dtype=dtypes.i32)
    return reshaped(line, tuple(size if i == axis else 1 for i in range(rank)))


def _tests(attrs: Attrs, scores: Expr, extras: Mapping[str, Expr]) -> list[Expr]:
    """Booleans that stretch to the scores: a pair is open where all hold."""
    batch, _, queries, keys = scores.shape
    at_most = lookup("less_equal")
    found: list[Expr] = []
    if attrs["low"] is not None or attrs["high"] is not None:
        gap = _places(keys, 4, 3) - _places(queries, 4, 2)
        if attrs["low"] is not None:
            found.append(at_most(_number(attrs["low"]), gap))
        if attrs["high"] is not None:
            found.append(at_most(gap, _number(attrs["high"])))
    if "lengths" in extras:
        lengths = reshaped(extras["lengths"], (batch, 1, 1, 1))
        found.append(lookup("less")(_places(keys, 4, 3), lengths))
    if "query_segments" in extras:
        own = reshaped(extras["query_segments"], (batch, 1, queries, 1))
        other = reshaped(extras["key_segments"], (batch, 1, 1, keys))
        found.append(lookup("equal")(own, other))
    if "mask" in extras:
        found.append(extras["mask"])
    return found


def _number(size: Dim) -> Expr:
    return cast(as_expr(size), dtypes.i32)


def _stays(attrs: Attrs, scores: Expr, extras: Mapping[str, Expr]) -> Expr | None:
    """What each weight is multiplied by."""
    if "drop_key" not in extras:
        return None
    key, row, keep = extras["drop_key"], extras["drop_row"], attrs["keep"]
    bits = lookup("random_bits")(key, row, shape=scores.shape, dtype=dtypes.u32)
    unit = cast(bits >> 8, dtypes.f32) * 2.0**-24
    many = as_expr(1.0 / keep, scores.dtype)
    out: Expr = where(unit < keep, many, zeros(TensorType(scores.dtype)))
    return out
