"""Text of a graph: `Graph` -> str.  Invariant: canonical, so equal graphs print equal bytes.

Values are renumbered %0, %1 … in the order of definition (a sub-graph starts again at %0),
attributes are sorted by name, symbols with their bounds stand in a header line.  A comment carries
what computation does not need: source line, module scope, origin.  `text.parse` reads it back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    lines = []
    declared = declare(symbols_of(graph))
    if declared:
        lines.append(declared)
    lines.extend(_graph_lines(graph, "", "graph "))
    return "\n".join(lines) + "\n"


def print_nodes(graph: Graph, first: int, last: int) -> list[str]:
    """The lines of the nodes `first` up to `last` (exclusive) of a graph, numbered as in its text."""
    numbers = _numbers(graph)
    return [
        line for node in graph.nodes[first:last] for line in _node_lines(node, numbers, "  ")
    ]


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


def _numbers(graph: Graph) -> dict[Value, int]:
    numbers: dict[Value, int] = {}
    for v in graph.values():
        numbers.setdefault(v, len(numbers))
    return numbers


def _name(v: Value, numbers: Mapping[Value, int]) -> str:
    return f"%{numbers[v]}" if v in numbers else f"%undefined{v.id}"


def _names(names: Sequence[str], count: int) -> list[str]:
    """` name` for each of `count` values, or nothing."""
    padded = [*names, *[""] * count]
    return [f" {quoted(n)}" if n else "" for n in padded[:count]]


def _graph_lines(graph: Graph, indent: str, head: str) -> Iterator[str]:
    numbers = _numbers(graph)
    inputs = ", ".join(
        f"{_name(v, numbers)}{name}: {print_type(v.type)}"
        for v, name in zip(
            graph.inputs, _names(graph.input_names, len(graph.inputs)), strict=True
        )
    )
    yield f"{indent}{head}{quoted(graph.name)}({inputs}) {{"
    for node in graph.nodes:
        yield from _node_lines(node, numbers, indent + "  ")
    into: dict[int, str] = {}
    for out, source in graph.aliases:
        target = _name(graph.inputs[source], numbers) if source < len(graph.inputs) else "%?"
        into[out] = f"{into.get(out, '')} into {target}"
    outputs = ", ".join(
        f"{_name(v, numbers)}{name}{into.get(i, '')}"
        for i, (v, name) in enumerate(
            zip(graph.outputs, _names(graph.output_names, len(graph.outputs)), strict=True)
        )
    )
    yield f"{indent}  return {outputs}".rstrip()
    yield f"{indent}}}"


def _node_lines(node: Node, numbers: Mapping[Value, int], indent: str) -> Iterator[str]:
    results = ", ".join(f"{_name(v, numbers)}: {print_type(v.type)}" for v in node.outputs)
    operands = ", ".join(_name(v, numbers) for v in node.inputs)
    text = f"{indent}{results}{' ' if results else ''}= {node.op.name}"
    text = f"{text} {operands}" if operands else text
    regions = dict(node.subgraphs())
    attrs = ", ".join(
        f"{key}={print_attr(x)}" for key, x in sorted(node.attrs.items()) if key not in regions
    )
    if not regions:
        yield text + (f" {{{attrs}}}" if attrs else "") + _comment(node)
        return
    yield f"{text} {{{attrs}{',' if attrs else ''}"
    for k, (key, inner) in enumerate(sorted(regions.items()), 1):
        *body, last = _graph_lines(inner, indent + "  ", f"{key}=graph ")
        yield from body
        yield last + ("," if k < len(regions) else "")
    yield f"{indent}}}{_comment(node)}"


def _comment(node: Node) -> str:
    parts = []
    if node.loc is not None:
        file, _, line = str(node.loc).rpartition(":")
        parts.append(f"{quoted(file, PLAIN_FILE)}:{line}")
    if node.scope:
        parts.append(f"@ {quoted(node.scope)}")
    origin = _print_origin(node.origin)
    if origin:
        parts.append(origin)
    return f"   # {' '.join(parts)}" if parts else ""


def _print_origin(origin: Origin) -> str:
    maker = origin.made_by != USUAL_MAKER.get(origin.role)
    if origin.role == "primal" and not maker and not origin.group:
        return ""
    text = origin.role
    if origin.group:
        text += f" group={origin.group}"
    if maker:
        text += f" by={quoted(origin.made_by)}"
    return f"<{text}>"
