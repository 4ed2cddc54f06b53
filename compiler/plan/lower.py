"""Lowering: an ordered graph -> steps on views.

Input: a graph of primitive ops, fused regions, loops and branches, in the order to run.  Output: a
`Schedule`.  Invariant: ops that only move elements become views where strides allow; results are
written where they are wanted (`targets`), so that concatenations and the head transposes of
attention cost no copy.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from retrograde.compiler.ir import dims
from retrograde.compiler.ir.dims import Dim, same
from retrograde.compiler.ir.dtypes import f32
from retrograde.compiler.ir.graph import Graph, Node, TensorType, Value
from retrograde.compiler.ir.registry import Kind
from retrograde.compiler.ops.branch import BRANCHES
from retrograde.compiler.ops.contract import free_axes
from retrograde.compiler.ops.window import extent
from retrograde.compiler.passes.spaces import gathers, sums_rows
from retrograde.compiler.plan import flash
from retrograde.compiler.plan.chain import with_chains
from retrograde.compiler.plan.cross_entropy import head_memory
from retrograde.compiler.plan.fused import lower_fused, lower_rows
from retrograde.compiler.plan.lower_scan import lower_scan, updates_of
from retrograde.compiler.plan.lower_segments import lower_replay, lower_sweep
from retrograde.compiler.plan.matmul import matrices
from retrograde.compiler.plan.rowwise import with_rows, with_split
from retrograde.compiler.plan.steps import (
    BranchStep,
    CopyStep,
    MatmulStep,
    OpStep,
    PackStep,
    Schedule,
    SizeCheck,
    Step,
    Unchained,
    WhileStep,
)
from retrograde.compiler.plan.targets import find_targets
from retrograde.compiler.plan.views import (
    Literal,
    Operand,
    Storage,
    Turn,
    View,
    new_view,
    scratch,
)

SLICE = 16384  # elements that one thread totals, in their order
_TOTALS = frozenset({"sum", "prod", "max", "min"})
PANEL = 32  # columns: a multiple of those of a panel on every machine


def lower(
    graph: Graph,
    threads: int = 1,
    native: bool = False,
    blas: Collection[str] = (),
    sizes: Mapping[str, int] | None = None,
) -> Schedule:
    """The schedule of `graph`, its nodes taken in their order; `native` for compiled kernels, which
    run fused steps row by row and multiply by packed panels; products of the dtypes in `blas` go to
    a BLAS instead, but for those in loops, whose rows threads may share out.  Products are chained
    where they are large at `sizes`."""
    donated = {i for _, i in graph.aliases}
    names = graph.input_names or ("",) * len(graph.inputs)
    inputs = tuple(
        new_view(v.type, "state" if i in donated else "input", name)
        for i, (v, name) in enumerate(zip(graph.inputs, names, strict=True))
    )
    lowering = Lowering(
        threads, dict(zip(graph.inputs, inputs, strict=True)), native, frozenset(blas), sizes
    )
    lowering.run(graph)
    for v in graph.outputs:  # constants among them have no node left that made their shape
        for (lower, upper), what in _sizes(v):
            if dims.decide_le(lower, upper) is not True:
                lowering.checks.append(SizeCheck(lower, upper, what))
    outputs = tuple(lowering.places[v] for v in graph.outputs)
    steps = with_rows(lowering.steps)
    unchained: tuple[Unchained, ...] = ()
    if native:
        updated = {i for i, _ in graph.aliases}
        state = [x.storage for i, x in enumerate(outputs) if i in updated and isinstance(x, View)]
        steps, unchained = with_chains(with_split(steps), frozenset(state), sizes)
    return Schedule(
        graph.name, steps, inputs, outputs, graph.aliases,
        tuple(lowering.checks), tuple(lowering.merged), unchained,
    )  # fmt: skip


@dataclass
class Lowering:
    """The state of one walk over a graph: where each value lies, and the steps so far."""

    threads: int
    places: dict[Value, Operand]
    native: bool = False
    blas: frozenset[str] = frozenset()  # dtypes; none in a sub-graph
    sizes: Mapping[str, int] | None = None  # that the plan is made for
    steps: list[Step] = field(default_factory=list)
    packs: dict[Storage, list[PackStep]] = field(default_factory=dict)  # among them, by operand
    targets: dict[Value, View] = field(default_factory=dict)
    landed: set[Value] = field(default_factory=set)  # values that were written to their target
    checks: list[SizeCheck] = field(default_factory=list)
    merged: list[tuple[Storage, Storage]] = field(default_factory=list)

    def inside(self, blas: frozenset[str] = frozenset()) -> Lowering:
        """The state for a walk over a sub-graph."""
        return Lowering(
            self.threads, {}, self.native, blas,
            checks=self.checks, merged=self.merged, sizes=self.sizes,
        )  # fmt: skip

    def run(self, graph: Graph, wanted: Mapping[Value, View] | None = None) -> None:
        self.targets = find_targets(graph, wanted)
        for node in graph.nodes:
            self._lower(node)

    def _lower(self, node: Node) -> None:
        name = node.op.name
        self._check_sizes(node)
        if name == "constant":
            self.places[node.output] = Literal(node.attrs["value"], node.attrs["dtype"])
        elif name in _VIEWS:
            self._view(node)
        elif name == "concatenate":
            self._concatenate(node)
        elif name == "dot_general" and self._multiplies(node):
            self._matmul(node)
        elif name == "fused":
            summed = {
                v for n in node.attrs["body"].nodes
                if n.op.kind is Kind.REDUCE or sums_rows(n) or gathers(n) for v in n.inputs
            }
            operands = [
                self.view_of(v, node) if v in summed else self.places[v] for v in node.inputs
            ]
            results = [self.result(node, v) for v in node.outputs]
            if self.native:
                step = lower_rows(node, operands, results, self.threads, self.sizes)
            else:
                step = lower_fused(node, operands, results, self.threads)
            self.steps.append(step)
        elif name == "scan":
            self.steps.append(lower_scan(self, node))
        elif name == "cond":
            self._cond(node)
        elif name == "while":
            self._while(node)
        elif name == "scan_sweep":
            self.steps.append(lower_sweep(self, node))
        elif name == "scan_replay":
            self.steps.append(lower_replay(self, node))
        else:
            self._op(node)

    def result(self, node: Node, v: Value) -> View:
        """Where `v` is written: its target if it has one, else a storage of its own."""
        target = self.targets.get(v)
        if target is not None:
            self.landed.add(v)
            self.places[v] = target
            return target
        view = new_view(v.type, "value", node.op.name, node.place)
        self.places[v] = view
        return view

    def _op(self, node: Node) -> None:
        elementwise = node.op.kind is Kind.ELEMENTWISE
        operands = tuple(
            self.places[v]
            if elementwise or (i == 0 and node.op.name in _FILLED)
            else self.view_of(v, node)
            for i, v in enumerate(node.inputs)
        )
        if self.native and node.op.name in flash.OPS and node.outputs[0].dtype is f32:
            self._flash(node)
            return
        results = tuple(self.result(node, v) for v in node.outputs)
        space: tuple[View, ...] = ()
        if self.native:
            space = head_memory(node, self.threads) or self._partials(node)
        self.steps.append(OpStep(node, operands, results, space))

    def _flash(self, node: Node) -> None:
        """Tiled attention, whose arrays have a unit stride along their last axis."""
        operands = tuple(self._rowed(v, node) for v in node.inputs)
        for v in node.outputs:
            target = self.targets.get(v)
            if target is not None and not _unit_stride(target):
                del self.targets[v]
        results = tuple(self.result(node, v) for v in node.outputs)
        self.steps.append(
            OpStep(node, operands, results, (flash.working_memory(node, self.threads),))
        )

    def _rowed(self, v: Value, node: Node) -> View:
        view = self.view_of(v, node)
        if _unit_stride(view):
            return view
        copy = new_view(TensorType(v.dtype, v.shape), "scratch", "packed operand", node.place)
        self.steps.append(CopyStep(view, copy, "a unit stride is needed", node))
        return copy

    def _partials(self, node: Node) -> tuple[View, ...]:
        """Working memory for the total of everything there is, which threads share out, and for
        halves that are added up in f32."""
        if node.op.name == "scatter_add" and node.output.dtype.is_float:
            half = node.output.dtype.bytes == 2
            return (scratch(node.output.type.size, f32, node.place),) if half else ()
        if node.op.name not in _TOTALS or node.output.dtype.bytes < 4:
            return ()
        size = node.inputs[0].type.size
        if not same(node.output.type.size, 1) or (isinstance(size, int) and size <= SLICE):
            return ()
        return (scratch(dims.ceil_div(size, SLICE), node.output.dtype, node.place),)

    def _inner_product(self, node: Node) -> bool:
        """The total of the products of two arrays that lie alike, as one op."""
        operands = [self.view_of(v, node) for v in node.inputs]
        if not (self.native and same(node.output.type.size, 1)):
            return False
        flat = [x.reshaped((node.inputs[0].type.size,)) for x in operands]
        left, right = flat
        if left is None or right is None or not same(left.shape[0], right.shape[0]):
            return False
        (lc, rc), (lb, rb) = node.attrs["contract"], node.attrs["batch"]
        alike = [d for d in lc if not same(node.inputs[0].shape[d], 1)], [
            d for d in rc if not same(node.inputs[1].shape[d], 1)
        ]
        if lb or rb or alike[0] != sorted(alike[0]) or alike[1] != sorted(alike[1]):
            return False
        space = (scratch(dims.ceil_div(left.shape[0], SLICE), left.dtype, node.place),)
        self.steps.append(OpStep(node, (left, right), (self.result(node, node.output),), space))
        return True

    def view_of(self, v: Value, node: Node) -> View:
        """The place of `v`; of a constant one element is written, and stretched."""
        place = self.places[v]
        if isinstance(place, View):
            return place
        one = new_view(TensorType(v.dtype), "value", "constant", node.place)
        self.steps.append(CopyStep(Literal(place.value, place.dtype), one, "a constant", node))
        view = self.places[v] = one.broadcast(v.shape)
        return view

    def _view(self, node: Node) -> None:
        (source,) = node.inputs
        out = node.output
        place = self.places[source]
        if isinstance(place, Literal):
            self.places[out] = Literal(place.value, place.dtype, out.shape)
            return
        if source in self.landed and self._leads_to(source, out):
            self.landed.add(out)
            self.places[out] = self.targets[out]
            return
        moved = _VIEWS[node.op.name](node, place)
        if moved is None:
            result = self.result(node, out)
            shaped = result.reshaped(source.shape)
            if shaped is None:  # the target is too scattered for the shape of what is copied
                self.landed.discard(out)
                result = self.places[out] = new_view(out.type, "value", node.op.name, node.place)
                shaped = result.reshaped(source.shape)
            assert shaped is not None
            self.steps.append(CopyStep(place, shaped, "no strides give this shape", node))
            return
        self.places[out] = moved

    def _leads_to(self, source: Value, out: Value) -> bool:
        """Whether the target of `source` is that of `out`, seen from before the move."""
        target = self.targets.get(out)
        return target is not None and self.targets[source].storage is target.storage

    def _check_sizes(self, node: Node) -> None:
        """No window may reach outside: what the bounds of the symbols leave open is checked."""
        for limits, what in _limits(node):
            for lower, upper in itertools.pairwise(limits):
                if dims.decide_le(lower, upper) is not True:
                    self.checks.append(SizeCheck(lower, upper, f"{node.place}: {what}"))

    def _concatenate(self, node: Node) -> None:
        axis = node.attrs["axis"]
        out = self.result(node, node.output)
        start: Dim = 0
        for v in node.inputs:
            if v not in self.landed or self.targets[v].storage is not out.storage:
                part = part_of(out, axis, start, v.shape)
                self.steps.append(CopyStep(self.places[v], part, "concatenation", node))
            start = start + v.shape[axis]

    def _multiplies(self, node: Node) -> bool:
        """Whether a contraction is done as a matrix product.  Of f16 and bf16 by kernels alone, and
        not where it is a vector's: there would be more to pack than to multiply."""
        dtype = node.output.dtype
        if not dtype.is_float or dtype.bytes > 2:
            return dtype.is_float
        (lc, rc), (lb, rb) = node.attrs["contract"], node.attrs["batch"]
        left, right = node.inputs
        rows = dims.product(left.shape[i] for i in free_axes(len(left.shape), lc, lb))
        columns = dims.product(right.shape[i] for i in free_axes(len(right.shape), rc, rb))
        return self.native and not (same(rows, 1) or same(columns, 1))

    def _matmul(self, node: Node) -> None:
        if node.output.dtype.bytes > 2 and self._inner_product(node):
            return
        operands: list[View] = []
        for wanted in matrices(node, [self.view_of(v, node) for v in node.inputs]):
            if isinstance(wanted, View):
                operands.append(wanted)
                continue
            source, shape = wanted
            type = TensorType(source.dtype, source.shape)
            copy = new_view(type, "scratch", "packed operand", node.place)
            self.steps.append(CopyStep(source, copy, "BLAS needs a unit stride", node))
            packed = copy.reshaped(shape)
            assert packed is not None
            operands.append(packed)
        left, right = operands
        shape = (*left.shape[:-1], right.shape[-1])
        result = self.result(node, node.output)
        matrix = result.reshaped(shape)
        if matrix is None or not (_unit_stride(matrix) or _unit_stride(_flipped_axes(matrix))):
            self.landed.discard(node.output)
            result = new_view(node.output.type, "value", node.op.name, node.place)
            self.places[node.output] = result
            matrix = result.reshaped(shape)
            assert matrix is not None
        if not _unit_stride(matrix):  # a target in transposed order: (AB)' = B'A'
            left, right, matrix = map(_flipped_axes, (right, left, matrix))
        column = same(matrix.shape[-1], 1)  # rows times a vector: nothing to pack
        blas = not column and matrix.dtype.name in self.blas
        own = self.native and not column and not blas
        panels = self._packed(right, node) if own else None
        self.steps.append(MatmulStep(node, (left, right), (matrix,), panels, blas))

    def _packed(self, matrix: View, node: Node) -> View:
        """The panels of the right operand of a product; of two products by one array they are made
        once, unless it is there all the time, as weights are: then panels would be, too."""
        of_value = matrix.storage.kind == "value"
        for step in self.packs.get(matrix.storage, ()) if of_value else ():
            if step.operand.equals(matrix):
                return step.result
        k, n = matrix.shape[-2:]
        elements = dims.product(matrix.shape[:-2]) * k * dims.align(n, PANEL)
        dtype = f32 if matrix.dtype.bytes == 2 else matrix.dtype
        panels = scratch(elements, dtype, node.place)
        self._packing(PackStep(node, matrix, panels))
        return panels

    def _packing(self, step: PackStep) -> None:
        self.steps.append(step)
        self.packs.setdefault(step.operand.storage, []).append(step)

    def hoisted(self, inner: Lowering, captured: Sequence[View]) -> list[View]:
        """Packs before a loop, once, what each of its turns would: the panels."""
        if not self.native:
            return []
        outside = {v.storage for v in captured}
        fixed = [
            step for step in inner.steps
            if isinstance(step, PackStep) and step.operand.storage in outside
            and not isinstance(step.operand, Turn)
        ]  # fmt: skip
        inner.steps = [step for step in inner.steps if step not in fixed]
        for step in fixed:
            self._packing(step)
        return [step.result for step in fixed]

    def carried(self, outputs: Sequence[Value], homes: Sequence[View], node: Node) -> list[Operand]:
        """The new carries, none of them in a place that an update of another one overwrites."""
        taken = {place.storage for place in homes}
        found: list[Operand] = []
        for v, own in zip(outputs, homes, strict=True):
            new = self.places[v]
            if isinstance(new, View) and new.storage in taken and not new.equals(own):
                new = self.kept(new, node)
            found.append(new)
        return found

    def captures(self, inner: Lowering, values: Iterable[tuple[Value, Value]]) -> list[View]:
        """Lets a body read values where they lie; the views among them."""
        views = []
        for v, b in values:
            place = inner.places[b] = self.places[v]
            if isinstance(place, View):
                views.append(place)
        return views

    def _cond(self, node: Node) -> None:
        results = tuple(self.result(node, v) for v in node.outputs)
        runs: list[tuple[Step, ...]] = []
        captured: list[View] = []
        for name in BRANCHES:
            branch: Graph = node.attrs[name]
            inner = self.inside()
            pairs = zip(node.inputs[1:], branch.inputs, strict=True)
            captured = self.captures(inner, pairs)
            inner.run(branch, _wanted(branch, results))
            for v, result in zip(branch.outputs, results, strict=True):
                place = inner.places[v]
                if not result.equals(place):
                    why = "both branches end with it there"
                    inner.steps.append(CopyStep(place, result, why, node))
            runs.append(tuple(inner.steps))
        then, otherwise = runs
        flag = self.places[node.inputs[0]]
        self.steps.append(BranchStep(node, flag, then, otherwise, results, tuple(captured)))

    def _while(self, node: Node) -> None:
        n = node.attrs["carries"]
        carries = []
        for v in node.inputs[:n]:
            carries.append((self.places[v], new_view(v.type, "value", "carry", node.place)))
        homes = [place for _, place in carries]
        lowered: list[Lowering] = []
        captured: list[View] = []
        for name in ("condition", "body"):
            graph: Graph = node.attrs[name]
            inner = self.inside()
            inner.places.update(zip(graph.inputs, homes, strict=False))
            captured = self.captures(inner, zip(node.inputs[n:], graph.inputs[n:], strict=True))
            inner.run(graph)
            lowered.append(inner)
        condition, body = lowered
        updates = updates_of(body.carried(node.attrs["body"].outputs, homes, node), carries)
        self.places.update(zip(node.outputs, homes, strict=True))
        self.steps.append(
            WhileStep(
                node, tuple(carries), tuple(condition.steps),
                condition.places[node.attrs["condition"].outputs[0]],
                tuple(body.steps), updates, tuple(captured),
            )
        )  # fmt: skip

    def kept(self, view: View, node: Node) -> View:
        """A copy of `view` that outlives a change of its storage."""
        copy = new_view(TensorType(view.dtype, view.shape), "value", "carry", node.place)
        self.steps.append(CopyStep(view, copy, "carries that change places", node))
        return copy


