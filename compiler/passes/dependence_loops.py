"""Whether a loop begins anew with each segment: the body of a scan -> which results hold a carry.

Invariant: a carry that is said not to be seen reaches no result where a segment begins, for any
numbers.
"""

from __future__ import annotations

from collections.abc import Mapping

from retrograde.compiler.ir.graph import Graph, Value

MOVED = frozenset({"reshape", "broadcast_to", "cast", "stop_gradient", "transpose"})


def begun(
    body: Graph, carries: int, branch: Mapping[Value, int], live: Value | None, alive: bool
) -> bool:
    """Whether no result of a loop's body has anything of a carry where a segment begins, in rows
    that have the step (`alive`), or in those that have ended, where a carry may stay as it is.
    `branch`: the operand of a select that is taken within a segment, by its test."""
    makers, taken = body.producers(), 1 if alive else 2

    def test(v: Value) -> Value:
        while v in makers:
            node = makers[v]
            if node.op.name in MOVED:
                v = node.inputs[0]
            elif node.op.name == "select" and live is not None and test(node.inputs[0]) is live:
                v = node.inputs[taken]
            else:
                break
        return v

    def same(v: Value) -> Value:
        while v in makers and makers[v].op.name == "select" and live is not None:
            if test(makers[v].inputs[0]) is not live:
                break
            v = makers[v].inputs[taken]
        return v

    holds = set(body.inputs[:carries])
    for node in body.nodes:
        read = {i for i, v in enumerate(node.inputs) if v in holds}
        if node.op.name == "select":
            found = test(node.inputs[0])
            if live is not None and found is live:
                read &= {0, taken}
            elif found in branch:
                read -= {branch[found]}
        if read:
            holds.update(node.outputs)
    return not any(
        v in holds and not (not alive and i < carries and same(v) is body.inputs[i])
        for i, v in enumerate(body.outputs)
    )
