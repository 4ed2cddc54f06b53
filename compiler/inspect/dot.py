"""A graph in the DOT language: Graph -> text for graphviz.

Invariant: equal graphs give equal text; no program is run here.
"""

from __future__ import annotations

from typing import Any

from retrograde.compiler.inspect.clusters import COLOURS, Group, picture
from retrograde.compiler.ir.graph import Graph


def to_dot(graph: Graph) -> str:
    """The graph as DOT: a box a node, a cluster a module, colours by role."""
    import graphviz  # type: ignore[import-untyped]

    shown = picture(graph)
    out = graphviz.Digraph(shown.name, strict=False)
    out.attr("graph", rankdir="TB", fontname="Helvetica", fontsize="11", compound="true")
    out.attr("node", shape="box", style="filled,rounded", fontname="Helvetica", fontsize="10")
    out.attr("edge", fontname="Helvetica", fontsize="8", color="#606060", arrowsize="0.6")
    _fill(out, shown.root, "")
    for source, target, type in shown.arrows:
        out.edge(source, target, tooltip=graphviz.escape(type))
    return str(out.source)


def _fill(out: Any, group: Group, path: str) -> None:
    import graphviz

    for box in group.boxes:
        shape = "ellipse" if box.role in ("input", "output") else "box"
        label = graphviz.escape("\n".join(box.lines))
        tooltip = graphviz.escape(box.detail)
        out.node(box.id, label, fillcolor=COLOURS[box.role], shape=shape, tooltip=tooltip)
    for name, inner in group.groups.items():
        inner_path = f"{path}.{name}" if path else name
        with out.subgraph(name=f"cluster_{inner_path}") as cluster:
            cluster.attr(label=graphviz.escape(inner.name), color="#a0a0a0", style="rounded")
            _fill(cluster, inner, inner_path)
