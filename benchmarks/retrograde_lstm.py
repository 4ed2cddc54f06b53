"""Sizes -> the training step of an LSTM that is written as one step under `rg.scan`."""

from __future__ import annotations

from typing import Any

from benchmarks.measure import Contender
from benchmarks.problem import LSTMProblem
from benchmarks.retrograde_training import training_contender


def loss_of(w: Any, tokens: Any, targets: Any) -> Any:
    """The mean cross-entropy over every token [T, B], in nats."""
    import retrograde as rg
    import retrograde.numpy as rnp

    def cell(carry: Any, x: Any) -> Any:
        h, c = carry
        gates = x @ w["input"] + h @ w["hidden"] + w["bias"]
        i, f, g, o = rnp.split(gates, 4, axis=-1)
        c = rnp.sigmoid(f) * c + rnp.sigmoid(i) * rnp.tanh(g)
        h = rnp.sigmoid(o) * rnp.tanh(c)
        return (h, c), h

    x = rnp.take(w["embedding"], tokens, axis=0)
    zero = rnp.zeros_like(x[0])
    _, hidden = rg.scan(cell, (zero, zero), x)
    return rg.losses.cross_entropy(hidden @ w["head"] + w["head_bias"], targets)


def loss_and_gradients(problem: LSTMProblem) -> tuple[float, dict[str, Any]]:
    """At the first parameters."""
    import retrograde as rg

    value, gradients = rg.value_and_grad(loss_of)(problem.weights(), *problem.tokens_and_targets())
    return float(value), gradients


def contender(
    problem: LSTMProblem, threads: int, *, backend: str = "numpy", tables: bool = True
) -> Contender:
    """The compiled training step of the problem, ready to run; `tables` as for
    `training_contender`."""
    return training_contender(
        loss_of, problem.weights(), problem, ("T", "B"), threads, backend, tables=tables
    )
