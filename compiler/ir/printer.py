"""Text of a graph: `Graph` -> str.  Invariant: canonical, so equal graphs print equal bytes.

Values are renumbered %0, %1 … in the order of definition (a sub-graph starts again at %0),
attributes are sorted by name, symbols with their bounds stand in a header line.  A comment carries
what computation does not need: source line, module scope, origin.  `text.parse` reads it back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from retrograde.compiler.ir import dims
from retrograde.compiler.ir.dims import Poly, Symbol
from retrograde.compiler.ir.dtypes import DType, named

if TYPE_CHECKING:
    from retrograde.compiler.ir.graph import Graph, Node, Origin, TensorType, Value

# Who makes nodes of a role unless the text says otherwise.
USUAL_MAKER = {"primal": "trace", "cotangent": "backward", "recompute": "remat", "update": "trace"}

PLAIN_NAME = re.compile(r"[A-Za-z_][\w.\-\[\]/']*")  # printed without quotes
PLAIN_FILE = re.compile(r"[\w.\-+]+")
_WORDS = frozenset({"True", "False", "None", "inf", "nan", "dim", "graph"})
RETURN_WORDS = frozenset({"into"})  # keywords after a returned value


def reserved(word: str) -> bool:
    """Whether `word` means something other than a symbol in an attribute."""
    return word in _WORDS or named(word) is not None


def print_graph(graph: Graph) -> str:
    """The canonical text of `graph`."""
    declared = declare(symbols_of(graph))
    lines = [declared] if declared else []
    lines.extend(_Lines(graph, {}).of_graph("", "graph "))
    return "\n".join(lines) + "\n"


def print_nodes(graph: Graph, first: int, last: int) -> list[str]:
    """The lines of the nodes `first` up to `last` (exclusive), numbered as in the graph's text."""
    lines = _Lines(graph, {})
    return [line for node in graph.nodes[first:last] for line in lines.of_node(node, "  ")]


def declare(symbols: Iterable[Symbol]) -> str:
    """The header line, `dims B>=1, T in 1..4096`; empty without symbols."""
    parts = [
        f"{s.name}>={s.min}" if s.max is None else f"{s.name} in {s.min}..{s.max}"
        for s in sorted(symbols, key=lambda s: s.name)
    ]
    return f"dims {', '.join(parts)}" if parts else ""


def symbols_of(graph: Graph) -> list[Symbol]:
    """Every symbol in the types and attributes of a graph and of its sub-graphs."""
    found: dict[str, Symbol] = {}

    def look(x: Any) -> None:
        if isinstance(x, Poly):
            for s in dims.symbols(x):
                found.setdefault(s.name, s)
        elif isinstance(x, tuple):
            for item in x:
                look(item)

    for v in (*graph.values(), *graph.outputs):
        look(v.shape)
    for node in graph.nodes:
        for attr in node.attrs.values():
            look(attr)
        for _, inner in node.subgraphs():
            for s in symbols_of(inner):
                found.setdefault(s.name, s)
    return list(found.values())


def quoted(name: str, plain: re.Pattern[str] = PLAIN_NAME) -> str:
    """`name` as it is when it reads as one word, else as a JSON string."""
    return name if plain.fullmatch(name) and name not in RETURN_WORDS else json.dumps(name)


def print_type(type: TensorType) -> str:
    """`f32[B,T,128]`."""
    return f"{type.dtype.name}[{','.join(map(str, type.shape))}]"


def print_attr(x: Any) -> str:
    """An attribute value; floats exactly, by repr."""
    if x is None or isinstance(x, (bool, int, float)):
        return repr(x)
    if isinstance(x, str):
        return json.dumps(x)
    if isinstance(x, DType):
        return x.name
    if isinstance(x, Poly):
        text = str(x)
        return f"dim({text})" if any(reserved(s.name) for s in dims.symbols(x)) else text
    if isinstance(x, tuple):
        inner = ",".join(map(print_attr, x))
        return f"({inner},)" if len(x) == 1 else f"({inner})"
    return f"?{type(x).__name__}"  # not a legal attribute; the verifier says so


