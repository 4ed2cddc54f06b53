"""Gradients against slopes: a graph that knows its derivatives, numbers -> comparisons, faults.

Where a gradient is wrong, the cotangents that led to it are compared one by one, from the loss
back; the first that is wrong lies behind the rule, or the sum of cotangents, that is at fault.
Invariant: a rule is judged by the finite differences of the op itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde.certificates.certificate import Compared, Fault
from retrograde.certificates.numbers import distance, worst
from retrograde.certificates.slopes import Parting, Slopes, compare, cut_at
from retrograde.compiler.errors import RetrogradeError
from retrograde.compiler.ir import dims
from retrograde.compiler.ir.builder import next_id
from retrograde.compiler.ir.graph import Derivative, Graph, Node, Rule, Value
from retrograde.compiler.ir.interpreter import Body, Watch, evaluate, run_node
from retrograde.compiler.ops.region import silent
from retrograde.compiler.passes.backward import Backward
from retrograde.compiler.passes.widen import Widened, widened

Array = npt.NDArray[Any]

BODIES = ("body", "then", "otherwise")
BODY_RULES = ("scan", "remat_call", "cond")
_MOST = 10.0  # by how much the direction of one array is stretched beside the others'


class Claims:
    """The derivatives of one graph at one set of inputs, all in float64.

    `departures` names the custom gradients that are not the derivative of their function; with
    `trust` they are taken as declared, and everything around them is still compared."""

    def __init__(
        self,
        graph: Graph,
        inputs: Sequence[Array],
        sizes: Mapping[str, int],
        rng: np.random.Generator,
        trust: bool = False,
    ) -> None:
        self.wide: Widened = widened(graph)
        self.sizes = sizes
        self.rng = rng
        self.known = all_values(self.wide.graph, inputs, sizes)
        self.derivatives = [d.renamed(self.wide.values) for d in graph.derivatives]
        self.departures: list[Fault] = []
        self.faults: list[Fault] = []
        self._trusted: list[Rule] = []
        self._graph = graph
        self._check_custom(trust)

    def _check_custom(self, trust: bool) -> None:
        seen: set[Node] = set()
        for d in self.derivatives:
            for rule in d.rules:
                if rule.node.op.name != "custom_call" or rule.node in seen:
                    continue
                seen.add(rule.node)
                found = self._alone(rule)
                if found is None or found.ok:
                    continue
                name = f"custom gradient of {rule.node.attrs['body'].name}"
                seen_text = f"{_at(rule.node)}it is not the derivative: {_said(found)}"
                self.departures.append(Fault(name, seen_text))
                self._trusted.append(rule)
                if not trust:
                    self.faults.append(Fault(name, seen_text))

    def compared(self, directions: int) -> Iterator[Compared]:
        """Every derivative in some directions; the faults are in `faults` then."""
        for d in self.derivatives:
            label = self._label(d)
            if d.function is not None:
                yield self._unchanged(d, d.function, label)
            gradient = [self.known[v] for v in d.results]
            tried = [
                self._parting(d, d.wrt, gradient, self._direction(gradient, k > 0))
                for k in range(directions)
            ]
            most = max(tried, key=_share)
            yield Compared("gradient", label, self.sizes, most.error, most.bound, _said(most))
            if not most.ok and not self.faults:
                self.faults.append(self.located(d))
            for rule in self._trusted:  # what came to a rule that is trusted is not
                yield from self._arriving(d, rule, label)

    def _unchanged(self, d: Derivative, function: Graph, label: str) -> Compared:
        """What is differentiated against what it was before the backward pass made it over."""
        graph = widened(silent(function)).graph
        before = evaluate(graph, [self.known[v] for v in d.given], self.sizes)
        far = worst(
            [distance(self.known[v], x, None) for v, x in zip(d.of, before, strict=True)]
        )
        if not far.ok and not self.faults:
            name = function.name
            self.faults.append(Fault("pass backward", f"it makes another function of {name}"))
        what = label.partition(" by ")[0].removeprefix("d ")
        return Compared("function", what, self.sizes, far.error, far.bound)

    def _arriving(self, d: Derivative, rule: Rule, label: str) -> Iterator[Compared]:
        totals = dict(d.totals)
        for v in rule.outputs:
            if v in totals and v not in d.of:
                g = [self.known[totals[v]]]
                found = self._parting(d, (v,), g, self._direction(g, False))
                what = f"{label}, up to {rule.node.attrs['body'].name}"
                yield Compared("gradient", what, self.sizes, found.error, found.bound)
                if not found.ok and not self.faults:
                    self.faults.append(self.located(d))

    def _label(self, d: Derivative) -> str:
        back = {new: old for old, new in self.wide.values.items()}
        names = dict(zip(self._graph.outputs, self._graph.output_names, strict=False))
        of = [back[v] for v in d.of]
        makers = self._graph.producers()
        text = ", ".join(
            names.get(v) or (str(makers[v].place) if v in makers else "") or "a value" for v in of
        )
        return f"d {text} by {len(d.wrt)} array{'s' if len(d.wrt) != 1 else ''}"

    def _direction(self, gradient: Sequence[Array], even: bool) -> list[Array]:
        """A random direction; with `even` one in which each array counts about as much."""
        sizes = [float(np.sqrt(np.sum(g * g))) for g in gradient]
        middle = float(np.median([s for s in sizes if s > 0] or [1.0]))
        out = []
        for g, size in zip(gradient, sizes, strict=True):
            factor = min(_MOST, middle / size) if even and size > 0 else 1.0
            out.append(factor * self.rng.standard_normal(g.shape))
        return out

    def _parting(
        self, d: Derivative, wrt: Sequence[Value], g: Sequence[Array], direction: Sequence[Array]
    ) -> Parting:
        """The slope of what is differentiated against a gradient.

        Paths through rules that are trusted are taken from the rules: each path has a first one,
        so the slope is that of the other paths and the sum over the rules of their cotangents and
        the changes that reach them on paths without one."""
        seeds = [self.known[v] for v in d.seeds]
        held = [v for rule in self._trusted for v in rule.outputs]
        extra = 0.0
        if held:
            pairs = [
                (v, self.known[part])
                for rule in self._trusted
                if set(rule.outputs) - set(wrt)
                for v, part in zip(rule.inputs, rule.parts, strict=True)
                if part is not None
            ]
            values = [v for v, _ in pairs]
            reach = Slopes(
                self.wide.graph, self.known, self.sizes, wrt, values,
                [np.zeros_like(self.known[v]) for v in values], held,
            )  # fmt: skip
            moved = reach.changes(direction, 2e-4)
            extra = float(sum(np.sum(p * m) for (_, p), m in zip(pairs, moved, strict=True)))
        slopes = Slopes(self.wide.graph, self.known, self.sizes, wrt, d.of, seeds, held)
        return compare(slopes, direction, g, extra)

    # --- what is at fault

    def located(self, d: Derivative) -> Fault:
        """The rule or sum behind the first wrong cotangent."""
        if not d.rules:
            return self._again(d)
        for v, total in (*d.totals, *zip(d.wrt, d.results, strict=True)):
            g = self.known[total]
            directions = [self.rng.standard_normal(g.shape) for _ in range(2)]
            if not all(self._parting(d, (v,), [g], [x]).ok for x in directions):
                return self._behind(d, v)
        return Fault("backward pass", "the gradient is wrong, every cotangent alone is right")

    def _again(self, d: Derivative) -> Fault:
        """Of a derivative whose rules are not known: what is at fault in differentiating anew."""
        back = {new: old for old, new in self.wide.values.items()}
        wrt = tuple(back[v] for v in d.wrt)
        part = cut_at(self._graph, wrt, [back[v] for v in d.of])
        try:
            made = Backward(tuple(range(len(d.of))), tuple(range(len(wrt))))(part)
        except RetrogradeError as error:
            said = f"the gradient is wrong, and cannot be made anew: {error}"
            return Fault("backward pass", said)
        given = [self.known[self.wide[v]] for v in part.inputs]
        seeds = [self.known[v] for v in d.seeds]
        claims = Claims(made, [*given, *seeds], self.sizes, self.rng)
        list(claims.compared(2))
        if claims.faults:
            return claims.faults[0]
        return Fault("backward pass", "the gradient is wrong, and right where it is made anew")

    def _behind(self, d: Derivative, v: Value) -> Fault:
        rules = [rule for rule in d.rules if v in rule.inputs]
        for rule in rules:
            fault = self._rule_fault(rule)
            if fault is not None:
                return fault
        users = ", ".join(_named(rule.node) for rule in rules) or "nothing"
        return Fault(
            "accumulation of cotangents",
            f"of the cotangents that {users} give to {v.type} the sum is another",
        )

    def _rule_fault(self, rule: Rule) -> Fault | None:
        found = self._alone(rule)
        if found is None or found.ok:
            return None
        node = rule.node
        if node.op.name == "custom_call":
            name = f"custom gradient of {node.attrs['body'].name}"
            return Fault(name, f"{_at(node)}it is not the derivative: {_said(found)}")
        inner = self._inside(rule) if node.op.name in BODY_RULES else None
        if inner is not None:
            return Fault(inner.part, f"in the {node.op.name} {_at(node)}{inner.seen}")
        return Fault(f"gradient of {node.op.name}", f"{_at(node)}{_said(found)}")

    def _alone(self, rule: Rule) -> Parting | None:
        """The rule of one node against the slope of the node; None where it has no derivative."""
        operands = [self.known[v] for v in rule.inputs]
        graph = alone(rule.node)
        floats = [i for i, v in enumerate(graph.inputs) if v.dtype.is_float]
        used = [i for i in floats if rule.parts[i] is not None]
        for wrt in (floats, used):  # of others there may be no derivative
            found = _parting_of(graph, tuple(wrt), operands, self.sizes, self.rng)
            if found is not None:
                return found
        return None

    def _inside(self, rule: Rule) -> Fault | None:
        """The fault in a sub-graph of a node, at the numbers of a step in the middle."""
        node = widened(alone(rule.node)).graph.nodes[0]
        entered = _Entered()
        run_node(node, [self.known[v] for v in rule.inputs], self.sizes, entered)
        for key in BODIES:
            body = rule.node.attrs.get(key)
            runs = entered.runs.get(key, [])
            if not isinstance(body, Graph) or not runs:
                continue
            wrt = tuple(i for i, v in enumerate(body.inputs) if v.dtype.is_float)
            made = _backward(body, wrt, node.op.name == "scan")
            if made is None:
                continue
            operands = runs[len(runs) // 2]
            seeds = _seeds(made, len(body.inputs), self.sizes, self.rng)
            claims = Claims(made, [*operands, *seeds], self.sizes, self.rng)
            list(claims.compared(2))
            if claims.faults:
                return claims.faults[0]
        return None


def all_values(
    graph: Graph, inputs: Sequence[Array], sizes: Mapping[str, int]
) -> dict[Value, Array]:
    """The numbers of every value of the graph, those in sub-graphs left out."""
    everything = tuple(graph.values())
    found = evaluate(graph.replace(outputs=everything), inputs, sizes)
    return dict(zip(everything, found, strict=True))


def alone(node: Node) -> Graph:
    """The graph of one node: its operands, each for itself, to its results."""
    inputs = tuple(Value(next_id(), v.type) for v in node.inputs)
    outputs = tuple(Value(next_id(), v.type) for v in node.outputs)
    own = replace(node, inputs=inputs, outputs=outputs)
    return Graph(node.op.name, inputs, (own,), outputs)


def _backward(graph: Graph, wrt: tuple[int, ...], in_loop: bool = False) -> Graph | None:
    of = tuple(i for i, v in enumerate(graph.outputs) if v.dtype.is_float)
    if not of or not wrt:
        return None
    try:
        return Backward(of, wrt, in_loop)(graph)
    except RetrogradeError:
        return None  # something in it has no derivative, and none was asked of it


def _seeds(
    made: Graph, first: int, sizes: Mapping[str, int], rng: np.random.Generator
) -> list[Array]:
    shapes = [tuple(dims.evaluate(d, sizes) for d in v.shape) for v in made.inputs[first:]]
    return [rng.standard_normal(shape) for shape in shapes]


def _parting_of(
    graph: Graph,
    wrt: tuple[int, ...],
    operands: Sequence[Array],
    sizes: Mapping[str, int],
    rng: np.random.Generator,
) -> Parting | None:
    """The derivative of a graph of one node against its slope, the worst of some directions."""
    made = _backward(graph, wrt)
    if made is None:
        return None
    seeds = _seeds(made, len(graph.inputs), sizes, rng)
    wide = widened(made)
    inputs = [*operands, *seeds]
    results = evaluate(wide.graph, inputs, sizes)[len(graph.outputs) :]
    plain = widened(graph)
    known = dict(zip(plain.graph.inputs, operands, strict=True))
    slopes = Slopes(
        plain.graph, known, sizes, [plain.graph.inputs[i] for i in wrt],
        [v for v in plain.graph.outputs if v.dtype.is_float], seeds,
    )  # fmt: skip
    tried = [
        compare(slopes, [rng.standard_normal(operands[i].shape) for i in wrt], results)
        for _ in range(3)  # in one a fault may cancel out
    ]
    return max(tried, key=_share)


class _Entered(Watch):
    """The operands of each run of a sub-graph, by its attribute."""

    def __init__(self) -> None:
        self.runs: dict[str, list[list[Array]]] = {}
        self._depth = 0

    def entered(self, body: Body, operands: Sequence[Array], step: int | None) -> None:
        if self._depth == 0 and body.place is not None:
            self.runs.setdefault(body.place.key, []).append([np.array(x) for x in operands])
        self._depth += 1

    def left(self, body: Body, results: Sequence[Array]) -> None:
        self._depth -= 1


def _share(found: Parting) -> float:
    if found.error != found.error:
        return float("inf")
    return found.error / found.bound if found.bound else float(found.error > 0)


def _said(found: Parting) -> str:
    return f"{found.claimed:.9g} by the rule, {found.slope:.9g} by differences"


def _named(node: Node) -> str:
    return f"{node.op.name} ({node.place})" if node.place else node.op.name


def _at(node: Node) -> str:
    return f"{node.place}: " if node.place else ""
