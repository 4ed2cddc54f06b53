"""Matrix products in C: steps on packed panels -> functions over csource/gemm.h.

Invariant: an element of a product is added up in the order of k alone, however rows and panels are
shared out.
"""

from __future__ import annotations

import itertools
from functools import cache

from retrograde.compiler.codegen.c import HEAD, Function, Share
from retrograde.compiler.codegen.cstyle import Extents
from retrograde.compiler.ir import dims
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.plan.steps import MatmulStep, PackStep
from retrograde.compiler.plan.views import View

_HALVES = ("f16", "bf16")


def pack_function(step: PackStep) -> Function:
    """Packs (batch…, k, n) into panels; an item is one panel."""
    view = step.operand
    k, n = view.shape[-2:]
    axes = _axes([view])
    sizes = (k, n, view.strides[-2], view.strides[-1], *axes)
    share = Share("panels", step.result.dtype, dims.product(view.shape[:-2]), k, n)
    text = product_texts(view.dtype.name)[0]
    return Function(text, (view, step.result), sizes, 0, share=share)


def matmul_function(step: MatmulStep) -> Function:
    """The product by panels; an item is a block of rows and a run of panels."""
    left = step.operands[0]
    (out,) = step.results
    assert step.panels is not None
    lead = out.shape[:-2]
    left = left.broadcast((*lead, *left.shape[-2:]))
    m, k = left.shape[-2:]
    n = out.shape[-1]
    sizes = (
        m, k, n, out.strides[-2], left.strides[-2], left.strides[-1],
        0 if _shared_panels(step) else 1, *_axes([left, out]),
    )  # fmt: skip
    share = Share("blocks", step.panels.dtype, dims.product(lead), m, n)
    text = product_texts(left.dtype.name)[1]
    return Function(text, (left, step.panels, out), sizes, 0, share=share)


@cache
def product_texts(kind: str) -> tuple[str, str]:
    """The functions that pack and multiply, for all sizes, strides and batches: those of one dtype
    are always in one file, which is known before a program is planned."""
    memory = "u16" if kind in _HALVES else kind
    held = "f32" if kind in _HALVES else kind
    alone = "" if kind in _HALVES else ", 0"
    pack = [
        HEAD,
        f"  const {memory} *const b = (void *)a[0];",
        f"  {held} *const panels = (void *)a[1];",
        "  const i64 k = a[2], n = a[3], sk = a[4], sn = a[5], axes = a[6];",
        f"  const i64 per = (n + RG_NR_{held} - 1) / RG_NR_{held};",
        "  while (lo < hi) {",
        "    const i64 q = lo / per, first = lo % per, last = rg_min(per, first + hi - lo);",
        f"    rg_pack_{kind}(panels + q * per * k * RG_NR_{held}, "
        "b + rg_matrix_at(a + 7, axes, 2, 1, q), k, n, sk, sn, first, last);",
        "    lo += last - first;",
        "  }",
        "  return RG_OK;",
        "}",
    ]
    multiply = [
        HEAD,
        f"  const {memory} *const x = (void *)a[0];",
        f"  const {held} *const panels = (void *)a[1];",
        f"  {memory} *const y = (void *)a[2];",
        "  const i64 rb = a[3], pb = a[4], m = a[5], k = a[6], n = a[7];",
        "  const i64 sy = a[8], sm = a[9], sk = a[10], axes = a[12];",
        f"  const i64 per = (n + RG_NR_{held} - 1) / RG_NR_{held};",
        f"  const i64 sp = a[11] * per * k * RG_NR_{held};",
        "  const i64 down = (m + rb - 1) / rb, across = (per + pb - 1) / pb;",
        "  for (i64 t = lo; t < hi; t++) {",
        "    const i64 p = t % across, r = t / across % down, q = t / across / down;",
        f"    rg_gemm_{kind}(y + rg_matrix_at(a + 13, axes, 3, 2, q), sy, "
        "x + rg_matrix_at(a + 13, axes, 3, 1, q), sm, sk,",
        "      panels + q * sp, k, n, r * rb, rg_min(m, r * rb + rb), p * pb, "
        f"rg_min(per, p * pb + pb){alone});",
        "  }",
        "  return RG_OK;",
        "}",
    ]
    return "\n".join(pack), "\n".join(multiply)


