"""The model of the tagging recipes in PyTorch: nn.LSTM both ways, everything on packed words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from benchmarks.peers import torch_layers as layers


class Tagger(nn.Module):
    """Features [B, T, features], tags [B, T] (-1: none) and lengths [B] -> the loss."""

    def __init__(self, weights: layers.Weights, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.dropout = settings["dropout"]
        count = sum(name.startswith("tables.") for name in weights)
        self.tables = nn.ModuleList(
            layers.embedding(weights, f"tables.{k}") for k in range(count)
        )
        self.rnn = layers.recurrent(
            weights, "rnn", "lstm", settings["layers"], both=True, dropout=self.dropout
        )
        self.head = layers.linear(weights, "head")

    def forward(self, words: Tensor, tags: Tensor, lengths: Tensor) -> Tensor:
        told, right = layers.packed(words, lengths), layers.packed(tags, lengths)
        x = torch.cat([table(told.data[:, k]) for k, table in enumerate(self.tables)], dim=-1)
        x = PackedSequence(F.dropout(x, self.dropout), *told[1:])
        states = self.rnn(x)[0].data
        logits = self.head(F.dropout(states, self.dropout))
        return F.cross_entropy(logits, right.data, ignore_index=-1)


model = Tagger
