"""A head and its loss in C: steps -> functions over csource/cross_entropy.h.

First the rows that count are listed with their targets, which are checked, and their x is put side
by side; then every slice of the vocabulary is one item, and at the end every row.  Invariant: an
item writes what no other item of its launch does, so the bits do not depend on the threads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from retrograde.compiler.codegen.c import HEAD, Function
from retrograde.compiler.codegen.cstyle import Extents, literal, memory_type
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ops.composite import lowest
from retrograde.compiler.ops.cross_entropy import named
from retrograde.compiler.plan.cross_entropy import TILE, HeadCut, head_cut
from retrograde.compiler.plan.steps import OpStep
from retrograde.compiler.plan.views import View


def head_functions(step: OpStep) -> list[Function] | None:
    """The functions of a step in their order, None where it is left to its reference; the first
    may refuse a target."""
    cut = head_cut(step.node)
    views = [x for x in step.operands if isinstance(x, View)]
    if cut is None or len(views) != len(step.operands) or not step.scratch:
        return None
    head = _Head(step, cut, views)
    return head.backward() if step.node.op.name.endswith("grad") else head.forward()


@dataclass
class _Head:
    step: OpStep
    cut: HeadCut
    operands: list[View]

    def __post_init__(self) -> None:
        attrs, extras = self.step.node.attrs, len(self.step.node.attrs["extras"])
        self.x, self.w, self.target = self.operands[:3]
        self.given: Mapping[str, View] = named(attrs, self.operands[3 : 3 + extras])
        self.rest = self.operands[3 + extras :]
        self.kind = self.x.dtype.name
        self.index, self.packed, self.by_row, self.work = self.step.scratch
        wk, wv = self.w.strides
        self.w_strides = (wv, wk) if attrs["transposed"] else (wk, wv)

    def forward(self) -> list[Function]:
        return [self._listed(), self._gathered(), self._stats(), self._totals()]

    def backward(self) -> list[Function]:
        return [self._listed(), self._picked(), self._grads(), self._rows()]

    # --- the functions

    def _listed(self) -> Function:
        """Which rows count, and their targets."""
        c = _Text(self)
        target, rows = c.pointer(self.target, "target"), c.pointer(self.index, "rows", True)
        kept = self.given.get("kept")
        lines = [target, rows]
        if kept is not None:
            lines.append(c.pointer(kept, "kept"))
        lines += [
            f"  const i64 n = {c.size(self.cut.n)};",
            "  i64 count = 0;",
            "  for (i64 i = 0; i < n; i++) {",
        ]
        if kept is not None:
            lines.append(f"    if (!kept[i * {c.size(kept.strides[0])}]) continue;")
        lines += [
            f"    const i64 t = (i64)target[i * {c.size(self.target.strides[0])}];",
            f"    if (t < 0 || t >= {c.size(self.cut.v)}) return rg_bad_index(0, t);",
            "    rows[count] = i;",
            "    rows[n + count++] = t;",
            "  }",
            "  rows[2 * n] = count;",
        ]
        return c.function(lines, 1)

    def _side_by_side(self, c: _Text) -> list[str]:
        """Row `i` of those that count."""
        sm, sk = map(c.size, self.x.strides)
        d = c.size(self.cut.d)
        return [
            "    if (i >= rows[2 * n]) continue;",
            "    const i64 r = rows[i];",
            f"    for (i64 k = 0; k < {d}; k++)",
            f"      packed[i * {d} + k] = x[r * {sm} + k * {sk}];",
        ]

    def _gathered(self) -> Function:
        """The x of rows that count; the results of those that do not."""
        c = _Text(self)
        lines = [
            c.pointer(self.index, "rows"), c.pointer(self.x, "x"),
            c.pointer(self.packed, "packed", True),
        ]  # fmt: skip
        nll, lse = self.step.results
        sn, sl = c.size(nll.strides[0]), c.size(lse.strides[0])
        lines += [
            c.pointer(nll, "nll", True), c.pointer(lse, "lse", True),
            f"  const {self.kind} none = ({self.kind})rg_log_f64({c.size(self.cut.v)});",
            f"  const i64 n = {c.size(self.cut.n)};",
            "  for (i64 i = lo; i < hi; i++) {",
            f"    nll[i * {sn}] = lse[i * {sl}] = none;",
            *self._side_by_side(c),
            "  }",
        ]  # fmt: skip
        return c.function(lines, self.cut.n)

    def _picked(self) -> Function:
        """The x, log-sum-exp and cotangents of rows that count; zeros in dx elsewhere."""
        c = _Text(self)
        names = ("lse", "gain", "loss")
        dx = self.step.results[0]
        sm, sk = map(c.size, dx.strides)
        d = c.size(self.cut.d)
        strides = [c.size(v.strides[0]) for v in self.rest]
        level, gain, loss = (f"{name}[r * {s}]" for name, s in zip(names, strides, strict=True))
        lines = [
            c.pointer(self.index, "rows"), c.pointer(self.x, "x"),
            c.pointer(self.packed, "packed", True), c.pointer(dx, "dx", True),
            *(c.pointer(v, name) for v, name in zip(self.rest, names, strict=True)),
            c.pointer(self.by_row, "by_row", True),
            f"  const i64 n = {c.size(self.cut.n)};",
            "  for (i64 i = lo; i < hi; i++) {",
            f"    for (i64 k = 0; k < {d}; k++) dx[i * {sm} + k * {sk}] = 0;",
            *self._side_by_side(c),
            f"    const {self.kind} low = {literal(lowest(self.x.dtype), self.x.dtype)};",
            f"    by_row[i] = {level} < low ? low : {level};",
            f"    by_row[n + i] = {gain};",
            f"    by_row[2 * n + i] = {loss};",
            "  }",
        ]  # fmt: skip
        return c.function(lines, self.cut.n)

    def _stats(self) -> Function:
        c, kind = _Text(self), self.kind
        panels, logits, all_ = map(c.size, self.cut.part(False))
        slices = c.size(self.cut.slices)
        bias, step = c.bias()
        lines = [
            *c.common(),
            c.pointer(self.packed, "x"), c.pointer(self.w, "w"),
            c.pointer(self.by_row, "by_row", True), c.pointer(self.work, "work", True),
            *bias,
            f"  {kind} *const mine = work + part * {all_};",
            f"  {kind} *const top = by_row, *const sum = top + {slices} * s.n, "
            f"*const picked = sum + {slices} * s.n;",
            "  for (i64 p = lo; p < hi; p++)",
            f"    rg_ce_stats_{kind}(&s, p, x, rows + s.n, rows[2 * s.n], w, bias, {step}, "
            "top + p * s.n, sum + p * s.n, picked, "
            f"mine + {panels}, mine + {logits});",
        ]  # fmt: skip
        return c.function(lines, self.cut.slices)

    def _totals(self) -> Function:
        c, kind = _Text(self), self.kind
        nll, lse = self.step.results
        slices = c.size(self.cut.slices)
        lines = [
            *c.common(),
            c.pointer(self.by_row, "top"),
            c.pointer(nll, "nll", True), c.pointer(lse, "lse", True),
            f"  const {kind} *const sum = top + {slices} * s.n;",
            f"  rg_ce_totals_{kind}(&s, rows, top, sum, sum + {slices} * s.n, "
            f"nll, {c.size(nll.strides[0])}, lse, {c.size(lse.strides[0])}, "
            "lo, rg_min(hi, rows[2 * s.n]));",
        ]  # fmt: skip
        return c.function(lines, self.cut.n)

    def _grads(self) -> Function:
        c, kind = _Text(self), self.kind
        panels, logits, across, slopes, all_ = map(c.size, self.cut.part(True))
        _, dw, *db = self.step.results
        flip = -1 if self.step.node.attrs["transposed"] else 1
        dk, dv = map(c.size, dw.strides[::flip])
        bias, step = c.bias()
        lines = [
            *c.common(),
            c.pointer(self.packed, "x"), c.pointer(self.w, "w"),
            c.pointer(self.by_row, "by_row", True), c.pointer(self.work, "work", True),
            c.pointer(dw, "dw", True), *bias,
            c.pointer(db[0], "db", True) if db else f"  {kind} *const db = 0;",
            f"  {kind} *const mine = work + part * {all_};",
            f"  {kind} *const chosen = by_row + 3 * s.n, *const added = chosen + s.n * s.d;",
            "  for (i64 p = lo; p < hi; p++)",
            f"    rg_ce_grads_{kind}(&s, p, x, rows + s.n, rows[2 * s.n], by_row, by_row + s.n, "
            f"by_row + 2 * s.n, w, bias, {step}, dw, {dk}, {dv}, db, "
            f"{c.size(db[0].strides[0]) if db else '0'}, added + p * s.n * s.wide, chosen, "
            f"mine + {panels}, mine + {across}, mine + {slopes}, mine + {logits});",
        ]  # fmt: skip
        return c.function(lines, self.cut.slices)

    def _rows(self) -> Function:
        c, kind = _Text(self), self.kind
        dx = self.step.results[0]
        lines = [
            *c.common(), c.pointer(self.by_row, "by_row"), c.pointer(dx, "dx", True),
            f"  const {kind} *const chosen = by_row + 3 * s.n;",
            f"  rg_ce_rows_{kind}(&s, rows, by_row + 2 * s.n, chosen + s.n * s.d, chosen, dx, "
            f"{c.size(dx.strides[0])}, {c.size(dx.strides[1])}, lo, rg_min(hi, rows[2 * s.n]));",
        ]  # fmt: skip
        return c.function(lines, self.cut.n)


class _Sizes(Extents):
    """All sizes as arguments, known ones too and each apart: one text for heads of every size."""

    def __call__(self, d: Dim) -> str:
        if not isinstance(d, int):
            return super().__call__(d)
        self.open.append(d)
        return f"n{len(self.open) - 1}"


class _Text:
    """The text of one function, and what it is given."""

    def __init__(self, head: _Head) -> None:
        self.head = head
        self.size = _Sizes()
        self.places: list[View] = []

    def pointer(self, v: View, name: str, written: bool = False) -> str:
        kind = memory_type(v.dtype)
        self.places.append(v)
        const = "" if written else "const "
        return f"  {const}{kind} *const {name} = (void *)a[{len(self.places) - 1}];"

    def common(self) -> list[str]:
        """The list of rows, and the shape."""
        cut, (wk, wv) = self.head.cut, self.head.w_strides
        shape = (
            cut.n, cut.d, cut.v, wk, wv, cut.slice, cut.block, TILE, cut.wide
        )  # fmt: skip
        return [
            self.pointer(self.head.index, "rows"),
            f"  const rg_ce_shape s = {{{', '.join(map(self.size, shape))}}};",
        ]

    def bias(self) -> tuple[list[str], str]:
        """The statement that declares the bias, and its stride."""
        bias = self.head.given.get("bias")
        if bias is None:
            return [f"  const {self.head.kind} *const bias = 0;"], "0"
        return [self.pointer(bias, "bias")], self.size(bias.strides[0])

    def function(self, lines: list[str], items: Dim) -> Function:
        first = len(self.places)
        sizes = [f"  const i64 n{i} = a[{first + i}];" for i in range(len(self.size.open))]
        text = "\n".join([HEAD, *sizes, *lines, "  return RG_OK;", "}"])
        return Function(text, tuple(self.places), tuple(self.size.open), items)
