"""Computes values again instead of keeping them: Graph, an order with repeats -> Graph.

A unit is what makes one array of memory out of others.  Where the order names a unit again, its
nodes are cloned there, and what comes later reads the clone.  Invariant: same values, bit for bit;
every clone carries the role `recompute` and a group of its own stretch of the order, so that later
passes never merge it with what it repeats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from retrograde.compiler.ir.builder import new_value, next_id
from retrograde.compiler.ir.graph import Graph, Node, Origin, Value


@dataclass(frozen=True, eq=False)
class Unit:
    """The nodes that make `results` out of what other units make: their op, views of what it reads,
    and what is computed in registers on the way.  In an order that defines before it uses."""

    nodes: tuple[Node, ...]
    results: tuple[Value, ...]


@dataclass(frozen=True)
class Remat:
    """Runs the units in `order`, indices of `units`, each at least once."""

    units: Sequence[Unit]
    order: Sequence[int]

    def __call__(self, graph: Graph) -> Graph:
        if len(self.order) == len(self.units):
            return graph  # nothing is computed again
        emitter = _Emitter()
        done: set[int] = set()
        for i in self.order:
            emitter.emit(self.units[i], again=i in done)
            done.add(i)
        for node in graph.nodes:  # views that only the outputs are
            if node not in emitter.original:
                emitter.first(node, node.inputs)
        return graph.replace(nodes=tuple(emitter.nodes))


class _Emitter:
    """The nodes so far, and which value stands for each result now."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.now: dict[Value, Value] = {}  # what was computed again -> the latest
        self.original: dict[Node, tuple[Value, ...]] = {}  # the nodes emitted, and what they read
        # What was made in the stretch of recomputations at work, by node and operands.
        self.clones: dict[tuple[Node, tuple[Value, ...]], tuple[Value, ...]] = {}
        self.group = 0

    def emit(self, unit: Unit, again: bool) -> None:
        if again and not self.group:
            self.group = next_id()
        if not again:
            self.group = 0
            self.clones = {}
        here: dict[Value, Value] = {}  # what stands for a value within the unit
        for node in unit.nodes:
            inputs = tuple(here.get(v) or self.now.get(v, v) for v in node.inputs)
            made = any(v in unit.results for v in node.outputs)
            if not (again and made) and self._stands(node, inputs, again):
                continue
            if again or node in self.original:
                here.update(zip(node.outputs, self._cloned(node, inputs), strict=True))
            else:
                self.first(node, inputs)
        if again:
            self.now.update((v, here[v]) for v in unit.results)

    def _stands(self, node: Node, inputs: tuple[Value, ...], again: bool) -> bool:
        """Whether the node as it was first emitted serves: made of the same, and costing nothing to
        keep, or computed a moment ago."""
        if self.original.get(node) != inputs:
            return False
        return not again or not node.inputs

    def first(self, node: Node, inputs: tuple[Value, ...]) -> None:
        """Emits a node itself, reading `inputs`."""
        self.original[node] = inputs
        self.nodes.append(node if inputs == node.inputs else node.with_inputs(inputs))

    def _cloned(self, node: Node, inputs: tuple[Value, ...]) -> tuple[Value, ...]:
        key = node, inputs
        found = self.clones.get(key)
        if found is None:
            found = self.clones[key] = tuple(new_value(v.type) for v in node.outputs)
            ancestors = (node.id, *node.origin.ancestors[:3])
            role = "recompute" if self.group else node.origin.role
            origin = Origin(role, "remat", ancestors, self.group or node.origin.group)
            self.nodes.append(
                replace(node, id=next_id(), inputs=inputs, outputs=found, origin=origin)
            )
        return found
