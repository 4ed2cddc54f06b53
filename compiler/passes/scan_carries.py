"""A loop whose carries all change, from one where some stay as they are.

Input: a scan; output: the scan with the carries that its body passes on untouched as constants, so
that what is made of them can leave the loop.  The gradient of a loss added up in the carry is such
a carry.  Invariant: same values, after no steps too.
"""

from __future__ import annotations

from dataclasses import replace

from retrograde.compiler.ir.graph import Graph, Node, Value


def frozen(node: Node, renamed: dict[Value, Value]) -> Node:
    """The scan without the carries that never change; their last values are noted as the first."""
    body: Graph = node.attrs["body"]
    n, m = node.attrs["carries"], node.attrs["carries"] + node.attrs["slices"]
    still = [i for i in range(n) if body.outputs[i] is body.inputs[i]]
    if not still:
        return node
    renamed.update((node.outputs[i], node.inputs[i]) for i in still)
    order = [*(i for i in range(m) if i not in still), *range(m, len(body.inputs)), *still]
    kept = [i for i in range(len(body.outputs)) if i not in still]
    names = body.input_names or ("",) * len(body.inputs)
    return replace(
        node,
        inputs=tuple(node.inputs[i] for i in order),
        outputs=tuple(node.outputs[i] for i in kept),
        attrs={
            **node.attrs,
            "carries": n - len(still),
            "body": body.replace(
                inputs=tuple(body.inputs[i] for i in order),
                outputs=tuple(body.outputs[i] for i in kept),
                input_names=tuple(names[i] for i in order),
                output_names=(),
            ),
        },
    )
