"""The graph in which a plan of joining is done.

Plan -> Graph: its loops as one, whose body makes what they read and adds up what is summed over the
steps.  Invariant: results of the loops stay the same values; every other use of a joined node is
left as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from retrograde.compiler.ir import dtypes
from retrograde.compiler.ir.builder import Builder, new_value
from retrograde.compiler.ir.expr import Expr, cast, zeros
from retrograde.compiler.ir.graph import Graph, Node, Origin, TensorType, Value
from retrograde.compiler.ir.registry import Kind, lookup
from retrograde.compiler.ops.declare import wide
from retrograde.compiler.ops.scan import parts
from retrograde.compiler.passes.cuts import Cut, Need, Needs, Part, over_all, stacked_first
from retrograde.compiler.passes.devectorize import rule_for
from retrograde.compiler.passes.devectorize_sums import SUMS
from retrograde.compiler.passes.join_facts import in_order
from retrograde.compiler.passes.join_plan import Key, Made, Plan, Source, fixed, starts, wholes_of


def joined(plan: Plan, copies: dict[int, Node]) -> Graph:
    """The graph with the plan's loops as one, and in it what joins it.

    `copies` notes for each joined node, by its id, which node it computes a step of."""
    return _Emission(plan, copies).graph()


class _Emission:
    def __init__(self, plan: Plan, copies: dict[int, Node]) -> None:
        self.plan = plan
        self.copies = copies
        self.last = plan.loops[-1]
        self.makers = plan.facts.makers
        self.body = Builder(self.last.attrs["body"].name, Expr)
        self.steps: dict[Key, Expr] = {}
        self.whole: dict[Value, Expr] = {}
        self.number: Expr | None = None  # of the step, where something asks for it
        cone = plan.cone(plan.keys())
        self.leaves = [key for key in cone if plan.choices[key] is Source.SLICE]
        whole = [v for made in plan.made(cone) for v in wholes_of(made.node, made.needs)]
        whole += [v for node, needs in plan.sums.items() for v in wholes_of(node, needs)]
        read = [v for v in whole if not self._is_created(v)]
        self.shared = list(dict.fromkeys((*(v for x in plan.loops for v in fixed(x)), *read)))
        self.totals = [
            TensorType(wide(node.output.dtype), node.output.shape) for node in plan.sums
        ]

    def _is_created(self, v: Value) -> bool:
        """Whether `v` is made of no operand, so that the body makes it too."""
        node = self.makers.get(v)
        if node is None or node.op.kind not in (Kind.CREATE, Kind.MOVE):
            return False
        return all(map(self._is_created, node.inputs))

    # --- around the loop

    def graph(self) -> Graph:
        plan, graph, last = self.plan, self.plan.facts.graph, self.last
        around = Builder(graph.name, Expr)
        origin = Origin(last.origin.role, "join", (last.id, *last.origin.ancestors[:3]))
        with around, around.located(last.loc, last.scope, origin):
            begin = [zeros(t) for t in self.totals]
            rows = [stacked_first(Expr(v, around), cut) for v, cut in self.leaves]
            found = [new_value(t) for t in self.totals]
            body = self._body()
            if self.number is not None:
                rows.append(lookup("iota")(size=plan.length, dtype=dtypes.i64))
            around.append(self._loop(body, begin, rows, found))
            renamed = {
                node.output: cast(Expr(v, around), node.output.dtype).value
                for node, v in zip(plan.sums, found, strict=True)
            }
        nodes: list[Node] = []
        for node in graph.nodes:
            if node is last:
                nodes.extend(around.nodes)
            elif node not in plan.sums and node not in plan.loops:
                nodes.append(node)
        nodes = [node.with_inputs(renamed.get(v, v) for v in node.inputs) for node in nodes]
        outputs = tuple(renamed.get(v, v) for v in graph.outputs)
        return in_order(graph.replace(outputs=outputs), nodes)

    def _loop(
        self, body: Graph, begin: list[Expr], rows: list[Expr], found: list[Value]
    ) -> Node:
        loops, last = self.plan.loops, self.last
        states = [v for x in loops for v in x.outputs[: x.attrs["carries"]]]
        results = [v for x in loops for v in x.outputs[x.attrs["carries"] :]]
        return replace(
            last,
            inputs=(
                *(v for x in loops for v in starts(x)),
                *(e.value for e in (*begin, *rows)),
                *self.shared,
            ),
            outputs=(*states, *found, *results),
            attrs={
                **last.attrs,
                "body": body,
                "carries": len(states) + len(found),
                "slices": len(rows),
            },
        )

    # --- the body

    def _body(self) -> Graph:
        plan, body, names = self.plan, self.body, self._names()
        with body:
            carries = {
                x: [body.input(v.type, names[v]) for v in parts(x.attrs["body"].inputs, x.attrs)[0]]
                for x in plan.loops
            }
            accumulators = [body.input(t, "sum") for t in self.totals]
            for key in self.leaves:
                type = TensorType(key.value.dtype, key.cut.shape(key.value.shape))
                self.steps[key] = body.input(type, names.get(key.value, "step"))
            for v in self.shared:
                self.whole[v] = body.input(v.type, names.get(v, "constant"))
            states: list[Value] = []
            results: list[Value] = []
            for x in plan.loops:
                outputs = self._inlined(x, carries[x])
                states.extend(outputs[: x.attrs["carries"]])
                results.extend(outputs[x.attrs["carries"] :])
            pairs = zip(accumulators, plan.sums.items(), strict=True)
            added = [self._added(total, node, needs).value for total, (node, needs) in pairs]
            self._place_number()
            return body.finish([*states, *added, *results])

    def _number(self) -> Expr:
        """The number of the step: one more slice, which only some need."""
        if self.number is None:
            self.number = self.body.input(TensorType(dtypes.i64), "number")
        return self.number

    def _place_number(self) -> None:
        """Puts the number's input, the latest, behind those of the other slices."""
        if self.number is None:
            return
        place = len(self.body.inputs) - 1 - len(self.shared)
        self.body.inputs.insert(place, self.body.inputs.pop())
        self.body.input_names.insert(place, self.body.input_names.pop())

    def _names(self) -> dict[Value, str]:
        """What the loops call the carries, and the operands that they go on to read."""
        names: dict[Value, str] = {}
        for x in self.plan.loops:
            inner: Graph = x.attrs["body"]
            known = inner.input_names or ("",) * len(inner.inputs)
            names.update(zip(inner.inputs, known, strict=True))
            names.update(zip(x.inputs, known, strict=True))
        return names

    def _inlined(self, loop: Node, carries: Sequence[Expr]) -> list[Value]:
        """The body of one of the loops, behind what it reads."""
        inner: Graph = loop.attrs["body"]
        steps = [self._step(key) for key in self.plan.slices[loop]]
        operands = [*carries, *steps, *(self.whole[v] for v in fixed(loop))]
        known = {v: e.value for v, e in zip(inner.inputs, operands, strict=True)}
        for node in inner.nodes:
            self.body.append(node.with_inputs(known.get(v, v) for v in node.inputs))
        outputs = [known.get(v, v) for v in inner.outputs]
        own = loop.outputs[loop.attrs["carries"] :]
        for v, inside in zip(own, outputs[loop.attrs["carries"] :], strict=True):
            key = Key(v, over_all(self.plan.length))
            self.steps[key] = Expr(inside, self.body)
        return outputs

    def _added(self, total: Expr, node: Node, needs: Needs) -> Expr:
        """A sum over the steps with this step's part."""
        operands = self._operands(node, needs)
        with self._copying(node):
            part = SUMS[node.op.name].part(Part(node, None, needs, operands, self._number))
            out: Expr = total + part
        return out

    def _step(self, key: Key) -> Expr:
        for each in self.plan.cone([key]):
            choice = self.plan.choices[each]
            if each in self.steps or not isinstance(choice, Made):
                continue
            node = choice.node
            rule = rule_for(node)
            assert rule is not None
            operands = self._operands(node, choice.needs)
            with self._copying(node):
                results = rule.step(Part(node, each.cut, choice.needs, operands, self._number))
            for v, e in zip(node.outputs, results, strict=True):
                self.steps[Key(v, each.cut)] = e
        return self.steps[key]

    def _operands(self, node: Node, needs: Needs) -> tuple[Expr | None, ...]:
        found: list[Expr | None] = []
        for v, need in zip(node.inputs, needs, strict=True):
            if isinstance(need, Cut):
                found.append(self._step(Key(v, need)))
            else:
                found.append(None if need is Need.NOTHING else self._all_of(v))
        return tuple(found)

    def _all_of(self, v: Value) -> Expr:
        """A value that is the same in every step."""
        if v not in self.whole:
            node = self.makers[v]
            operands = [self._all_of(u).value for u in node.inputs]
            with self._copying(node):
                made = self.body.emit(node.op, operands, node.attrs)
            self.whole.update(
                (out, Expr(e, self.body)) for out, e in zip(node.outputs, made, strict=True)
            )
        return self.whole[v]

    @contextmanager
    def _copying(self, node: Node) -> Iterator[None]:
        """What is made inside stems from `node`, and has its place and role."""
        first = len(self.body.nodes)
        old = node.origin
        origin = Origin(old.role, "join", (node.id, *old.ancestors[:3]), old.group)
        with self.body.located(node.loc, node.scope, origin):
            yield
        for made in self.body.nodes[first:]:
            self.copies.setdefault(made.id, node)