def _wanted(branch: Graph, results: Sequence[View]) -> dict[Value, View]:
    """The results that a branch may write right to their places.

    Not parts of one larger storage: whether a value landed is told by its storage alone."""
    homes = [view.storage for view in results]
    made = branch.producers()
    return {
        v: view
        for v, view in zip(reversed(branch.outputs), reversed(results), strict=True)
        if v in made and homes.count(view.storage) == 1
    }


def _limits(node: Node) -> Iterator[tuple[tuple[Dim, ...], str]]:
    """Sizes that must rise for the node to make sense, each with what to say of it."""
    attrs = node.attrs
    if node.op.name == "slice":
        windows = zip(attrs["start"], attrs["stop"], node.inputs[0].shape, strict=True)
        for axis, (a, b, size) in enumerate(windows):
            yield (0, a, b, size), f"slice {a}:{b} of axis {axis}, whose size is {size}"
    elif node.op.name == "set_slice":
        x, y = (v.shape for v in node.inputs)
        places = zip(attrs["start"], y, attrs["step"], x, strict=True)
        for axis, (a, n, step, size) in enumerate(places):
            end = a + extent(n, step)
            yield (0, a, end, size), f"slice {a}:{end} of axis {axis}, whose size is {size}"
    elif node.op.name == "pad":
        for low, high in zip(attrs["low"], attrs["high"], strict=True):
            yield (0, low), f"padding by {low}"
            yield (0, high), f"padding by {high}"
    elif node.op.name == "iota":
        yield (0, attrs["size"]), f"a range of {attrs['size']}"
    elif node.op.name == "scan":
        yield (0, attrs["length"]), f"a scan of {attrs['length']} steps"
    elif node.op.name == "broadcast_to" or node.op.kind is Kind.RANDOM:
        yield from _sizes(node.output)


