"""dot_steps: a sum of products over the steps of a loop, whose order of additions is its own.

Operands: what there is already [m, n], and two arrays of rows, [k, m] and [k, n], the rows of one
step after those of the one before.  The rows are taken `chunk` at a time: from the first on, or
with `reverse` from the last on, as a reverse loop meets its steps, where the chunk that the
division leaves shorter is the one that comes last.  A chunk's product is added up by itself, then
to the sum. Invariant: the sum of all rows has the bits of that of the rows met first, with those
of the rest added, wherever between two chunks they are parted: a loop in segments adds up as the
whole does. """

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from retrograde.compiler.errors import DTypeError, ShapeError
from retrograde.compiler.ir import dims
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.graph import Attrs, TensorType
from retrograde.compiler.ir.op import Op
from retrograde.compiler.ir.registry import Kind, NotDifferentiable, register
from retrograde.compiler.ops.declare import one_dtype


def chunks(rows: int, chunk: int, reverse: bool) -> Iterator[slice]:
    """The rows of each chunk, in the order in which their products are added."""
    for done in range(0, rows, chunk):
        if reverse:
            yield slice(max(0, rows - done - chunk), rows - done)
        else:
            yield slice(done, min(rows, done + chunk))


def _infer(types: tuple[TensorType, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    start, a, b = types
    if not start.dtype.is_float or start.dtype.bytes < 4:
        raise DTypeError(f"a sum over steps is of f32 or f64, got {start}")
    if not start.ndim == a.ndim == b.ndim == 2:
        raise ShapeError(f"a sum over steps is of matrices, got {start}, {a} and {b}")
    pairs = ((a, 0, b, 0), (a, 1, start, 0), (b, 1, start, 1))
    for x, i, y, j in pairs:
        if not dims.same(x.shape[i], y.shape[j]):
            raise ShapeError(f"axis {i} of {x} and axis {j} of {y} differ in a sum over steps")
    return (TensorType(one_dtype(types), start.shape),)


def _evaluate(attrs: Attrs, start: Any, a: Any, b: Any) -> Any:
    out = np.array(start)
    for rows in chunks(len(a), max(1, attrs["chunk"]), attrs["reverse"]):
        out += a[rows].T @ b[rows]
    return out


def _cost(inputs: Sequence[TensorType], outputs: Sequence[TensorType], attrs: Attrs) -> Dim:
    return 2 * outputs[0].size * inputs[1].shape[0]


dot_steps = register(
    Op(
        "dot_steps",
        Kind.CONTRACT,
        _infer,
        _evaluate,
        NotDifferentiable("it is made from a scan that was differentiated", refuses=True),
        doc="`start` and the products of rows of two arrays, added up `chunk` rows at a time: from "
        "the first row on, or with `reverse` from the last",
        convention="the bits do not depend on where between two chunks a sum is parted in two",
        promotion="common",
        cost=_cost,
        inplace=(0,),
        defaults={"reverse": False},
    )
)
