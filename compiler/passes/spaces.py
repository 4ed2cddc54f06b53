"""The space that a node runs over, and whether two spaces go together: Node -> shape.

Invariant: what is made over a space has at each place one element, or one for a row (the last axis
has size 1), or it is a sum over all rows, which is complete only after the last of them.
"""

from __future__ import annotations

from retrograde.compiler.ir.dims import Dim, same
from retrograde.compiler.ir.graph import Node, same_shape
from retrograde.compiler.ir.registry import Kind

ROW_REDUCTIONS = frozenset({"sum", "max", "min", "prod"})
NARROW = 16  # elements: rows that are shorter are not worth a loop of their own


def iteration_shape(node: Node, native: bool = False) -> tuple[Dim, ...] | None:
    """The space a groupable node runs over, None for nodes that stay alone.

    `native`: on a device whose kernels add up rows as well."""
    if node.op.kind is Kind.ELEMENTWISE:
        shape = node.output.shape
        return shape if shape else None
    if node.op.name == "row_dot":
        return node.inputs[0].shape
    if node.op.name in ROW_REDUCTIONS:
        source = node.inputs[0]
        last = source.type.ndim - 1
        if last >= 0 and node.attrs["axes"] == (last,) and node.attrs["keepdims"]:
            return source.shape if source.dtype is node.output.dtype else None
    if native and sums_rows(node):
        return node.inputs[-1].shape
    if native and gathers(node):
        return node.output.shape
    return None


def gathers(node: Node) -> bool:
    """Whether a node takes elements, or rows along one axis, from where indices tell."""
    return node.op.name == "gather" and node.output.type.ndim > 0 and len(left_axes(node)) < 2


def gathers_rows(node: Node) -> bool:
    """Whether what a node takes are rows."""
    return gathers(node) and bool(left_axes(node))


def left_axes(node: Node) -> list[int]:
    """The axes of what a gather takes from that have no index."""
    return [a for a in range(node.inputs[0].type.ndim) if a not in node.attrs["axes"]]


def sums_rows(node: Node) -> bool:
    """Whether a node adds up rows: to one row, or to one number."""
    if node.op.name not in ("sum", "dot_general"):
        return False
    source, lead = node.inputs[-1], tuple(range(node.inputs[-1].type.ndim - 1))
    if not lead or same(source.shape[-1], 1) or source.dtype is not node.output.dtype:
        return False
    if node.op.name == "sum":
        return source.dtype.name != "bool" and node.attrs["axes"] in (lead, (*lead, len(lead)))
    weights = node.inputs[0]
    return (
        source.dtype.is_float
        and weights.dtype is source.dtype
        and node.attrs["contract"] == (lead, lead)
        and node.attrs["batch"] == ((), ())
        and same_shape(weights.shape, (*source.shape[:-1], 1))
    )


def to_one(node: Node) -> bool:
    """Whether a node that adds up rows makes one number of them."""
    return node.op.name == "sum" and len(node.attrs["axes"]) == node.inputs[0].type.ndim


def wider(a: tuple[Dim, ...], b: tuple[Dim, ...]) -> tuple[Dim, ...] | None:
    """The common space of two shapes: equal, or one the rows of the other; None if neither."""
    if same_shape(a, b):
        return a
    if len(a) != len(b) or not same_shape(a[:-1], b[:-1]):
        return None
    if isinstance(a[-1], int) and a[-1] == 1:
        return b
    return a if isinstance(b[-1], int) and b[-1] == 1 else None
