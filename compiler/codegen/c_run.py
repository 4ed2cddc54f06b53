"""Running totals and the places of extremes along one axis, in C.

Invariant: a run is carried element by element in its order, f16 and bf16 in f32; nothing depends on
how items are shared out.
"""

from __future__ import annotations

from collections.abc import Sequence

from retrograde.compiler.codegen.c import Function
from retrograde.compiler.codegen.c_space import (
    COLUMNS,
    Axis,
    Text,
    axes_of,
    size_of,
    with_columns,
)
from retrograde.compiler.codegen.cstyle import load, memory_type, product, register_type, store
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.graph import Node
from retrograde.compiler.ir.registry import lookup
from retrograde.compiler.plan.views import View

_STEPS = {"cumsum": "add", "cumprod": "mul", "cummax": "maximum", "cummin": "minimum"}


def run_function(node: Node, operands: Sequence[View], out: View) -> Function:
    """cumsum and its like, and linear_recurrence."""
    text, held = Text(), register_type(out.dtype)
    run, kept, wide = _walked([*operands, out], node.attrs["axis"])
    lanes = COLUMNS if wide else 1
    _open(text, operands, out, kept, lanes)
    places = text.split("t / across" if wide else "t", kept[:-1] if wide else kept, "k", "    ")
    places += ["c"] if wide else []
    text.add("    ", f"{held} s[{lanes}];" if wide else f"{held} s = 0;")
    n = text.size(run.extent)
    at = f"{n} - 1 - e" if node.attrs["reverse"] else "e"
    text.add("    ", f"for (i64 e = 0; e < {n}; e++) {{", f"  const i64 r = {at};")
    steps = kept[-1].strides if wide else (0,) * (len(operands) + 1)
    for i, v in enumerate(operands):
        offset = text.offset([*places, "r"], [*kept, run], i)
        text.add("      ", f"const {memory_type(v.dtype)} *const p{i} = x{i}{offset};")
    offset = text.offset([*places, "r"], [*kept, run], len(operands))
    text.add("      ", f"{memory_type(out.dtype)} *const w = y{offset};")
    s = "s[l]" if wide else "s"
    loads = [
        load(v.dtype, f"p{i}[{product('l', text.size(steps[i]))}]")
        for i, v in enumerate(operands)
    ]
    first = [f"const {held} v{i} = {x};" for i, x in enumerate(loads)]
    more = joined_run(node, s, [f"v{i}" for i in range(len(operands))])
    to = product("l", text.size(steps[-1]))
    body = [
        *first,
        f"{s} = e ? {more} : v{len(operands) - 1};",
        f"w[{to}] = {store(out.dtype, s)};",
    ]
    if wide:
        text.add("      ", "RG_SIMD", "for (i64 l = 0; l < width; l++) {")
        text.add("        ", *body)
        text.add("      ", "}")
    else:
        text.add("      ", *body)
    text.add("    ", "}")
    text.add("  ", "}")
    return text.function((*operands, out), _items(kept, wide))


def joined_run(node: Node, s: str, values: Sequence[str]) -> str:
    """What a run is after one more element."""
    if node.op.name == "linear_recurrence":
        return f"{values[0]} * {s} + {values[1]}"
    dtype = node.output.dtype
    return "(" + lookup(_STEPS[node.op.name]).c_expression([s, values[0]], dtype, dtype) + ")"


def place_function(node: Node, x: View, out: View) -> Function:
    """argmax and argmin: the first NaN, else the first of the extremes."""
    axis = node.attrs["axis"]
    if not node.attrs["keepdims"]:
        out = _with_axis(out, axis)
    out = out.broadcast(x.shape)
    text, held = Text(), register_type(x.dtype)
    run, kept, wide = _walked([x, out], axis)
    lanes = COLUMNS if wide else 1
    _open(text, [x], out, kept, lanes)
    places = text.split("t / across" if wide else "t", kept[:-1] if wide else kept, "k", "    ")
    places += ["c"] if wide else []
    n, strides = text.size(run.extent), (kept[-1].strides if wide else (0, 0))
    ahead = ">" if node.op.name == "argmax" else "<"
    better = f"v {ahead} b"
    if x.dtype.is_float:
        better = f"({better} || v != v) && b == b"
    source = f"x0{text.offset(places, kept, 0)}"
    element = f"p[{product('l', text.size(strides[0]))}]"
    step = text.size(run.strides[0])
    text.add("    ", f"const {memory_type(x.dtype)} *p = {source};")
    text.add("    ", f"i32 *const w = y{text.offset(places, kept, 1)};")
    width = "width" if wide else "1"
    text.add(
        "    ", f"{held} best[{lanes}];", f"i32 at[{lanes}];",
        f"for (i64 l = 0; l < {width}; l++) {{ best[l] = {load(x.dtype, element)}; at[l] = 0; }}",
        f"for (i64 e = 1; e < {n}; e++) {{",
        f"  p += {step};", "  RG_SIMD", f"  for (i64 l = 0; l < {width}; l++) {{",
        f"    const {held} v = {load(x.dtype, element)}, b = best[l];",
        f"    const i32 now = {better};",
        "    best[l] = now ? v : b;",
        "    at[l] = now ? (i32)e : at[l];",
        "  }", "}",
        f"for (i64 l = 0; l < {width}; l++) w[{product('l', text.size(strides[1]))}] = at[l];",
    )  # fmt: skip
    text.add("  ", "}")
    return text.function((x, out), _items(kept, wide))


def _with_axis(out: View, axis: int) -> View:
    """A result with the axis it lost."""
    shape = (*out.shape[:axis], 1, *out.shape[axis:])
    order = list(range(1, len(shape)))
    order.insert(axis, 0)
    return out.broadcast((1, *out.shape)).transposed(order)


def _walked(views: Sequence[View], axis: int) -> tuple[Axis, list[Axis], bool]:
    """The axis of the run, the others, and whether the last of these is worked on in blocks."""
    (run,) = axes_of(views, [axis]) or [Axis(1, (0,) * len(views))]
    kept = axes_of(views, [i for i in range(len(views[0].shape)) if i != axis])
    if not kept or run.close:
        return run, kept, False
    return run, with_columns(kept), True


def _open(
    text: Text, operands: Sequence[View], out: View, kept: Sequence[Axis], lanes: int
) -> None:
    """The pointers, and the loop over items."""
    for i, v in enumerate(operands):
        text.add("  ", f"const {memory_type(v.dtype)} *const x{i} = (void *)a[{i}];")
    text.add("  ", f"{memory_type(out.dtype)} *const y = (void *)a[{len(operands)}];")
    if lanes == 1:
        text.add("  ", "for (i64 t = lo; t < hi; t++) {")
        return
    width = text.size(kept[-1].extent)
    text.add(
        "  ", f"const i64 across = ({width} + {lanes - 1}) / {lanes};",
        "for (i64 t = lo; t < hi; t++) {",
        f"  const i64 c = t % across * {lanes};",
        f"  const i64 width = rg_min({lanes}, {width} - c);",
    )  # fmt: skip


def _items(kept: Sequence[Axis], wide: bool) -> Dim:
    if not wide:
        return size_of(kept)
    return size_of(kept[:-1]) * ((kept[-1].extent + (COLUMNS - 1)) // COLUMNS)
