"""Writes a match as `flash_attention`: Match -> expressions.

Lead axes become [batch, heads]: the first that q, k and v share is the batch, the others are heads.
Invariant: only operands change shape; what is as large as the scores stays out, but for masks and
biases that the model made so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.builder import Builder
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.expr import Expr, as_expr, cast
from retrograde.compiler.ir.graph import Value
from retrograde.compiler.ir.registry import lookup
from retrograde.compiler.ops.composite import reshaped, row_sum
from retrograde.compiler.ops.declare import where
from retrograde.compiler.ops.flash import EXTRAS
from retrograde.compiler.passes.attention_masks import Side
from retrograde.compiler.passes.attention_match import Match
from retrograde.compiler.passes.attention_operands import Operand

_FAR = 1 << 30  # lengths beyond it are as good as it


class Emitter:
    """One match, written into `builder`; `renamed`: values that were replaced before."""

    def __init__(self, match: Match, builder: Builder, renamed: Mapping[Value, Value]) -> None:
        self.match, self.builder, self.renamed = match, builder, renamed
        *self.lead, self.queries, _ = match.q.shape
        self.keys = match.k.shape[-2]
        self.rank = len(match.q.shape)
        self.batch, self.heads = self._two(self.lead)

    def result(self, shape: Sequence[Dim]) -> Expr:
        """What the attention computes, in its own shape."""
        m = self.match
        q, k, v = (self._operand(x) for x in (m.q, m.k, m.v))
        extras = self._extras()
        names = tuple(name for name in EXTRAS if name in extras)
        out, lse = lookup("flash_attention")(
            *(q, k, v), *(extras[name] for name in names), scale=m.scale,
            low=m.predicates.low, high=m.predicates.high, extras=names,
            keep=1.0 if m.dropout is None else m.dropout.keep,
        )  # fmt: skip
        if m.empty != "zeros":
            instead = as_expr(math.nan, out.dtype) if m.empty == "nan" else self._mean(v)
            none = reshaped(lookup("equal")(lse, -math.inf), (*lse.shape, 1))
            out = where(none, instead, out)
        return reshaped(out, shape)

    def _expr(self, v: Value) -> Expr:
        return Expr(self.renamed.get(v, v), self.builder)

    def _two(self, lead: Sequence[Dim]) -> tuple[Dim, Dim]:
        """Lead axes as batch and heads."""
        n = min(1, self.match.batch)
        return dims.product(lead[:n]), dims.product(lead[n:])

    def _operand(self, x: Operand) -> Expr:
        e = self._expr(x.value)
        if x.perm != tuple(range(len(x.perm))):
            e = lookup("transpose")(e, perm=x.perm)
        *lead, time, width = x.shape
        return reshaped(e, (*self._two(lead), time, width))

    def _mean(self, v: Expr) -> Expr:
        """[batch, heads, 1, width]: what equal weights of all keys give."""
        mean: Expr = row_sum(v, (2,)) / cast(as_expr(self.keys), v.dtype)
        batch, shared, _, width = mean.shape
        if dims.same(shared, self.heads):
            return mean
        group = self.heads // shared
        apart = reshaped(mean, (batch, shared, 1, 1, width))
        wide = lookup("broadcast_to")(apart, shape=(batch, shared, group, 1, width))
        return reshaped(wide, (batch, self.heads, 1, width))

    # --- masks

    def _extras(self) -> dict[str, Expr]:
        found, m = self.match.predicates, self.match
        out: dict[str, Expr] = {}
        for side in found.lengths:
            lengths = self._lengths(side)
            if "lengths" in out:
                lengths = lookup("minimum")(out["lengths"], lengths)
            out["lengths"] = lengths
        if found.segments is not None:
            own, other = found.segments
            out["query_segments"] = self._segments(own, 1, self.queries)
            out["key_segments"] = self._segments(other, 0, self.keys)
        for v, truth in found.rest:
            mask = self._expr(v) if truth else lookup("logical_not")(self._expr(v))
            mask = self._stretching(mask)
            out["mask"] = lookup("logical_and")(out["mask"], mask) if "mask" in out else mask
        for v, factor in m.biases:
            bias = self._stretching(self._expr(v))
            bias = bias if factor == 1.0 else bias * factor
            out["bias"] = out["bias"] + bias if "bias" in out else bias
        if m.dropout is not None:
            out["drop_key"] = self._expr(m.dropout.key)
            out["drop_row"] = self._expr(m.dropout.row)
        return out

    def _lengths(self, side: Side) -> Expr:
        assert side.value is not None
        x = self._expr(side.value)
        x = reshaped(x, (x.size,))
        if x.dtype.bytes >= 4 and x.dtype is not dtypes.i32:
            x = lookup("minimum")(x, _FAR)
            x = x if x.dtype.kind == "uint" else lookup("maximum")(x, -_FAR)
        x = cast(x, dtypes.i32)
        if not dims.same(side.number, 0):
            x = x + cast(as_expr(side.number), dtypes.i32)
        return self._stretched(x, (self.batch,))

    def _segments(self, side: Side, place: int, size: Dim) -> Expr:
        """[batch, time], from a value with axes in any order."""
        assert side.value is not None
        x, places = self._expr(side.value), side.places
        last = [self.rank if p is None else p for p in places]  # axes of size 1 come first
        perm = tuple(sorted(range(x.ndim), key=lambda i: -last[i]))
        if perm != tuple(range(x.ndim)):
            x = lookup("transpose")(x, perm=perm)
        rows = dims.product(
            d for d, p in zip(side.value.shape, places, strict=True) if p not in (None, place)
        )
        x = cast(reshaped(x, (rows, size)), dtypes.i32)
        return self._stretched(x, (self.batch, size))

    def _stretched(self, x: Expr, shape: tuple[Dim, ...]) -> Expr:
        if all(map(dims.same, x.shape, shape)):
            return x
        out: Expr = lookup("broadcast_to")(x, shape=shape)
        return out

    def _stretching(self, x: Expr) -> Expr:
        """`x`, which stretches to the scores, with the four axes that the op has."""
        ones: tuple[Dim, ...] = (1,) * (self.rank - x.ndim)
        *lead, queries, keys = (*ones, *x.shape)
        n = min(1, self.match.batch)
        first, rest = list(lead[:n]), list(lead[n:])
        if len(rest) > 1 and not all(dims.same(d, 1) for d in rest):
            rest = list(self.lead[n:])
            x = reshaped(x, (*ones, *x.shape))
            x = self._stretched(x, (*first, *rest, queries, keys))
        return reshaped(x, (dims.product(first), dims.product(rest), queries, keys))
