"""The model of `char-lstm` in PyTorch: an embedding, nn.LSTM or nn.GRU, a head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.peers import torch_layers as layers


class Text(nn.Module):
    """Tokens and those that follow them [B, T] -> the loss."""

    def __init__(self, weights: layers.Weights, settings: Mapping[str, Any]) -> None:
        super().__init__()
        if settings["tied"]:
            raise ValueError("the peer has a head of its own")
        self.dropout = settings["dropout"]
        self.table = layers.embedding(weights, "embedding")
        self.rnn = layers.recurrent(
            weights, "rnn", settings["cell"], settings["layers"], dropout=self.dropout
        )
        self.head = layers.linear(weights, "head")

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.rnn(F.dropout(self.table(tokens), self.dropout))[0]
        logits = self.head(F.dropout(x, self.dropout))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


model = Text
