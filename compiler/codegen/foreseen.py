"""A traced graph -> C files that its program will have, known before it is planned.

Products and attention are compiled from files that do not depend on sizes, places or what else a
program does.  Invariant: each is to the letter the file that `Kernels` makes for such a program.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from retrograde.compiler.codegen.c_attention import attention_text
from retrograde.compiler.codegen.c_matmul import product_texts
from retrograde.compiler.codegen.kernel_file import PRODUCTS, Kernels, Note
from retrograde.compiler.ir.graph import Graph, Node
from retrograde.compiler.plan.recipe import KernelFile

_ATTENTION = {"flash_attention": "forward", "flash_attention_grad": "backward"}


def foreseen(graph: Graph, blas: Collection[str] = ()) -> tuple[KernelFile, ...]:
    """The files of the products and the attention in `graph`; `blas` are the dtypes whose products
    a BLAS computes.  A program may turn out not to have a product among its kernels, where all of
    them are sums of rows."""
    kernels = Kernels()
    for node in _nodes(graph):
        if node.op.name in _ATTENTION:
            kernels.number(attention_text(_ATTENTION[node.op.name]), Note("", ()))
        elif node.op.name == "dot_general":
            kind = node.output.dtype.name
            if kind in PRODUCTS and kind not in blas:
                kernels.number(product_texts(kind)[0], Note("", ()))
    return kernels.files()


def _nodes(graph: Graph) -> Iterator[Node]:
    for node in graph.nodes:
        yield node
        for _, body in node.subgraphs():
            yield from _nodes(body)
