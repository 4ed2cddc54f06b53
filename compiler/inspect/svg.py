"""A graph as an SVG picture: Graph -> text.

graphviz draws it where its `dot` program is there; else a plain layout of our own: groups are
boxes, each laid out in layers from its inputs down.  Invariant: the picture is whole without any
other file, and no two boxes of the plain layout overlap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from retrograde.compiler.inspect.clusters import COLOURS, Box, Group, Picture, picture
from retrograde.compiler.inspect.dot import to_dot
from retrograde.compiler.ir.graph import Graph

_LINE = 13  # pixels a line of text
_CHARACTER = 6.2  # pixels a character, about, in a sans-serif of 10 px
_PAD = 8
_GAP = 14  # between neighbours
_LAYER_GAP = 26  # between layers, for the arrows
_SLOW_FOR_DOT = 1500  # boxes: beyond this, dot takes minutes


def to_svg(graph: Graph) -> str:
    """The graph as SVG."""
    import shutil

    shown = picture(graph)
    if shutil.which("dot") and sum(1 for _ in shown.root.walk()) <= _SLOW_FOR_DOT:
        return _by_graphviz(graph) or plain(shown)
    return plain(shown)


def _by_graphviz(graph: Graph) -> str:
    import graphviz  # type: ignore[import-untyped]

    try:
        made = graphviz.Source(to_dot(graph)).pipe(format="svg", encoding="utf-8")
    except (graphviz.ExecutableNotFound, graphviz.CalledProcessError, BrokenPipeError):
        return ""  # a `dot` that does not run is as good as none
    return str(made)


# --- the plain layout


@dataclass
class _Item:
    """A box or group with its size and, within its group, its place."""

    what: Box | _Laid
    first: int  # the position of its first box in the graph's order
    width: float
    height: float
    x: float = 0.0
    y: float = 0.0


@dataclass
class _Laid:
    """A group whose items have their places."""

    name: str
    items: list[_Item] = field(default_factory=list)
    width: float = 0.0
    height: float = 0.0


def plain(shown: Picture) -> str:
    """The picture without graphviz."""
    order = _order(shown)
    targets: dict[str, list[str]] = {}
    for source, target, _ in shown.arrows:
        targets.setdefault(source, []).append(target)
    whole = _lay_out(shown.root, order, targets)
    places: dict[str, tuple[float, float, float, float]] = {}
    drawn: list[str] = []
    _draw(whole, _PAD, _PAD, drawn, places, outermost=True)
    arrows = [_arrow(places[s], places[t], type) for s, t, type in shown.arrows]
    width, height = whole.width + 2 * _PAD, whole.height + 2 * _PAD
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
            f'viewBox="0 0 {width:.0f} {height:.0f}" font-family="Helvetica, Arial, sans-serif" '
            'font-size="10">',
            f"<title>{escape(shown.name)}</title>",
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" '
            'markerHeight="6" orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="#606060"/></marker>'
            "</defs>",
            '<rect width="100%" height="100%" fill="white"/>',
            *drawn,
            *arrows,
            "</svg>\n",
        ]
    )


def _order(shown: Picture) -> dict[str, int]:
    """The position of each box: inputs, nodes as they run, outputs."""

    def key(id: str) -> tuple[int, int]:
        kind = id.rstrip("0123456789")
        return ("in", "n", "out").index(kind), int(id[len(kind) :])

    return {id: i for i, id in enumerate(sorted((b.id for b in shown.root.walk()), key=key))}


def _lay_out(
    group: Group, order: Mapping[str, int], targets: Mapping[str, Sequence[str]]
) -> _Laid:
    items = [_box_item(box, order[box.id]) for box in group.boxes]
    homes = {box.id: i for i, box in enumerate(group.boxes)}
    for inner in group.groups.values():
        laid = _lay_out(inner, order, targets)
        for box in inner.walk():
            homes[box.id] = len(items)
        first = min(order[box.id] for box in inner.walk())
        items.append(_Item(laid, first, laid.width, laid.height))
    _place(items, _links(items, homes, targets))
    laid = _Laid(group.name, items)
    laid.width = max((i.x + i.width for i in items), default=0.0) + _PAD
    laid.width = max(laid.width, len(group.name) * _CHARACTER + 2 * _PAD)
    laid.height = max((i.y + i.height for i in items), default=0.0) + _PAD
    return laid


def _box_item(box: Box, first: int) -> _Item:
    width = max(map(len, box.lines)) * _CHARACTER + 2 * _PAD
    return _Item(box, first, width, len(box.lines) * _LINE + _PAD)


def _links(
    items: Sequence[_Item], homes: Mapping[str, int], targets: Mapping[str, Sequence[str]]
) -> list[set[int]]:
    """The items that each item leads to.  Groups can lead to each other in a circle (a module's
    forward and backward nodes): only links to what begins later count."""
    links: list[set[int]] = [set() for _ in items]
    for id, home in homes.items():
        for target in targets.get(id, ()):
            other = homes.get(target)
            if other is not None and items[other].first > items[home].first:
                links[home].add(other)
    return links


def _place(items: list[_Item], links: Sequence[set[int]]) -> None:
    """Layers by the longest path; inputs come down to just above their first reader."""
    order = sorted(range(len(items)), key=lambda i: items[i].first)
    layer = [0] * len(items)
    for i in order:
        for j in links[i]:
            layer[j] = max(layer[j], layer[i] + 1)
    fed = set().union(*links) if links else set()
    for i in order:
        if i not in fed and links[i]:
            layer[i] = max(0, min(layer[j] for j in links[i]) - 1)
    rows: dict[int, list[int]] = {}
    for i in order:
        rows.setdefault(layer[i], []).append(i)
    sources: list[list[int]] = [[] for _ in items]
    for i, found in enumerate(links):
        for j in found:
            sources[j].append(i)
    y = float(_LINE + _PAD)
    for _, row in sorted(rows.items()):
        x = float(_PAD)
        for i in sorted(row, key=lambda i: (_middle(items, sources[i]), items[i].first)):
            items[i].x, items[i].y = x, y
            x += items[i].width + _GAP
        y += max(items[i].height for i in row) + _LAYER_GAP


def _middle(items: Sequence[_Item], sources: Sequence[int]) -> float:
    """Where the sources of an item lie, on average: below them it has the shortest arrows."""
    if not sources:
        return 0.0
    return sum(items[i].x + items[i].width / 2 for i in sources) / len(sources)


def _draw(
    laid: _Laid,
    x: float,
    y: float,
    drawn: list[str],
    places: dict[str, tuple[float, float, float, float]],
    outermost: bool = False,
) -> None:
    if not outermost:
        drawn.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{laid.width:.1f}" height="{laid.height:.1f}" '
            'rx="5" fill="black" fill-opacity="0.03" stroke="#a0a0a0"/>'
        )
    drawn.append(
        f'<text x="{x + _PAD:.1f}" y="{y + _LINE:.1f}" font-weight="bold">{escape(laid.name)}'
        "</text>"
    )
    for item in laid.items:
        left, top = x + item.x, y + item.y
        if isinstance(item.what, _Laid):
            _draw(item.what, left, top, drawn, places)
            continue
        places[item.what.id] = left, top, item.width, item.height
        drawn.append(_rectangle(item.what, left, top, item.width, item.height))


def _rectangle(box: Box, x: float, y: float, width: float, height: float) -> str:
    round = height / 2 if box.role in ("input", "output") else 4
    text = "".join(
        f'<tspan x="{x + width / 2:.1f}" y="{y + _LINE * (i + 1):.1f}">{escape(line)}</tspan>'
        for i, line in enumerate(box.lines)
    )
    return (
        f'<g class="box"><title>{escape(box.detail)}</title>'
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" '
        f'rx="{round:.1f}" fill="{COLOURS[box.role]}" stroke="#808080"/>'
        f'<text text-anchor="middle">{text}</text></g>'
    )


def _arrow(
    source: tuple[float, float, float, float],
    target: tuple[float, float, float, float],
    type: str,
) -> str:
    x1, y1 = source[0] + source[2] / 2, source[1] + source[3]
    x2, y2 = target[0] + target[2] / 2, target[1]
    bend = max(12.0, abs(y2 - y1) / 3)
    return (
        f'<path d="M{x1:.1f} {y1:.1f} C{x1:.1f} {y1 + bend:.1f} {x2:.1f} {y2 - bend:.1f} '
        f'{x2:.1f} {y2:.1f}" fill="none" stroke="#606060" stroke-opacity="0.6" '
        f'marker-end="url(#tip)"><title>{escape(type)}</title></path>'
    )
