"""The model of `char-gpt` in PyTorch: that of the GPT workloads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from benchmarks.peers import torch_gpt
from benchmarks.peers.torch_layers import Weights


class Text(nn.Module):
    """Tokens and those that follow them [B, T] -> the loss."""

    def __init__(self, weights: Weights, settings: Mapping[str, Any]) -> None:
        super().__init__()
        if settings["dropout"]:
            raise ValueError("the peer has no dropout")
        vocab, width = weights["token_embedding.weight"].shape
        self.gpt = torch_gpt.build(
            vocab=vocab,
            width=width,
            layers=settings["layers"],
            heads=settings["heads"],
            context=settings["length"],
            tied=settings["tied"],
            weights=torch_gpt.as_torch(weights),
        )
        weights.clear()

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        return torch_gpt.loss_of(self.gpt, tokens, targets)


model = Text
