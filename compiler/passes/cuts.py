"""Where a value over all steps of a loop has them, and what a rule of taking it apart is given.

A `Cut` says it of one value: the steps lie on an axis that they have alone (one step is then
without it), or on one that they share, as in a reshape of [B, T, D] to [B*T, D] (it is then
smaller).  Invariant: index i of the steps' part of the axis is step `start + i`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.graph import Attrs, Node, Value, same_shape
from retrograde.compiler.ir.registry import lookup
from retrograde.compiler.passes.vectorize_rules import emit

Axes = tuple[int, ...]
Makers = Mapping[Value, Node]
FEW = 16  # so many steps may a window leave out: a body computes them for nothing


@dataclass(frozen=True, eq=False)
class Steps:
    """`count` steps from `start` on, of `length`."""

    length: Dim
    start: Dim
    count: Dim

    @classmethod
    def all(cls, length: Dim) -> Steps:
        return cls(length, 0, length)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Steps) and same_shape(self._sizes, other._sizes)

    def __hash__(self) -> int:
        return hash(self._sizes)

    @property
    def _sizes(self) -> tuple[Dim, ...]:
        return self.length, self.start, self.count

    @property
    def complete(self) -> bool:
        return dims.same(self.start, 0) and dims.same(self.count, self.length)

    @property
    def left_over(self) -> Dim:
        """The steps behind these."""
        return self.length - self.start - self.count

    def window(self, start: Dim, count: Dim) -> Steps | None:
        """Other steps of the same loop, if there are such, and nearly all of them."""
        found = Steps(self.length, start, count)
        if not all(dims.decide_le(0, d) for d in (start, found.left_over)):
            return None
        _, most = dims.bounds(self.length - count)
        return found if most is not None and most <= FEW else None


@dataclass(frozen=True, eq=False)
class Cut:
    """The steps lie on `axis`, whose size is outer * steps.count * inner."""

    axis: int
    outer: Dim
    inner: Dim
    steps: Steps

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Cut) or self.axis != other.axis:
            return False
        shares = same_shape((self.outer, self.inner), (other.outer, other.inner))
        return shares and self.steps == other.steps

    def __hash__(self) -> int:
        return hash((self.axis, self.outer, self.inner, self.steps))

    @property
    def size(self) -> Dim:
        return self.outer * self.steps.count * self.inner

    @property
    def rest(self) -> Dim:
        """What the axis has in one step."""
        return self.outer * self.inner

    @property
    def alone(self) -> bool:
        """Whether the axis holds the steps and nothing else, so that one step has no such axis."""
        return dims.same(self.rest, 1)

    def at(self, axis: int) -> Cut:
        return Cut(axis, self.outer, self.inner, self.steps)

    def fits(self, shape: Sequence[Dim], axis: int) -> bool:
        """Whether an axis of another value can hold the same steps."""
        return dims.same(shape[axis], self.size)

    def shape(self, shape: Sequence[Dim]) -> tuple[Dim, ...]:
        """The shape of one step."""
        return self.each([self.rest if i == self.axis else d for i, d in enumerate(shape)])

    def each(self, entries: Sequence[Any]) -> tuple[Any, ...]:
        """Of entries that there is one of for each axis, those of one step."""
        return tuple(x for i, x in enumerate(entries) if i != self.axis or not self.alone)

    def axes(self, axes: Sequence[int]) -> Axes:
        """The axes as one step counts them, without the one that it does not have."""
        if not self.alone:
            return tuple(axes)
        return tuple(a - (a > self.axis) for a in axes if a != self.axis)


def over_all(length: Dim) -> Cut:
    """Where the stacked operands and results of a loop have its steps."""
    return Cut(0, 1, 1, Steps.all(length))


class Need(Enum):
    """What a step takes of an operand of which it does not take a step."""

    WHOLE = "whole"  # all of it: it is the same in every step
    NOTHING = "nothing"  # the rule does without


Needs = tuple[Cut | Need, ...]


@dataclass(frozen=True)
class Part:
    """One step of a node: what is asked for of its result, and its operands in that step."""

    node: Node
    cut: Cut | None  # None where the result is a sum over the steps
    needs: Needs
    operands: tuple[Expr | None, ...]
    number: Callable[[], Expr]  # which step it is, i64

    @property
    def attrs(self) -> Attrs:
        return self.node.attrs

    def cut_of(self, i: int) -> Cut:
        need = self.needs[i]
        assert isinstance(need, Cut)
        return need

    def operand(self, i: int) -> Expr:
        x = self.operands[i]
        assert x is not None
        return x

    def all(self) -> list[Expr]:
        return [self.operand(i) for i in range(len(self.operands))]

    def emit(self, operands: Sequence[Expr], **changed: Any) -> tuple[Expr, ...]:
        return emit(self.node.op, operands, {**self.attrs, **changed})

    def within(self, steps: Steps, x: Expr, otherwise: float = 0.0) -> Expr:
        """`x`, or outside of `steps` the number `otherwise`."""
        if steps.complete:
            return x
        compared = []
        if not dims.same(steps.start, 0):
            compared.append(lookup("less_equal")(_size(steps.start), self.number()))
        if not dims.same(steps.left_over, 0):
            compared.append(lookup("less")(self.number(), _size(steps.start + steps.count)))
        inside = compared[0] if len(compared) == 1 else lookup("logical_and")(*compared)
        other = lookup("constant")(value=otherwise, dtype=x.dtype)
        out: Expr = lookup("select")(inside, x, other)
        return out


def _size(d: Dim) -> Expr:
    name, key = ("constant", "value") if isinstance(d, int) else ("dim_value", "size")
    out: Expr = lookup(name)(**{key: d}, dtype=dtypes.i64)
    return out


def reshaped(x: Expr, shape: Sequence[Dim]) -> Expr:
    if same_shape(x.shape, shape):
        return x
    out: Expr = lookup("reshape")(x, shape=tuple(shape))
    return out


def ordered(x: Expr, perm: Axes) -> Expr:
    if perm == tuple(range(len(perm))):
        return x
    out: Expr = lookup("transpose")(x, perm=perm)
    return out


def stacked_first(x: Expr, cut: Cut) -> Expr:
    """`x` over all steps, the steps on axis 0, each laid out as one step is; zeros where it has
    none."""
    shape, a, steps = x.shape, cut.axis, cut.steps
    outer = () if dims.same(cut.outer, 1) else (cut.outer,)
    inner = () if dims.same(cut.inner, 1) else (cut.inner,)
    at = a + len(outer)
    x = reshaped(x, (*shape[:a], *outer, steps.count, *inner, *shape[a + 1 :]))
    x = ordered(x, (at, *(i for i in range(x.ndim) if i != at)))
    x = reshaped(x, (steps.count, *cut.shape(shape)))
    if steps.complete:
        return x
    rest = (0,) * (x.ndim - 1)
    low, high = (steps.start, *rest), (steps.left_over, *rest)
    out: Expr = lookup("pad")(x, low=low, high=high, interior=(0, *rest))
    return out