def blas_function(step: MatmulStep) -> Function:
    """The product by a BLAS, whose address is an argument; an item is a tile of the result."""
    left, right = step.operands
    (out,) = step.results
    kind, size = left.dtype.name, Extents()
    lead = out.shape[:-2]
    left = left.broadcast((*lead, *left.shape[-2:]))
    right = right.broadcast((*lead, *right.shape[-2:]))
    m, k = left.shape[-2:]
    n = out.shape[-1]
    batch, offsets = _batched(size, [left, right, out])
    text = "\n".join([
        f"  const {kind} *const x = (void *)a[0], *const w = (void *)a[1];",
        f"  {kind} *const y = (void *)a[2];",
        "  const i64 blas = a[3], wide = a[4], rb = a[5], cb = a[6];",
        f"  const i64 m = {size(m)}, k = {size(k)}, n = {size(n)};",
        f"  const i64 sy = {size(out.strides[-2])}, sx = {size(left.strides[-2])}, "
        f"sw = {size(right.strides[-1])};",
        "  const i64 down = (m + rb - 1) / rb, across = (n + cb - 1) / cb;",
        "  for (i64 t = lo; t < hi; t++) {",
        "    const i64 p = t % across * cb, r = t / across % down * rb, q = t / across / down;",
        *batch,
        f"    rg_blas_{kind}(blas, wide, y{offsets[2]} + r * sy + p, sy, x{offsets[0]} + r * sx, "
        f"sx, {size(left.strides[-1])}, w{offsets[1]} + p * sw, {size(right.strides[-2])}, sw, "
        "rg_min(rb, m - r), rg_min(cb, n - p), k);",
        "  }",
    ])  # fmt: skip
    share = Share("products", left.dtype, dims.product(lead), m, n)
    return _function(text, size, (left, right, out), share)


def _shared_panels(step: MatmulStep) -> bool:
    """Whether all of a batch are multiplied by one matrix."""
    return len(step.operands[1].shape) == 2


def _batched(size: Extents, views: list[View]) -> tuple[list[str], list[str]]:
    """The axes of a batch from its number `q`, and where each view has its matrix."""
    lead = views[0].shape[:-2]
    lines: list[str] = []
    names: list[str] = []
    rest = "q"
    for n in range(len(lead) - 1, -1, -1):
        extent = size(lead[n])
        names.insert(0, f"q{n}")
        if n:
            lines.append(f"    const i64 q{n} = {rest} % {extent}, o{n} = {rest} / {extent};")
            rest = f"o{n}"
        else:
            lines.append(f"    const i64 q0 = {rest};")
    offsets = []
    for v in views:
        terms = [
            f" + {name} * {size(s)}"
            for name, s in zip(names, v.strides[:-2], strict=True)
            if not dims.same(s, 0)
        ]
        offsets.append("".join(terms))
    return lines, offsets


def _axes(views: list[View]) -> list[Dim]:
    """What `rg_matrix_at` reads: how many axes the batch has, and of each the extent and the
    strides of the views."""
    lead = views[0].shape[:-2]
    each = [(lead[i], *(v.strides[i] for v in views)) for i in range(len(lead))]
    return [len(lead), *itertools.chain.from_iterable(each)]


_CUT = 4  # numbers between the places of a product by a BLAS and its sizes


def _function(text: str, size: Extents, places: tuple[View, ...], share: Share) -> Function:
    first = len(places) + _CUT
    sizes = [f"  const i64 n{i} = a[{first + i}];" for i in range(len(size.open))]
    body = "\n".join([HEAD, *sizes, text, "  return RG_OK;", "}"])
    return Function(body, places, tuple(size.open), 0, share=share)
