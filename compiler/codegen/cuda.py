"""The CUDA printer of kernels over rows: `RowKernel` -> a `__global__` function and its launch.

Threads take elements in turn, so that neighbours read neighbours.  A row has a warp, or a block
where it is long; a kernel without totals gives a short row fewer threads still.  Elements are
computed by the functions of csource/math.h, as in C.  Invariant: the bits of a row depend on its
length alone, not on the number of blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from retrograde.compiler.codegen.csource import part
from retrograde.compiler.codegen.cstyle import (
    identity,
    joined,
    memory_type,
    padded,
    register_type,
)
from retrograde.compiler.codegen.kernel import RowKernel
from retrograde.compiler.codegen.row_printer import RowPrinter, nested, pointer
from retrograde.compiler.errors import UnsupportedError
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.graph import Node
from retrograde.compiler.plan.views import View

FLAGS = ("--fmad=false",)  # what a compiler of this code has to be told
PARTS = ("cuda", "math")
WARP, BLOCK, LARGEST = 32, 256, 1024  # threads
BLOCKS = 1 << 16  # at most; each goes on where there is more to do


@dataclass(frozen=True)
class CudaFunction:
    """A kernel's text, with @ for its name, and what a launch gives it: places, sizes, the count
    of rows (of elements, where it is flat)."""

    text: str
    places: tuple[View, ...]
    sizes: tuple[Dim, ...]
    rows: Dim
    inner: Dim  # elements of a row
    flat: bool
    meets: bool  # whether the threads of a row wait for each other
    scratch: int  # how many of the places are rows of working memory, one for each row at a time


@dataclass(frozen=True)
class Shape:
    """A launch: so many blocks of `across` threads for a row by `down` rows."""

    blocks: int
    across: int
    down: int


def cuda_function(kernel: RowKernel) -> CudaFunction:
    """The CUDA function of a kernel.  Raises UnsupportedError for sums over all rows, and for what
    it gathers."""
    if kernel.sweeps.sums or kernel.gathered:
        raise UnsupportedError(
            f"CUDA kernels do not add up or gather rows of {kernel.outer} by {kernel.inner}: group "
            "the graph without `native`, which leaves that to a step of its own"
        )
    return _Rows(kernel).function()


def cuda_file(functions: Sequence[str]) -> str:
    """A file of functions whose names are set."""
    return "\n\n".join([*(part(name) for name in PARTS), *functions]) + "\n"


def shape_of(function: CudaFunction, rows: int, inner: int, at_once: int = BLOCK * BLOCKS) -> Shape:
    """The launch for `rows` rows of `inner` elements (a flat kernel: for `rows` elements).

    `at_once`: how many rows the working memory has room for, where the kernel wants some."""
    if function.flat:
        return Shape(_blocks(rows, BLOCK), BLOCK, 1)
    if function.meets:
        across = WARP if inner <= LARGEST else BLOCK if inner <= 16 * LARGEST else LARGEST
    else:
        across = min(BLOCK, 1 << max(0, inner - 1).bit_length())
    down = max(1, BLOCK // across)
    if not function.scratch:
        return Shape(_blocks(rows, down), across, down)
    down = min(down, at_once)
    return Shape(min(_blocks(rows, down), at_once // down), across, down)


def _blocks(items: int, each: int) -> int:
    return max(1, min(BLOCKS, -(-items // each)))


class _Rows(RowPrinter):
    """A row has the threads of one value of threadIdx.y; a total is one variable of each."""

    meets = False

    def function(self) -> CudaFunction:
        k, pointers = self.kernel, self.pointers
        body = self.body()
        lines: list[str] = []
        given = [pointer(name, y).replace("*const ", "*") for name, y in pointers]
        for b, dtype in enumerate(k.sweeps.dtypes):
            width, kind = self.size(padded(k.inner, dtype)), memory_type(dtype)
            given.append(f"{kind} *w{b}")
            lines.append(f"{kind} *const b{b} = w{b} + RG_ROW * {width};")
        if self.flat:
            lines += body
        else:
            loop = "for (i64 r = RG_ROW; r < count; r += RG_ROWS)"
            lines += nested(loop, [*self.row_starts(), *body])
        given += [f"i64 n{i}" for i in range(len(self.size.open))]
        head = f'extern "C" __global__ void @({", ".join([*given, "i64 count"])})'
        return CudaFunction(
            "\n".join(nested(head, lines)), (*(y.view for _, y in pointers), *k.scratch),
            tuple(self.size.open), k.inner if self.flat else k.rows, k.inner, self.flat,
            self.meets, len(k.scratch),
        )  # fmt: skip

    def elements(self, body: Sequence[str]) -> list[str]:
        if self.flat:
            return nested("for (i64 i = RG_FLAT; i < count; i += RG_FLATS)", body)
        n = self.size(self.kernel.inner)
        return nested(f"for (i64 i = threadIdx.x; i < {n}; i += blockDim.x)", body)

    def totalled(
        self, number: int, totals: Sequence[tuple[str, Node]], body: Sequence[str]
    ) -> list[str]:
        """The elements of each thread, then the threads."""
        self.meets = True
        kinds = [register_type(node.output.dtype) for _, node in totals]
        return [
            *(f"{t} {s} = {identity(node)};" for t, (s, node) in zip(kinds, totals, strict=True)),
            *self.elements(body),
            *(
                f"RG_ROW_TOTAL({t}, {s}, o, {joined(node, s, 'o')});"
                for t, (s, node) in zip(kinds, totals, strict=True)
            ),
        ]

    def running(self, name: str) -> str:
        return name

    def total(self, name: str) -> str:
        return name

    def once(self, stores: Sequence[str]) -> list[str]:
        """By one thread, after all have read what may have lain there."""
        self.meets = True
        return ["rg_row_meet();", *nested("if (threadIdx.x == 0)", stores)]
