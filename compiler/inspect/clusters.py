"""What a picture of a graph shows: Graph -> boxes with labels, arrows, and nested groups.

Groups follow the module path of the nodes, below their part of a training step (forward, backward,
update).  Invariant: every box is in one group, constants are in no box (they stand in the label of
their reader), and arrows run between boxes only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from retrograde.compiler.ir.graph import Graph, Node, Value

COLOURS = {
    "input": "#e8e8e8",
    "output": "#d0d0d0",
    "primal": "#dceafa",
    "cotangent": "#fae3d3",
    "recompute": "#f6f0c4",
    "update": "#dff0d8",
}
_PARTS = {"cotangent": "backward", "recompute": "backward", "update": "update"}
_SHOWN_ATTRS = 3  # attributes on a label; more would hide the op
_LONGEST = 28  # characters of one attribute


@dataclass(frozen=True)
class Box:
    """An input, a node or an output.  `lines` is the label, `detail` more for a tooltip."""

    id: str
    role: str
    lines: tuple[str, ...]
    detail: str


@dataclass
class Group:
    """Boxes and groups within one module or part."""

    name: str
    boxes: list[Box] = field(default_factory=list)
    groups: dict[str, Group] = field(default_factory=dict)

    def walk(self) -> Iterator[Box]:
        """Every box, this group's own first."""
        yield from self.boxes
        for group in self.groups.values():
            yield from group.walk()


@dataclass(frozen=True)
class Picture:
    """A graph as boxes and arrows."""

    name: str
    root: Group
    arrows: tuple[tuple[str, str, str], ...]  # (from, to, the type of what flows)


def picture(graph: Graph) -> Picture:
    """The boxes and arrows of `graph`, grouped by module path."""
    root = Group(graph.name)
    several_parts = len({_part(node) for node in graph.nodes}) > 1
    made_by: dict[Value, str] = {}
    constants: dict[Value, str] = {}
    arrows: dict[tuple[str, str, str], None] = {}
    names = graph.input_names or ("",) * len(graph.inputs)
    used = {v for node in graph.nodes for v in node.inputs} | set(graph.outputs)
    for i, (value, name) in enumerate(zip(graph.inputs, names, strict=True)):
        if value in used:
            made_by[value] = f"in{i}"
            lines = (name or f"input {i}", str(value.type))
            root.boxes.append(Box(f"in{i}", "input", lines, f"input {i}"))
    for i, node in enumerate(graph.nodes):
        if node.op.name == "constant":
            constants[node.output] = f"{node.attrs['value']:g}"
            continue
        path = node.scope.split(".") if node.scope else []
        group = _group(root, [_part(node), *path] if several_parts else path)
        group.boxes.append(_box(f"n{i}", node, constants))
        made_by.update((v, f"n{i}") for v in node.outputs)
        for v in node.inputs:
            if v in made_by:
                arrows[made_by[v], f"n{i}", str(v.type)] = None
    _outputs(graph, root, made_by, constants, arrows)
    _collapse(root)
    return Picture(graph.name, root, tuple(arrows))


def _outputs(
    graph: Graph,
    root: Group,
    made_by: dict[Value, str],
    constants: dict[Value, str],
    arrows: dict[tuple[str, str, str], None],
) -> None:
    """A box for each output; state that is replaced goes by the name of its input."""
    replaced = dict(graph.aliases)
    for i, value in enumerate(graph.outputs):
        name = graph.output_names[i] if graph.output_names else ""
        if i in replaced and graph.input_names:
            name = f"new {graph.input_names[replaced[i]]}"
        lines = (name or f"output {i}", constants.get(value, str(value.type)))
        root.boxes.append(Box(f"out{i}", "output", lines, f"output {i}"))
        if value in made_by:
            arrows[made_by[value], f"out{i}", str(value.type)] = None


def _part(node: Node) -> str:
    return _PARTS.get(node.origin.role, "forward")


def _group(root: Group, path: list[str]) -> Group:
    found = root
    for name in path:
        found = found.groups.setdefault(name, Group(name))
    return found


def _collapse(group: Group) -> None:
    """A group that holds nothing but one group is that group: `blocks` and `0` are `blocks.0`."""
    found = list(group.groups.values())
    group.groups.clear()
    for inner in found:
        while not inner.boxes and len(inner.groups) == 1:
            (only,) = inner.groups.values()
            inner = Group(f"{inner.name}.{only.name}", only.boxes, only.groups)
        group.groups[inner.name] = inner
        _collapse(inner)


def _box(id: str, node: Node, constants: dict[Value, str]) -> Box:
    operands = [constants[v] for v in node.inputs if v in constants]
    title = f"{node.op.name}({', '.join(operands)})" if operands else node.op.name
    types = ", ".join(str(v.type) for v in node.outputs)
    inner = [n.op.name for _, body in node.subgraphs() for n in body.nodes]
    inner = [name for name in inner if name != "constant"]
    shown = _attrs(node)
    lines = (title, *_wrapped(inner), *([shown] if shown else []), types)
    origin = f"{node.origin.role}, by {node.origin.made_by}"
    return Box(id, node.origin.role, lines, "  ".join(filter(None, (node.place, origin))))


def _attrs(node: Node) -> str:
    """The attributes that tell two nodes of one op apart, if they are short."""
    shown = [
        f"{key}={value}"
        for key, value in node.attrs.items()
        if value is not None and key not in ("dtype", "shape") and not node.op.has_regions
    ]
    return ", ".join(text for text in shown[:_SHOWN_ATTRS] if len(text) <= _LONGEST)


def _wrapped(names: list[str]) -> list[str]:
    """Op names of a body, several on a line, so that a box stays narrow."""
    lines: list[str] = []
    for name in names:
        if lines and len(lines[-1]) + len(name) < _LONGEST:
            lines[-1] += f" {name}"
        else:
            lines.append(name)
    return lines if len(lines) <= 4 else [*lines[:3], f"… {len(names)} ops"]
