"""Lowering of one fused region: its body -> statements on tiles, with little scratch.

Invariant: a tile variable is never overwritten before its last reader.  Temporaries live in the
tile of the result they lead to where the ops allow it in place, else in shared scratch slots.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from retrograde.compiler.ir import dims
from retrograde.compiler.ir.dims import Dim, same
from retrograde.compiler.ir.dtypes import DType, f32
from retrograde.compiler.ir.graph import Graph, Node, Value, same_shape
from retrograde.compiler.ir.registry import Kind
from retrograde.compiler.passes.spaces import gathers_rows, sums_rows
from retrograde.compiler.plan.steps import FusedStep, Statement, Tile, tile
from retrograde.compiler.plan.sweeps import may_be_far, sweeps_of
from retrograde.compiler.plan.views import ALIGNMENT, Operand, View, scratch

# Measured: 64K-element tiles run a nine-op GELU chain fastest under NumPy (docs/performance.md).
TILE_ELEMENTS = 65536
ROWS = 32  # of a slice: what sums over all rows add in their order


def lower_fused(
    node: Node, operands: Sequence[Operand], results: Sequence[View], threads: int
) -> FusedStep:
    """The step of a `fused` node, given where its operands and results lie."""
    body: Graph = node.attrs["body"]
    shape: tuple[Dim, ...] = node.attrs["shape"]
    homes, slots = _homes(body, shape)
    tiles = {v: tile("x", i) for i, v in enumerate(body.inputs)} | homes
    statements = tuple(
        Statement(n, tuple(tiles[v] for v in n.inputs), tiles[n.output]) for n in body.nodes
    )
    # What has one element per row is made once, so a tile holds its row whole.
    whole_rows = any(n.op.kind is Kind.REDUCE or _is_row(n.output, shape) for n in body.nodes)
    full, column = tile_elements(shape, whole_rows), tile_rows(shape)
    space = tuple(
        scratch((column if slot.row else full) * threads, slot.dtype, node.place) for slot in slots
    )
    rows = tuple(slot.row for slot in slots)
    return FusedStep(
        node, shape, tuple(operands), tuple(results), space, rows, statements, whole_rows
    )


def lower_rows(
    node: Node,
    operands: Sequence[Operand],
    results: Sequence[View],
    threads: int,
    sizes: Mapping[str, int] | None = None,
) -> FusedStep:
    """The step of a `fused` node that a kernel runs row by row, each thread with rows of working
    memory of its own.  Each slice of `ROWS` rows has one for each sum over all rows."""
    body: Graph = node.attrs["body"]
    shape: tuple[Dim, ...] = node.attrs["shape"]
    tiles = {v: tile("x", i) for i, v in enumerate(body.inputs)}
    tiles |= {n.output: tile("t", i) for i, n in enumerate(body.nodes)}
    tiles |= {v: tile("y", j) for j, v in enumerate(body.outputs)}
    statements = tuple(
        Statement(n, tuple(tiles[v] for v in n.inputs), tiles[n.output]) for n in body.nodes
    )
    whole_rows = any(
        n.op.kind is Kind.REDUCE or sums_rows(n) or gathers_rows(n) or _is_row(n.output, shape)
        for n in body.nodes
    )
    space_of_rows = shape if whole_rows else (*shape, 1)
    sweeps = sweeps_of(body, space_of_rows, results, may_be_far(shape, sizes))
    space = [
        scratch(dims.align(shape[-1], ALIGNMENT // dtype.bytes) * threads, dtype, node.place)
        for dtype in sweeps.dtypes
    ]
    slices = dims.ceil_div(dims.product(shape[:-1]), ROWS)
    for j in sweeps.sums:
        partial = body.outputs[j].dtype
        dtype = partial if partial.bytes > 2 or not partial.is_float else f32
        space.append(scratch(slices * partial_width(shape[-1], dtype), dtype, node.place))
    return FusedStep(
        node, shape, tuple(operands), tuple(results), tuple(space), (), statements, whole_rows,
        sweeps,
    )


def partial_width(width: Dim, dtype: DType) -> Dim:
    """The elements between the sums of two slices: whole cache lines, never none."""
    return dims.align(width + 1, ALIGNMENT // dtype.bytes)


def tile_elements(shape: Sequence[Dim], whole_rows: bool) -> Dim:
    """How many elements of the space one tile holds at most."""
    least = shape[-1] if whole_rows else 1
    return dims.dim_min(dims.product(shape), dims.dim_max(TILE_ELEMENTS, least))


def tile_rows(shape: Sequence[Dim]) -> Dim:
    """How many rows of the space one tile holds at most."""
    width = shape[-1]
    most = max(1, TILE_ELEMENTS // max(width, 1)) if isinstance(width, int) else TILE_ELEMENTS
    return dims.dim_min(dims.product(shape[:-1]), most)


@dataclass(frozen=True)
class _Slot:
    """A scratch tile: one element per position, or per row."""

    row: bool
    dtype: DType


def _homes(body: Graph, shape: tuple[Dim, ...]) -> tuple[dict[Value, Tile], list[_Slot]]:
    """The tile that each value of the body is written to."""
    last_use: dict[Value, int] = {}
    for i, n in enumerate(body.nodes):
        for v in n.inputs:
            last_use[v] = i
    chains = _chains(body, last_use)
    homes: dict[Value, Tile] = {}
    for j, v in enumerate(body.outputs):
        for member in chains[v]:
            homes[member] = tile("y", j)

    slots: list[_Slot] = []
    free_after: list[int] = []  # the statement after which each slot is free
    for i, n in enumerate(body.nodes):
        if n.output in homes:
            continue
        chain = chains[n.output]
        end = max(last_use.get(v, i) for v in chain)
        wanted = _Slot(_is_row(n.output, shape), n.output.dtype)
        for k, slot in enumerate(slots):
            if slot == wanted and free_after[k] < i:
                break
        else:
            k = len(slots)
            slots.append(wanted)
            free_after.append(-1)
        free_after[k] = end
        for member in chain:
            homes[member] = tile("t", k)
    return homes, slots


def _is_row(v: Value, shape: tuple[Dim, ...]) -> bool:
    return same(v.shape[-1], 1) and not same(shape[-1], 1)


def _chains(body: Graph, last_use: dict[Value, int]) -> dict[Value, list[Value]]:
    """Runs of values that can share one tile, each computed in place from the one before.

    Returns, for each value, the chain it is in.  Outputs only end chains: they are kept."""
    inputs, outputs = set(body.inputs), set(body.outputs)
    chain: dict[Value, list[Value]] = {}
    for i in range(len(body.nodes) - 1, -1, -1):
        n = body.nodes[i]
        mine = chain.setdefault(n.output, [n.output])
        if n.op.kind is not Kind.ELEMENTWISE or _may_take_over(n, inputs, outputs):
            continue
        for k in n.op.inplace:
            v = n.inputs[k]
            if v in inputs or v in outputs or v in chain or last_use[v] != i:
                continue
            if any(w is v and j not in n.op.inplace for j, w in enumerate(n.inputs)):
                continue
            if v.dtype is n.output.dtype and same_shape(v.shape, n.output.shape):
                mine.append(v)
                chain[v] = mine
                break
    return chain


def _may_take_over(n: Node, inputs: set[Value], outputs: set[Value]) -> bool:
    """Whether a result of the region may take the buffer of an operand that `n` reads.

    Temporaries then stay out of its tile: they would overwrite what is still to be read."""
    return n.output in outputs and any(
        (v := n.inputs[k]) in inputs
        and v.dtype is n.output.dtype
        and same_shape(v.shape, n.output.shape)
        for k in n.op.inplace
    )


def first_write(step: FusedStep, result: int) -> int:
    """The first statement that writes the tile of a result."""
    wanted = tile("y", result)
    return next(i for i, s in enumerate(step.statements) if s.result == wanted)


def last_read(step: FusedStep, operand: int) -> int:
    """The last statement that reads the tile of an operand, -1 if none does."""
    wanted = tile("x", operand)
    return max((i for i, s in enumerate(step.statements) if wanted in s.operands), default=-1)
