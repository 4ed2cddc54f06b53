"""Reductions in C: along rows as a kernel over rows, else down columns.

Invariant: columns are added up in slices of a fixed number of rows, then the slices, in order.
"""

from __future__ import annotations

from collections.abc import Sequence

from retrograde.compiler.codegen.c import (
    HEAD,
    Function,
    folded,
    identity,
    joined,
    row_function,
)
from retrograde.compiler.codegen.cstyle import (
    Extents,
    load,
    memory_type,
    product,
    register_type,
    store,
)
from retrograde.compiler.codegen.kernel import reduce_kernel
from retrograde.compiler.ir import dims
from retrograde.compiler.ir.dims import Dim, same
from retrograde.compiler.ir.graph import Node
from retrograde.compiler.plan.lower import SLICE
from retrograde.compiler.plan.views import Operand, View

COLUMNS, DEEP = 64, 128


def reduce_function(node: Node, x: Operand, out: View) -> Function | None:
    """The function of a reduction, None for axes that do not merge into one run."""
    if not isinstance(x, View) or x.dtype is not out.dtype:
        return None
    if node.op.name == "row_dot":
        return None
    axes = node.attrs["axes"]
    if not axes or axes != tuple(range(axes[0], axes[-1] + 1)):
        return None
    if node.op.name in ("max", "min") and any(same(x.shape[a], 0) for a in axes):
        return None
    run = dims.product(x.shape[a] for a in axes)
    before = dims.product(x.shape[: axes[0]])
    after = dims.product(x.shape[axes[-1] + 1 :])
    flat = x.reshaped((before, run, after))
    result = out.reshaped((before, 1, after))
    if flat is None or result is None:
        return None
    if same(after, 1):
        return row_function(reduce_kernel(node, flat.reshaped((before, run)) or _dropped(flat),
                                          result.reshaped((before, 1)) or _dropped(result)))
    return _down(node, flat, result)


def total_functions(
    node: Node, operands: Sequence[View], out: View, partials: View
) -> list[Function] | None:
    """The total of one array, or of the products of two: slices, then the slices in order."""
    if not all(v.contiguous for v in operands):
        return None
    kind = memory_type(out.dtype)
    count: Dim = dims.product(operands[0].shape)
    pointers = [f"  const {kind} *const x{i} = (void *)a[{i}];" for i in range(len(operands))]
    after = len(operands)
    value = " * ".join(f"x{i}[i + l]" for i in range(after))
    lane = joined(node, "s[l]", f"({value})")
    first = "\n".join([
        HEAD,
        *pointers,
        f"  {kind} *const y = (void *)a[{after}];",
        f"  const i64 n = a[{after + 1}];",
        "  for (i64 t = lo; t < hi; t++) {",
        f"    const i64 end = rg_min(n, (t + 1) * {SLICE});",
        f"    {kind} s[{COLUMNS}];",
        f"    for (int l = 0; l < {COLUMNS}; l++) s[l] = {identity(node)};",
        f"    i64 i = t * {SLICE};",
        f"    for (; i + {COLUMNS} <= end; i += {COLUMNS})",
        f"      for (int l = 0; l < {COLUMNS}; l++) s[l] = {lane};",
        f"    for (i64 l = 0; l < end - i; l++) s[l] = {lane};",
        *folded(node, "s", COLUMNS, "    "),
        "    y[t] = s[0];",
        "  }",
        "  return RG_OK;",
        "}",
    ])  # fmt: skip
    second = "\n".join([
        HEAD,
        f"  const {kind} *const x = (void *)a[0];",
        f"  {kind} *const y = (void *)a[1];",
        f"  {kind} s = {identity(node)};",
        f"  for (i64 i = 0; i < a[2]; i++) s = {joined(node, 's', 'x[i]')};",
        "  y[0] = s;",
        "  return RG_OK;",
        "}",
    ])  # fmt: skip
    slices = dims.ceil_div(count, SLICE)
    return [
        Function(first, (*operands, partials), (count,), slices),
        Function(second, (partials, out), (slices,), 1),
    ]


def _dropped(view: View) -> View:
    return view.sliced((0, 0, 0), (1, 1, 1), view.shape).reshaped(view.shape[:2]) or view


def _down(node: Node, x: View, out: View) -> Function:
    size = Extents()
    kind, held = memory_type(x.dtype), register_type(x.dtype)
    rows, columns = x.shape[1:]
    step = size(x.strides[1])
    element = load(x.dtype, f"p[{product('l', size(x.strides[2]))}]")
    place = product("l", size(out.strides[2]))
    text = "\n".join([
        f"  const {kind} *const x = (void *)a[0];",
        f"  {kind} *const y = (void *)a[1];",
        f"  const i64 rows = {size(rows)}, columns = {size(columns)};",
        f"  const i64 across = (columns + {COLUMNS - 1}) / {COLUMNS};",
        "  for (i64 t = lo; t < hi; t++) {",
        f"    const i64 q = t / across, c = t % across * {COLUMNS};",
        f"    const i64 width = rg_min({COLUMNS}, columns - c);",
        f"    {held} total[{COLUMNS}];",
        f"    for (int l = 0; l < {COLUMNS}; l++) total[l] = {identity(node)};",
        f"    for (i64 r0 = 0; r0 < rows; r0 += {DEEP}) {{",
        f"      const i64 r1 = rg_min(rows, r0 + {DEEP});",
        f"      {held} s[{COLUMNS}];",
        f"      for (int l = 0; l < {COLUMNS}; l++) s[l] = {identity(node)};",
        "      for (i64 r = r0; r < r1; r++) {",
        f"        const {kind} *const p = x + q * {size(x.strides[0])} + r * {step} + "
        f"{product('c', size(x.strides[2]))};",
        f"        if (width == {COLUMNS})",
        f"          for (int l = 0; l < {COLUMNS}; l++) s[l] = {joined(node, 's[l]', element)};",
        "        else",
        f"          for (i64 l = 0; l < width; l++) s[l] = {joined(node, 's[l]', element)};",
        "      }",
        f"      for (int l = 0; l < {COLUMNS}; l++) total[l] = {joined(node, 'total[l]', 's[l]')};",
        "    }",
        f"    {kind} *const w = y + q * {size(out.strides[0])} + "
        f"{product('c', size(out.strides[2]))};",
        f"    for (i64 l = 0; l < width; l++) w[{place}] = {store(out.dtype, 'total[l]')};",
        "  }",
    ])  # fmt: skip
    sizes = [f"  const i64 n{i} = a[{2 + i}];" for i in range(len(size.open))]
    items: Dim = x.shape[0] * ((columns + (COLUMNS - 1)) // COLUMNS)
    body = "\n".join([HEAD, *sizes, text, "  return RG_OK;", "}"])
    return Function(body, (x, out), tuple(size.open), items)
