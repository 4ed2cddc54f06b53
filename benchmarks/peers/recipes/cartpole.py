"""The model of `cartpole` in PyTorch: a causal Transformer over pieces of episodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.peers import torch_layers as layers

_SPREAD = (0.5, 0.6, 0.08, 0.6)
_MOST_STEPS = 500


class Block(nn.Module):
    """Causal attention and a network, each added to what they read."""

    def __init__(self, weights: layers.Weights, name: str, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.heads, self.dropout = settings["heads"], settings["dropout"]
        self.attention_norm = layers.norm(weights, f"{name}.attention_norm")
        self.qkv = layers.linear(weights, f"{name}.attention.qkv")
        self.out = layers.linear(weights, f"{name}.attention.out")
        self.mlp_norm = layers.norm(weights, f"{name}.mlp_norm")
        self.up = layers.linear(weights, f"{name}.up")
        self.down = layers.linear(weights, f"{name}.down")

    def forward(self, x: Tensor) -> Tensor:
        batch, time, width = x.shape
        split = (batch, time, self.heads, width // self.heads)
        qkv = self.qkv(self.attention_norm(x)).split(width, dim=2)
        q, k, v = (part.view(split).transpose(1, 2) for part in qkv)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        merged = mixed.transpose(1, 2).reshape(batch, time, width)
        x = x + F.dropout(self.out(merged), self.dropout)
        up = F.gelu(self.up(self.mlp_norm(x)), approximate="tanh")
        return x + F.dropout(self.down(up), self.dropout)


class Policy(nn.Module):
    """Returns to go, states, actions before and taken [B, T, …], lengths [B] -> the loss."""

    spread: Tensor

    def __init__(self, weights: layers.Weights, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.of_state = layers.linear(weights, "of_state")
        self.before = layers.embedding(weights, "before")
        self.positions = layers.embedding(weights, "positions")
        self.blocks = nn.ModuleList(
            Block(weights, f"blocks.{k}", settings) for k in range(settings["layers"])
        )
        self.norm = layers.norm(weights, "norm")
        self.head = layers.linear(weights, "head")
        self.register_buffer("spread", torch.tensor(_SPREAD), persistent=False)

    def forward(
        self, to_go: Tensor, states: Tensor, before: Tensor, actions: Tensor, lengths: Tensor
    ) -> Tensor:
        told = torch.cat([states / self.spread, to_go[:, :, None] / _MOST_STEPS], dim=-1)
        time = before.shape[1]
        x = self.of_state(told) + self.before(before) + self.positions.weight[:time]
        for block in self.blocks:
            x = block(x)
        inside = torch.arange(time) < lengths[:, None]
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits[inside], actions[inside])


model = Policy
