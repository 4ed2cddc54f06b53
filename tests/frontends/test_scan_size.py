"""A training step of a recurrent model has as many nodes for 4096 steps as for 32, at every stage.

The models are those of benchmarks/compile_time.py, which prints the seconds too."""

from __future__ import annotations

import pytest

from benchmarks.compile_time import MODELS, count, training_step
from retrograde.compiler.pipeline import PIPELINE

STAGES = ("trace", *(name for name, _ in PIPELINE), "order")


@pytest.mark.parametrize("name", MODELS)
def test_size_does_not_depend_on_the_length(name: str) -> None:
    # With so many rows the products with the embedding go by way of its table at all lengths.
    short, long, any_length = (training_step(name, t, width=8, batch=16) for t in (32, 4096, "T"))
    for stage in STAGES:
        nodes = count(short.ir(stage))
        assert nodes == count(long.ir(stage)) > 0, stage
        assert count(any_length.ir(stage)) == pytest.approx(nodes, rel=0.1), stage
    lines = len(short.source().splitlines())
    assert len(long.source().splitlines()) == lines
    assert len(any_length.source().splitlines()) == pytest.approx(lines, rel=0.1)


@pytest.mark.parametrize("name", MODELS)
def test_there_are_two_loops_with_one_product_each(name: str) -> None:
    """Forward and backward; the products of the slices and of the weights are outside."""
    loops = [node for node in training_step(name, "T", width=8, batch=6).ir("order").nodes
             if node.op.name == "scan"]  # fmt: skip
    products = [
        sum(inner.op.name == "dot_general" for inner in node.attrs["body"].nodes) for node in loops
    ]
    assert products == [1, 1]
