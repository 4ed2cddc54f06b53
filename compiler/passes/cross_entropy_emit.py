"""Writes a head as `linear_cross_entropy`: `Head` -> expressions in the place of its ends.

Invariant: nothing of the size rows x classes is made.
"""

from __future__ import annotations

from dataclasses import dataclass

from retrograde.compiler.ir import dtypes
from retrograde.compiler.ir.builder import Builder
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.expr import Expr, as_expr, zeros
from retrograde.compiler.ir.graph import Node, TensorType, Value
from retrograde.compiler.ir.registry import lookup
from retrograde.compiler.ops.composite import reshaped
from retrograde.compiler.ops.contract import dot_general
from retrograde.compiler.ops.cross_entropy import EXTRAS
from retrograde.compiler.ops.declare import where
from retrograde.compiler.passes.cross_entropy_match import End, Head


@dataclass
class Emitter:
    """One head, written into `builder`; `renamed` gets what takes the place of its results."""

    head: Head
    builder: Builder
    renamed: dict[Value, Value]

    @property
    def operands(self) -> list[Value]:
        """What the head reads."""
        h = self.head
        vectors = [end.by for end in h.ends.values()]
        given = [h.x, h.w, h.bias, *h.kept, *vectors, h.target[0] if h.target else None]
        return [v for v in given if v is not None]

    def emit(self) -> None:
        head = self.head
        rows = head.rows
        x = self._expr(head.x)
        if head.order != tuple(range(x.ndim)):
            x = lookup("transpose")(x, perm=head.order)
        self.x, self.w = reshaped(x, (rows, x.shape[-1])), self._expr(head.w)
        self.bias = None if head.bias is None else self._expr(head.bias)
        self.kept = self._kept(rows)
        given = {"bias": self.bias, "kept": self.kept}
        extras = tuple(name for name in EXTRAS if given[name] is not None)
        self.nll, self.lse = lookup("linear_cross_entropy")(
            *(self.x, self.w, self._target(rows)), *(given[name] for name in extras),
            transposed=head.transposed, extras=extras,
        )  # fmt: skip
        for node, end in head.ends.items():
            self._replace(node, end)

    def _replace(self, node: Node, end: End) -> None:
        if end.kind == "nll":
            made = [self.nll, self.lse]
        elif end.kind == "lse":
            made = [self.lse]
        elif end.kind == "pick":
            made = [-self.nll if end.log else self.lse - self.nll]
        else:
            by = None if end.by is None else self._expr(end.by)
            made = [self._weighed(by, end.log)]
        for v, e in zip(node.outputs, made, strict=True):
            self.renamed[v] = reshaped(e, v.shape).value

    def _expr(self, v: Value) -> Expr:
        return Expr(self.renamed.get(v, v), self.builder)

    def _kept(self, rows: Dim) -> Expr | None:
        kept: Expr | None = None
        for v in self.head.kept:
            more = reshaped(self._expr(v), (rows,))
            kept = more if kept is None else lookup("logical_and")(kept, more)
        return kept

    def _target(self, rows: Dim) -> Expr:
        head = self.head
        if head.target is None:
            return zeros(TensorType(dtypes.i32, (rows,)))
        value, wrap = head.target
        target = reshaped(self._expr(value), (rows,))
        if wrap:
            classes = as_expr(head.classes, target.dtype)
            target = where(lookup("less")(target, 0), target + classes, target)
        return target

    def _weighed(self, by: Expr | None, log: bool) -> Expr:
        """The sum of the logits of each row, weighed by class: x @ (w @ by) + bias @ by."""
        head = self.head
        classes = 0 if head.transposed else 1
        x, bias = self.x, self.bias
        if self.kept is not None:
            x = where(reshaped(self.kept, (*self.kept.shape, 1)), x, 0)
        if by is None:
            column = lookup("sum")(self.w, axes=(classes,), keepdims=False)
            more = None if bias is None else lookup("sum")(bias, axes=(0,), keepdims=False)
            weight = as_expr(float(head.classes), self.lse.dtype)
        else:
            column = dot_general(self.w, by, contract=((classes,), (0,)), batch=((), ()))
            product = dot_general if bias is not None else None
            more = product(bias, by, contract=((0,), (0,)), batch=((), ())) if product else None
            weight = lookup("sum")(by, axes=(0,), keepdims=False)
        total = dot_general(x, column, contract=((1,), (0,)), batch=((), ()))
        if more is not None:
            total = total + more
        if self.kept is not None:
            total = where(self.kept, total, 0)
        out: Expr = total - self.lse * weight if log else total
        return out
