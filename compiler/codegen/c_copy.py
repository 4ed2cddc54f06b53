"""Copies in C: element by element along rows, or tile by tile where source and target lie across.

Invariant: a copy that turns rows into columns reads and writes whole lines of cache.
"""

from __future__ import annotations

from retrograde.compiler.codegen.c import Function, row_function
from retrograde.compiler.codegen.c_space import Axis, Text, axes_of, size_of
from retrograde.compiler.codegen.cstyle import memory_type
from retrograde.compiler.codegen.kernel import copy_kernel
from retrograde.compiler.ir.dims import Dim, same
from retrograde.compiler.plan.views import Operand, Turn, View

TILE = 32  # elements a side


def copy_function(x: Operand, y: View) -> Function:
    """The function of `y[...] = x`."""
    if isinstance(x, View) and not isinstance(x, Turn) and not isinstance(y, Turn):
        axes = axes_of([x.broadcast(y.shape), y], range(len(y.shape)))
        down = [axis for axis in axes if same(axis.strides[0], 1)]
        along = [axis for axis in axes if same(axis.strides[1], 1)]
        apart = down and along and down[0] is not along[0]
        if apart and not any(_short(axis.extent) for axis in (down[0], along[0])):
            return _across(x, y, axes, down[0], along[0])
    return row_function(copy_kernel(x, y))


def _short(extent: Dim) -> bool:
    return isinstance(extent, int) and extent < 4


def _across(x: View, y: View, axes: list[Axis], down: Axis, along: Axis) -> Function:
    """An item is a tile; `down` has the neighbours of the source, `along` those of the target."""
    outer = [axis for axis in axes if axis is not down and axis is not along]
    text, kind = Text(), memory_type(x.dtype)
    rows, columns = text.size(down.extent), text.size(along.extent)
    source, target = text.size(along.strides[0]), text.size(down.strides[1])
    text.add(
        "  ", f"const {kind} *const x = (void *)a[0];", f"{kind} *const y = (void *)a[1];",
        f"const i64 tall = ({rows} + {TILE - 1}) / {TILE};",
        f"const i64 wide = ({columns} + {TILE - 1}) / {TILE};",
        "for (i64 t = lo; t < hi; t++) {",
        f"  const i64 c = t % wide * {TILE}, r = t / wide % tall * {TILE};",
        f"  const i64 width = rg_min({TILE}, {columns} - c), height = rg_min({TILE}, {rows} - r);",
    )  # fmt: skip
    names = text.split("t / wide / tall", outer, "k", "    ")
    text.add(
        "    ", f"const {kind} *const from = x{text.offset(names, outer, 0)} + r + c * {source};",
        f"{kind} *const to = y{text.offset(names, outer, 1)} + c + r * {target};",
        f"if (width == {TILE} && height == {TILE})",
        f"  for (i64 i = 0; i < {TILE}; i++)",
        "    RG_SIMD",
        f"    for (i64 l = 0; l < {TILE}; l++) to[i * {target} + l] = from[i + l * {source}];",
        "else",
        "  for (i64 i = 0; i < height; i++)",
        "    RG_SIMD",
        f"    for (i64 l = 0; l < width; l++) to[i * {target} + l] = from[i + l * {source}];",
    )  # fmt: skip
    text.add("  ", "}")
    blocks = [(axis.extent + (TILE - 1)) // TILE for axis in (down, along)]
    return text.function((x, y), size_of(outer) * blocks[0] * blocks[1])
