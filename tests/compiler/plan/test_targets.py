"""Where results are written: what a move that is made twice leads to."""

from __future__ import annotations

from dataclasses import replace

from retrograde.compiler.ir.graph import Graph
from retrograde.compiler.plan.lower import lower
from retrograde.compiler.plan.steps import CopyStep
from tests.compiler.passes.harness import written
from tests.compiler.plan.test_liveness import shadowed

AGAIN = """(%0: f64[B,3,T,5], %1: f64[15,4], %2: f64[B,T,15]) {{
  %3: f64[B,3,T,5] = sort %0 {{axis=3, descending=False}}
  %4: f64[B,T,3,5] = transpose %3 {{perm=(0,2,1,3)}}
  %5: f64[B,T,15] = reshape %4 {{shape=(B,T,15)}}
  %6: f64[B,T,4] = dot_general %5, %1 {{batch=((),()), contract=((2),(0))}}
  {again}
  %9: f64[B,T,15] = mul %8, %2
  return %6, %9 }}"""
SAME = """%7: f64[B,T,3,5] = transpose %3 {perm=(0,2,1,3)}
  %8: f64[B,T,15] = reshape %7 {shape=(B,T,15)}"""
OTHER = """%7: f64[T,B,3,5] = transpose %3 {perm=(2,0,1,3)}
  %8: f64[B,T,15] = reshape %7 {shape=(B,T,15)}"""


def recomputed(graph: Graph) -> Graph:
    """The second of two equal moves belongs to another run, as where its reader runs again."""
    nodes = list(graph.nodes)
    for i, node in enumerate(nodes[4:6], 4):
        origin = replace(node.origin, role="recompute", group=7)
        nodes[i] = replace(node, origin=origin)
    return graph.replace(nodes=tuple(nodes))


def copies(text: str) -> int:
    graph = recomputed(written(AGAIN.format(again=text)))
    return sum(isinstance(step, CopyStep) for step in lower(graph).steps)


def test_a_move_that_is_made_again_takes_no_copy() -> None:
    assert copies(SAME) == 0
    shadowed(recomputed(written(AGAIN.format(again=SAME))))


def test_another_move_of_the_same_value_takes_one() -> None:
    assert copies(OTHER) == 2  # neither of them is where the value was written to
    shadowed(recomputed(written(AGAIN.format(again=OTHER))))
