"""What a step is on the native device: a step -> launches of C kernels, None where there is no way.

A launch is a function with the places and sizes that it is given (codegen.c.Function).  Invariant:
a step without launches is left to the NumPy printer, so every op runs on every device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from retrograde.compiler.codegen.c import Function, fill_function, row_function
from retrograde.compiler.codegen.c_attention import attention_functions, gradient_functions
from retrograde.compiler.codegen.c_index import gather_function, scatter_function
from retrograde.compiler.codegen.c_matmul import matmul_function, pack_function
from retrograde.compiler.codegen.c_reduce import reduce_function, total_functions
from retrograde.compiler.codegen.kernel import column_kernel, copy_kernel, kernel_of
from retrograde.compiler.ir.graph import Node
from retrograde.compiler.ir.registry import Kind
from retrograde.compiler.plan.steps import (
    CopyStep,
    FusedStep,
    MatmulStep,
    OpStep,
    PackStep,
    Step,
)
from retrograde.compiler.plan.views import Literal, Operand, View


@dataclass(frozen=True)
class Launch:
    """One kernel on its arguments; `checks` names what a fault of it is about."""

    function: Function
    checks: tuple[tuple[int, View], ...] = ()  # (axis, array) that an index may be too large for
    wrap: bool = True  # whether indices below 0 count from the end


def launches(step: Step) -> list[Launch] | None:
    """The launches of a step that holds no others."""
    if isinstance(step, (FusedStep, CopyStep)):
        return [Launch(row_function(kernel_of(step)))]
    if isinstance(step, PackStep):
        return [Launch(pack_function(step))]
    if isinstance(step, MatmulStep):
        if step.panels is not None:
            return [Launch(matmul_function(step))]
        return [Launch(row_function(column_kernel(step)))]
    if not isinstance(step, OpStep):
        return None
    if step.node.op.kind is Kind.ELEMENTWISE:
        return [Launch(row_function(kernel_of(step)))]
    if step.node.op.name in _FLASH:
        views = [x for x in step.operands if isinstance(x, View)]
        if not step.scratch or len(views) != len(step.operands):
            return None
        made = _FLASH[step.node.op.name](step.node, views, step.results, step.scratch[0])
        return [Launch(f) for f in made]
    if step.scratch:
        views = [x for x in step.operands if isinstance(x, View)]
        (partials,) = step.scratch
        if len(views) == len(step.operands):
            totals = total_functions(step.node, views, step.results[0], partials)
            if totals is not None:
                return [Launch(f) for f in totals]
    rule = _RULES.get(step.node.op.name)
    return None if rule is None else rule(step.node, step.operands, step.results)


def _reduction(
    node: Node, operands: Sequence[Operand], results: Sequence[View]
) -> list[Launch] | None:
    found = reduce_function(node, operands[0], results[0])
    return None if found is None else [Launch(found)]


def _copied(operand: Operand, result: View) -> list[Launch]:
    """The copy of operand to result, unless it lies there."""
    return [] if result.equals(operand) else [Launch(row_function(copy_kernel(operand, result)))]


def _gather(
    node: Node, operands: Sequence[Operand], results: Sequence[View]
) -> list[Launch] | None:
    x, *indices = operands
    found = gather_function(node, x, indices, results[0])
    if found is None:
        return None
    assert isinstance(x, View)
    checks = tuple((axis, x) for axis in node.attrs["axes"])
    return [Launch(found, checks, node.attrs["wrap"])]


def _scatter(
    node: Node, operands: Sequence[Operand], results: Sequence[View]
) -> list[Launch] | None:
    x, updates, *indices = operands
    found = scatter_function(node, updates, indices, results[0])
    if found is None:
        return None
    checks = tuple((axis, results[0]) for axis in node.attrs["axes"])
    return [*_copied(x, results[0]), Launch(found, checks, node.attrs["wrap"])]


def _set_slice(node: Node, operands: Sequence[Operand], results: Sequence[View]) -> list[Launch]:
    x, y = operands
    (out,) = results
    assert isinstance(y, View)
    attrs = node.attrs
    window = out.sliced(attrs["start"], attrs["step"], y.shape)
    return [*_copied(x, out), *_copied(y, window)]


def _pad(node: Node, operands: Sequence[Operand], results: Sequence[View]) -> list[Launch]:
    (x,), (out,) = operands, results
    assert isinstance(x, View)
    attrs = node.attrs
    window = out.sliced(attrs["low"], tuple(k + 1 for k in attrs["interior"]), x.shape)
    fill = Literal(attrs["value"], out.dtype)
    return [*_copied(fill, out), *_copied(x, window)]


def _filled(node: Node, operands: Sequence[Operand], results: Sequence[View]) -> list[Launch]:
    return [Launch(fill_function(results[0], node.attrs["size"], counts=False))]


def _iota(
    node: Node, operands: Sequence[Operand], results: Sequence[View]
) -> list[Launch] | None:
    if not results[0].contiguous or results[0].dtype.bytes < 4:
        return None
    return [Launch(fill_function(results[0], node.attrs["size"], counts=True))]


_FLASH = {"flash_attention": attention_functions, "flash_attention_grad": gradient_functions}

Rule = Callable[[Node, Sequence[Operand], Sequence[View]], "list[Launch] | None"]
_RULES: dict[str, Rule] = {
    "sum": _reduction, "max": _reduction, "min": _reduction, "prod": _reduction,
    "row_dot": _reduction, "gather": _gather, "scatter_add": _scatter, "set_slice": _set_slice,
    "pad": _pad, "dim_value": _filled, "iota": _iota,
}  # fmt: skip