def _names(names: Sequence[str], count: int) -> list[str]:
    """` name` for each of `count` values, or nothing."""
    padded = [*names, *[""] * count]
    return [f" {quoted(n)}" if n else "" for n in padded[:count]]


class _Lines:
    """The lines of one graph.  `groups` renumbers recomputation groups over all sub-graphs."""

    def __init__(self, graph: Graph, groups: dict[int, int]) -> None:
        self.graph = graph
        self.groups = groups
        self.numbers: dict[Value, int] = {}
        for v in graph.values():
            self.numbers.setdefault(v, len(self.numbers))
        self.results = {node.id: node.outputs[0] for node in graph.nodes if node.outputs}

    def name(self, v: Value) -> str:
        return f"%{self.numbers[v]}" if v in self.numbers else f"%undefined{v.id}"

    def typed(self, v: Value, name: str = "") -> str:
        return f"{self.name(v)}{name}: {print_type(v.type)}"

    def of_graph(self, indent: str, head: str) -> Iterator[str]:
        graph = self.graph
        names = _names(graph.input_names, len(graph.inputs))
        inputs = ", ".join(map(self.typed, graph.inputs, names))
        yield f"{indent}{head}{quoted(graph.name)}({inputs}) {{"
        for node in graph.nodes:
            yield from self.of_node(node, indent + "  ")
        into = [""] * len(graph.outputs)
        for out, source in graph.aliases:
            if out < len(graph.outputs) and source < len(graph.inputs):
                into[out] += f" into {self.name(graph.inputs[source])}"
        names = _names(graph.output_names, len(graph.outputs))
        outputs = ", ".join(
            f"{self.name(v)}{name}{target}"
            for v, name, target in zip(graph.outputs, names, into, strict=True)
        )
        yield f"{indent}  return {outputs}".rstrip()
        yield f"{indent}}}"

    def of_node(self, node: Node, indent: str) -> Iterator[str]:
        results = ", ".join(map(self.typed, node.outputs))
        operands = ", ".join(map(self.name, node.inputs))
        text = f"{indent}{results}{' ' if results else ''}= {node.op.name}"
        text = f"{text} {operands}" if operands else text
        regions = dict(node.subgraphs())
        attrs = ", ".join(
            f"{key}={print_attr(x)}" for key, x in sorted(node.attrs.items()) if key not in regions
        )
        if not regions:
            yield text + (f" {{{attrs}}}" if attrs else "") + self._comment(node)
            return
        yield f"{text} {{{attrs}{',' if attrs else ''}"
        for k, (key, inner) in enumerate(sorted(regions.items()), 1):
            *body, last = _Lines(inner, self.groups).of_graph(indent + "  ", f"{key}=graph ")
            yield from body
            yield last + ("," if k < len(regions) else "")
        yield f"{indent}}}{self._comment(node)}"

    def _comment(self, node: Node) -> str:
        parts = []
        if node.loc is not None:
            file, _, line = str(node.loc).rpartition(":")
            parts.append(f"{quoted(file, PLAIN_FILE)}:{line}")
        if node.scope:
            parts.append(f"@ {quoted(node.scope)}")
        origin = self._origin(node.origin)
        if origin:
            parts.append(f"<{origin}>")
        return f"   # {' '.join(parts)}" if parts else ""

    def _origin(self, origin: Origin) -> str:
        """`cotangent of %2 group=1 by=expand`; ancestors that are not in the graph are left out."""
        ancestors = [self.name(self.results[i]) for i in origin.ancestors if i in self.results]
        text = f" of {','.join(ancestors)}" if ancestors else ""
        if origin.group:
            text += f" group={self.groups.setdefault(origin.group, len(self.groups) + 1)}"
        if origin.made_by != USUAL_MAKER.get(origin.role):
            text += f" by={quoted(origin.made_by)}"
        return origin.role + text if text or origin.role != "primal" else ""
