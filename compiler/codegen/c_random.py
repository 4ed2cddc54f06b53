"""Random bits in C: keys, rows, shapes -> calls of csource/random.h.

Invariant: the bits are those of compiler/ops/random.py, whoever draws which of them.
"""

from __future__ import annotations

from retrograde.compiler.codegen.c import Function
from retrograde.compiler.codegen.c_space import Text
from retrograde.compiler.codegen.cstyle import memory_type
from retrograde.compiler.ir import dims
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.plan.views import View

GRAIN = 64  # blocks that a thread draws at least


def bits_function(key: View, row: View, out: View) -> Function | None:
    """An item is one block of four elements; None where rows have no single stride."""
    rows: Dim = out.shape[0] if out.shape else 1
    width = dims.product(out.shape[1:])
    flat = out.reshaped((rows, width))
    if flat is None:
        return None
    text = Text()
    text.add(
        "  ", "const u32 *const key = (void *)a[0];", "const i64 *const row = (void *)a[1];",
        f"rg_random_bits((u32 *)a[2], {text.size(flat.strides[0])}, {text.size(flat.strides[1])}, "
        f"{text.size(width)}, key[0], key[{text.size(key.strides[0])}], (u64)row[0], lo, hi);",
    )  # fmt: skip
    return text.function((key, row, out), rows * dims.ceil_div(width, 4), GRAIN)


def fold_function(key: View, data: View, out: View) -> Function:
    """The key that a key and a number make."""
    text = Text()
    text.add(
        "  ", "const u32 *const key = (void *)a[0];",
        f"const {memory_type(data.dtype)} *const data = (void *)a[1];",
        f"rg_random_fold((u32 *)a[2], {text.size(out.strides[0])}, key[0], "
        f"key[{text.size(key.strides[0])}], (u64)data[0]);",
    )  # fmt: skip
    return text.function((key, data, out), 1)
