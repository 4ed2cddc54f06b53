"""Sizes -> the same GPT in JAX: plain functions of the weights, the whole step jitted."""

from __future__ import annotations

import functools
from typing import Any

from benchmarks.measure import Contender
from benchmarks.peers.jax_kernels import attention, gelu, layer_norm
from benchmarks.peers.jax_training import ids_of, nats, training_contender
from benchmarks.problem import GPTProblem


def contender(
    problem: GPTProblem, threads: int, *, checkpoint: bool = False, analysed: bool = False
) -> Contender:
    """The training step of the problem, ready to run, on the CPU.  With `checkpoint` each block is
    computed again on the way back; `analysed`: the compiler tells what memory it plans."""

    def loss(w: Any, tokens: Any, targets: Any) -> Any:
        return loss_of(w, tokens, targets, problem.layers, problem.heads, checkpoint)

    return training_contender(problem, loss, ids_of(problem), threads, analysed=analysed)


def loss_of(
    w: Any, tokens: Any, targets: Any, layers: int, heads: int, checkpoint: bool = False
) -> Any:
    """The mean cross-entropy over every token [B, T], in nats."""
    import jax
    import jax.numpy as jnp

    def norm(name: str, x: Any) -> Any:
        return layer_norm(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def linear(name: str, x: Any) -> Any:
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    def mixed(block: str, x: Any) -> Any:
        rows, length, width = x.shape
        parts = jnp.split(linear(f"{block}.qkv", norm(f"{block}.attention_norm", x)), 3, axis=-1)
        split = (rows, length, heads, width // heads)
        q, k, v = (part.reshape(split).transpose(0, 2, 1, 3) for part in parts)
        y = attention(q, k, v).transpose(0, 2, 1, 3).reshape(rows, length, width)
        return linear(f"{block}.attention_out", y)

    x = w["token_embedding.weight"][tokens] + w["position_embedding.weight"][: tokens.shape[1]]
    def whole(block: str, x: Any) -> Any:
        x = x + mixed(block, x)
        hidden = gelu(linear(f"{block}.mlp_up", norm(f"{block}.mlp_norm", x)))
        return x + linear(f"{block}.mlp_down", hidden)

    for i in range(layers):
        run = functools.partial(whole, f"blocks.{i}")
        x = (jax.checkpoint(run) if checkpoint else run)(x)
    return jnp.mean(nats(norm("final_norm", x) @ w["head.weight"], targets))
