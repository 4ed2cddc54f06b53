"""Operands of attention, with their axes in order: Value -> Operand.

Invariant: an operand holds what its value holds; keys and values that were repeated for several
heads are found as they were before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from retrograde.compiler.ir import dims
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.graph import Node, Value, same_shape


@dataclass(frozen=True)
class Operand:
    """A value whose axes, in the order `perm`, are (lead…, time, width)."""

    value: Value
    perm: tuple[int, ...]

    @property
    def shape(self) -> tuple[Dim, ...]:
        return tuple(self.value.shape[i] for i in self.perm)


def before_repeat(x: Operand, producers: dict[Value, Node]) -> Operand:
    """[batch, heads, time, width] -> [batch, key heads, time, width]."""

    def made_by(v: Value, name: str) -> Node | None:
        node = producers.get(v)
        return node if node is not None and node.op.name == name else None

    found = x
    while (node := producers.get(x.value)) is not None:
        if node.op.name not in ("transpose", "broadcast_to", "reshape"):
            break
        inner, at = node.inputs[0], x.perm[1]
        if node.op.name == "transpose":
            x = Operand(inner, tuple(node.attrs["perm"][i] for i in x.perm))
        elif node.op.name == "broadcast_to":
            if not _only_at(inner.shape, node.output.shape, at):
                break
            found = x = Operand(inner, x.perm)
        else:  # each head several times: a new axis, stretched, and merged
            stretched = made_by(inner, "broadcast_to")
            apart = made_by(stretched.inputs[0], "reshape") if stretched else None
            if stretched is None or apart is None:
                break
            base, wide = apart.inputs[0], inner.shape
            new = (*base.shape[: at + 1], 1, *base.shape[at + 1 :])
            merged = (*wide[:at], wide[at] * wide[at + 1], *wide[at + 2 :])
            fits = (
                base.type.ndim == x.value.type.ndim
                and same_shape(apart.output.shape, new)
                and same_shape(x.value.shape, merged)
                and _only_at(new, wide, at + 1)
            )
            if not fits:
                break
            found = x = Operand(base, x.perm)
    return found


def _only_at(inner: Sequence[Dim], outer: Sequence[Dim], at: int) -> bool:
    """Whether one axis alone was stretched."""
    return len(inner) == len(outer) and all(
        dims.same(a, 1) if i == at else dims.same(a, b)
        for i, (a, b) in enumerate(zip(inner, outer, strict=True))
    )
