"""Sizes -> the same LSTM in JAX: the cell under `lax.scan`, the whole step jitted."""

from __future__ import annotations

from typing import Any

from benchmarks.measure import Contender
from benchmarks.peers.jax_training import ids_of, nats, training_contender
from benchmarks.problem import LSTMProblem


def loss_of(w: Any, tokens: Any, targets: Any) -> Any:
    """The mean cross-entropy over every token [T, B], in nats."""
    import jax
    import jax.numpy as jnp

    def cell(carry: Any, x: Any) -> Any:
        h, c = carry
        gates = x @ w["input"] + h @ w["hidden"] + w["bias"]
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    x = jnp.take(w["embedding"], tokens, axis=0)
    zero = jnp.zeros_like(x[0])
    _, hidden = jax.lax.scan(cell, (zero, zero), x)
    return jnp.mean(nats(hidden @ w["head"] + w["head_bias"], targets))


def loss_and_gradients(problem: LSTMProblem) -> tuple[float, dict[str, Any]]:
    """At the first parameters."""
    import jax

    value, gradients = jax.value_and_grad(loss_of)(problem.weights(), *problem.tokens_and_targets())
    return float(value), gradients


def contender(problem: LSTMProblem, threads: int) -> Contender:
    """The training step of the problem, ready to run, on the CPU."""
    return training_contender(problem, loss_of, ids_of(problem), threads)
