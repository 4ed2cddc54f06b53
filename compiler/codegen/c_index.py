"""Gathers and scatters in C: index arrays -> functions that check every index before they use it.

Invariant: a scatter adds the updates of one place in their order; threads share out the elements of
a row, never the rows.
"""

from __future__ import annotations

from collections.abc import Sequence

from retrograde.compiler.codegen.c import HEAD, Function
from retrograde.compiler.codegen.cstyle import (
    Extents,
    literal,
    load,
    memory_type,
    product,
    register_type,
    store,
)
from retrograde.compiler.ir import dims
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.graph import Node
from retrograde.compiler.plan.views import Literal, Operand, View

WIDTH = 16  # elements of a row that one thread adds to at least


def gather_function(
    node: Node, x: Operand, indices: Sequence[Operand], out: View
) -> Function | None:
    """An item is one place of the index arrays."""
    if not isinstance(x, View):
        return None
    part = _Part.of(node, x, indices, out)
    if part is None:
        return None
    size, kind = part.size, memory_type(x.dtype)
    lines = [
        f"  const {kind} *const x = (void *)a[0];",
        f"  {kind} *const y = (void *)a[1];",
        *part.pointers(2),
        "  for (i64 r = lo; r < hi; r++) {",
        *part.place(),
        f"    const {kind} *const from = x{part.offset};",
        f"    {kind} *const to = y{part.moving};",
        "    RG_SIMD",
        f"    for (i64 i = 0; i < {size(part.width)}; i++)",
        f"      to[{product('i', size(part.out_inner))}] = "
        f"from[{product('i', size(part.x_inner))}];",
        "  }",
    ]
    return part.function(lines, (x, out), part.count)


def scatter_function(
    node: Node, updates: Operand, indices: Sequence[Operand], out: View
) -> Function | None:
    """An item is a run of elements of the rows that are added to."""
    adds = node.op.name == "scatter_add"
    given = updates if isinstance(updates, View) else None
    part = _Part.of(node, out, indices, given)
    if part is None or out.dtype.name == "bool":
        return None
    size, kind = part.size, memory_type(out.dtype)
    if given is not None:
        value = load(out.dtype, f"from[{product('i', size(part.out_inner))}]")
    else:
        assert isinstance(updates, Literal)
        value = literal(updates.value, out.dtype)
    at = f"to[{product('i', size(part.x_inner))}]"
    if adds:
        value = f"({register_type(out.dtype)})({load(out.dtype, at)} + {value})"
    source = [f"  const {kind} *const x = (void *)a[1];"] if given is not None else []
    lines = [
        f"  {kind} *const y = (void *)a[0];",
        *source,
        *part.pointers(1 + len(source)),
        f"  const i64 first = lo * {WIDTH}, last = rg_min(hi * {WIDTH}, {size(part.width)});",
        f"  for (i64 r = 0; r < {size(part.count)}; r++) {{",
        *part.place(),
        f"    {kind} *const to = y{part.offset};",
        *([f"    const {kind} *const from = x{part.moving};"] if given is not None else []),
        "    RG_SIMD",
        f"    for (i64 i = first; i < last; i++) {at} = {store(out.dtype, value)};",
        "  }",
    ]
    views = (out,) if given is None else (out, given)
    return part.function(lines, views, (part.width + (WIDTH - 1)) // WIDTH)


class _Part:
    """Which part of `x` each place of the index arrays stands for."""

    @classmethod
    def of(
        cls, node: Node, x: View, indices: Sequence[Operand], rows: View | None
    ) -> _Part | None:
        """None where the axes that are left do not merge into one."""
        axes = node.attrs["axes"]
        found = [i for i in indices if isinstance(i, View)]
        if len(found) != len(indices):
            return None
        shape = found[0].shape
        count, rank = dims.product(shape), len(shape)
        rest = [a for a in range(len(x.shape)) if a not in axes]
        width = dims.product(x.shape[a] for a in rest)
        one = (*(x.shape[a] for a in rest), *(1,) * len(axes))
        start, step = (0,) * len(x.shape), (1,) * len(x.shape)
        left = x.transposed((*rest, *axes)).sliced(start, step, one).reshaped((width,))
        if left is None:
            return None
        moving = None
        if rows is not None:
            moving = rows.reshaped((*shape, width))
            if moving is None:
                return None
        flat = [i.reshaped((count,)) for i in found]
        moved = moving.reshaped((count, width)) if moving is not None else None
        if all(i is not None for i in flat) and (moving is None or moved is not None):
            found, shape, moving = [i for i in flat if i is not None], (count,), moved
            rank = 1
        return cls(node, x, found, shape, rank, count, width, left, moving)

    def __init__(
        self, node: Node, x: View, indices: list[View], shape: tuple[Dim, ...], rank: int,
        count: Dim, width: Dim, left: View, moving: View | None,
    ) -> None:  # fmt: skip
        self.size = size = Extents()
        self.node, self.x, self.indices = node, x, indices
        self.shape, self.count, self.width = shape, count, width
        self.x_inner = left.strides[0] if not dims.same(width, 1) else 0
        self.out_inner: Dim = 0
        names = [f"i{n}" for n in range(rank)]
        self.names = names
        self.moving = ""
        if moving is not None:
            self.out_inner = moving.strides[-1]
            self.moving = "".join(
                f" + {product(i, size(s))}" for i, s in zip(names, moving.strides, strict=False)
            )
        axes = node.attrs["axes"]
        self.offset = "".join(f" + j{n} * {size(x.strides[a])}" for n, a in enumerate(axes))

    def pointers(self, first: int) -> list[str]:
        lines = []
        for n, index in enumerate(self.indices):
            kind = memory_type(index.dtype)
            lines.append(f"  const {kind} *const at{n} = (void *)a[{first + n}];")
        self.first = first + len(self.indices)
        return lines

    def place(self) -> list[str]:
        """The indices of place `r`, checked."""
        size, names = self.size, self.names
        lines: list[str] = []
        if len(names) == 1:
            lines.append("    const i64 i0 = r;")
        elif names:
            lines.append("    i64 q = r;")
            for n in range(len(names) - 1, 0, -1):
                extent = size(self.shape[n])
                lines.append(f"    const i64 i{n} = q % {extent}; q /= {extent};")
            lines.append("    const i64 i0 = q;")
        wrap = self.node.attrs["wrap"]
        for n, (index, axis) in enumerate(zip(self.indices, self.node.attrs["axes"], strict=True)):
            terms = [product(i, size(s)) for i, s in zip(names, index.strides, strict=True)]
            where = " + ".join(t for t in terms if t != "0") or "0"
            extent = size(self.x.shape[axis])
            lines.append(f"    i64 j{n} = (i64)at{n}[{where}];")
            if wrap:
                lines.append(f"    const i64 g{n} = j{n};")
                lines.append(f"    if (j{n} < 0) j{n} += {extent};")
            given = f"g{n}" if wrap else f"j{n}"
            lines.append(
                f"    if (j{n} < 0 || j{n} >= {extent}) return rg_bad_index({n}, {given});"
            )
        return lines

    def function(self, lines: list[str], views: tuple[View, ...], items: Dim) -> Function:
        sizes = [f"  const i64 n{i} = a[{self.first + i}];" for i in range(len(self.size.open))]
        body = "\n".join([HEAD, *sizes, *lines, "  return RG_OK;", "}"])
        return Function(body, (*views, *self.indices), tuple(self.size.open), items)
