"""dot_general as matrix products: operand views -> views shaped (batch…, rows, columns).

Invariant: what is returned as a view can go to BLAS as it is (one unit stride among the last two
axes, no stride zero); for an operand that cannot, the caller is told what to copy.
"""

from __future__ import annotations

from collections.abc import Sequence

from retrograde.compiler.ir import dims
from retrograde.compiler.ir.dims import Dim, same
from retrograde.compiler.ir.graph import Node
from retrograde.compiler.plan.views import View

# A matrix view, or (what to copy contiguously, the matrix shape of the copy).
Matrix = View | tuple[View, tuple[Dim, ...]]


def matrices(node: Node, operands: Sequence[View]) -> tuple[Matrix, Matrix]:
    """The operands of a dot_general as (batch…, m, k) and (batch…, k, n)."""
    (lc, rc), (lb, rb) = node.attrs["contract"], node.attrs["batch"]
    left, right = operands
    lf = [i for i in range(len(left.shape)) if i not in lc and i not in lb]
    rf = [i for i in range(len(right.shape)) if i not in rc and i not in rb]
    return _matrix(left, lb, lf, lc), _matrix(right, rb, rc, rf)


def step_matrices(left: View, right: View) -> tuple[Matrix, Matrix]:
    """The operands of a dot_steps, (k, m) and (k, n), as (m, k) and (k, n)."""
    return _matrix(left, (), (1,), (0,)), _matrix(right, (), (0,), (1,))


def _matrix(
    view: View, batch: Sequence[int], rows: Sequence[int], columns: Sequence[int]
) -> Matrix:
    ordered = view.transposed((*batch, *rows, *columns))
    lead = tuple(view.shape[i] for i in batch)
    shape = (
        *lead,
        dims.product(view.shape[i] for i in rows),
        dims.product(view.shape[i] for i in columns),
    )
    merged = ordered.reshaped(shape)
    if merged is not None and _blasable(merged):
        return merged
    return ordered, shape


def _blasable(view: View) -> bool:
    """Whether BLAS reads the last two axes without a copy."""
    (m, k), (row, column) = view.shape[-2:], view.strides[-2:]
    if same(column, 1):
        return same(m, 1) or (not same(row, 0) and _at_least(row, k))
    if same(row, 1):
        return same(k, 1) or (not same(column, 0) and _at_least(column, m))
    return same(m, 1) and same(k, 1)


def _at_least(stride: Dim, extent: Dim) -> bool:
    """A leading dimension must not be smaller than the row it steps over."""
    return dims.decide_le(extent, stride) is True
