"""How a head and its loss are cut for compiled kernels: sizes -> slices, blocks, tiles and the
working memory that they take.

Each slice of the vocabulary is one piece of work; it goes through its columns in blocks, and
through the rows in tiles.  Invariant: the cut follows from the static sizes d and v alone; nothing
has the size of the logits.
"""

from __future__ import annotations

from dataclasses import dataclass

from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.dtypes import DType
from retrograde.compiler.ir.graph import Node
from retrograde.compiler.ops.cross_entropy import sizes_of
from retrograde.compiler.plan.views import ALIGNMENT, View, scratch

NAMES = ("linear_cross_entropy", "linear_cross_entropy_grad")
SLICES = 16  # at most: as many threads can work, and as often dx is there before it is added up
PANEL, PAD = 32, 16  # whole panels of columns, and what keeps rows of a tile from aliasing
TILE = 144  # rows
BLOCK_BYTES = 512 * 1024  # of the columns of w that rows pass by


@dataclass(frozen=True)
class HeadCut:
    """The cut of one head: `n` rows, width `d`, `v` classes."""

    n: Dim
    d: int
    v: int
    dtype: DType

    @property
    def block(self) -> int:
        """Columns of a block."""
        fits = BLOCK_BYTES // self.dtype.bytes // max(self.d, 1) // PANEL * PANEL
        return max(PANEL, min(fits, 512, -(-self.v // PANEL) * PANEL))

    @property
    def slice(self) -> int:
        """Columns of a slice, whole blocks."""
        most = max(1, min(SLICES, self.v // max(4 * self.d, 1)))
        each = -(-self.v // most)
        return max(1, -(-each // self.block)) * self.block

    @property
    def slices(self) -> int:
        return -(-self.v // self.slice)

    @property
    def wide(self) -> int:
        """The width in whole panels."""
        return -(-self.d // PANEL) * PANEL

    def part(self, grad: bool) -> tuple[int, ...]:
        """Where each array of a thread begins in its working memory, and how much it has in all:
        panels of w, a tile of logits, then for the gradient panels of w transposed and dw."""
        row = self.block + PAD
        sizes = [self.d * self.block, TILE * row]
        if grad:
            sizes += [self.wide * self.block, self.d * row]
        per = ALIGNMENT // self.dtype.bytes
        places = [0]
        for size in sizes:
            places.append(places[-1] + -(-size // per) * per)
        return tuple(places)


def head_cut(node: Node) -> HeadCut | None:
    """The cut for a node; None for one that no kernel does."""
    if node.op.name not in NAMES or node.inputs[0].dtype.bytes < 4:
        return None
    x, w = (v.type for v in node.inputs[:2])
    d, v = sizes_of(node.attrs, w)
    if not (isinstance(d, int) and isinstance(v, int)):
        return None
    return HeadCut(x.shape[0], d, v, x.dtype)


def head_memory(node: Node, threads: int) -> tuple[View, ...]:
    """The working memory of the kernels: the rows that count with their targets, as much of x, what
    slices leave by row, and the arrays of each thread."""
    cut = head_cut(node)
    if cut is None:
        return ()
    grad = node.op.name == NAMES[1]
    n, slices = cut.n, cut.slices
    by_row = slices * n * cut.wide + n * (cut.d + 3) if grad else (2 * slices + 1) * n
    sizes = (n * cut.d, by_row, threads * cut.part(grad)[-1])
    return (
        scratch(2 * n + 1, dtypes.i64, node.place),
        *(scratch(dims.dim_max(size, 1), cut.dtype, node.place) for size in sizes),
    )
