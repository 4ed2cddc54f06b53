"""Sizes -> the training step of `retrograde.models.GPT` on one backend, as a contender."""

from __future__ import annotations

from typing import Any

from benchmarks.measure import Contender
from benchmarks.problem import GPTProblem
from benchmarks.retrograde_training import training_contender


def contender(
    problem: GPTProblem,
    threads: int,
    *,
    backend: str = "numpy",
    beyond: int | None = None,
    everything: bool = False,
) -> Contender:
    """The compiled training step of the problem, ready to run.  `beyond`: the most bytes that it
    may take beyond parameters and optimizer state (a tiny problem compiles as many recipes, and may
    take any).  `everything`: all that the way back reads is kept."""
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
    budget = None if beyond is None else problem.persistent_bytes + beyond
    return training_contender(
        loss, model, problem, ("B", "T"), threads, backend, budget=budget, everything=everything
    )
