"""What C and CUDA spell alike: types, constants, sizes, ops as expressions, and totals.

Invariant: f16 and bf16 are held as f32 in registers, and rounded after each op to what they hold in
memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from retrograde.compiler.ir import dims
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.dtypes import DType
from retrograde.compiler.ir.graph import Node
from retrograde.compiler.ir.registry import lookup

LINE = 64  # bytes of a cache line, and elements that threads share out at once
_HALVES = {"f16", "bf16"}
# The op that joins two parts of a total.
_TOTALS = {
    "sum": "add", "row_dot": "add", "dot_general": "add", "prod": "mul",
    "max": "maximum", "min": "minimum", "any": "add", "all": "mul",
}  # fmt: skip


def memory_type(dtype: DType) -> str:
    """How an element lies in memory."""
    if dtype.name == "bool":
        return "u8"
    return "u16" if dtype.name in _HALVES else dtype.name


def register_type(dtype: DType) -> str:
    """How an element is computed with."""
    if dtype.name == "bool":
        return "u8"
    return "f32" if dtype.name in _HALVES else dtype.name


def load(dtype: DType, place: str) -> str:
    """The element at a place, as it is computed with."""
    return f"rg_load_{dtype.name}({place})" if dtype.name in _HALVES else place


def store(dtype: DType, value: str) -> str:
    """A value as it lies in memory."""
    return f"rg_store_{dtype.name}({value})" if dtype.name in _HALVES else value


def rounded(dtype: DType, value: str) -> str:
    """The result of an op, rounded to its type."""
    return load(dtype, store(dtype, value)) if dtype.name in _HALVES else value


def literal(value: bool | int | float, dtype: DType) -> str:
    """A constant."""
    if dtype.name == "bool":
        return "1" if value else "0"
    if not dtype.is_float:
        return _integer(int(value), dtype)
    number = float(dtype.numpy.type(value))
    if math.isnan(number):
        return "NAN"
    if math.isinf(number):
        return "INFINITY" if number > 0 else "-INFINITY"
    if dtype.bytes == 8:
        return repr(number)
    return f"{float(number)!r}f" if dtype.bytes == 4 else f"{number!r}f"


def _integer(value: int, dtype: DType) -> str:
    bits = 8 * dtype.bytes
    if dtype.kind == "int" and value == -(1 << (bits - 1)):
        return f"({dtype.name})(-{(1 << (bits - 1)) - 1} - 1)"
    suffix = "" if dtype.bytes < 8 else "LL"
    return f"{value}{'U' if dtype.kind == 'uint' else ''}{suffix}"


def expression(node: Node, operands: Sequence[str]) -> str:
    """The value of an elementwise op of plain variables."""
    typed = node.inputs[1] if node.op.name == "select" else node.inputs[0]
    out = node.output.dtype
    return rounded(out, node.op.c_expression(operands, typed.dtype, out))


class Extents:
    """The sizes of a kernel: numbers where they are known, else one of its arguments."""

    def __init__(self) -> None:
        self.open: list[Dim] = []

    def __call__(self, d: Dim) -> str:
        if isinstance(d, int):
            return str(d)
        for i, known in enumerate(self.open):
            if dims.same(known, d):
                return f"n{i}"
        self.open.append(d)
        return f"n{len(self.open) - 1}"


def product(a: str, b: str) -> str:
    """The text of a product, without factors of one."""
    if a == "0" or b == "0":
        return "0"
    if a == "1":
        return b
    return a if b == "1" else f"{a} * {b}"


def padded(width: Dim, dtype: DType) -> Dim:
    """The elements of a row of working memory: whole cache lines."""
    return dims.align(width, LINE // dtype.bytes)


def joined(node: Node, a: str, b: str) -> str:
    """Two parts of a total as one."""
    dtype = node.output.dtype
    return lookup(_TOTALS[node.op.name]).c_expression([a, b], dtype, dtype)


def identity(node: Node) -> str:
    """What a total is of nothing."""
    dtype, name = node.output.dtype, node.op.name
    if _TOTALS[name] == "add":
        return literal(0, dtype)
    if name in ("prod", "all"):
        return literal(1, dtype)
    low = name == "max"
    if dtype.is_float:
        return "-INFINITY" if low else "INFINITY"
    bits = 8 * dtype.bytes
    if dtype.kind == "uint" or dtype.name == "bool":
        return literal(0 if low else (1 if dtype.name == "bool" else 2**bits - 1), dtype)
    return literal(-(2 ** (bits - 1)) if low else 2 ** (bits - 1) - 1, dtype)
