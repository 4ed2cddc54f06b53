"""Faults to plant: each takes a `pytest.MonkeyPatch` and breaks one part of the compiler."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from retrograde.compiler.codegen import csource
from retrograde.compiler.codegen.numpy_support import Support
from retrograde.compiler.ir import dims
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.graph import Graph, Node, same_type
from retrograde.compiler.ir.registry import lookup
from retrograde.compiler.passes import backward, cse, fold, scan_lean
from retrograde.compiler.passes.backward import Backward, _Trail
from retrograde.compiler.passes.dce import DCE
from retrograde.compiler.passes.expand import Expand
from retrograde.compiler.passes.group import Group
from retrograde.compiler.passes.rows import RowProducts
from retrograde.compiler.passes.scan_hoist import HoistScan
from retrograde.compiler.passes.scan_segments import SegmentScans
from retrograde.compiler.passes.scan_sink import SinkScan
from retrograde.compiler.passes.simplify import Simplify
from retrograde.compiler.plan import build, in_place, liveness, lower
from retrograde.compiler.plan.memory import Placement
from retrograde.compiler.plan.orientation import Orientation
from retrograde.compiler.plan.schedule import Order
from retrograde.compiler.plan.views import View

Plant = Callable[[pytest.MonkeyPatch], None]
Change = Callable[[Node], Node | None]


def patch_op(patch: pytest.MonkeyPatch, name: str, field: str, value: Any) -> None:
    """Ops are frozen: their fields are set where they are kept."""
    patch.setitem(vars(lookup(name)), field, value)


# --- gradient rules


def rule(name: str, change: Callable[[Any, list[Any]], Iterable[Any]]) -> Plant:
    """The gradient rule of an op, with its cotangents changed."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        right: Any = lookup(name).vjp
        patch_op(patch, name, "vjp", lambda ctx, cot: list(change(ctx, list(right(ctx, cot)))))

    return plant


def scaled(factor: float, which: int = 0) -> Callable[[Any, list[Any]], list[Any]]:
    """One cotangent, too large or of the other sign."""

    def change(ctx: Any, parts: list[Any]) -> list[Any]:
        return [
            p * factor if i == which and p is not None else p for i, p in enumerate(parts)
        ]

    return change


def lost(which: int) -> Callable[[Any, list[Any]], list[Any]]:
    """One cotangent left out."""
    return lambda ctx, parts: [None if i == which else p for i, p in enumerate(parts)]


def untransposed(ctx: Any, parts: list[Any]) -> list[Any]:
    """A square cotangent on its side."""
    return [
        lookup("transpose")(p, perm=(1, 0))
        if p is not None and p.ndim == 2 and dims.same(*p.shape)
        else p
        for p in parts
    ]


def dropped_accumulation(patch: pytest.MonkeyPatch) -> None:
    def total(self: Any, v: Any) -> Expr | None:
        parts = self.parts.get(v)
        if not parts:
            return None
        self.parts[v] = [parts[0]]
        self.totals[self.primal(v)] = parts[0].value
        first: Expr = parts[0]
        return first

    patch.setattr(_Trail, "_total", total)


def wrong_unbroadcast(patch: pytest.MonkeyPatch) -> None:
    """The mean of what was stretched instead of its sum."""
    right = backward.unbroadcast

    def mean(g: Expr, type: Any) -> Expr:
        out: Expr = right(g, type)
        return out if out.ndim == g.ndim else out * 0.5

    patch.setattr(backward, "unbroadcast", mean)


def another_key(patch: pytest.MonkeyPatch) -> None:
    """What is computed again draws other random numbers."""
    right: Any = lookup("remat_call").vjp

    def plant(ctx: Any, cotangents: Any) -> Any:
        inputs = tuple(
            x + lookup("cast")(x, dtype=x.dtype) if x.dtype.name == "u32" else x
            for x in ctx.inputs
        )
        return right(replace(ctx, inputs=inputs), cotangents)

    patch_op(patch, "remat_call", "vjp", plant)


def primal_changed(patch: pytest.MonkeyPatch) -> None:
    """What is differentiated is not what was written."""
    patch.setattr(backward, "without_shift_gradients", lambda g: edit(g, "exp", swap_op("exp2")))


# --- passes


