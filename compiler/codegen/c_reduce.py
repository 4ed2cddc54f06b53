"""Reductions in C: along rows as a kernel over rows, over other axes as totals; and the total of
all there is, in slices that threads share out.

Invariant: what is added up in which order follows from the sizes alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from retrograde.compiler.codegen.c import Function, folded, row_function
from retrograde.compiler.codegen.c_space import COLUMNS, Text, axes_of, size_of
from retrograde.compiler.codegen.c_total import total_function
from retrograde.compiler.codegen.cstyle import identity, joined, memory_type, product
from retrograde.compiler.codegen.kernel import reduce_kernel
from retrograde.compiler.ir import dims
from retrograde.compiler.ir.dims import Dim, same
from retrograde.compiler.ir.graph import Node
from retrograde.compiler.plan.lower import SLICE
from retrograde.compiler.plan.views import View


def reduce_function(node: Node, x: View, out: View) -> Function:
    """The function of a reduction."""
    axes = node.attrs["axes"]
    kept = [i for i in range(len(x.shape)) if i not in axes]
    if node.attrs["keepdims"]:
        out = _without(out, axes)
    along = axes_of([x], axes)
    if len(along) == 1 and along[0].close and axes[-1] == len(x.shape) - 1:
        rows = axes_of([x.transposed((*kept, *axes))], range(len(kept)))
        flat = x.reshaped((size_of(rows), along[0].extent))
        result = out.reshaped((size_of(rows), 1))
        if flat is not None and result is not None and not same(along[0].extent, 1):
            return row_function(reduce_kernel(node, flat, result))
    return total_function(node, [x], kept, axes, out)


def empty_function(extents: Sequence[Dim], axes: Sequence[int]) -> Function:
    """Refuses an extreme over no elements."""
    text = Text()
    for axis, extent in zip(axes, extents, strict=True):
        text.add("  ", f"if ({text.size(extent)} == 0) return {axis} << 8 | RG_EMPTY;")
    return text.function((), 1)


def total_functions(
    node: Node, operands: Sequence[View], out: View, partials: View
) -> list[Function] | None:
    """The total of one array, or of the products of two: slices, then the slices in order.  None
    where the elements of an array do not lie one stride apart."""
    count: Dim = dims.product(operands[0].shape)
    flat = [v.reshaped((count,)) for v in operands]
    lines = [v for v in flat if v is not None]
    if len(lines) < len(flat):
        return None
    kind, source = memory_type(out.dtype), memory_type(operands[0].dtype)
    text, after = Text(), len(operands)
    for i in range(after):
        text.add("  ", f"const {source} *const x{i} = (void *)a[{i}];")
    elements = [
        f"x{i}[{product('(i + l)', text.size(v.strides[0]))}]" for i, v in enumerate(lines)
    ]
    lane = joined(node, "s[l]", f"({' * '.join(elements)})")
    text.add(
        "  ", f"{kind} *const y = (void *)a[{after}];", f"const i64 n = {text.size(count)};",
        "for (i64 t = lo; t < hi; t++) {",
        f"  const i64 end = rg_min(n, (t + 1) * {SLICE});",
        f"  {kind} s[{COLUMNS}];",
        f"  for (int l = 0; l < {COLUMNS}; l++) s[l] = {identity(node)};",
        f"  i64 i = t * {SLICE};",
        f"  for (; i + {COLUMNS} <= end; i += {COLUMNS})",
        f"    for (int l = 0; l < {COLUMNS}; l++) s[l] = {lane};",
        f"  for (i64 l = 0; l < end - i; l++) s[l] = {lane};",
        *folded(node, "s", COLUMNS, "  "),
        "  y[t] = s[0];",
        "}",
    )  # fmt: skip
    slices = dims.ceil_div(count, SLICE)
    second = Text()
    second.add(
        "  ", f"const {kind} *const x = (void *)a[0];", f"{kind} *const y = (void *)a[1];",
        f"{kind} s = {identity(node)};",
        f"for (i64 i = 0; i < {second.size(slices)}; i++) s = {joined(node, 's', 'x[i]')};",
        "y[0] = s;",
    )  # fmt: skip
    return [
        text.function((*lines, partials), slices),
        second.function((partials, out), 1),
    ]


def _without(out: View, axes: Sequence[int]) -> View:
    """A result without the axes of size one that were reduced."""
    kept = [i for i in range(len(out.shape)) if i not in axes]
    strides = tuple(out.strides[i] for i in kept)
    return replace(out, shape=tuple(out.shape[i] for i in kept), strides=strides)
