"""The model of `japanese-vowels` in PyTorch: nn.GRU both ways over packed recordings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.peers import torch_layers as layers


class Speakers(nn.Module):
    """Frames [B, T, channels], lengths and label [B] -> the loss."""

    def __init__(self, weights: layers.Weights, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.dropout = settings["dropout"]
        self.rnn = layers.recurrent(
            weights, "rnn", "gru", settings["layers"], both=True, dropout=self.dropout
        )
        self.head = layers.linear(weights, "head")

    def forward(self, frames: Tensor, lengths: Tensor, label: Tensor) -> Tensor:
        x = F.dropout(frames, self.dropout / 2)
        states = layers.padded(self.rnn(layers.packed(x, lengths))[0], frames.shape[1])
        mean = states.sum(1) / lengths[:, None]
        return F.cross_entropy(self.head(F.dropout(mean, self.dropout)), label)


model = Speakers
