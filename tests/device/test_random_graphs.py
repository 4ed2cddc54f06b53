"""Random graphs of some twenty ops, at many sizes, against the interpreter, in all modes.

A graph is a seed and a number of ops: the first ops of a seed are always the same, so a failing
graph shrinks by leaving out its end.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from retrograde.compiler.ir import dtypes
from retrograde.compiler.ir.graph import Graph
from retrograde.compiler.ir.interpreter import evaluate
from retrograde.compiler.passes.backward import Backward
from retrograde.runtime.protocol import Device
from tests.device.harness import Compiled, agree, grow
from tests.device.random_graphs import RandomGraph, inputs_for

SIZES = ((3, 5), (1, 1), (2, 7), (0, 3), (4, 0), (5, 1), (1, 6))
PHASES = (Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink)  # explaining traces all lines
EXAMPLES = settings().max_examples  # of the profile: `make fuzz` asks for more
SEEDS = st.integers(0, 2**32 - 1)


def random_graph(seed: int, steps: int, dtype: dtypes.DType = dtypes.f64) -> Graph:
    return RandomGraph(random.Random(seed).randrange, dtype, steps).graph


def compare(graph: Graph, device: Device, tolerance: float) -> None:
    compiled = Compiled(graph, device)
    for b, t in SIZES:
        arrays = inputs_for(graph, {"B": b, "T": t})
        largest = [1.0]
        expected = evaluate(graph, arrays, trace=lambda n, r, m=largest: grow(m, r))
        for x, y in zip(compiled(arrays), expected, strict=True):
            agree(x, y, tolerance, largest[0])


@pytest.mark.parametrize("dtype", (dtypes.f64, dtypes.f32), ids=str)
@settings(phases=PHASES, max_examples=2 * EXAMPLES)
@given(seed=SEEDS, steps=st.integers(8, 24))
def test_random_graph(device: Device, dtype: dtypes.DType, seed: int, steps: int) -> None:
    compare(random_graph(seed, steps, dtype), device, 1e-9 if dtype is dtypes.f64 else 2e-3)


@settings(phases=PHASES, max_examples=EXAMPLES // 2)
@given(seed=SEEDS, steps=st.integers(4, 14))
@pytest.mark.filterwarnings("ignore:.*selects against")
def test_gradient_of_random_graph(device: Device, seed: int, steps: int) -> None:
    """Backward, and with it the passes that see recomputations and cotangents."""
    graph = Backward((0,), tuple(range(6)))(random_graph(seed, steps))
    compare(graph, device, 1e-7)
