"""What may leave a ragged loop: the body of a scan with `live` -> which values differ from those of
the whole batch where no row lives.

What a device leaves out of a ragged loop is zero in what the loop stacks, also where the body would
have kept a carry.  Everything that is computed of such zeros for all rows at once meets a factor
that is zero there, so it is harmless as long as it is finite.  Invariant: an op that is not finite
for all finite operands, or that checks its operands, stays inside where it reads such a value.
"""

from __future__ import annotations

from retrograde.compiler.ir.graph import Graph, Node, Value
from retrograde.compiler.ir.registry import Kind
from retrograde.compiler.ops.scan import ARITHMETIC

# Finite for all finite operands that do not overflow in a sum or product of them.
_FINITE = ARITHMETIC | {
    "tanh", "sigmoid", "erf", "erfc", "sin", "cos", "arctan", "floor", "ceil", "trunc", "round",
    "logical_xor", "isnan", "isinf", "isfinite", "sum", "any", "all", "row_dot", "cumsum",
}  # fmt: skip
_FINITE_KINDS = frozenset({Kind.MOVE, Kind.CREATE, Kind.CONTRACT, Kind.RANDOM})


class Filled:
    """The values of a body that are zero, or come of a zero, where a device leaves rows out."""

    def __init__(self, node: Node) -> None:
        body: Graph = node.attrs["body"]
        live = node.attrs.get("live")
        n, m = node.attrs["carries"], node.attrs["carries"] + node.attrs["slices"]
        self.values: set[Value] = set()
        self._makers: dict[Value, Node] = {}
        if live is None:
            return
        self._makers = body.producers()
        self._masks = {body.inputs[n + live]}
        self.values = set(body.inputs[:m]) - self._masks
        for inner in body.nodes:
            if inner.op.kind is Kind.MOVE and inner.inputs and inner.inputs[0] in self._masks:
                self._masks.update(inner.outputs)
            elif self._read(inner) and not self.cleared(inner):
                self.values.update(inner.outputs)

    def keeps_inside(self, node: Node) -> bool:
        """Whether `node` must not run on what the loop leaves out."""
        finite = node.op.name in _FINITE or node.op.kind in _FINITE_KINDS
        return (not finite or node.op.checks_data) and self._read(node)

    def has_other(self, v: Value, made: Node) -> bool:
        """Whether `v` is not zero where no row lives, as what the loop stacks is: a constant, say.

        All that is not zero there is computed for all steps behind the loop, or not at all."""
        return bool(self._makers) and v not in self.values and not self.cleared(made)

    def cleared(self, node: Node) -> bool:
        """Whether the results are zero in the rows that do not have the step, whatever it reads."""
        if node.op.name != "select" or not self._makers:
            return False
        mask, _, other = node.inputs
        return mask in self._masks and self._is_zero(other)

    def _read(self, node: Node) -> bool:
        return not self.values.isdisjoint(node.inputs)

    def _is_zero(self, v: Value) -> bool:
        made = self._makers.get(v)
        if made is not None and made.op.kind is Kind.MOVE and len(made.inputs) == 1:
            return self._is_zero(made.inputs[0])
        return made is not None and made.op.name == "constant" and made.attrs["value"] == 0
