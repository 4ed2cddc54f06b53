"""Dead code elimination: Graph -> Graph.

Invariant: every node left is needed by an output or acts on an effect channel; the step results
and constants of a scan that nobody reads are gone from its body too, the results and operands of a
cond from its branches.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from retrograde.compiler.ir.graph import Graph, Node, Value
from retrograde.compiler.ops.region import effects_of


@dataclass(frozen=True)
class DCE:
    """Removes nodes whose results are not used."""

    def __call__(self, graph: Graph) -> Graph:
        live: set[Value] = set(graph.outputs)
        kept: list[Node] = []
        for node in reversed(graph.nodes):
            if not has_effect(node) and not any(v in live for v in node.outputs):
                continue
            if node.op.name == "scan":
                node = self._prune_scan(node, live)
            elif node.op.name == "cond":
                node = self._prune_cond(node, live)
            live.update(node.inputs)
            kept.append(node)
        if len(kept) == len(graph.nodes) and all(
            a is b for a, b in zip(reversed(kept), graph.nodes, strict=True)
        ):
            return graph
        return graph.replace(nodes=tuple(reversed(kept)))

    def _prune_scan(self, node: Node, live: set[Value]) -> Node:
        """Drops dead step results from the body, and the operands that the body then ignores."""
        body: Graph = node.attrs["body"]
        n, m = node.attrs["carries"], node.attrs["carries"] + node.attrs["slices"]
        kept = [i for i, v in enumerate(node.outputs) if i < n or v in live]
        body = self(body.replace(outputs=tuple(body.outputs[i] for i in kept), output_names=()))
        read = {v for inner in body.nodes for v in inner.inputs} | set(body.outputs)
        mask = node.attrs.get("live")
        if mask is not None:  # what a device goes by, whether the body reads it or not
            read.add(body.inputs[n + mask])
        used = [i for i, v in enumerate(body.inputs) if i < n or v in read]
        if len(kept) == len(node.outputs) and len(used) == len(node.inputs):
            return node
        names = body.input_names or ("",) * len(body.inputs)
        body = body.replace(
            inputs=tuple(body.inputs[i] for i in used),
            input_names=tuple(names[i] for i in used),
        )
        attrs = {**node.attrs, "body": body, "slices": sum(1 for i in used if n <= i < m)}
        if mask is not None:
            attrs["live"] = used.index(n + mask) - n
        return replace(
            node,
            inputs=tuple(node.inputs[i] for i in used),
            outputs=tuple(node.outputs[i] for i in kept),
            attrs=attrs,
        )

    def _prune_cond(self, node: Node, live: set[Value]) -> Node:
        """Drops dead results from both branches, and the operands that both then ignore."""
        kept = [i for i, v in enumerate(node.outputs) if v in live]
        branches: dict[str, Graph] = {}
        used: set[int] = set()
        for key, branch in node.subgraphs():
            results = tuple(branch.outputs[i] for i in kept)
            branch = branches[key] = self(branch.replace(outputs=results, output_names=()))
            read = {v for inner in branch.nodes for v in inner.inputs} | set(results)
            used |= {i for i, v in enumerate(branch.inputs) if v in read}
        if len(kept) == len(node.outputs) and len(used) == len(node.inputs) - 1:
            return node
        operands = sorted(used)
        for key, branch in branches.items():
            names = branch.input_names or ("",) * len(branch.inputs)
            branches[key] = branch.replace(
                inputs=tuple(branch.inputs[i] for i in operands),
                input_names=tuple(names[i] for i in operands),
            )
        return replace(
            node,
            inputs=(node.inputs[0], *(node.inputs[1 + i] for i in operands)),
            outputs=tuple(node.outputs[i] for i in kept),
            attrs={**node.attrs, **branches},
        )


def has_effect(node: Node) -> bool:
    """Whether the node, or a node of its sub-graphs, acts on an effect channel."""
    return bool(effects_of(node))
