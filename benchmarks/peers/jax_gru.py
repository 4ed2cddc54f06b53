"""Sizes -> the same GRU in JAX: the cell under `lax.scan`, the whole step jitted."""

from __future__ import annotations

from typing import Any

from benchmarks.measure import Contender
from benchmarks.peers.jax_training import ids_of, nats, training_contender
from benchmarks.problem import GRUProblem


def loss_of(w: Any, tokens: Any, targets: Any) -> Any:
    """The mean cross-entropy over every token [T, B], in nats."""
    import jax
    import jax.numpy as jnp

    def cell(h: Any, x: Any) -> Any:
        xr, xz, xn = jnp.split(x @ w["input"] + w["input_bias"], 3, axis=-1)
        hr, hz, hn = jnp.split(h @ w["hidden"] + w["hidden_bias"], 3, axis=-1)
        r, z = jax.nn.sigmoid(xr + hr), jax.nn.sigmoid(xz + hz)
        h = (1 - z) * jnp.tanh(xn + r * hn) + z * h
        return h, h

    x = jnp.take(w["embedding"], tokens, axis=0)
    _, hidden = jax.lax.scan(cell, jnp.zeros_like(x[0]), x)
    return jnp.mean(nats(hidden @ w["head"] + w["head_bias"], targets))


def contender(problem: GRUProblem, threads: int) -> Contender:
    """The training step of the problem, ready to run, on the CPU."""
    return training_contender(problem, loss_of, ids_of(problem), threads)
