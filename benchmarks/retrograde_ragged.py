"""Sizes -> the training step of stacked LSTM cells under `rg.scan`, on rows of given lengths."""

from __future__ import annotations

from typing import Any

from benchmarks.measure import Contender
from benchmarks.problem import RaggedProblem
from benchmarks.retrograde_training import training_contender


def loss_of(w: Any, tokens: Any, targets: Any, lengths: Any) -> Any:
    """The mean cross-entropy over the real tokens of [T, B], in nats; lengths [B]."""
    import retrograde as rg
    import retrograde.numpy as rnp

    def layer(i: int, x: Any) -> Any:
        def cell(carry: Any, x: Any) -> Any:
            h, c = carry
            gates = x @ w[f"input{i}"] + h @ w[f"hidden{i}"] + w[f"bias{i}"]
            i_, f, g, o = rnp.split(gates, 4, axis=-1)
            c = rnp.sigmoid(f) * c + rnp.sigmoid(i_) * rnp.tanh(g)
            h = rnp.sigmoid(o) * rnp.tanh(c)
            return (h, c), h

        zero = rnp.zeros_like(x[0])
        return rg.scan(cell, (zero, zero), x, lengths=lengths)[1]

    x = rnp.take(w["embedding"], tokens, axis=0)
    for i in range(sum(name.startswith("hidden") for name in w)):
        x = layer(i, x)
    real = rnp.arange(tokens.shape[0])[:, None] < lengths
    return rg.losses.cross_entropy(x @ w["head"] + w["head_bias"], targets, real)


def contender(
    problem: RaggedProblem, threads: int, *, backend: str = "native", tables: bool = True
) -> Contender:
    """The compiled training step of the problem, ready to run; `tables` as for
    `training_contender`."""
    return training_contender(
        loss_of, problem.weights(), problem, ("T", "B"), threads, backend, tables=tables
    )
