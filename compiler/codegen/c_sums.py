"""Sums over all rows of a fused step in C: the parts that its kernel left -> the results.

Invariant: the parts are added in the order of the rows, whatever the number of threads.
"""

from __future__ import annotations

from retrograde.compiler.codegen.c import HEAD, Function
from retrograde.compiler.codegen.cstyle import Extents, memory_type, product, register_type, store
from retrograde.compiler.codegen.kernel import partials
from retrograde.compiler.ir import dims
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.passes.spaces import to_one
from retrograde.compiler.plan.fused import ROWS, partial_width
from retrograde.compiler.plan.steps import FusedStep
from retrograde.compiler.plan.views import View

COLUMNS, DEEP = 64, 128


def sums_function(step: FusedStep) -> Function | None:
    """The function that adds up the parts of all sums of a step; None for a step without any.

    An item is a block of columns of each of them."""
    found = partials(step)
    if not found:
        return None
    size, width = Extents(), step.shape[-1]
    makers = step.node.attrs["body"].producers()
    slices = size(dims.ceil_div(dims.product(step.shape[:-1]), ROWS))
    lines: list[str] = []
    places: list[View] = []
    for j, part in found:
        out, value = step.results[j], step.node.attrs["body"].outputs[j]
        columns: Dim = 1 if to_one(makers[value]) else width
        stride = out.strides[-1] if out.shape else 0
        kind, held = memory_type(part.dtype), register_type(part.dtype)
        step_over = size(partial_width(width, part.dtype))
        at = product("(c + l)", size(stride))
        lines += [
            "    {",
            f"      const {kind} *const x = ({kind} *)a[{len(places)}] + c;",
            f"      {memory_type(out.dtype)} *const y = (void *)a[{len(places) + 1}];",
            f"      const i64 width = rg_min({COLUMNS}, {size(columns)} - c);",
            f"      {held} total[{COLUMNS}];",
            f"      for (int l = 0; l < {COLUMNS}; l++) total[l] = 0;",
            f"      for (i64 r0 = 0; r0 < {slices}; r0 += {DEEP}) {{",
            f"        const i64 r1 = rg_min({slices}, r0 + {DEEP});",
            f"        {held} s[{COLUMNS}];",
            f"        for (int l = 0; l < {COLUMNS}; l++) s[l] = 0;",
            "        for (i64 r = r0; r < r1; r++)",
            f"          for (i64 l = 0; l < width; l++) s[l] += x[r * {step_over} + l];",
            f"        for (int l = 0; l < {COLUMNS}; l++) total[l] += s[l];",
            "      }",
            f"      for (i64 l = 0; l < width; l++) y[{at}] = {store(out.dtype, 'total[l]')};",
            "    }",
        ]
        places += [part, out]
    head = [f"  const i64 n{i} = a[{len(places) + i}];" for i in range(len(size.open))]
    text = "\n".join([
        HEAD,
        *head,
        "  for (i64 t = lo; t < hi; t++) {",
        f"    const i64 c = t * {COLUMNS};",
        *lines,
        "  }",
        "  return RG_OK;",
        "}",
    ])  # fmt: skip
    return Function(text, tuple(places), tuple(size.open), 1 + dims.floordiv(width, COLUMNS))
