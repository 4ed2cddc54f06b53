"""Totals over any axes in C, of one array or of the products of two: reductions and contractions.

Invariant: what is added to an element, and in which order, follows from the sizes alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from retrograde.compiler.codegen.c import Function, folded
from retrograde.compiler.codegen.c_space import (
    COLUMNS,
    Axis,
    Text,
    axes_of,
    size_of,
    with_columns,
)
from retrograde.compiler.codegen.cstyle import (
    identity,
    joined,
    load,
    memory_type,
    product,
    register_type,
    store,
)
from retrograde.compiler.ir.graph import Node
from retrograde.compiler.ir.registry import lookup
from retrograde.compiler.ops.contract import free_axes
from retrograde.compiler.plan.views import View

DEEP = 128  # elements that are added up in their order


def total_function(
    node: Node, operands: Sequence[View], kept: Sequence[int], over: Sequence[int], out: View
) -> Function:
    """The totals over the axes `over` of operands of one shape; `out` has the others, `kept`."""
    space = (*kept, *over)
    ordered = [v.transposed(space) for v in operands]
    spread = out.broadcast((*(1,) * len(over), *out.shape)).transposed(
        (*range(len(over), len(space)), *range(len(over)))
    )
    views = [*ordered, spread]
    outer = axes_of(views, range(len(kept)))
    inner = axes_of(ordered, range(len(kept), len(space))) or [Axis(1, (0,) * len(ordered))]
    if inner[-1].close or not outer:
        return _Total(node, operands, out).along(outer, inner)
    return _Total(node, operands, out).across(with_columns(outer), inner)


def contraction_function(node: Node, left: View, right: View, out: View) -> Function:
    """`dot_general` of any element type, correct for all and fast for none."""
    (lc, rc), (lb, rb) = node.attrs["contract"], node.attrs["batch"]
    lf, rf = (free_axes(len(v.shape), c, b) for v, c, b in ((left, lc, lb), (right, rc, rb)))
    a = left.transposed((*lb, *lf, *lc))
    b = right.transposed((*rb, *rf, *rc))
    nb, nl, nr, nc = len(lb), len(lf), len(rf), len(lc)
    space = (*a.shape[: nb + nl], *b.shape[nb : nb + nr], *a.shape[nb + nl :])
    a = a.reshaped((*a.shape[: nb + nl], *(1,) * nr, *a.shape[nb + nl :])) or a
    b = b.reshaped((*b.shape[:nb], *(1,) * nl, *b.shape[nb:])) or b
    kept = range(nb + nl + nr)
    stretched = [v.broadcast(space) for v in (a, b)]
    return total_function(node, stretched, kept, range(len(kept), len(kept) + nc), out)


class _Total:
    def __init__(self, node: Node, operands: Sequence[View], out: View) -> None:
        self.node, self.operands, self.out = node, operands, out
        self.text = Text()
        self.held = register_type(out.dtype)
        for i, v in enumerate(operands):
            kind = memory_type(v.dtype)
            self.text.add("  ", f"const {kind} *const x{i} = (void *)a[{i}];")
        kind = memory_type(out.dtype)
        self.text.add("  ", f"{kind} *const y = (void *)a[{len(operands)}];")

    def along(self, outer: list[Axis], inner: list[Axis]) -> Function:
        """An item is one total, which runs in lanes."""
        text, node, held = self.text, self.node, self.held
        text.add("  ", "for (i64 t = lo; t < hi; t++) {")
        places = text.split("t", outer, "k", "    ")
        text.add("    ", f"{held} s[{COLUMNS}];")
        text.add("    ", f"for (int l = 0; l < {COLUMNS}; l++) s[l] = {identity(node)};")
        names, pad = text.loops(inner[:-1], "r", "    ")
        for i, v in enumerate(self.operands):
            at = text.offset(places, outer, i) + text.offset(names, inner[:-1], i)
            text.add(pad, f"const {memory_type(v.dtype)} *const p{i} = x{i}{at};")
        n, steps = text.size(inner[-1].extent), [text.size(s) for s in inner[-1].strides]
        text.add(
            pad, "i64 i = 0;",
            f"for (; i + {COLUMNS} <= {n}; i += {COLUMNS}) {{",
            "  RG_SIMD",
            f"  for (i64 l = 0; l < {COLUMNS}; l++) {{",
            *("    " + line for line in self._add([product("(i + l)", s) for s in steps])),
            "  }",
            "}",
            "RG_SIMD",
            f"for (i64 l = 0; l < {n} - i; l++) {{",
            *("  " + line for line in self._add([product("(i + l)", s) for s in steps])),
            "}",
        )  # fmt: skip
        text.close(inner[:-1], "    ")
        text.lines += folded(node, "s", COLUMNS, "    ")
        at = text.offset(places, outer, len(self.operands))
        text.add("    ", f"*(y{at}) = {store(self.out.dtype, 's[0]')};")
        text.add("  ", "}")
        return text.function((*self.operands, self.out), size_of(outer))

    def across(self, outer: list[Axis], inner: list[Axis]) -> Function:
        """An item is a run of totals, that lie along the last axis of `outer`."""
        text, node, held, last = self.text, self.node, self.held, outer[-1]
        width = text.size(last.extent)
        text.add("  ", f"const i64 across = ({width} + {COLUMNS - 1}) / {COLUMNS};")
        text.add("  ", "for (i64 t = lo; t < hi; t++) {")
        text.add("    ", f"const i64 c = t % across * {COLUMNS};")
        text.add("    ", f"const i64 width = rg_min({COLUMNS}, {width} - c);")
        places = [*text.split("t / across", outer[:-1], "k", "    "), "c"]
        fresh = f"for (int l = 0; l < {COLUMNS}; l++) %s[l] = {identity(node)};"
        text.add("    ", f"{held} total[{COLUMNS}];", fresh % "total")
        names, pad = text.loops(inner[:-1], "r", "    ")
        extent = text.size(inner[-1].extent)
        text.add(
            pad, f"for (i64 d = 0; d < {extent}; d += {DEEP}) {{",
            f"  const i64 end = rg_min({extent}, d + {DEEP});",
            f"  {held} s[{COLUMNS}];", "  " + fresh % "s",
            "  for (i64 e = d; e < end; e++) {",
        )  # fmt: skip
        for i, v in enumerate(self.operands):
            at = text.offset(places, outer, i) + text.offset([*names, "e"], inner, i)
            text.add(pad, f"    const {memory_type(v.dtype)} *const p{i} = x{i}{at};")
        adds = self._add([product("l", text.size(s)) for s in last.strides[:-1]])
        for head in (f"if (width == {COLUMNS})", "else"):
            end = COLUMNS if head != "else" else "width"
            text.add(
                pad + "    ", head + " {", "  RG_SIMD", f"  for (i64 l = 0; l < {end}; l++) {{",
                *("    " + line for line in adds), "  }", "}",
            )  # fmt: skip
        both = joined(node, "total[l]", "s[l]")
        text.add(pad, "  }", f"  for (int l = 0; l < {COLUMNS}; l++) total[l] = {both};", "}")
        text.close(inner[:-1], "    ")
        at = text.offset(places, outer, len(self.operands))
        to = product("l", text.size(last.strides[-1]))
        text.add(
            "    ", f"{memory_type(self.out.dtype)} *const w = y{at};",
            f"for (i64 l = 0; l < width; l++) w[{to}] = {store(self.out.dtype, 'total[l]')};",
        )  # fmt: skip
        text.add("  ", "}")
        blocks = (last.extent + (COLUMNS - 1)) // COLUMNS
        return text.function((*self.operands, self.out), size_of(outer[:-1]) * blocks)

    def _add(self, at: Sequence[str]) -> list[str]:
        """Adds the element at `at` of each operand to lane `l`."""
        loads = [load(v.dtype, f"p{i}[{a}]") for i, (v, a) in enumerate(
            zip(self.operands, at, strict=True))]  # fmt: skip
        lines = [f"const {self.held} v{i} = {x};" for i, x in enumerate(loads)]
        value = "v0"
        if len(loads) == 2:
            dtype = self.out.dtype
            both = lookup("mul").c_expression(["v0", "v1"], dtype, dtype)
            lines.append(f"const {self.held} v = {both};")
            value = "v"
        return [*lines, f"s[l] = {joined(self.node, 's[l]', value)};"]
