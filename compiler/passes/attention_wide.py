"""Tiled attention of 16-bit operands computed in f32: Graph -> Graph, late.

The kernels work on f32.  What is kept for the gradient stays in 16 bits: the casts are made here,
behind everything that would let the way back use those of the way forward.  Invariant: same types
of results.
"""

from __future__ import annotations

from dataclasses import dataclass

from retrograde.compiler.ir import dtypes
from retrograde.compiler.ir.builder import Builder
from retrograde.compiler.ir.expr import Expr, cast
from retrograde.compiler.ir.graph import Graph, Node, Value
from retrograde.compiler.ir.registry import lookup

_TILED = ("flash_attention", "flash_attention_grad")


@dataclass(frozen=True)
class WideAttention:
    """Casts around each tiled attention whose operands are in 16 bits."""

    def __call__(self, graph: Graph) -> Graph:
        if not any(map(_is_narrow, graph.nodes)):
            return graph
        builder = Builder(graph.name, Expr)
        builder.inputs.extend(graph.inputs)
        builder.input_names.extend(graph.input_names)
        renamed: dict[Value, Value] = {}
        with builder:
            for node in graph.nodes:
                inputs = [renamed.get(v, v) for v in node.inputs]
                if not _is_narrow(node):
                    builder.append(node.with_inputs(inputs) if renamed else node)
                    continue
                with builder.located(node.loc, node.scope, node.origin):
                    results = _widened(node, [Expr(v, builder) for v in inputs])
                renamed |= {v: x.value for v, x in zip(node.outputs, results, strict=True)}
        outputs = [renamed.get(v, v) for v in graph.outputs]
        return builder.finish(outputs, graph.output_names, graph.aliases)


def _is_narrow(node: Node) -> bool:
    return node.op.name in _TILED and node.inputs[0].dtype.bytes == 2


def _widened(node: Node, operands: list[Expr]) -> list[Expr]:
    wide = [cast(x, dtypes.f32) if x.dtype is node.inputs[0].dtype else x for x in operands]
    results = lookup(node.op.name)(*wide, **node.attrs)
    return [cast(x, v.dtype) for x, v in zip(results, node.outputs, strict=True)]
