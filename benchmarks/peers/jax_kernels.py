"""Kernel problems in JAX, jitted: value and gradients, as contenders.

The results of the step before are donated, so that a step allocates no memory for its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.kernels import KernelProblem, fingerprint, resident_bytes
from benchmarks.measure import Contender
from benchmarks.peers.jax_setup import jax_on


def contender(problem: KernelProblem, threads: int) -> Contender:
    """The kernel and its gradient, ready to run."""
    jax = jax_on(threads)
    given = {name: jax.numpy.asarray(x) for name, x in problem.inputs().items()}
    function = FUNCTIONS[problem.kind]

    def kernel(given: dict[str, Any]) -> tuple[Any, ...]:
        rest = {name: x for name, x in given.items() if name != "g" and name not in problem.wrt}
        if not problem.wrt:
            return (function(**rest),)

        def of(*xs: Any) -> Any:
            return function(**dict(zip(problem.wrt, xs, strict=True)), **rest)

        value, pullback = jax.vjp(of, *(given[name] for name in problem.wrt))
        return (value, *pullback(given["g"]))

    run = jax.jit(lambda given, old: kernel(given), donate_argnums=1, keep_unused=True)
    shapes = jax.eval_shape(kernel, given)
    results = [jax.numpy.zeros(x.shape, x.dtype) for x in shapes]

    def step() -> None:
        results[:] = jax.block_until_ready(run(given, tuple(results)))

    return Contender(
        step=step,
        persistent_bytes=resident_bytes(problem, shapes),
        numbers=lambda: fingerprint(results),
    )


def softmax(x: Any) -> Any:
    import jax

    return jax.nn.softmax(x, axis=-1)


def layer_norm(x: Any, gain: Any, bias: Any) -> Any:
    import jax
    import jax.numpy as jnp

    mean = jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.var(x, axis=-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + 1e-5) * gain + bias


def gelu(x: Any) -> Any:
    import jax

    return jax.nn.gelu(x, approximate=True)


def attention(q: Any, k: Any, v: Any) -> Any:
    import jax
    import jax.numpy as jnp

    scores = jnp.einsum("bhqd,bhkd->bhqk", q, k) * q.shape[-1] ** -0.5
    steps = jnp.arange(q.shape[-2])
    scores = jnp.where(steps[:, None] >= steps[None, :], scores, -jnp.inf)
    return jnp.einsum("bhqk,bhkd->bhqd", jax.nn.softmax(scores, axis=-1), v)


def head(x: Any, w: Any, targets: Any) -> Any:
    import jax
    import jax.numpy as jnp

    scores = jax.nn.log_softmax(x @ w, axis=-1)
    return -jnp.mean(jnp.take_along_axis(scores, targets[:, None], axis=-1))


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "softmax": softmax,
    "layer_norm": layer_norm,
    "gelu": gelu,
    "attention": attention,
    "head": head,
    "gemm": lambda x, w: x @ w,
    "gemm_transposed": lambda x, w: x.T @ w,
}
