"""Circles among the modules of an installed package: name -> exit status 1 and the circles, or 0.

An import inside a function counts as any other, so it cannot hide a circle. An import under
`TYPE_CHECKING` does not count: it never runs, and two types may well name each other.
"""

from __future__ import annotations

import sys

import grimp
import networkx as nx


def circles(package: str) -> list[list[str]]:
    """Shortest circle of each knot of modules that import each other, sorted by name."""
    modules = grimp.build_graph(package, exclude_type_checking_imports=True, cache_dir=None)
    graph: nx.DiGraph[str] = nx.DiGraph()
    for module in modules.modules:
        for imported in modules.find_modules_directly_imported_by(module):
            graph.add_edge(module, imported)
    knots = [knot for knot in nx.strongly_connected_components(graph) if len(knot) > 1]
    return sorted(_shortest(graph.subgraph(knot)) for knot in knots)


def _shortest(knot: nx.DiGraph[str]) -> list[str]:
    first = min(knot)
    back = [nx.shortest_path(knot, follower, first) for follower in knot.successors(first)]
    return [first, *min(back, key=lambda path: (len(path), path))]


if __name__ == "__main__":
    found = circles(sys.argv[1])
    for circle in found:
        print("circle of imports: " + " -> ".join(circle))
    sys.exit(1 if found else 0)
