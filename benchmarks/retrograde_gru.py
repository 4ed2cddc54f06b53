"""Sizes -> the training step of a GRU that is written as one step under `rg.scan`."""

from __future__ import annotations

from typing import Any

from benchmarks.measure import Contender
from benchmarks.problem import GRUProblem
from benchmarks.retrograde_training import training_contender


def loss_of(w: Any, tokens: Any, targets: Any) -> Any:
    """The mean cross-entropy over every token [T, B], in nats."""
    import retrograde as rg
    import retrograde.numpy as rnp

    def cell(h: Any, x: Any) -> Any:
        xr, xz, xn = rnp.split(x @ w["input"] + w["input_bias"], 3, axis=-1)
        hr, hz, hn = rnp.split(h @ w["hidden"] + w["hidden_bias"], 3, axis=-1)
        r, z = rnp.sigmoid(xr + hr), rnp.sigmoid(xz + hz)
        h = (1 - z) * rnp.tanh(xn + r * hn) + z * h
        return h, h

    x = rnp.take(w["embedding"], tokens, axis=0)
    _, hidden = rg.scan(cell, rnp.zeros_like(x[0]), x)
    return rg.losses.cross_entropy(hidden @ w["head"] + w["head_bias"], targets)


def contender(
    problem: GRUProblem, threads: int, *, backend: str = "native", tables: bool = True
) -> Contender:
    """The compiled training step of the problem, ready to run; `tables` as for
    `training_contender`."""
    return training_contender(
        loss_of, problem.weights(), problem, ("T", "B"), threads, backend, tables=tables
    )
