"""Sums over the steps of a loop, in an order that follows from the loop alone.

Stacked values [steps, ...] -> their sum, added to what there is already: chunks of `turns` steps at
a time, or step by step, from the last step on with `reverse`.  Invariant: a sum that is parted in
two between chunks has the bits of the whole, and no layout of the operands changes them.
"""

from __future__ import annotations

from collections.abc import Sequence

from retrograde.compiler.ir import dims
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.expr import Expr, zeros
from retrograde.compiler.ir.graph import TensorType, Value
from retrograde.compiler.ir.registry import lookup


def is_wide(v: Value | Expr) -> bool:
    """Whether sums of `v` are held in its own type."""
    return v.dtype.is_float and v.dtype.bytes >= 4


def sum_of_steps(
    x: Expr, axes: Sequence[int], start: Expr | None, turns: int, reverse: bool, merges: bool
) -> Expr:
    """The sum of the steps `x`, of each of them over its `axes`, in some shape of as many elements;
    `start` has the sum's."""
    rank = x.ndim - 1
    product = is_wide(x) and len(axes) >= rank - 1 and tuple(axes) == tuple(range(len(axes)))
    if product and axes:
        columns = 1 if len(axes) == rank else x.shape[-1]
        if start is not None:
            start = lookup("reshape")(start, shape=(1, columns))
        if len(axes) == rank:
            return sum_of_all(x, start, turns, reverse, merges)
        ones = lookup("broadcast_to")(_one(x), shape=(*x.shape[:-1], 1))
        return sum_of_rows(ones, x, start, turns, reverse)
    if axes:
        x = lookup("sum")(x, axes=tuple(a + 1 for a in axes), keepdims=False)
    if start is not None:
        start = lookup("reshape")(start, shape=x.shape[1:])
    return in_turn(x, start, reverse)


def sum_of_rows(a: Expr, b: Expr, start: Expr | None, turns: int, reverse: bool) -> Expr:
    """The sum of the products of the rows of `a` and `b`, whose axis 0 are steps, the last one
    columns, and all others rows of a step."""
    chunk = turns * dims.product(a.shape[1:-1])
    a, b = (lookup("reshape")(x, shape=(dims.product(x.shape[:-1]), x.shape[-1])) for x in (a, b))
    if start is None:
        start = zeros(TensorType(a.dtype, (a.shape[-1], b.shape[-1])))
    out: Expr = lookup("dot_steps")(start, a, b, chunk=chunk, reverse=reverse)
    return out


def from_the_end(rows: Sequence[Expr]) -> list[Expr]:
    """What is scattered, and the indices, with the last row of the last step first: the steps as a
    reverse loop meets them, and of a step no other order than memory's."""
    axes = tuple(range(rows[1].ndim))
    return [lookup("flip")(x, axes=axes) for x in rows]


def sum_of_all(
    x: Expr, start: Expr | None, turns: int, reverse: bool, merges: bool
) -> Expr:
    """The sum of all elements [1, 1]: of `turns` steps at a time, as one product adds up their
    sums.  Of a step they are added up as a product does it too, in an order that no layout changes;
    with `merges`, where kernels add up, rows by themselves before that, and all steps at once."""
    if x.ndim > 2 and merges:
        x = lookup("sum")(x, axes=tuple(range(2, x.ndim)), keepdims=False)
    if merges:
        ones = lookup("broadcast_to")(_one(x), shape=(1, x.shape[1]))
        x = lookup("dot_general")(ones, x, contract=((1,), (1,)), batch=((), ()))
        x = lookup("reshape")(x, shape=(x.shape[1], 1))
    else:
        turns = 1
    shape = (*x.shape, 1)
    ones = lookup("broadcast_to")(_one(x), shape=shape)
    return sum_of_rows(ones, lookup("reshape")(x, shape=shape), start, turns, reverse)


def in_turn(x: Expr, start: Expr | None, reverse: bool) -> Expr:
    """The sum over axis 0, one after the other: from the last on with `reverse`."""
    if start is None and dims.decide_le(1, x.shape[0]) is not True:
        start = zeros(TensorType(x.dtype, x.shape[1:]))
    if start is not None:
        first = lookup("reshape")(start, shape=(1, *x.shape[1:]))
        x = lookup("concatenate")(*((x, first) if reverse else (first, x)), axis=0)
    sums = lookup("cumsum")(x, axis=0, reverse=reverse)
    last: Dim = 0 if reverse else x.shape[0] - 1
    none, ones = (0,) * (x.ndim - 1), (1,) * x.ndim
    row = lookup("slice")(
        sums, start=(last, *none), stop=(last + 1, *x.shape[1:]), step=ones
    )
    out: Expr = lookup("reshape")(row, shape=x.shape[1:])
    return out


def _one(like: Expr) -> Expr:
    out: Expr = lookup("constant")(value=1.0, dtype=like.dtype)
    return out
