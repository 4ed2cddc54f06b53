"""Sizes -> the same GPT in JAX: plain functions of the weights, the whole step jitted."""

from __future__ import annotations

from typing import Any

from benchmarks.measure import Contender
from benchmarks.peers.jax_kernels import attention, gelu, layer_norm
from benchmarks.peers.jax_training import ids_of, nats, training_contender
from benchmarks.problem import GPTProblem


def contender(problem: GPTProblem, threads: int) -> Contender:
    """The training step of the problem, ready to run, on the CPU."""

    def loss(w: Any, tokens: Any, targets: Any) -> Any:
        return loss_of(w, tokens, targets, problem.layers, problem.heads)

    return training_contender(problem, loss, ids_of(problem), threads)


def loss_of(w: Any, tokens: Any, targets: Any, layers: int, heads: int) -> Any:
    """The mean cross-entropy over every token [B, T], in nats."""
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
    for i in range(layers):
        block = f"blocks.{i}"
        x = x + mixed(block, x)
        hidden = gelu(linear(f"{block}.mlp_up", norm(f"{block}.mlp_norm", x)))
        x = x + linear(f"{block}.mlp_down", hidden)
    return jnp.mean(nats(norm("final_norm", x) @ w["head.weight"], targets))
