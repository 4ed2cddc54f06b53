"""Sizes -> a GPT in PyTorch eager and its training step, equal to `retrograde.models.GPT`.

Pre-norm blocks, learned positions, one fused query-key-value projection, tanh-approximated GELU,
a four times wider MLP, a final layer norm, an untied (or tied) head without a bias.

Names and shapes of the weights, as `load_weights` takes them (W width, V vocab, C context;
a linear weight is [out, in], the rows of `qkv` are all queries, then all keys, then all values,
each of them head after head):

    token_embedding.weight [V, W]      position_embedding.weight [C, W]
    blocks.{i}.attention_norm.weight [W]     blocks.{i}.attention_norm.bias [W]
    blocks.{i}.qkv.weight [3W, W]            blocks.{i}.qkv.bias [3W]
    blocks.{i}.attention_out.weight [W, W]   blocks.{i}.attention_out.bias [W]
    blocks.{i}.mlp_norm.weight [W]           blocks.{i}.mlp_norm.bias [W]
    blocks.{i}.mlp_up.weight [4W, W]         blocks.{i}.mlp_up.bias [4W]
    blocks.{i}.mlp_down.weight [W, 4W]       blocks.{i}.mlp_down.bias [W]
    final_norm.weight [W]                    final_norm.bias [W]
    head.weight [V, W]                       (absent when tied)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from benchmarks.measure import Contender
from benchmarks.problem import GPTProblem


class Block(nn.Module):
    """One pre-norm transformer block, [B, T, W] -> [B, T, W]."""

    causal_mask: Tensor

    def __init__(self, width: int, heads: int, context: int, attention: str) -> None:
        super().__init__()
        self.heads = heads
        self.attention = attention
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_up = nn.Linear(width, 4 * width)
        self.mlp_down = nn.Linear(4 * width, width)
        if attention == "manual":
            mask = torch.ones(context, context, dtype=torch.bool).tril()
            self.register_buffer("causal_mask", mask, persistent=False)

    def attend(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        split = (batch, length, self.heads, width // self.heads)
        q, k, v = (part.view(split).transpose(1, 2) for part in self.qkv(x).split(width, dim=2))
        if self.attention == "manual":
            scores = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
            scores = scores.masked_fill(~self.causal_mask[:length, :length], -math.inf)
            mixed = F.softmax(scores, dim=-1) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        merged = mixed.transpose(1, 2).contiguous().view(batch, length, width)
        out: Tensor = self.attention_out(merged)
        return out

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.attention_norm(x))
        hidden = F.gelu(self.mlp_up(self.mlp_norm(x)), approximate="tanh")
        out: Tensor = x + self.mlp_down(hidden)
        return out


class GPT(nn.Module):
    """tokens [B, T] -> logits [B, T, V]."""

    def __init__(
        self,
        *,
        vocab: int,
        width: int,
        layers: int,
        heads: int,
        context: int,
        tied: bool = False,
        attention: str = "sdpa",
    ) -> None:
        if attention not in ("sdpa", "manual"):
            raise ValueError(f"attention is 'sdpa' or 'manual', not {attention!r}")
        super().__init__()
        self.token_embedding = nn.Embedding(vocab, width)
        self.position_embedding = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads, context, attention) for _ in range(layers))
        self.checkpointed = False  # whether each block is computed again on the way back
        self.final_norm = nn.LayerNorm(width)
        self.head = None if tied else nn.Linear(width, vocab, bias=False)
        self.apply(_initialise)

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1])
        x = self.token_embedding(tokens) + self.position_embedding(positions)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointed else block(x)
        x = self.final_norm(x)
        head = self.token_embedding if self.head is None else self.head
        return F.linear(x, head.weight)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def weight_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Every trained array by its name, in the order of the module."""
    return {name: tuple(value.shape) for name, value in model.named_parameters()}


