"""What may be computed again, as a problem for a solver: a graph and how it runs -> units, a `Dag`.

Input: a graph before it is grouped, and the same graph grouped and in its order.  Invariant: units
are in the order of the steps; a unit reads units before it and inputs of the graph alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from retrograde.compiler.ir import dims
from retrograde.compiler.ir.graph import Graph, Node, Value
from retrograde.compiler.ir.registry import Kind
from retrograde.compiler.ops.region import effects_of
from retrograde.compiler.passes.remat import Unit
from retrograde.compiler.plan.schedule import ALIASING

_FREE = ALIASING | {"constant"}
# What an operation and a byte that is moved cost, in ns: only their ratios count.
_PRODUCT, _ELEMENT, _BYTE = 1 / 160, 1 / 40, 1 / 20
_PRODUCTS = frozenset({"dot_general", "flash_attention", "flash_attention_grad"})


@dataclass(frozen=True, eq=False)
class Units:
    """The units of a graph, each with what it reads, its bytes, its cost in ns; `fixed` ones are
    never run again; `kinds` tells which of them repeat one another."""

    units: tuple[Unit, ...]
    reads: tuple[tuple[int, ...], ...]
    bytes: tuple[int, ...]
    cost: tuple[float, ...]
    scratch: tuple[int, ...]  # bytes while the unit runs
    fixed: tuple[bool, ...]
    light: tuple[bool, ...]  # without products and loops
    later: tuple[bool, ...]  # not of the way forward
    outputs: tuple[int, ...]
    kinds: tuple[tuple[object, ...], ...]


def find_units(graph: Graph, ordered: Graph, sizes: Mapping[str, int], native: bool) -> Units:
    """The units of `graph`, which runs as `ordered`, its steps.

    NumPy adds up in another order where a sum runs beside other ops, so only `native` kernels give
    sums that run again the same bits."""
    makers, named = graph.producers(), {n.id: n for n in graph.nodes}
    homes: dict[Value, int] = {}  # what lies in memory, by the unit that makes it
    units: list[Unit] = []
    reads: list[tuple[int, ...]] = []
    stored = {v for n in ordered.nodes if n.op.name not in _FREE for v in n.outputs}
    for step in ordered.nodes:
        if step.op.name in _FREE:
            continue
        fused = step.op.name == "fused"
        for results in [(v,) for v in step.outputs] if fused else [step.outputs]:
            last = makers[results[0]] if results else named[step.id]
            nodes = _between(last, makers, stored)
            made = {v for n in nodes for v in n.outputs}
            entering = dict.fromkeys(
                v for n in nodes for v in n.inputs if v not in made and v in makers
            )
            for v in results:
                homes[v] = len(units)
            reads.append(tuple(dict.fromkeys(homes[v] for v in entering)))
            units.append(Unit(tuple(nodes), results))
    returned = []
    for v in graph.outputs:
        while v in makers and v not in homes:
            if not makers[v].inputs:
                break
            v = makers[v].inputs[0]
        if v in homes:
            returned.append(homes[v])
    state = {graph.outputs[o] for o, _ in graph.aliases}
    fixed = tuple(_fixed(u, native) for u in units)
    return Units(
        tuple(units),
        tuple(reads),
        tuple(
            sum(0 if v in state else dims.evaluate(v.type.bytes, sizes) for v in u.results)
            for u in units
        ),
        tuple(_cost(u, sizes) for u in units),
        (0,) * len(units),
        fixed,
        tuple(not held and _light(u) for u, held in zip(units, fixed, strict=True)),
        tuple(_later(u) for u in units),
        tuple(dict.fromkeys(returned)),
        tuple(_kind(u) for u in units),
    )


def _between(last: Node, makers: Mapping[Value, Node], stored: set[Value]) -> list[Node]:
    """`last` and all nodes that lead to it from what lies in memory, in their order."""
    found: dict[Node, None] = {}
    stack = [(last, False)]
    while stack:
        node, ready = stack.pop()
        if ready:
            found[node] = None
            continue
        if node in found:
            continue
        stack.append((node, True))
        for v in node.inputs:
            maker = makers.get(v)
            if maker is not None and v not in stored and maker not in found:
                stack.append((maker, False))
    return list(found)


def _cost(unit: Unit, sizes: Mapping[str, int]) -> float:
    total = 0.0
    moved = sum(dims.evaluate(v.type.bytes, sizes) for v in unit.results)
    for node in unit.nodes:
        types = [v.type for v in node.inputs], [v.type for v in node.outputs]
        work = dims.evaluate(node.op.cost(*types, node.attrs), sizes)
        total += work * (_PRODUCT if node.op.name in _PRODUCTS else _ELEMENT)
    return total + moved * _BYTE


def _fixed(unit: Unit, native: bool) -> bool:
    return any(
        n.origin.role != "primal" or n.op.has_regions or effects_of(n)
        or (n.op.kind is Kind.REDUCE and not native)
        for n in unit.nodes
        if n.op.name not in _FREE
    )


def _light(unit: Unit) -> bool:
    return all(
        n.op.kind in (Kind.ELEMENTWISE, Kind.REDUCE, Kind.CREATE)
        for n in unit.nodes
        if n.op.name not in _FREE
    )


def _later(unit: Unit) -> bool:
    return any(n.origin.role != "primal" for n in unit.nodes if n.op.name not in _FREE)


def _kind(unit: Unit) -> tuple[object, ...]:
    """Equal for units that do the same in different layers: ops, types, and lines of the source."""
    return tuple(
        (n.op.name, str(n.loc), tuple((str(v.type)) for v in n.outputs))
        for n in unit.nodes
        if n.op.name not in _FREE
    )
