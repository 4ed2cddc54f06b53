"""Kernels over rows, for any device: a fused step, an elementwise op or a copy -> a `RowKernel`.

A kernel has a space of rows, arrays that are read and written over it, and sweeps that say what is
computed (plan.sweeps).  Axes that all arrays walk through alike are merged.  Invariant: along a row
an array moves by one stride, which is 0 for what has one element a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from retrograde.compiler.ir import dims
from retrograde.compiler.ir.builder import next_id
from retrograde.compiler.ir.dims import Dim, same
from retrograde.compiler.ir.dtypes import DType
from retrograde.compiler.ir.graph import Graph, Node, TensorType, Value
from retrograde.compiler.ir.registry import lookup
from retrograde.compiler.passes.spaces import gathers, gathers_rows, left_axes
from retrograde.compiler.plan.steps import CopyStep, FusedStep, MatmulStep, OpStep
from retrograde.compiler.plan.sweeps import Sweeps, sweeps_of
from retrograde.compiler.plan.views import Literal, Operand, View


@dataclass(frozen=True)
class Array:
    """An array of a kernel: its strides, in elements, over the outer axes and along a row."""

    dtype: DType
    outer: tuple[Dim, ...]
    inner: Dim
    view: View  # where it lies


@dataclass(frozen=True)
class Gathered:
    """Elements of `source` where `indices` tell: one for each element or row of the space, or with
    `rows` a row for each row.  `axes`: the strides and sizes of the axes that they index."""

    source: View
    indices: tuple[Array, ...]
    axes: tuple[tuple[Dim, Dim], ...]
    wrap: bool
    rows: bool
    inner: Dim  # the stride along a row


@dataclass(frozen=True)
class RowKernel:
    """What is computed over `outer` rows (as a space of several axes) of `inner` elements.

    `operands` and `results` belong to the values of `body`; a literal operand is a constant.
    `scratch` holds, for each row of working memory that the sweeps want, one row for each
    thread.  Results that are sums over all rows stand for their parts, a row for each slice."""

    body: Graph
    outer: tuple[Dim, ...]
    inner: Dim
    operands: Mapping[Value, Array | Literal]
    results: tuple[Array, ...]
    sweeps: Sweeps
    scratch: tuple[View, ...] = ()
    whole_rows: bool = False
    gathered: Mapping[Value, Gathered] = field(default_factory=dict)

    @property
    def rows(self) -> Dim:
        return dims.product(self.outer)


def kernel_of(step: FusedStep | OpStep | CopyStep) -> RowKernel:
    """The kernel of a step that runs over a space element by element, or row by row."""
    if isinstance(step, FusedStep):
        assert step.sweeps is not None
        results, kept = list(step.results), len(step.sweeps.dtypes)
        for j, part in partials(step):
            results[j] = replace(part, shape=step.shape[-1:])
        return _kernel(
            step.node.attrs["body"], step.shape, step.operands, results, step.sweeps,
            step.scratch[:kept], step.whole_rows,
        )  # fmt: skip
    if isinstance(step, CopyStep):
        return copy_kernel(step.operand, step.result)
    node, shape = step.node, step.results[0].shape
    inputs = tuple(dict.fromkeys(node.inputs))
    places = dict(zip(node.inputs, step.operands, strict=True))
    body = Graph(node.op.name, inputs, (node,), node.outputs)
    operands = [places[v] for v in inputs]
    sweeps = sweeps_of(body, (*shape, 1), step.results)
    return _kernel(body, shape, operands, step.results, sweeps)


def partials(step: FusedStep) -> list[tuple[int, View]]:
    """The results that are sums over all rows, with the memory for their parts."""
    assert step.sweeps is not None
    return list(zip(step.sweeps.sums, step.scratch[len(step.sweeps.dtypes) :], strict=True))


def copy_kernel(operand: Operand, result: View) -> RowKernel:
    """The kernel of `result[...] = operand`."""
    v = Value(next_id(), TensorType(result.dtype, result.shape))
    body = Graph("copy", (v,), (), (v,))
    sweeps = sweeps_of(body, (*result.shape, 1), (result,))
    return _kernel(body, result.shape, (operand,), (result,), sweeps)


def cast_kernel(node: Node, operand: Operand, result: View) -> RowKernel:
    """The kernel of `result[...] = operand` in another type, on behalf of `node`."""
    v = Value(next_id(), TensorType(operand.dtype, result.shape))
    y = Value(next_id(), TensorType(result.dtype, result.shape))
    attrs = {"dtype": result.dtype}
    made = replace(node, op=lookup("cast"), inputs=(v,), attrs=attrs, outputs=(y,))
    body = Graph("cast", (v,), (made,), (y,))
    sweeps = sweeps_of(body, (*result.shape, 1), (result,))
    return _kernel(body, result.shape, (operand,), (result,), sweeps)


def reduce_kernel(node: Node, x: View, out: View) -> RowKernel:
    """The kernel of a reduction of `x`, [rows, n], to `out`, [rows, 1]."""
    source = Value(next_id(), TensorType(x.dtype, x.shape))
    total = Value(next_id(), TensorType(out.dtype, out.shape))
    attrs = {"axes": (1,), "keepdims": True}
    made = replace(node, inputs=(source,), attrs=attrs, outputs=(total,))
    body = Graph(node.op.name, (source,), (made,), (total,))
    sweeps = sweeps_of(body, x.shape, (out,))
    return _kernel(body, x.shape, (x,), (out,), sweeps, whole_rows=True)


def column_kernel(step: MatmulStep) -> RowKernel:
    """The kernel of a product with vectors: (batch…, m, k) by (batch…, k, 1)."""
    left, right = step.operands
    (out,) = step.results
    lead, (m, k) = out.shape[:-2], left.shape[-2:]
    space = (*lead, m, k)
    left = left.broadcast(space)
    axes = len(right.shape)
    right = right.transposed((*range(axes - 2), axes - 1, axes - 2)).broadcast(space)
    a, b = (Value(next_id(), TensorType(v.dtype, space)) for v in (left, right))
    total = Value(next_id(), TensorType(out.dtype, (*lead, m, 1)))
    made = replace(
        step.node, op=lookup("row_dot"), inputs=(a, b), attrs={}, outputs=(total,)
    )
    body = Graph("row_dot", (a, b), (made,), (total,))
    sweeps = sweeps_of(body, space, (out,))
    return _kernel(body, space, (left, right), (out,), sweeps, whole_rows=True)


def _kernel(
    body: Graph, shape: Sequence[Dim], operands: Sequence[Operand], results: Sequence[View],
    sweeps: Sweeps, scratch: tuple[View, ...] = (), whole_rows: bool = False,
) -> RowKernel:  # fmt: skip
    places = dict(zip(body.inputs, operands, strict=True))
    nodes = [n for n in body.nodes if gathers(n)]
    plain = {v for n in body.nodes if n not in nodes for v in n.inputs} if nodes else set(places)
    indices = [_index(places[v], gathers_rows(n)) for n in nodes for v in n.inputs[1:]]
    used = [x for v, x in places.items() if v in plain]
    views = [x.broadcast(shape) for x in (*used, *results, *indices) if isinstance(x, View)]
    merged, strides = _merged(tuple(shape), [v.strides for v in views], whole_rows)
    arrays = iter(
        Array(v.dtype, tuple(s[:-1]), s[-1], v) for v, s in zip(views, strides, strict=True)
    )
    read: dict[Value, Array | Literal] = {}
    for v, x in places.items():
        if v in plain:
            read[v] = x if isinstance(x, Literal) else next(arrays)
    written = tuple(next(arrays) for _ in results)
    gathered = {n.output: _gathered(n, places[n.inputs[0]], arrays) for n in nodes}
    return RowKernel(
        body, merged[:-1], merged[-1], read, written, sweeps, scratch, whole_rows, gathered
    )


def _index(x: Operand, rows: bool) -> View:
    """An index array over the space: that of a row is one element of it."""
    assert isinstance(x, View)
    return replace(x, shape=(*x.shape, 1), strides=(*x.strides, 0)) if rows else x


def _gathered(node: Node, source: Operand, arrays: Iterator[Array]) -> Gathered:
    assert isinstance(source, View)
    axes = node.attrs["axes"]
    indices = tuple(next(arrays) for _ in axes)
    sizes = tuple((source.strides[a], source.shape[a]) for a in axes)
    left = left_axes(node)
    inner = source.strides[left[0]] if left else 0
    return Gathered(source, indices, sizes, node.attrs["wrap"], bool(left), inner)


def _merged(
    shape: tuple[Dim, ...], strides: Sequence[tuple[Dim, ...]], whole_rows: bool
) -> tuple[tuple[Dim, ...], list[tuple[Dim, ...]]]:
    """The space with as few axes as the strides allow, never without a last one; the last axis is
    left alone where it is a row."""
    if not shape:
        return (1,), [(0,) for _ in strides]
    kept = [i for i, d in enumerate(shape) if not same(d, 1) or i == len(shape) - 1]
    axes: list[tuple[Dim, list[Dim]]] = [(shape[i], [s[i] for s in strides]) for i in kept]
    if not whole_rows and len(axes) > 1 and same(axes[-1][0], 1):
        axes.pop()
    out = [axes[0]]
    for n, (size, steps) in enumerate(axes[1:], 1):
        before, outer = out[-1]
        last = n == len(axes) - 1
        if not (last and whole_rows) and all(
            same(a, b * size) for a, b in zip(outer, steps, strict=True)
        ):
            out[-1] = (before * size, steps)
        else:
            out.append((size, steps))
    if whole_rows and len(out) == 1:
        out.insert(0, (1, [0 for _ in strides]))
    columns = list(zip(*(steps for _, steps in out), strict=True)) or [()] * len(strides)
    return tuple(size for size, _ in out), [tuple(c) for c in columns]
