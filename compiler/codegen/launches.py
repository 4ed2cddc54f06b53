"""What a step is on the native device: a step -> launches of C kernels, None where there is no way.

A launch is a function with the places and sizes that it is given (codegen.c.Function).  Invariant:
a step without launches is left to the NumPy printer, so every op runs on every device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from retrograde.compiler.codegen.c import Function, fill_function, row_function
from retrograde.compiler.codegen.c_attention import attention_functions, gradient_functions
from retrograde.compiler.codegen.c_copy import copy_function
from retrograde.compiler.codegen.c_cross_entropy import head_functions
from retrograde.compiler.codegen.c_index import check_function, gather_function, scatter_function
from retrograde.compiler.codegen.c_matmul import (
    blas_function,
    matmul_function,
    pack_function,
    steps_function,
)
from retrograde.compiler.codegen.c_random import bits_function, fold_function
from retrograde.compiler.codegen.c_reduce import empty_function, reduce_function, total_functions
from retrograde.compiler.codegen.c_run import place_function, run_function
from retrograde.compiler.codegen.c_sums import sums_function
from retrograde.compiler.codegen.c_total import contraction_function, total_function
from retrograde.compiler.codegen.kernel import cast_kernel, column_kernel, kernel_of
from retrograde.compiler.codegen.numpy import place_of
from retrograde.compiler.ir import dims
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.graph import Graph, Node
from retrograde.compiler.ir.registry import Kind
from retrograde.compiler.passes.spaces import gathers
from retrograde.compiler.plan.cross_entropy import NAMES as HEADS
from retrograde.compiler.plan.steps import (
    CopyStep,
    FusedStep,
    MatmulStep,
    OpStep,
    PackStep,
    Step,
)
from retrograde.compiler.plan.views import Literal, Operand, View, row_major


@dataclass(frozen=True)
class Launch:
    """One kernel on its arguments; `checks` names what a fault of it is about."""

    function: Function
    checks: tuple[tuple[int, View], ...] = ()  # (axis, array) that an index may be too large for
    wrap: bool = True  # whether indices below 0 count from the end
    refuses: bool = False  # whether it may fail for another reason
    place: str = ""  # the line that a fault is told of, where it is not that of the step


def launches(step: Step) -> list[Launch] | None:
    """The launches of a step that holds no others."""
    if isinstance(step, CopyStep):
        return [Launch(copy_function(step.operand, step.result))]
    if isinstance(step, FusedStep):
        sums = sums_function(step)
        rows = [*_extremes(step), *_places(step), Launch(row_function(kernel_of(step)))]
        return rows if sums is None else [*rows, Launch(sums)]
    if isinstance(step, PackStep):
        return [Launch(pack_function(step))]
    if isinstance(step, MatmulStep):
        if step.panels is not None:
            return [Launch(matmul_function(step))]
        if step.blas:
            return [Launch(blas_function(step))]
        return [Launch(row_function(column_kernel(step)))]
    if not isinstance(step, OpStep):
        return None
    if step.node.op.kind is Kind.ELEMENTWISE:
        return [Launch(row_function(kernel_of(step)))]
    found = _RULES.get(step.node.op.name)
    return None if found is None else found(step)


def _copied(operand: Operand, result: View) -> list[Launch]:
    """The copy of operand to result, unless it lies there."""
    return [] if result.equals(operand) else [Launch(copy_function(operand, result))]


# --- reductions and runs


def _reduction(step: OpStep) -> list[Launch]:
    x = _views(step)[0]
    checks = _nonempty(step.node, x)
    if step.scratch:
        made = total_functions(step.node, [x], step.results[0], step.scratch[0])
        if made is not None:
            return [*checks, *map(Launch, made)]
    return [*checks, Launch(reduce_function(step.node, x, step.results[0]))]


def _contraction(step: OpStep) -> list[Launch]:
    left, right = _views(step)
    if step.scratch:
        made = total_functions(step.node, [left, right], step.results[0], step.scratch[0])
        if made is not None:
            return list(map(Launch, made))
    return [Launch(contraction_function(step.node, left, right, step.results[0]))]


def _row_dot(step: OpStep) -> list[Launch]:
    a, b = _views(step)
    kept = range(len(a.shape) - 1)
    (out,) = step.results
    result = replace(out, shape=out.shape[:-1], strides=out.strides[:-1])
    found = total_function(step.node, [a, b.broadcast(a.shape)], kept, [len(kept)], result)
    return [Launch(found)]


def _dot_steps(step: OpStep) -> list[Launch]:
    start, left, panels = step.operands
    (out,) = step.results
    assert isinstance(left, View) and isinstance(panels, View)
    fresh = isinstance(start, Literal) and start.value == 0
    before = [] if fresh else _copied(start, out)
    return [*before, Launch(steps_function(step.node, left, panels, out, not fresh))]


def _run(step: OpStep) -> list[Launch]:
    return [Launch(run_function(step.node, _views(step), step.results[0]))]


def _place(step: OpStep) -> list[Launch]:
    x, axis = _views(step)[0], step.node.attrs["axis"]
    found = place_function(step.node, x, step.results[0])
    return [*_refusal([axis], [x.shape[axis]]), Launch(found)]


def _nonempty(node: Node, x: View) -> list[Launch]:
    if node.op.name not in ("max", "min"):
        return []
    axes = node.attrs["axes"]
    return _refusal(axes, [x.shape[a] for a in axes])


def _extremes(step: FusedStep) -> list[Launch]:
    """What refuses rows without elements, where the region has the largest or smallest of them."""
    body: Graph = step.node.attrs["body"]
    if not any(n.op.name in ("max", "min") for n in body.nodes):
        return []
    return _refusal([len(step.shape) - 1], [step.shape[-1]])


def _places(step: FusedStep) -> list[Launch]:
    """What checks the indices of the gathers in a region."""
    body: Graph = step.node.attrs["body"]
    where = dict(zip(body.inputs, step.operands, strict=True))
    found = []
    for node in filter(gathers, body.nodes):
        if node.attrs.get("checked"):  # before a loop, for all of its turns
            continue
        x, *indices = [y for v in node.inputs if isinstance(y := where[v], View)]
        found.append(replace(_checked(node, x, indices), place=place_of(node)))
    return found


def _refusal(axes: Sequence[int], extents: Sequence[Dim]) -> list[Launch]:
    doubtful = [
        (axis, d)
        for axis, d in zip(axes, extents, strict=True)
        if dims.decide_le(1, d) is not True
    ]
    if not doubtful:
        return []
    open_axes, sizes = zip(*doubtful, strict=True)
    return [Launch(empty_function(sizes, open_axes), refuses=True)]


# --- places that come from data


def _gather(step: OpStep) -> list[Launch]:
    x, *indices = _views(step)
    found = gather_function(step.node, x, indices, step.results[0])
    return [_checked(step.node, x, indices), Launch(found)]


def _scatter(step: OpStep) -> list[Launch]:
    x, updates, *indices = step.operands
    places = [i for i in indices if isinstance(i, View)]
    (out,) = step.results
    check = _checked(step.node, out, places)
    if not step.scratch:
        found = scatter_function(step.node, updates, places, out)
        return [check, *_copied(x, out), Launch(found)]
    # f16 and bf16 are added up in f32, and rounded once.
    wide = replace(step.scratch[0], shape=out.shape, strides=row_major(out.shape))
    found = scatter_function(step.node, updates, places, wide)
    there = Launch(row_function(cast_kernel(step.node, x, wide)))
    back = Launch(row_function(cast_kernel(step.node, wide, out)))
    return [check, there, Launch(found), back]


def _checked(node: Node, x: View, indices: Sequence[View]) -> Launch:
    checks = tuple((axis, x) for axis in node.attrs["axes"])
    return Launch(check_function(node, x, indices), checks, node.attrs["wrap"])


# --- windows, creation, random bits


def _set_slice(step: OpStep) -> list[Launch]:
    x, y = step.operands
    (out,) = step.results
    assert isinstance(y, View)
    attrs = step.node.attrs
    window = out.sliced(attrs["start"], attrs["step"], y.shape)
    return [*_copied(x, out), *_copied(y, window)]


def _pad(step: OpStep) -> list[Launch]:
    (x,), (out,) = step.operands, step.results
    assert isinstance(x, View)
    attrs = step.node.attrs
    window = out.sliced(attrs["low"], tuple(k + 1 for k in attrs["interior"]), x.shape)
    fill = Literal(attrs["value"], out.dtype)
    return [*_copied(fill, out), *_copied(x, window)]


def _filled(step: OpStep) -> list[Launch]:
    return [Launch(fill_function(step.results[0], step.node.attrs["size"], counts=False))]


def _iota(step: OpStep) -> list[Launch]:
    return [Launch(fill_function(step.results[0], step.node.attrs["size"], counts=True))]


def _bits(step: OpStep) -> list[Launch] | None:
    key, row = _views(step)
    found = bits_function(key, row, step.results[0])
    return None if found is None else [Launch(found)]


def _fold(step: OpStep) -> list[Launch]:
    key, data = _views(step)
    return [Launch(fold_function(key, data, step.results[0]))]


def _views(step: OpStep) -> list[View]:
    found = [x for x in step.operands if isinstance(x, View)]
    assert len(found) == len(step.operands)
    return found


def _attention(step: OpStep) -> list[Launch] | None:
    """Tiled attention, where lowering gave it working memory: in f32."""
    if not step.scratch:
        return None
    forward = step.node.op.name == "flash_attention"
    make = attention_functions if forward else gradient_functions
    return [Launch(f) for f in make(step.node, _views(step), step.results, step.scratch[0])]


def _head(step: OpStep) -> list[Launch] | None:
    made = head_functions(step)
    if made is None:
        return None
    classes = 0 if step.node.attrs["transposed"] else 1
    listed = Launch(made[0], ((classes, _views(step)[1]),), wrap=False)
    return [listed, *map(Launch, made[1:])]


_RULES: dict[str, Callable[[OpStep], list[Launch] | None]] = {
    "sum": _reduction, "prod": _reduction, "max": _reduction, "min": _reduction,
    "any": _reduction, "all": _reduction, "argmax": _place, "argmin": _place,
    "cumsum": _run, "cumprod": _run, "cummax": _run, "cummin": _run, "linear_recurrence": _run,
    "row_dot": _row_dot, "dot_steps": _dot_steps, "dot_general": _contraction,
    "gather": _gather, "scatter_add": _scatter, "scatter_set": _scatter,
    "set_slice": _set_slice, "pad": _pad, "dim_value": _filled, "iota": _iota,
    "random_bits": _bits, "random_fold": _fold,
    "flash_attention": _attention, "flash_attention_grad": _attention,
    **dict.fromkeys(HEADS, _head),
}  # fmt: skip
