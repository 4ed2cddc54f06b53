"""Sizes -> the same stacked LSTM in JAX: cells under `lax.scan` over all steps, with masks.

JAX has no packed sequences: what stands beyond the end of a row is computed and not used."""

from __future__ import annotations

from typing import Any

from benchmarks.measure import Contender
from benchmarks.peers.jax_training import ids_of, nats, training_contender
from benchmarks.problem import RaggedProblem


def loss_of(w: Any, tokens: Any, targets: Any, lengths: Any) -> Any:
    """The mean cross-entropy over the real tokens of [T, B], in nats; lengths [B]."""
    import jax
    import jax.numpy as jnp

    real = jnp.arange(tokens.shape[0])[:, None] < lengths

    def layer(i: int, x: Any) -> Any:
        def cell(carry: Any, given: Any) -> Any:
            (h, c), (x, real) = carry, given
            gates = x @ w[f"input{i}"] + h @ w[f"hidden{i}"] + w[f"bias{i}"]
            i_, f, g, o = jnp.split(gates, 4, axis=-1)
            new_c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i_) * jnp.tanh(g)
            new_h = jax.nn.sigmoid(o) * jnp.tanh(new_c)
            kept = jnp.where(real, new_h, h), jnp.where(real, new_c, c)
            return kept, kept[0]

        zero = jnp.zeros_like(x[0])
        return jax.lax.scan(cell, (zero, zero), (x, real[..., None]))[1]

    x = jnp.take(w["embedding"], tokens, axis=0)
    for i in range(sum(name.startswith("hidden") for name in w)):
        x = layer(i, x)
    each = nats(x @ w["head"] + w["head_bias"], targets)
    return jnp.sum(jnp.where(real, each, 0.0)) / jnp.sum(real)


def contender(problem: RaggedProblem, threads: int) -> Contender:
    """The training step of the problem, ready to run, on the CPU."""
    batch = {**ids_of(problem), "lengths": problem.lengths()}
    return training_contender(problem, loss_of, batch, threads)
