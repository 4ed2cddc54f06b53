"""Sinking: what no later step needs is computed after the loop, for all steps at once.

Graph -> Graph.  Two things sink.  A carry that only adds up (`sum + g(t)`) becomes a sum over the
steps: of a matrix product, one product whose contraction runs over the steps too (weight
gradients); of a row sum, one sum (bias gradients); of a scatter into zeros, one scatter (embedding
gradients).  And a step result that takes a matrix product to make is made from the stacked values
behind the loop (heads, losses, input gradients).  Invariant: same values up to the order of
summation over time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from retrograde.compiler.ir.builder import Builder, new_value
from retrograde.compiler.ir.expr import Expr, zeros
from retrograde.compiler.ir.graph import Graph, Node, TensorType, Value, same_type
from retrograde.compiler.ir.registry import Kind, lookup
from retrograde.compiler.passes.cuts import ordered
from retrograde.compiler.passes.dce import DCE, has_effect
from retrograde.compiler.passes.ragged import Filled
from retrograde.compiler.passes.regions import rewrite_scans
from retrograde.compiler.passes.scan_carries import frozen
from retrograde.compiler.passes.step_sums import from_the_end, is_wide, sum_of_rows, sum_of_steps
from retrograde.compiler.passes.vectorize import Vectorized, can_vectorize, vectorize

# The sum over the steps, once the stacks are there, added to what there is already.
Total = Callable[[Vectorized, Expr | None], Expr]


@dataclass(frozen=True)
class SinkScan:
    """Moves sums over time, and results that take a product, behind loops.

    `turns`: how many steps at a time a sum of products takes.  `merges` as for `vectorize`."""

    turns: int = 1
    merges: bool = True

    def __call__(self, graph: Graph) -> Graph:
        makers = graph.producers()

        def emit(node: Node, builder: Builder, renamed: dict[Value, Value]) -> None:
            _Sinking(frozen(node, renamed), self.turns, self.merges).emit(builder, renamed, makers)

        return rewrite_scans(graph, emit)


class _Sinking:
    """One scan: what sinks, and which values the loop has to stack for it."""

    def __init__(self, node: Node, turns: int, merges: bool) -> None:
        self.node = node
        self.merges = merges
        self.turns = turns
        self.reverse: bool = node.attrs["reverse"]
        self.body: Graph = node.attrs["body"]
        self.n = node.attrs["carries"]
        self.m = self.n + node.attrs["slices"]
        self.maker = self.body.producers()
        self.users = self.body.users()
        self.filled = Filled(node)
        self.adds = self._accumulators()
        self.inside = self._needed_inside()
        self.carried, self.varying = self._reached(self.n), self._reached(self.m)
        self.stacks: dict[Value, None] = {}  # values the loop computes that are wanted stacked
        self.tail: set[Node] = set()  # nodes that run behind the loop
        self.totals: dict[int, Total] = {}  # by carry
        self.known: dict[Value, Total | None] = {}  # how to sum what was asked for so far
        self.results: list[int] = []  # step results that are made behind the loop
        self.totalling = True  # not a step result, which is as well made inside
        self.cleared = False  # what is stacked for a result that is zero where no row lives anyway
        self._choose()

    def _accumulators(self) -> dict[int, Value]:
        """The carries that only add up, with what each adds."""
        found: dict[int, Value] = {}
        outputs = list(self.body.outputs)
        for i in range(self.n):
            carry, new = self.body.inputs[i], outputs[i]
            add = self.maker.get(new)
            if add is None or add.op.name != "add" or self.users.get(carry) != [add]:
                continue
            if new in self.users or outputs.count(new) != 1 or carry in outputs:
                continue
            others = [v for v in add.inputs if v is not carry]
            if len(others) == 1 and same_type(others[0].type, carry.type):
                found[i] = others[0]
        return found

    def _needed_inside(self) -> set[Node]:
        """The nodes that the other carries and effects need."""
        live = {v for i, v in enumerate(self.body.outputs[: self.n]) if i not in self.adds}
        found: set[Node] = set()
        for inner in reversed(self.body.nodes):
            if has_effect(inner) or any(v in live for v in inner.outputs):
                found.add(inner)
                live.update(inner.inputs)
        return found

    def _reached(self, count: int) -> set[Value]:
        """What the first `count` inputs of the body reach."""
        found = set(self.body.inputs[:count])
        for inner in self.body.nodes:
            if any(v in found for v in inner.inputs) or has_effect(inner):
                found.update(inner.outputs)
        return found

    def _choose(self) -> None:
        for i, g in self.adds.items():
            before, known = (dict(self.stacks), set(self.tail)), dict(self.known)
            total = self._total(g)
            if total is None:
                (self.stacks, self.tail), self.known = before, known
            else:
                self.totals[i] = total
        self.totalling = False
        made_by = {j: self.maker.get(v) for j, v in enumerate(self.body.outputs) if j >= self.n}
        found = {j: made for j, made in made_by.items() if made is not None}
        # Those that may be made of anything come last: others must not be made of their parts.
        for j in sorted(found, key=lambda j: self.filled.cleared(found[j])):
            v, made = self.body.outputs[j], found[j]
            if made in self.inside or not self._takes_product(made):
                continue
            self.cleared = self.filled.cleared(made)
            before = dict(self.stacks), set(self.tail)
            if self._stack(v):
                self.results.append(j)
            else:  # take back what was noted
                self.stacks, self.tail = before

    def _takes_product(self, made: Node) -> bool:
        """Whether a matrix product is among the tail nodes that lead to `made`."""
        seen: set[Node] = set()
        work = [made]
        while work:
            node = work.pop()
            if node in seen or node in self.inside:
                continue
            seen.add(node)
            if node.op.kind is Kind.CONTRACT:
                return True
            work.extend(m for v in node.inputs if (m := self.maker.get(v)) is not None)
        return False

    def _stack(self, v: Value) -> bool:
        """Notes what it takes to have `v` for all steps behind the loop; False if it cannot be.

        What the loop makes from a carry is stacked; all else is made behind the loop, and where
        the loop needs it too, hoisting takes it out of there."""
        made = self.maker.get(v)
        if made is None:
            if v in self.carried:
                self.stacks[v] = None
            return True
        if made in self.tail or v in self.stacks:
            return True
        # A value that is not zero where no row lives is made behind the loop, or not at all.
        inside = made in self.inside and not self.filled.has_other(v, made)
        if inside and v in self.carried:
            self.stacks[v] = None
            return True
        free = self.cleared and not made.op.checks_data
        if not free and self.filled.keeps_inside(made):
            self.stacks[v] = None
            return self.totalling
        before = dict(self.stacks), set(self.tail)
        if can_vectorize(made, [u in self.varying for u in made.inputs]) and all(
            map(self._stack, made.inputs)
        ):
            self.tail.add(made)
            return True
        if inside:
            self.stacks, self.tail = before
            self.stacks[v] = None
        return inside

    def _total(self, g: Value) -> Total | None:
        """How to get the sum of `g` over the steps; None where adding step by step is as good."""
        made = self.maker.get(g)
        if made is None or made in self.inside or g not in self.varying:
            return None
        if g not in self.known:
            rule = _TOTALS.get(made.op.name)
            total = None if rule is None else rule(self, made)
            self.known[g] = None if total is None else _once(total)
        return self.known[g]

    def _total_of_moved(self, made: Node) -> Total | None:
        inner = self._total(made.inputs[0])
        if inner is None:
            return None
        return _added(lambda found: made.op(inner(found, None), **made.attrs))

    def _total_of_padded(self, made: Node) -> Total | None:
        return self._total_of_moved(made) if made.attrs["value"] == 0 else None

    def _total_of_scaled(self, made: Node) -> Total | None:
        """Times or by what is the same in every step."""
        a, b = made.inputs
        if a not in self.varying and made.op.name == "mul":
            a, b = b, a
        if b in self.varying or not self._stack(b):
            return None
        inner = self._total(a)
        if inner is None:
            return None
        return _added(lambda found: made.op(inner(found, None), found.shared[b]))

    def _total_of_selected(self, made: Node) -> Total | None:
        """Zero where a mask that is the same in every step says so."""
        mask, a, b = made.inputs
        if mask in self.varying or not self._stack(mask):
            return None
        taken, zero = (b, a) if is_zero(a, self.maker) else (a, b)
        inner = self._total(taken) if is_zero(zero, self.maker) and self._stack(zero) else None
        if inner is None:
            return None

        def total(found: Vectorized) -> Expr:
            parts = {taken: inner(found, None), zero: found.shared[zero]}
            out: Expr = made.op(found.shared[mask], parts[a], parts[b])
            return out

        return _added(total)

    def _total_of_add(self, made: Node) -> Total | None:
        if not all(same_type(v.type, made.output.type) for v in made.inputs):
            return None
        inner = [self._total(v) for v in made.inputs]
        a, b = inner
        if a is None or b is None:
            return None
        return lambda found, start: b(found, a(found, start))

    def _total_of_sum(self, made: Node) -> Total | None:
        x = made.inputs[0]
        if made.output.dtype is not x.dtype or x not in self.varying or not self._stack(x):
            return None
        def total(found: Vectorized, start: Expr | None) -> Expr:
            steps, axes = found.over_steps(x), made.attrs["axes"]
            out = sum_of_steps(steps, axes, start, self.turns, self.reverse, self.merges)
            return _shaped(out, made.output)

        return total

    def _total_of_dot(self, made: Node) -> Total | None:
        a, b = made.inputs
        if a not in self.varying or b not in self.varying:
            return None
        if not (self._stack(a) and self._stack(b)):
            return None
        (lc, rc), (lb, rb) = made.attrs["contract"], made.attrs["batch"]
        contract = ((0, *(i + 1 for i in lc)), (0, *(i + 1 for i in rc)))
        batch = (tuple(i + 1 for i in lb), tuple(i + 1 for i in rb))

        def whole(found: Vectorized) -> Expr:
            out: Expr = lookup("dot_general")(
                found.over_steps(a), found.over_steps(b), contract=contract, batch=batch
            )
            return out

        free = [[i for i in range(v.type.ndim) if i not in c] for v, c in ((a, lc), (b, rc))]
        if lb or any(len(axes) != 1 for axes in free) or not is_wide(made.output):
            return _added(whole)

        def total(found: Vectorized, start: Expr | None) -> Expr:
            pairs = ((a, (*lc, *free[0])), (b, (*rc, *free[1])))
            rows = [ordered(found.over_steps(v), (0, *(i + 1 for i in x))) for v, x in pairs]
            return sum_of_rows(rows[0], rows[1], start, self.turns, self.reverse)

        return total

    def _total_of_scatter(self, made: Node) -> Total | None:
        """Scatters into zeros, added up, are one scatter of all updates."""
        into, updates, *indices = made.inputs
        if not is_zero(into, self.maker) or not self._stack(updates):
            return None
        for v in indices:
            if v in self.filled.values:  # as it is: of a zero that was filled in it might not fit
                self.stacks[v] = None
            elif not self._stack(v):
                return None

        def total(found: Vectorized, start: Expr | None) -> Expr:
            rows = [found.over_steps(v) for v in (updates, *indices)]
            rows = from_the_end(rows) if self.reverse else rows
            out: Expr = made.op(zeros(into.type) if start is None else start, *rows, **made.attrs)
            return out

        return total

    # --- emission

    def emit(
        self, builder: Builder, renamed: dict[Value, Value], makers: Mapping[Value, Node]
    ) -> None:
        """The scan with what sinks taken out, then what sank; `makers` are those around it."""
        node, body = self.node, self.body
        if not self.totals and not self.results:
            builder.append(node)
            return
        carries = [i for i in range(self.n) if i not in self.totals]
        kept = [j for j in range(self.n, len(body.outputs)) if j not in self.results]
        stacks = list(self.stacks)
        names = body.input_names or ("",) * len(body.inputs)
        entering = [*carries, *range(self.n, len(body.inputs))]
        smaller = body.replace(
            inputs=tuple(body.inputs[i] for i in entering),
            outputs=(
                *(body.outputs[i] for i in carries), *(body.outputs[j] for j in kept), *stacks
            ),
            input_names=tuple(names[i] for i in entering),
            output_names=(),
        )  # fmt: skip
        smaller = DCE()(smaller)
        length = node.attrs["length"]
        extra = [new_value(TensorType(v.dtype, (length, *v.shape))) for v in stacks]
        builder.append(
            replace(
                node,
                inputs=tuple(node.inputs[i] for i in entering),
                outputs=(*(node.outputs[i] for i in (*carries, *kept)), *extra),
                attrs={**node.attrs, "body": smaller, "carries": len(carries)},
            )
        )
        stacked = {v: Expr(x, builder) for v, x in zip(stacks, extra, strict=True)}
        for i in range(self.n, self.m):
            stacked[body.inputs[i]] = Expr(node.inputs[i], builder)
        shared = {
            body.inputs[i]: Expr(node.inputs[i], builder)
            for i in range(self.m, len(body.inputs))
        }
        tail = [inner for inner in body.nodes if inner in self.tail]
        found = vectorize(tail, stacked, shared, length, made_by="sink", merges=self.merges)
        origin = replace(node.origin, made_by="sink")
        with builder.located(node.loc, node.scope, origin):
            for i, total in self.totals.items():
                start = node.inputs[i]
                before = None if is_zero(start, makers) else Expr(start, builder)
                renamed[node.outputs[i]] = total(found, before).value
            for j in self.results:
                renamed[node.outputs[j]] = found.over_steps(body.outputs[j]).value


_TOTALS: dict[str, Callable[[_Sinking, Node], Total | None]] = {
    "reshape": _Sinking._total_of_moved,
    "transpose": _Sinking._total_of_moved,
    "neg": _Sinking._total_of_moved,
    "slice": _Sinking._total_of_moved,
    "flip": _Sinking._total_of_moved,
    "pad": _Sinking._total_of_padded,
    "mul": _Sinking._total_of_scaled,
    "div": _Sinking._total_of_scaled,
    "select": _Sinking._total_of_selected,
    "add": _Sinking._total_of_add,
    "sum": _Sinking._total_of_sum,
    "dot_general": _Sinking._total_of_dot,
    "scatter_add": _Sinking._total_of_scatter,
}


def _once(total: Total) -> Total:
    """`total`, whose nodes are emitted once, however many sums have it as a part."""
    made: list[Expr] = []

    def emitted(found: Vectorized, start: Expr | None) -> Expr:
        if start is not None:
            return total(found, start)
        if not made:
            made.append(total(found, None))
        return made[0]

    return emitted


def _added(total: Callable[[Vectorized], Expr]) -> Total:
    """A total that is made by itself, then added to what there is."""

    def added(found: Vectorized, start: Expr | None) -> Expr:
        return total(found) if start is None else start + total(found)

    return added


def is_zero(v: Value, makers: Mapping[Value, Node]) -> bool:
    """Whether `v` is the constant 0, stretched or not."""
    made = makers.get(v)
    if made is not None and made.op.name == "broadcast_to":
        return is_zero(made.inputs[0], makers)
    return made is not None and made.op.name == "constant" and made.attrs["value"] == 0


def _shaped(x: Expr, like: Value) -> Expr:
    """`x` in the shape of `like`, which may have kept axes of size one."""
    if same_type(x.type, like.type):
        return x
    out: Expr = lookup("reshape")(x, shape=like.shape)
    return out
