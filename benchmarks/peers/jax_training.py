"""A loss in JAX and a problem -> a training step as a contender: jitted whole, state donated.

JAX has no optimizers of its own: clipping and AdamW are written out, in one expression per
parameter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.measure import Contender
from benchmarks.peers.jax_setup import jax_on
from benchmarks.problem import GPTProblem, GRUProblem, LSTMProblem, RaggedProblem

BETAS, EPSILON = (0.9, 0.95), 1e-8


def training_contender(
    problem: GPTProblem | LSTMProblem | GRUProblem | RaggedProblem,
    loss_of: Callable[..., Any],
    batch: Mapping[str, Any],
    threads: int,
    *,
    analysed: bool = False,
) -> Contender:
    """A step is `loss_of(weights, **batch)`, its gradient, clipping and AdamW.  With `analysed` the
    planned peak is what the compiler's own analysis of memory tells."""
    jax = jax_on(threads)
    jnp = jax.numpy
    rate, decay = problem.learning_rate, problem.weight_decay

    def update(w: Any, m: Any, v: Any, count: Any, batch: Any) -> Any:
        loss, gradients = jax.value_and_grad(loss_of)(w, **batch)
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
            return p * (1 - rate * decay) - rate * step

        return jax.tree.map(moved, w, m, v), m, v, count, loss, norm

    train = jax.jit(update, donate_argnums=(0, 1, 2, 3))
    w = jax.tree.map(jnp.asarray, problem.weights())
    state = [w, jax.tree.map(jnp.zeros_like, w), jax.tree.map(jnp.zeros_like, w), jnp.zeros(())]
    given = {name: jnp.asarray(x) for name, x in batch.items()}

    planned = None
    if analysed:
        train = train.lower(*state, given).compile()
        found = train.memory_analysis()
        fresh = found.output_size_in_bytes - found.alias_size_in_bytes
        planned = found.argument_size_in_bytes + fresh + found.temp_size_in_bytes

    def step() -> tuple[float, float]:
        *state[:], loss, norm = train(*state, given)
        return float(loss), float(norm)

    return Contender(
        step=step, persistent_bytes=problem.persistent_bytes, planned_peak_bytes=planned
    )


def ids_of(problem: GPTProblem | LSTMProblem | GRUProblem | RaggedProblem) -> dict[str, Any]:
    """The tokens and targets of a problem, by name."""
    return dict(zip(("tokens", "targets"), problem.tokens_and_targets(), strict=True))


def nats(logits: Any, targets: Any) -> Any:
    """The cross-entropy of every token."""
    import jax
    import jax.numpy as jnp

    scores = jax.nn.log_softmax(logits, axis=-1)
    return -jnp.take_along_axis(scores, targets[..., None], axis=-1)[..., 0]