def edit(graph: Graph, op: str, change: Change, everywhere: bool = False) -> Graph:
    """The first node of an op changed, in sub-graphs too."""
    done = False

    def visit(g: Graph) -> Graph:
        nonlocal done
        nodes = []
        for node in g.nodes:
            if (everywhere or not done) and node.op.name == op:
                made = change(node)
                if made is not None:
                    node, done = made, True
            if node.op.has_regions and (everywhere or not done):
                bodies = {key: visit(body) for key, body in node.subgraphs()}
                node = replace(node, attrs={**node.attrs, **bodies})
            nodes.append(node)
        return g.replace(nodes=tuple(nodes))

    return visit(graph)


def swap_op(other: str) -> Change:
    return lambda node: replace(node, op=lookup(other))


def swapped(node: Node) -> Node | None:
    a, b = node.inputs
    return node.with_inputs((b, a)) if same_type(a.type, b.type) and a is not b else None


def first_only(node: Node) -> Node | None:
    """An accumulation that drops what is added: x + x instead of x + y."""
    a, b = node.inputs
    return node.with_inputs((a, a)) if same_type(a.type, b.type) and a is not b else None


def constant_off(node: Node) -> Node | None:
    value = node.attrs["value"]
    if not isinstance(value, float) or value in (0.0, 1.0):
        return None
    return replace(node, attrs={**node.attrs, "value": value * 1.25})


def other_way(node: Node) -> Node:
    return replace(node, attrs={**node.attrs, "reverse": not node.attrs["reverse"]})


