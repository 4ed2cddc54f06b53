"""Scaled dot-product attention as one op: q, k, v and an optional mask -> weighted sums of v.

Source: Vaswani et al. 2017.  Invariant: a query that may attend to no key gets zeros, with zero
gradients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde.compiler.errors import DTypeError, ShapeError
from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.expr import Expr, broadcast_shapes, cast, dim_number
from retrograde.compiler.ir.graph import Attrs, TensorType, same_shape
from retrograde.compiler.ir.op import Op
from retrograde.compiler.ir.registry import Kind, lookup, register
from retrograde.compiler.ops.composite import softmax, widened, widened_array
from retrograde.compiler.ops.contract import dot_general
from retrograde.compiler.ops.declare import TRANSCENDENTAL, one_dtype, require, where
from retrograde.compiler.ops.move import listed

Array = npt.NDArray[Any]


def _infer(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    if len(types) not in (3, 4):
        raise ShapeError(f"takes q, k, v and maybe a mask, got {len(types)} operands")
    q, k, v, *mask = types
    require(q, "float")
    one_dtype((q, k, v))
    lead = q.shape[:-2]
    fits = (
        q.ndim >= 2
        and same_shape(k.shape, (*lead, *k.shape[-2:]))
        and same_shape(v.shape, (*lead, *k.shape[-2:-1], *v.shape[-1:]))
        and dims.same(q.shape[-1], k.shape[-1])
    )
    if not fits:
        raise ShapeError(
            f"q {q}, k {k}, v {v} are not [..., queries, d], [..., keys, d], [..., keys, e]"
        )
    scores = (*q.shape[:-1], k.shape[-2])
    for t in mask:
        if t.dtype is not dtypes.bool_:
            raise DTypeError(f"the mask is {t}: it takes booleans, true where a query may attend")
        if t.ndim > len(scores) or not same_shape(broadcast_shapes(t.shape, scores), scores):
            raise ShapeError(f"the mask {t} does not broadcast to the scores {listed(scores)}")
    return (TensorType(q.dtype, (*q.shape[:-1], v.shape[-1])),)


def scale_of(attrs: Attrs, width: Dim) -> float:
    """The factor of the scores: the attribute, or 1/sqrt(width)."""
    if attrs["scale"] is not None:
        return float(attrs["scale"])
    if not isinstance(width, int):
        raise ShapeError(f"the width {width} of q is not static: give a scale")
    return 1.0 / math.sqrt(width) if width else 1.0


def _evaluate(attrs: Attrs, q: Array, k: Array, v: Array, *mask: Array) -> Array:
    wq, wk, wv = (widened_array(x) for x in (q, k, v))
    scores = np.matmul(wq, wk.swapaxes(-1, -2)) * wq.dtype.type(scale_of(attrs, q.shape[-1]))
    queries, keys = scores.shape[-2:]
    allowed: Array = np.ones((queries, keys), bool)
    if attrs["causal"]:
        allowed = np.tri(queries, keys, keys - queries, dtype=bool)
    for m in mask:
        allowed = allowed & m
    scores = np.where(allowed, scores, -np.inf)
    weights = softmax.evaluate({"axis": scores.ndim - 1}, scores)
    out: Array = np.matmul(weights, wv).astype(q.dtype)
    return out


def _causal(queries: Dim, keys: Dim) -> Expr:
    """Where query i may attend to key j: j <= i + keys - queries."""
    rows = lookup("iota")(size=queries, dtype=dtypes.i32)
    columns = lookup("iota")(size=keys, dtype=dtypes.i32)
    ahead = keys - queries
    if not dims.same(ahead, 0):
        rows = rows + cast(dim_number(ahead), dtypes.i32)
    rows = lookup("reshape")(rows, shape=(queries, 1))
    out: Expr = lookup("less_equal")(lookup("reshape")(columns, shape=(1, keys)), rows)
    return out


def _decompose(attrs: Attrs, q: Expr, k: Expr, v: Expr, *mask: Expr) -> Expr:
    last = q.ndim - 1
    lead = tuple(range(last - 1))
    scores = dot_general(widened(q), widened(k), contract=((last,), (last,)), batch=(lead, lead))
    scores = scores * scale_of(attrs, q.shape[-1])  # grouped with the softmax; a scaled q is kept
    allowed: Expr | None = _causal(q.shape[-2], k.shape[-2]) if attrs["causal"] else None
    for m in mask:
        allowed = m if allowed is None else lookup("logical_and")(allowed, m)
    if allowed is not None:
        scores = where(allowed, scores, -math.inf)
    weights = softmax(scores, axis=last)
    out = dot_general(weights, widened(v), contract=((last,), (last - 1,)), batch=(lead, lead))
    return cast(out, q.dtype)


def _cost(inputs: Sequence[TensorType], outputs: Sequence[TensorType], attrs: Attrs) -> Dim:
    q, k, v = inputs[:3]
    scores = dims.product(q.shape[:-1]) * k.shape[-2]
    return scores * (2 * (q.shape[-1] + v.shape[-1]) + TRANSCENDENTAL + 6)


attention = register(
    Op(
        "attention",
        Kind.COMPOSITE,
        _infer,
        _evaluate,
        vjp=None,
        mixed="half",
        doc="softmax(`scale` q k^T, masked) v over the last two axes; q, k, v and maybe a mask, "
        "true where a query may attend (Vaswani et al. 2017)",
        convention="with `causal` the last query is aligned with the last key; `scale` None is "
        "1/sqrt(d); zeros for a query without keys",
        cost=_cost,
        decompose=_decompose,
        defaults={"scale": None, "causal": False},
    )
)
