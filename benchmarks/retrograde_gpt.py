"""Sizes -> the training step of `retrograde.models.GPT` on one backend, as a contender."""

from __future__ import annotations

from typing import Any

from benchmarks.measure import Contender
from benchmarks.problem import GPTProblem
from benchmarks.retrograde_training import training_contender


def contender(problem: GPTProblem, threads: int, *, backend: str = "numpy") -> Contender:
    """The compiled training step of the problem, ready to run."""
    import retrograde as rg

    def loss(model: Any, tokens: Any, targets: Any) -> Any:
        return rg.losses.cross_entropy(model(tokens), targets)

    model = rg.models.GPT(
        vocab=problem.vocab,
        width=problem.width,
        layers=problem.layers,
        heads=problem.heads,
        context=problem.length,
    ).replace(problem.weights())
    return training_contender(loss, model, problem, ("B", "T"), threads, backend)
