"""The model of `weather` in PyTorch: nn.GRU, then each hour ahead by the calendar."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.peers import torch_layers as layers

QUANTILES = (0.1, 0.5, 0.9)


class Forecaster(nn.Module):
    """What is known, the targets [B, horizon] and which of them count -> the loss."""

    quantiles: Tensor

    def __init__(self, weights: layers.Weights, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.dropout = settings["dropout"]
        self.rnn = layers.recurrent(weights, "rnn", "gru")
        self.airport = layers.embedding(weights, "airport")
        self.lead = layers.embedding(weights, "lead")
        self.of_state = layers.linear(weights, "of_state")
        self.of_hour = layers.linear(weights, "of_hour")
        self.hidden = layers.linear(weights, "hidden")
        self.head = layers.linear(weights, "head")
        self.register_buffer("quantiles", torch.tensor(QUANTILES), persistent=False)

    def forward(
        self, past: Tensor, known: Tensor, naive: Tensor, airport: Tensor, targets: Tensor,
        mask: Tensor,
    ) -> Tensor:  # fmt: skip
        state = F.dropout(self.rnn(past)[0][:, -1], self.dropout)
        static = self.of_state(state) + self.airport(airport)
        hour = torch.cat([known, naive[:, :, None]], dim=-1)
        told = static[:, None] + self.of_hour(hour) + self.lead.weight[: naive.shape[1]]
        told = F.dropout(F.gelu(told, approximate="tanh"), self.dropout)
        out = self.head(F.gelu(self.hidden(told), approximate="tanh"))
        middle = out[:, :, 1:2]
        below = middle - F.softplus(out[:, :, 0:1])
        above = middle + F.softplus(out[:, :, 2:3])
        said = torch.cat([below, middle, above], dim=-1)
        error = torch.where(mask[:, :, None], targets[:, :, None] - said, 0.0)
        lost = torch.maximum(error * self.quantiles, error * (self.quantiles - 1.0))
        return lost.sum() / (mask.sum() * len(QUANTILES))


model = Forecaster