def after(cls: type, op: str, change: Change) -> Plant:
    """A pass that leaves a wrong node."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        right = cls.__call__
        patch.setattr(cls, "__call__", lambda self, graph: edit(right(self, graph), op, change))

    return plant


def cse_of_constants(patch: pytest.MonkeyPatch) -> None:
    """Constants of unequal values are taken for one."""
    patch.setattr(cse, "_exact", lambda attr: None if isinstance(attr, float) else repr(attr))


def stale_fold(patch: pytest.MonkeyPatch) -> None:
    right = fold._constant
    patch.setattr(fold, "_constant", lambda node, value: right(node, np.asarray(value * 1.5)))


def wrong_recompute(patch: pytest.MonkeyPatch) -> None:
    right = scan_lean._repeat

    def repeat(inner: Any, node: Node, known: Any, scan: Node) -> None:
        right(inner, swap_op("sin")(node) if node.op.name == "tanh" else node, known, scan)

    patch.setattr(scan_lean, "_repeat", repeat)


def wrong_expansion(patch: pytest.MonkeyPatch) -> None:
    """What devices run of a composite adds up along another axis."""
    right = Expand.__call__

    def call(self: Expand, graph: Graph) -> Graph:
        made = right(self, graph)
        if self.differentiable or made is graph:
            return made
        return edit(made, "exp", swap_op("exp2"))

    patch.setattr(Expand, "__call__", call)


def early_updates(patch: pytest.MonkeyPatch) -> None:
    """Updates as soon as there is what they need, and in place, whoever still reads the state."""
    right = Order.__call__

    def call(self: Order, graph: Graph) -> Graph:
        made = right(self, graph)
        known, nodes, left = set(made.inputs), [], list(made.nodes)
        while left:
            ready = [n for n in left if all(v in known for v in n.inputs)]
            node = next((n for n in ready if n.origin.role == "update"), ready[-1])
            left.remove(node)
            nodes.append(node)
            known.update(node.outputs)
        return made.replace(nodes=tuple(nodes))

    patch.setattr(Order, "__call__", call)
    patch.setattr(liveness, "_read_before", lambda *_: True)
    patch.setattr(liveness, "takes_over", lambda *_: True)


def shifted_slice(patch: pytest.MonkeyPatch) -> None:
    """Segments that begin a step late."""
    right: Any = lookup("scan_replay").evaluate

    def evaluate(attrs: Any, *arrays: Any) -> Any:
        n = attrs["states"] + attrs["residuals"] + attrs["carries"]
        moved = list(arrays)
        for i in range(n, n + attrs["slices"]):
            moved[i] = np.roll(arrays[i], 1, axis=0)
        return right(attrs, *moved)

    patch_op(patch, "scan_replay", "evaluate", evaluate)


# --- the plan


def short_lives(patch: pytest.MonkeyPatch) -> None:
    """The last reader of a value is not counted."""
    right = liveness._lifetimes

    def lifetimes(schedule: Any) -> Any:
        lives, steps = right(schedule)
        for storage, life in lives.items():
            if storage.kind == "value" and life.last > life.first + 1:
                life.last -= 1
        return lives, steps

    patch.setattr(liveness, "_lifetimes", lifetimes)


def one_place(patch: pytest.MonkeyPatch) -> None:
    """All buffers at the bottom."""

    def place(buffers: Any, time_limit: Any = None, align: int = 1) -> Placement:
        height = max((b.size for b in buffers), default=0)
        return Placement((0,) * len(buffers), height, height)

    patch.setattr(build, "place", place)
    patch.setattr(
        build, "orient", lambda buffers, offsets: Orientation((), tuple(range(len(buffers))))
    )


def lost_edge(patch: pytest.MonkeyPatch) -> None:
    """One buffer is not held above another at other sizes."""
    right = build.orient

    def orient(buffers: Any, offsets: Any) -> Orientation:
        found = right(buffers, offsets)
        return Orientation(found.edges[: len(found.edges) // 2], found.order)

    patch.setattr(build, "orient", orient)


def in_any_place(patch: pytest.MonkeyPatch) -> None:
    """Results are written where an operand lies that is read again."""

    def takes_over(step: Any, old: View, new: View) -> bool:
        return new.whole and old.whole and str(new.storage.bytes) == str(old.storage.bytes)

    patch.setattr(liveness, "takes_over", takes_over)
    patch.setattr(in_place, "takes_over", takes_over)


# --- lowering and code


def shifted_view(patch: pytest.MonkeyPatch) -> None:
    right = View.sliced

    def sliced(self: View, start: Any, step: Any, shape: Any) -> View:
        moved = tuple(s - 1 if isinstance(s, int) and s > 0 else s for s in start)
        return right(self, moved, step, shape)

    patch.setattr(View, "sliced", sliced)


def lost_flip(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(View, "flipped", lambda self, axes: self)


def transposed_operand(patch: pytest.MonkeyPatch) -> None:
    """A square matrix is multiplied on its side."""
    right = lower.matrices

    def matrices(node: Node, views: Any) -> Any:
        a, b = right(node, views)
        if isinstance(b, View) and len(b.shape) == 2 and dims.same(*b.shape):
            b = b.transposed((1, 0))
        return a, b

    patch.setattr(lower, "matrices", matrices)


def numpy_statement(op: str, text: str) -> Plant:
    return lambda patch: patch_op(patch, op, "numpy", text)


def short_sum(patch: pytest.MonkeyPatch) -> None:
    """A sum that leaves out the last row."""
    right = Support.sum

    def total(self: Any, x: Any, out: Any, axes: Any, keepdims: bool) -> None:
        right(self, x[:-1] if x.ndim and x.shape[0] > 1 and 0 in axes else x, out, axes, keepdims)

    patch.setattr(Support, "sum", total)


def shifted_gather(patch: pytest.MonkeyPatch) -> None:
    right = Support.gather

    def gather(self: Any, x: Any, *rest: Any, axes: Any, wrap: bool = True) -> None:
        *indices, out = rest
        moved = [np.where(i > 0, i - 1, i) for i in indices]
        right(self, x, *moved, out, axes=axes, wrap=wrap)

    patch.setattr(Support, "gather", gather)


def c_text(part: str, old: str, new: str) -> Plant:
    """The C of a kernel."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        right = csource.part

        def changed(name: str) -> str:
            text = right(name)
            if name != part:
                return text
            assert old in text, f"{part}.h has changed: {old!r} is not in it"
            return text.replace(old, new, 1)

        for module in list(sys.modules.values()):
            name = getattr(module, "__name__", "")
            if name.startswith("retrograde.compiler.codegen") and (
                getattr(module, "part", None) is right
            ):
                patch.setattr(module, "part", changed)

    return plant


PASSES: dict[str, type] = {
    "backward": Backward, "dce": DCE, "expand": Expand, "group": Group, "rows": RowProducts,
    "hoist": HoistScan, "segments": SegmentScans, "sink": SinkScan, "simplify": Simplify,
}  # fmt: skip
