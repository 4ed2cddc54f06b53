"""Working memory of tiled attention: widths -> f32 that a thread needs (csource/attention*.h)."""

from __future__ import annotations

from retrograde.compiler.ir import dims
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.dtypes import f32
from retrograde.compiler.ir.graph import Node
from retrograde.compiler.plan.views import ALIGNMENT, View, scratch

QUERIES = 64  # of a block
BLOCK = 256  # keys of a round on the way forward
OPS = ("flash_attention", "flash_attention_grad")
_WIDEST, _TILE = 16, 64  # lanes of a vector; keys of a tile


def scratch_elements(width: Dim, values: Dim) -> Dim:
    """The f32 of one thread: `rg_attention_scratch` for the widest vectors, in whole lines."""
    both = dims.dim_max(width, values) + _WIDEST
    return 64 + (6 * both + max(BLOCK, 2 * _TILE) + 3 * _TILE + 8) * QUERIES


def working_memory(node: Node, threads: int) -> View:
    """Working memory for all threads."""
    one = scratch_elements(node.inputs[0].shape[3], node.inputs[2].shape[3])
    return scratch(dims.align(one, ALIGNMENT // f32.bytes) * threads, f32, node.place)