def load_weights(model: nn.Module, weights: Mapping[str, npt.NDArray[Any]]) -> None:
    """Copy arrays into the model; the names and shapes must be exactly those of the model."""
    shapes = weight_shapes(model)
    if shapes.keys() != weights.keys():
        missing, unknown = shapes.keys() - weights.keys(), weights.keys() - shapes.keys()
        raise ValueError(f"missing weights {sorted(missing)}, unknown weights {sorted(unknown)}")
    with torch.no_grad():
        for name, value in model.named_parameters():
            if shapes[name] != weights[name].shape:
                raise ValueError(f"{name} is {shapes[name]}, the array is {weights[name].shape}")
            value.copy_(torch.from_numpy(weights[name]))


def build(
    *,
    vocab: int,
    width: int,
    layers: int,
    heads: int,
    context: int,
    tied: bool = False,
    attention: str = "sdpa",
    weights: Mapping[str, npt.NDArray[Any]] | None = None,
    dtype: str = "float32",
    seed: int = 0,
) -> GPT:
    """A model with weights drawn from the seed, or with the given ones, in float32 or float64."""
    torch.manual_seed(seed)
    model = GPT(
        vocab=vocab,
        width=width,
        layers=layers,
        heads=heads,
        context=context,
        tied=tied,
        attention=attention,
    )
    model = model.to(getattr(torch, dtype))
    if weights is not None:
        load_weights(model, weights)
    return model


def loss_of(model: nn.Module, tokens: Tensor, targets: Tensor) -> Tensor:
    """The mean cross-entropy over every token of the batch, in nats."""
    logits = model(tokens)
    return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))


# How AdamW walks the parameters on a CPU: torch's own default there is the plain loop.
OPTIMIZERS: dict[str, dict[str, bool]] = {
    "loop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}


def training_step(
    model: nn.Module,
    tokens: Tensor,
    targets: Tensor,
    *,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.1,
    clip_norm: float = 1.0,
    optimizer: str = "fused",
) -> Callable[[], tuple[float, float]]:
    """A callable that trains the model by one step and returns (loss, gradient norm)."""
    adamw = torch.optim.AdamW(
        model.parameters(),
        lr=learning_rate,
        betas=(0.9, 0.95),
        weight_decay=weight_decay,
        **OPTIMIZERS[optimizer],
    )
    parameters = list(model.parameters())

    def step() -> tuple[float, float]:
        # The gradients of the last step are freed before the forward pass, not held through it.
        adamw.zero_grad(set_to_none=True)
        loss = loss_of(model, tokens, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(parameters, clip_norm, foreach=True)
        adamw.step()
        return loss.item(), norm.item()

    return step


def as_torch(weights: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """Arrays in the layout of `retrograde.models.GPT`, whose projections are [inputs, outputs], in
    the layout of this model."""
    return {
        name: np.ascontiguousarray(x.T if x.ndim == 2 and "embedding" not in name else x)
        for name, x in weights.items()
    }


def contender(
    problem: GPTProblem,
    threads: int,
    *,
    attention: str = "sdpa",
    optimizer: str = "fused",
    compiled: bool = False,
    checkpointed: bool = False,
    budget: float | None = None,
) -> Contender:
    """The training step of the problem, ready to run; `compiled` by torch.compile, with `budget` as
    its activation_memory_budget; `checkpointed`: each block is computed again."""
    torch.set_num_threads(threads)
    if budget is not None:
        from torch._functorch import config

        config.activation_memory_budget = budget
    model = build(
        vocab=problem.vocab,
        width=problem.width,
        layers=problem.layers,
        heads=problem.heads,
        context=problem.length,
        attention=attention,
        weights=as_torch(problem.weights()),
    )
    model.checkpointed = checkpointed
    if compiled:
        model.compile()
    tokens, targets = (torch.from_numpy(ids).long() for ids in problem.tokens_and_targets())
    step = training_step(
        model,
        tokens,
        targets,
        learning_rate=problem.learning_rate,
        weight_decay=problem.weight_decay,
        clip_norm=problem.clip_norm,
        optimizer=optimizer,
    )
    assert sum(value.numel() for value in model.parameters()) == problem.parameter_count
    return Contender(step=step, persistent_bytes=problem.persistent_bytes)
