"""Mixed precision: the types of an op's operands -> the types that it computes in.

Where a function is traced with `Builder.half` set, matrix products and attention take their f32
operands in that 16-bit type; what overflows or loses too much in 16 bits (sums, exponentials,
logarithms, powers: the list of Micikevicius et al., Mixed precision training, 2018, as in PyTorch's
autocast) takes 16-bit operands in f32; everything else follows: an operand that is stretched over
16-bit ones (a bias, a gain, a mask) becomes 16-bit, and operands of one shape meet in f32.  An op
says which of these it is (`Op.mixed`).  Gradients follow from the casts: a parameter stays f32, and
so does its gradient.  Invariant: only f32 and `half` change, and only into each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.dtypes import DType
from retrograde.compiler.ir.graph import TensorType, same_shape

if TYPE_CHECKING:
    from retrograde.compiler.ir.op import Op


def computed_in(op: Op, types: Sequence[TensorType | None], half: DType) -> list[DType | None]:
    """The dtype that each operand is taken in; None leaves it as it is.

    `types` has None for operands without a type of their own: plain numbers."""
    if op.mixed == "wide":
        return [dtypes.f32 if t is not None and t.dtype is half else None for t in types]
    mixing = [t is not None and t.dtype in (dtypes.f32, half) for t in types]
    if op.mixed == "half":
        return [half if mixes else None for mixes in mixing]
    none: list[DType | None] = [None] * len(types)
    if op.promotion not in ("common", "float", "select"):
        return none
    whole = [t.shape for t in types if t is not None and t.dtype is half]
    if not whole:
        return none
    return [
        half
        if t is not None and t.dtype is dtypes.f32 and any(_stretches(t.shape, s) for s in whole)
        else None
        for t in types
    ]


def _stretches(shape: Sequence[Dim], over: Sequence[Dim]) -> bool:
    """Whether an array of this shape is broadcast over one of another."""
    if len(shape) > len(over) or same_shape(shape, over):
        return False
    ends = over[len(over) - len(shape) :]
    return all(dims.same(a, 1) or dims.same(a, b) for a, b in zip(shape, ends, strict=True))
