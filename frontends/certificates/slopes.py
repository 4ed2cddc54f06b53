"""Derivatives by finite differences: a graph in float64, numbers, a direction -> a slope.

Central differences at two steps, extrapolated (Richardson, "The approximate arithmetical solution
by finite differences", 1911).  What a gradient is told not to see is held at its numbers: the
operands of `stop_gradient`, and the carries of a loop where its gradient is cut.  Invariant: no
gradient rule is used here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde.compiler.ir.builder import next_id
from retrograde.compiler.ir.graph import Graph, Node, Value
from retrograde.compiler.ir.interpreter import evaluate
from retrograde.compiler.ops.scan import parts

Array = npt.NDArray[Any]

STEPS = (2e-4, 5e-6)  # a second one for functions with kinks, which a small step seldom crosses


@dataclass
class Tape:
    """Numbers that are held: noted in the first run, given again in all others."""

    held: list[Array] = field(default_factory=list)
    _again: Iterator[Array] | None = None

    def rewind(self) -> None:
        """From now on what was noted is given again, from the start."""
        self._again = iter(self.held)

    def __call__(self, x: Array) -> Array:
        if self._again is None:
            self.held.append(np.array(x))
            return x
        return next(self._again)


def frozen(graph: Graph, tape: Tape) -> Graph:
    """The graph with what no gradient goes through held by `tape`."""
    nodes = []
    for node in graph.nodes:
        bodies = {key: frozen(body, tape) for key, body in node.subgraphs()}
        if bodies:
            node = replace(node, attrs={**node.attrs, **bodies})
        nodes.append(_held(node, tape))
    return graph.replace(nodes=tuple(nodes))


def _held(node: Node, tape: Tape) -> Node:
    if node.op.name == "stop_gradient":
        return replace(node, op=replace(node.op, evaluate=lambda attrs, x: tape(x)))
    if node.op.name == "scan" and node.attrs.get("truncate") is not None:
        return replace(node, op=replace(node.op, evaluate=_cut(tape)))
    return node


def _cut(tape: Tape) -> Callable[..., Any]:
    """A loop whose carries are held where a run of `truncate` steps ends."""

    def evaluate(attrs: Mapping[str, Any], *arrays: Array) -> Any:
        carries, sliced, constants = parts(arrays, attrs)
        length, n, steps = attrs["length"], attrs["carries"], attrs["truncate"]
        live = attrs.get("live")
        mask = None if live is None else sliced[live]
        types = attrs["body"].output_types[n:]
        ys = [np.empty((length, *shape), dtype) for dtype, shape in types]
        order = range(length - 1, -1, -1) if attrs["reverse"] else range(length)
        before = None
        for done, t in enumerate(order):
            if before is not None and done % steps == 0:
                rows = None if mask is None else mask[t] & mask[before]
                carries = [_hold(x, rows, tape) for x in carries]
            body = attrs["body"](*carries, *(x[t] for x in sliced), *constants, step=t)
            results = tuple(body)
            carries = list(results[:n])
            for out, y in zip(ys, results[n:], strict=True):
                out[t] = y
            before = t
        everything = (*carries, *ys)
        return everything if len(everything) != 1 else everything[0]

    return evaluate


def _hold(x: Array, rows: Array | None, tape: Tape) -> Array:
    if x.dtype.kind != "f":
        return x
    held = tape(x)
    if rows is None:
        return held
    flags = rows.reshape(rows.shape + (1,) * (x.ndim - 1))
    out: Array = np.where(flags, held, x)
    return out


def cut_at(graph: Graph, wrt: Sequence[Value], of: Sequence[Value]) -> Graph:
    """The graph from the values `wrt`, as inputs before its own, to the values `of`."""
    given = set(wrt)
    live = set(of) - given
    nodes: list[Node] = []
    for node in reversed(graph.nodes):
        if not any(v in live for v in node.outputs):
            continue
        if any(v in given for v in node.outputs):  # the others of its results are still needed
            outputs = tuple(Value(next_id(), v.type) if v in given else v for v in node.outputs)
            node = replace(node, outputs=outputs)
        nodes.append(node)
        live.update(v for v in node.inputs if v not in given)
    others = tuple(v for v in graph.inputs if v not in given)
    return Graph(graph.name, (*wrt, *others), tuple(nodes[::-1]), tuple(of))


class Slopes:
    """The function from `wrt` to the sum of the products of `of` and `seeds`, along lines.

    `known` holds the numbers of all values of `graph`, which is in float64."""

    def __init__(
        self,
        graph: Graph,
        known: Mapping[Value, Array],
        sizes: Mapping[str, int],
        wrt: Sequence[Value],
        of: Sequence[Value],
        seeds: Sequence[Array],
        held: Sequence[Value] = (),
    ) -> None:
        self._tape = Tape()
        fixed = [v for v in dict.fromkeys(held) if v not in set(wrt)]
        part = cut_at(graph, (*wrt, *fixed), of)
        self._graph = frozen(part, self._tape)
        self._sizes = dict(sizes)
        self._base = [known[v] for v in part.inputs]
        self._count = len(wrt)
        self._seeds = list(seeds)
        results = self._run(self._base)
        self._tape.rewind()
        self.value = self._total(results)

    def _run(self, inputs: Sequence[Array]) -> list[Array]:
        return evaluate(self._graph, inputs, self._sizes)

    def _total(self, results: Sequence[Array]) -> float:
        with np.errstate(all="ignore"):
            return float(
                sum(np.sum(s * x) for s, x in zip(self._seeds, results, strict=True))
            )

    def _at(self, direction: Sequence[Array], step: float) -> list[Array]:
        self._tape.rewind()
        moved = [x + step * d for x, d in zip(self._base, direction, strict=False)]
        return self._run([*moved, *self._base[self._count :]])

    def slopes(self, direction: Sequence[Array], step: float) -> tuple[float, float]:
        """(the slope along `direction`, how sure: the change that the extrapolation made)."""
        found = []
        for h in (step, step / 2):
            up, down = self._at(direction, h), self._at(direction, -h)
            found.append((self._total(up) - self._total(down)) / (2 * h))
        coarse, fine = found
        best = (4 * fine - coarse) / 3
        return best, abs(best - fine)

    def changes(self, direction: Sequence[Array], step: float) -> list[Array]:
        """The derivative of each of `of` along `direction`."""
        made = []
        for h in (step, step / 2):
            up, down = self._at(direction, h), self._at(direction, -h)
            made.append([(a - b) / (2 * h) for a, b in zip(up, down, strict=True)])
        return [(4 * fine - coarse) / 3 for coarse, fine in zip(*made, strict=True)]


@dataclass(frozen=True)
class Parting:
    """A slope and the same by a gradient: they part where `error` is above `bound`."""

    slope: float
    claimed: float
    error: float
    bound: float

    @property
    def ok(self) -> bool:
        return self.error <= self.bound  # not of a NaN


def compare(
    slopes: Slopes, direction: Sequence[Array], gradient: Sequence[Array], extra: float = 0.0
) -> Parting:
    """The slope along `direction` against the product with `gradient`, `extra` left aside.

    The bound is 1e-6 of the size that such a product typically has, the noise of the differences,
    and what the extrapolation is unsure of (at most 1e-3 of that size)."""
    with np.errstate(all="ignore"):
        terms = [np.asarray(g * d, np.float64) for g, d in zip(gradient, direction, strict=True)]
        claimed = float(sum(float(np.sum(t)) for t in terms))
        size = float(np.sqrt(sum(float(np.sum(t * t)) for t in terms)))
    best: Parting | None = None
    for step in STEPS:
        slope, unsure = slopes.slopes(direction, step)
        slope += extra
        scale = max(size, abs(claimed), abs(slope))
        noise = 1e-13 * (abs(slopes.value) + 1e-3) / step
        bound = 1e-6 * scale + noise + min(10 * unsure, 1e-3 * scale)
        found = Parting(slope, claimed, abs(slope - claimed), bound)
        if found.ok:
            return found
        if best is None or not best.error <= found.error:
            best = found
    assert best is not None
    return best
