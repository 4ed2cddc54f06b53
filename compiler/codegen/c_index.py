"""Gathers and scatters in C: index arrays -> a function that checks them, and one that moves.

Invariant: every index is checked before the first element is moved; a scatter takes the updates of
one place in their order, since threads share out elements of what is indexed, never the indices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from retrograde.compiler.codegen.c import Function
from retrograde.compiler.codegen.c_space import Axis, Text, axes_of, merged, size_of
from retrograde.compiler.codegen.cstyle import (
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

WIDTH = 16  # elements of a row that one thread writes at least


def check_function(node: Node, x: View, indices: Sequence[View]) -> Function:
    """Refuses what the reference refuses: of the first array with a bad index the largest index, if
    that is too large, else the smallest."""
    text, wrap = Text(), node.attrs["wrap"]
    count = dims.product(indices[0].shape)
    for n, (index, axis) in enumerate(zip(indices, node.attrs["axes"], strict=True)):
        kind, unsigned = memory_type(index.dtype), index.dtype.kind == "uint"
        space = axes_of([index], range(len(index.shape)))
        text.add("  ", "{", f"  const {kind} *const at = (void *)a[{n}];")
        text.add("    ", f"{kind} low = at[0], high = low;")
        names, pad = text.loops(space[:-1], "i", "    ")
        inner = space[-1] if space else Axis(1, (0,))
        last = product("i", text.size(inner.strides[0]))
        text.add(
            pad, f"const {kind} *const p = at{text.offset(names, space[:-1], 0)};", "RG_SIMD",
            f"for (i64 i = 0; i < {text.size(inner.extent)}; i++) {{",
            f"  const {kind} v = p[{last}];",
            "  low = v < low ? v : low;", "  high = v > high ? v : high;", "}",
        )  # fmt: skip
        text.close(space[:-1], "    ")
        extent = text.size(x.shape[axis])
        if unsigned:
            most = "high > (u64)INT64_MAX ? INT64_MAX : (i64)high" if kind == "u64" else "high"
            text.add("    ", f"const i64 most = {most};")
        else:
            text.add("    ", "const i64 most = high;")
        text.add("    ", f"if (most >= {extent}) return rg_bad_index({n}, most);")
        if not unsigned:
            least = f"-{extent}" if wrap else "0"
            text.add("    ", f"if (low < {least}) return rg_bad_index({n}, low);")
        text.add("  ", "}")
    return text.function(indices, dims.dim_min(count, 1))


def gather_function(node: Node, x: View, indices: Sequence[View], out: View) -> Function:
    """An item is a row of elements at one place of the index arrays."""
    part = _Part.of(node, x, indices, out)
    text, kind = part.text, memory_type(x.dtype)
    text.add("  ", f"const {kind} *const x = (void *)a[0];", f"{kind} *const y = (void *)a[1];")
    part.pointers(2)
    *outer, inner = part.rest
    text.add("  ", "for (i64 r = lo; r < hi; r++) {")
    if outer:
        rows = text.size(size_of(outer))
        text.add("    ", f"const i64 o = r % {rows}, p = r / {rows};")
    held = text.split("o", outer, "o", "    ") if len(outer) == 1 else []
    if len(outer) > 1:
        held = text.split("o", outer, "u", "    ")
    names = text.split("p" if outer else "r", part.places, "i", "    ")
    offset = part.place(names, "    ")
    text.add(
        "    ",
        f"const {kind} *const from = x{offset}{text.offset(held, outer, 0)};",
        f"{kind} *const to = y{text.offset(names, part.places, len(indices))}"
        f"{text.offset(held, outer, 1)};",
        "RG_SIMD",
        f"for (i64 i = 0; i < {text.size(inner.extent)}; i++)",
        f"  to[{product('i', text.size(inner.strides[1]))}] = "
        f"from[{product('i', text.size(inner.strides[0]))}];",
    )
    text.add("  ", "}")
    grain = max(1, 64 // max(inner.extent, 1)) if isinstance(inner.extent, int) else 1
    items = dims.product(indices[0].shape) * size_of(outer)
    return text.function((x, out, *indices), items, grain)


def scatter_function(
    node: Node, updates: Operand, indices: Sequence[View], out: View
) -> Function:
    """An item is a run of elements of the rows that are written."""
    given = updates if isinstance(updates, View) else None
    part = _Part.of(node, out, indices, given)
    text, kind = part.text, memory_type(out.dtype)
    *outer, inner = part.rest
    text.add("  ", f"{kind} *const y = (void *)a[0];")
    if given is not None:
        text.add("  ", f"const {memory_type(given.dtype)} *const x = (void *)a[1];")
        value = load(given.dtype, f"from[{product('i', text.size(inner.strides[1]))}]")
    else:
        assert isinstance(updates, Literal)
        value = literal(updates.value, updates.dtype)
    part.pointers(1 if given is None else 2)
    at = f"to[{product('i', text.size(inner.strides[0]))}]"
    if node.op.name == "scatter_add":
        value = f"({register_type(out.dtype)})({load(out.dtype, at)} + {value})"
    width = text.size(inner.extent)
    text.add(
        "  ", f"const i64 across = ({width} + {WIDTH - 1}) / {WIDTH};",
        "for (i64 t = lo, next; t < hi; t = next) {",
        "  const i64 b = t % across;",
        "  next = rg_min(hi, t - b + across);",
        f"  const i64 first = b * {WIDTH}, last = rg_min((b + next - t) * {WIDTH}, {width});",
    )  # fmt: skip
    held = text.split("t / across", outer, "o", "    ")
    loops, pad = text.loops(part.places, "i", "    ")
    offset = part.place(loops, pad)
    text.add(pad, f"{kind} *const to = y{offset}{text.offset(held, outer, 0)};")
    if given is not None:
        moved = text.offset(loops, part.places, len(indices)) + text.offset(held, outer, 1)
        text.add(pad, f"const {memory_type(given.dtype)} *const from = x{moved};")
        step = part.places[-1].strides[len(indices)] if part.places else 0
        if dims.same(inner.strides[1], 1) and dims.decide_le(step, -1) is True:
            # No processor sees that rows are read backwards, each from its beginning on.
            line = 64 // given.dtype.bytes
            text.add(
                pad, f"for (i64 i = first; i < last; i += {line})",
                f"  __builtin_prefetch(from + {text.size(step)} + i);",
            )  # fmt: skip
    text.add(
        pad, "RG_SIMD",
        f"for (i64 i = first; i < last; i++) {at} = {store(out.dtype, value)};",
    )  # fmt: skip
    text.close(part.places, "    ")
    text.add("  ", "}")
    views = (out,) if given is None else (out, given)
    items = size_of(outer) * ((inner.extent + (WIDTH - 1)) // WIDTH)
    return text.function((*views, *indices), items)


@dataclass
class _Part:
    """Which part of `x` each place of the index arrays stands for.

    `places`: the axes of the index arrays, with the strides of each and of what moves; `rest`: the
    axes of `x` that have no index, with the strides of `x` and of what moves."""

    node: Node
    x: View
    indices: Sequence[View]
    places: list[Axis]
    rest: list[Axis]
    text: Text

    @classmethod
    def of(cls, node: Node, x: View, indices: Sequence[View], moving: View | None) -> _Part:
        axes = node.attrs["axes"]
        rank = len(indices[0].shape)
        moves: tuple[Dim, ...]
        rest = [a for a in range(len(x.shape)) if a not in axes]
        moves = (0,) * (rank + len(rest)) if moving is None else moving.strides
        places = merged(
            Axis(d, (*(i.strides[k] for i in indices), moves[k]))
            for k, d in enumerate(indices[0].shape)
        )
        left = merged(
            Axis(x.shape[a], (x.strides[a], moves[rank + k])) for k, a in enumerate(rest)
        )
        return cls(node, x, indices, places, left or [Axis(1, (0, 0))], Text())

    def pointers(self, first: int) -> None:
        for n, index in enumerate(self.indices):
            kind = memory_type(index.dtype)
            self.text.add("  ", f"const {kind} *const at{n} = (void *)a[{first + n}];")

    def place(self, names: Sequence[str], pad: str) -> str:
        """Where the indices at a place lead, from the beginning of `x`."""
        text, offset = self.text, ""
        axes, wrap = self.node.attrs["axes"], self.node.attrs["wrap"]
        for n, (index, axis) in enumerate(zip(self.indices, axes, strict=True)):
            where = text.offset(names, self.places, n)
            text.add(pad, f"i64 j{n} = (i64)*(at{n}{where});")
            if wrap and index.dtype.kind == "int":
                text.add(pad, f"if (j{n} < 0) j{n} += {text.size(self.x.shape[axis])};")
            offset += f" + {product(f'j{n}', text.size(self.x.strides[axis]))}"
        return offset
