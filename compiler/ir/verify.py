"""Whether a graph keeps the rules of the IR: `Graph` -> nothing, or a VerifyError.

It names the pass that made the graph, the node and its source line, and shows the five nodes
around the fault.  Run after every pass in tests and with `RETROGRADE_VERIFY=1`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from retrograde.compiler.errors import RetrogradeError, UnsupportedError, VerifyError
from retrograde.compiler.ir import dims
from retrograde.compiler.ir.dims import Poly, Symbol
from retrograde.compiler.ir.dtypes import DType
from retrograde.compiler.ir.graph import Graph, Node, Value, same_type
from retrograde.compiler.ir.printer import print_nodes
from retrograde.compiler.ir.registry import Kind

_SCALARS = (bool, int, float, str, type(None), DType, Poly)
AROUND = 2  # nodes shown on each side of a fault


@dataclass(frozen=True, slots=True)
class Stage:
    """What a graph may not hold at some point of the pipeline: op kinds, and, with `expanded`,
    every composite or region that has a decomposition."""

    name: str
    excluded: frozenset[Kind] = frozenset()
    expanded: bool = False

    def objection(self, node: Node) -> str:
        """Why the node is illegal at this stage, or ""."""
        op = node.op
        if op.kind in self.excluded:
            return f"{op.kind.value} ops are not legal at stage {self.name!r}"
        is_whole = op.kind in (Kind.COMPOSITE, Kind.REGION) and op.decompose is not None
        if self.expanded and is_whole:
            return f"{op.name} should have been expanded before stage {self.name!r}"
        return ""


STAGES = {
    stage.name: stage
    for stage in (
        Stage("trace"),
        Stage("expanded", frozenset({Kind.COMPOSITE}), expanded=True),
    )
}


def verify(
    graph: Graph, stage: str = "trace", made_by: str = "trace", before: Graph | None = None
) -> None:
    """Checks every rule of the IR; raises VerifyError at the first that is broken.

    `stage` is a name in `STAGES`, `made_by` the pass to blame.  Given the graph `before` the pass,
    nodes with an effect must still be there, in their order on each channel."""
    if stage not in STAGES:
        raise UnsupportedError(f"unknown stage {stage!r}: one of {', '.join(STAGES)}")
    _Check(graph, STAGES[stage], made_by, {}, "").run()
    if before is not None:
        _check_effects(before, graph, made_by)


class _Check:
    """The checks of one graph.  `symbols` is shared with sub-graphs; `path` leads to this one."""

    def __init__(
        self, graph: Graph, stage: Stage, made_by: str, symbols: dict[str, Symbol], path: str
    ) -> None:
        self.graph = graph
        self.stage = stage
        self.made_by = made_by
        self.symbols = symbols
        self.path = path
        self.defined: set[Value] = set()

    def run(self) -> None:
        self._inputs()
        later = {v for node in self.graph.nodes for v in node.outputs}
        ids: set[int] = set()
        for index, node in enumerate(self.graph.nodes):
            if node.id in ids:
                self.fail("its id is that of an earlier node", index)
            ids.add(node.id)
            self._operands(node, index, later)
            self._attributes(node, index)
            if objection := self.stage.objection(node):
                self.fail(objection, index)
            for key, body in node.subgraphs():
                path = f"{self.path}{key} of {node.op.name}, "
                _Check(body, self.stage, self.made_by, self.symbols, path).run()
            self._types(node, index)
            for v in node.outputs:
                if v in self.defined:
                    self.fail("it defines a value that is defined already", index)
                self.defined.add(v)
        self._outputs()

    def fail(self, message: str, index: int | None = None) -> NoReturn:
        graph = self.graph
        head = f"{self.made_by} made an invalid graph: {self.path}{graph.name}"
        if index is None:
            raise VerifyError(f"{head}: {message}")
        node = graph.nodes[index]
        line = f" from {node.loc.full}" if node.loc else ""
        scope = f" in {node.scope}" if node.scope else ""
        first, last = max(0, index - AROUND), min(len(graph.nodes), index + AROUND + 1)
        shown: list[str] = []
        for i in range(first, last):
            here = print_nodes(graph, i, i + 1)
            shown.extend(("> " if i == index else "  ") + text for text in here)
        listing = "\n".join(shown)
        raise VerifyError(
            f"{head}, node {index} ({node.op.name}{line}{scope}): {message}\n{listing}"
        )

    def _inputs(self) -> None:
        graph = self.graph
        for v in graph.inputs:
            if v in self.defined:
                self.fail("one value stands twice among the inputs")
            self.defined.add(v)
            self._sizes(v.type.shape, None)
        if graph.input_names and len(graph.input_names) != len(graph.inputs):
            self.fail(f"{len(graph.input_names)} names for {len(graph.inputs)} inputs")

    def _operands(self, node: Node, index: int, later: set[Value]) -> None:
        for i, v in enumerate(node.inputs):
            if v in self.defined:
                continue
            if v in later:
                self.fail(f"operand {i} ({v.type}) is used before it is defined", index)
            self.fail(
                f"operand {i} ({v.type}) is defined nowhere in this graph "
                "(a sub-graph sees only its own inputs)",
                index,
            )

    def _attributes(self, node: Node, index: int) -> None:
        for key, x in node.attrs.items():
            if isinstance(x, Graph) and node.op.has_regions:
                continue
            if fault := _illegal(x):
                self.fail(f"attribute {key} holds {fault}", index)
            self._sizes((x,), index)

    def _types(self, node: Node, index: int) -> None:
        """Replays the shape rule; for region ops that also compares operands and sub-graphs."""
        try:
            types = node.op.infer(tuple(v.type for v in node.inputs), node.attrs)
        except RetrogradeError as error:
            self.fail(f"its shape rule refuses it: {error}", index)
        except Exception as error:  # any misfit of attributes is a fault of the graph
            self.fail(f"its shape rule raised {type(error).__name__}: {error}", index)
        if len(types) != len(node.outputs):
            self.fail(
                f"it has {len(node.outputs)} results, its shape rule gives {len(types)}", index
            )
        for i, (v, t) in enumerate(zip(node.outputs, types, strict=True)):
            if not same_type(v.type, t):
                self.fail(f"result {i} is {v.type}, its shape rule gives {t}", index)
            self._sizes(v.type.shape, index)

    def _sizes(self, xs: Iterable[Any], index: int | None) -> None:
        """One name, one symbol: bounds that differ make two sizes that read the same."""
        for x in xs:
            if isinstance(x, tuple):
                self._sizes(x, index)
            if not isinstance(x, Poly):
                continue
            for s in dims.symbols(x):
                known = self.symbols.setdefault(s.name, s)
                if known != s:
                    self.fail(
                        f"the size {s.name} stands for two symbols, with bounds "
                        f"{known.min}..{known.max} and {s.min}..{s.max}",
                        index,
                    )

    def _outputs(self) -> None:
        graph = self.graph
        for i, v in enumerate(graph.outputs):
            if v not in self.defined:
                self.fail(f"output {i} ({v.type}) is not defined")
        if graph.output_names and len(graph.output_names) != len(graph.outputs):
            self.fail(f"{len(graph.output_names)} names for {len(graph.outputs)} outputs")
        donated: set[int] = set()
        replaced: set[int] = set()
        for out, source in graph.aliases:
            if not 0 <= out < len(graph.outputs) or not 0 <= source < len(graph.inputs):
                self.fail(f"the alias of output {out} to input {source} is out of range")
            if source in donated:
                self.fail(f"input {source} is donated to two outputs")
            if out in replaced:
                self.fail(f"output {out} takes the place of two inputs")
            donated.add(source)
            replaced.add(out)
            new, old = graph.outputs[out].type, graph.inputs[source].type
            if not same_type(new, old):
                self.fail(f"output {out} ({new}) cannot replace input {source} ({old})")


def _illegal(x: Any) -> str:
    """What in an attribute value is not legal, or "" (sub-graphs are dealt with before)."""
    if type(x) in _SCALARS:
        return ""
    if type(x) is tuple:
        return next(filter(None, map(_illegal, x)), "")
    return f"a {type(x).__module__}.{type(x).__name__}, which attributes may not hold"


def _effects(graph: Graph) -> dict[str, list[Node]]:
    channels: dict[str, list[Node]] = {}
    for node in graph.nodes:
        if node.op.effect is not None:
            channels.setdefault(node.op.effect, []).append(node)
    return channels


def _check_effects(before: Graph, after: Graph, made_by: str) -> None:
    """Every effect of `before` is in `after`, itself or in what stems from it, in order."""
    channels = _effects(after)
    for channel, nodes in _effects(before).items():
        places = [_place_of(node, channels.get(channel, ())) for node in nodes]
        for k, (node, place) in enumerate(zip(nodes, places, strict=True)):
            where = f" ({node.place})" if node.place else ""
            if place is None:
                raise VerifyError(
                    f"{made_by} made an invalid graph: {after.name}: {node.op.name}{where}, an "
                    f"effect on channel {channel!r}, is gone"
                )
            if k and (earlier := places[k - 1]) is not None and earlier > place:
                raise VerifyError(
                    f"{made_by} made an invalid graph: {after.name}: {node.op.name}{where} now "
                    f"comes before an earlier effect on channel {channel!r}"
                )


def _place_of(node: Node, effects: Sequence[Node]) -> int | None:
    for place, found in enumerate(effects):
        if found.id == node.id or node.id in found.origin.ancestors:
            return place
    return None
