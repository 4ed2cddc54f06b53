"""Sizes -> the same LSTM in JAX: the cell under `lax.scan`, the whole step jitted, state donated.

JAX has no optimizers of its own: AdamW is written out, in one expression per parameter."""

from __future__ import annotations

import os
from typing import Any

from benchmarks.measure import Contender
from benchmarks.problem import LSTMProblem

BETAS, EPSILON = (0.9, 0.95), 1e-8


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
    scores = jax.nn.log_softmax(hidden @ w["head"] + w["head_bias"], axis=-1)
    return -jnp.mean(jnp.take_along_axis(scores, targets[..., None], axis=-1))


def loss_and_gradients(problem: LSTMProblem) -> tuple[float, dict[str, Any]]:
    """At the first parameters."""
    import jax

    value, gradients = jax.value_and_grad(loss_of)(problem.weights(), *problem.tokens_and_targets())
    return float(value), gradients


def contender(problem: LSTMProblem, threads: int) -> Contender:
    """The training step of the problem, ready to run, on the CPU."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if threads == 1:  # otherwise JAX takes the processors that it finds
        os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
    import jax
    import jax.numpy as jnp

    def update(w: Any, m: Any, v: Any, count: Any, tokens: Any, targets: Any) -> Any:
        loss, gradients = jax.value_and_grad(loss_of)(w, tokens, targets)
        norm = jnp.sqrt(sum(jnp.sum(g * g) for g in jax.tree.leaves(gradients)))
        factor = jnp.minimum(1.0, problem.clip_norm / (norm + 1e-6))
        count = count + 1
        m = jax.tree.map(lambda m, g: BETAS[0] * m + (1 - BETAS[0]) * factor * g, m, gradients)
        v = jax.tree.map(
            lambda v, g: BETAS[1] * v + (1 - BETAS[1]) * (factor * g) ** 2, v, gradients
        )

        def moved(p: Any, m: Any, v: Any) -> Any:
            step = m / (1 - BETAS[0] ** count)
            step = step / (jnp.sqrt(v / (1 - BETAS[1] ** count)) + EPSILON)
            return p * (1 - problem.learning_rate * problem.weight_decay) - (
                problem.learning_rate * step
            )

        return jax.tree.map(moved, w, m, v), m, v, count, loss, norm

    train = jax.jit(update, donate_argnums=(0, 1, 2, 3))
    w = jax.tree.map(jnp.asarray, problem.weights())
    state = [w, jax.tree.map(jnp.zeros_like, w), jax.tree.map(jnp.zeros_like, w), jnp.zeros(())]
    tokens, targets = map(jnp.asarray, problem.tokens_and_targets())

    def step() -> tuple[float, float]:
        *state[:], loss, norm = train(*state, tokens, targets)
        return float(loss), float(norm)

    return Contender(step=step, persistent_bytes=problem.persistent_bytes)