def _sizes(v: Value) -> Iterator[tuple[tuple[Dim, ...], str]]:
    for d in v.shape:
        yield (0, d), f"the size {d} of {v.type}"


def part_of(whole: View, axis: int, start: Dim, shape: Sequence[Dim]) -> View:
    """The part of a concatenation that begins at `start` along `axis`."""
    starts = tuple(start if i == axis else 0 for i in range(len(shape)))
    return whole.sliced(starts, (1,) * len(shape), shape)


def _flipped_axes(view: View) -> View:
    """The matrices of a view, transposed."""
    n = len(view.shape)
    return view.transposed((*range(n - 2), n - 1, n - 2))


def _unit_stride(view: View) -> bool:
    return not view.shape or same(view.strides[-1], 1) or same(view.shape[-1], 1)


def _reshaped(node: Node, place: View) -> View | None:
    return place.reshaped(node.attrs["shape"])


def _transposed(node: Node, place: View) -> View:
    return place.transposed(node.attrs["perm"])


def _broadcast(node: Node, place: View) -> View:
    return place.broadcast(node.attrs["shape"])


def _sliced(node: Node, place: View) -> View:
    return place.sliced(node.attrs["start"], node.attrs["step"], node.output.shape)


def _flipped(node: Node, place: View) -> View:
    return place.flipped(node.attrs["axes"])


_FILLED = frozenset({"scatter_add", "scatter_set", "set_slice"})  # copy operand 0, or fill with it
_VIEWS = {
    "reshape": _reshaped,
    "transpose": _transposed,
    "broadcast_to": _broadcast,
    "slice": _sliced,
    "flip": _flipped,
}
