"""Tiled attention in C: the steps of `flash_attention` and its gradient -> launches of
csource/attention*.h.

Invariant: into how many shares the keys are cut is fixed by the sizes of the program.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from retrograde.compiler.codegen.c import HEAD, Function
from retrograde.compiler.ir import dims
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.graph import Node
from retrograde.compiler.ops.attention import scale_of
from retrograde.compiler.ops.flash import named
from retrograde.compiler.plan.flash import BLOCK, QUERIES, scratch_elements
from retrograde.compiler.plan.views import View

FAR = 1 << 60
Fields = list[View | Dim]


def attention_functions(
    node: Node, operands: Sequence[View], results: Sequence[View], space: View
) -> list[Function]:
    """The launch of the way forward."""
    out, lse = results
    fields = _given(node, operands)
    fields += [out, *out.strides[:3], lse, *lse.strides[:2]]
    fields += [*_extras(node, operands), *_space(node, space), *[0] * 18]
    batch, heads, queries = out.shape[:3]
    items = batch * heads * dims.ceil_div(queries, QUERIES)
    return [_function("forward", fields, items)]


def gradient_functions(
    node: Node, operands: Sequence[View], results: Sequence[View], space: View
) -> list[Function]:
    """The launch of the way back."""
    out, lse, dout = operands[-3:]
    fields = _given(node, operands)
    fields += [out, *out.strides[:3], lse, *lse.strides[:2]]
    fields += [*_extras(node, operands[:-3]), *_space(node, space)]
    for x in (dout, *results):
        fields += [x, *x.strides[:3]]
    fields += [1, 0]
    batch, shared = operands[1].shape[:2]
    return [_function("backward", fields, batch * shared)]


def _given(node: Node, operands: Sequence[View]) -> Fields:
    """Extents, scale and band; q, k, v with the steps over their first three axes."""
    q, k, v = operands[:3]
    low, high = node.attrs["low"], node.attrs["high"]
    fields: Fields = [q.shape[0], q.shape[1], k.shape[1], q.shape[2], k.shape[2], q.shape[3]]
    fields += [v.shape[3], _bits(scale_of(node.attrs, q.shape[3]))]
    fields += [-FAR if low is None else low, FAR if high is None else high]
    for x in (q, k, v):
        fields += [x, *x.strides[:3]]
    return fields


def _extras(node: Node, operands: Sequence[View]) -> Fields:
    """Masks, bias and dropout; 0 for what is not there."""
    extras = named(node.attrs, operands[3:])
    keys = operands[1].shape[2]
    queries = operands[0].shape[2]
    scores = (*operands[0].shape[:3], keys)
    fields: Fields = []
    for name, axes in (("lengths", 1), ("query_segments", 1), ("key_segments", 1)):
        x = extras.get(name)
        fields += [0] * (1 + axes) if x is None else [x, x.strides[0]]
    for name in ("mask", "bias"):
        x = extras.get(name)
        fields += [0] * 5 if x is None else [x, *x.broadcast(scores).strides]
    if "drop_key" not in extras:
        return [*fields, *[0] * 10]
    keep = float(node.attrs["keep"])
    limit = int(np.ceil(np.float32(keep) * 2.0**24))
    fields += [extras["drop_key"], extras["drop_row"], limit, _bits(1 / keep)]
    return [*fields, 1, 0, 0, 0, queries * keys, keys]


def _space(node: Node, space: View) -> Fields:
    return [space, scratch_elements(node.inputs[0].shape[3], node.inputs[2].shape[3]), BLOCK]


def attention_text(way: str) -> str:
    """The function that goes "forward" or "backward", for all sizes."""
    return f"{HEAD}\n  return rg_attention_{way}(a, lo, hi, part);\n}}"


def _function(way: str, fields: Fields, items: Dim) -> Function:
    return Function(attention_text(way), (), (), items, mixed=tuple(fields))


def _bits(x: float) -> int:
    return int(np.float32(x).view(np.uint32))
