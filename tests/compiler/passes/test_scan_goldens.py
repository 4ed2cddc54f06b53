"""Gradients of loops as text, before and after hoisting and sinking, and the same numbers of both.

Before: only `h @ wh` needs the carry, and everything is in the loops.  After: what needs no carry
runs before the loop over all steps, sums over time behind it, once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import retrograde as rg
import retrograde.numpy as rnp
from retrograde.compiler.ir import dims, parse
from retrograde.compiler.ir.graph import Graph
from retrograde.compiler.ir.interpreter import evaluate
from retrograde.compiler.ir.verify import verify
from retrograde.compiler.passes.cse import CSE
from retrograde.compiler.passes.dce import DCE
from retrograde.compiler.passes.expand import Expand
from retrograde.compiler.passes.regions import everywhere
from retrograde.compiler.passes.scan_hoist import HoistScan
from retrograde.compiler.passes.scan_sink import SinkScan
from retrograde.compiler.passes.simplify import Simplify
from tests.compiler.passes.harness import plain

Golden = Callable[[str, str], None]
B, V = 3, 7
T = rg.dim("T", min=0)


def gated(wx: Any, wh: Any, b: Any, xs: Any) -> Any:
    """A cell like an LSTM with two gates: one product of the slice, one of the carry."""

    def cell(carry: Any, x: Any) -> Any:
        h, c = carry
        f, g = rnp.split(x @ wx + h @ wh + b, 2, axis=-1)
        c = rnp.sigmoid(f) * c + rnp.tanh(g)
        return (rnp.tanh(c), c), None

    zero = rnp.zeros((B, 2), "f64")
    return rnp.sum(rg.scan(cell, (zero, zero), xs)[0][0])


def embedded(table: Any, wh: Any, tokens: Any) -> Any:
    """An invented cell that looks its input up itself."""

    def cell(h: Any, token: Any) -> Any:
        h = rnp.tanh(rnp.take(table, token, axis=0) + h @ wh)
        return h, h

    return rnp.sum(rg.scan(cell, rnp.zeros((B, 2), "f64"), tokens)[1] ** 2)


def judged(wh: Any, head: Any, xs: Any, targets: Any) -> Any:
    """A head and a squared loss in every step, added up in the carry."""

    def cell(carry: Any, given: Any) -> Any:
        h, loss = carry
        x, target = given
        h = rnp.tanh(h @ wh + x)
        miss = h @ head - target
        return (h, loss + rnp.sum(miss * miss)), None

    zero = rnp.zeros((B, 2), "f64")
    return rg.scan(cell, (zero, rnp.zeros((), "f64")), (xs, targets))[0][1]


# The function, its specs, by what it is differentiated, and how many products, sums of products,
# gathers and scatters there are around the loops and in each loop: before, and after.
CASES: dict[str, tuple[Any, tuple[Any, ...], tuple[int, ...], str, str]] = {
    "gated": (
        gated,
        (rg.spec("f64", 5, 4), rg.spec("f64", 2, 4), rg.spec("f64", 4), rg.spec("f64", T, B, 5)),
        (0, 1, 2),
        "0 | 2 | 3",
        "1 dot_steps 3 | 1 | 1",
    ),
    "embedded": (
        embedded,
        (rg.spec("f64", V, 2), rg.spec("f64", 2, 2), rg.spec("i32", T, B)),
        (0, 1),
        "0 | 1 gather 1 | 2 scatter_add 1",
        "0 dot_steps 1 gather 1 scatter_add 1 | 1 | 1",
    ),
    "judged": (
        judged,
        (rg.spec("f64", 2, 2), rg.spec("f64", 2, 5), rg.spec("f64", T, B, 2),
         rg.spec("f64", T, B, 5)),
        (0, 1),
        "0 | 2 | 4",
        "3 dot_steps 3 | 1 | 1",
    ),
}  # fmt: skip


def counts(graph: Graph) -> str:
    """Products, sums of them, gathers, scatters around the loops | in the first | in the second."""
    bodies = [body for node in graph.nodes for _, body in node.subgraphs()]
    shown = []
    for part in (graph, *bodies):
        names = [node.op.name for node in part.nodes]
        others = ("dot_steps", "gather", "scatter_add")
        moved = [f" {n} {names.count(n)}" for n in others if n in names]
        shown.append(f"{names.count('dot_general')}{''.join(moved)}")
    return " | ".join(shown)


def run(graph: Graph, *transforms: Any) -> Graph:
    for transform in transforms:
        graph = everywhere(transform, graph)
        verify(graph, made_by=type(transform).__name__)
    return graph


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str, golden: Golden) -> None:
    fn, specs, wrt, in_loops, moved = CASES[name]
    traced = rg.trace(rg.value_and_grad(fn, argnums=wrt), *specs)
    before = run(traced, DCE(), Expand(), Simplify(), CSE(), DCE())
    after = run(before, SinkScan(), HoistScan(), CSE(), Simplify(), DCE())
    assert (counts(before), counts(after)) == (in_loops, moved)
    for when, graph in (("before", before), ("after", after)):
        golden(f"passes/scan_{name}.{when}.ir", plain(graph) + "\n")
        assert len(plain(graph).splitlines()) < 120
        assert parse(graph.text()).text() == graph.text()
    for steps in (0, 1, 2, 9):
        rng = np.random.default_rng([steps, len(name)])
        arrays = []
        for v in traced.inputs:
            shape = [dims.evaluate(d, {"T": steps}) for d in v.shape]
            floats = v.dtype.is_float
            arrays.append(rng.normal(size=shape) if floats else rng.integers(0, V, shape, "i4"))
        wanted = evaluate(traced, arrays)
        for graph in (before, after):
            for a, b in zip(wanted, evaluate(graph, arrays), strict=True):
                np.testing.assert_allclose(b, a, rtol=1e-12, atol=1e-13)
