"""The model of `bible` in PyTorch: nn.GRU both ways, and one that attends to it or copies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.peers import torch_layers as layers

_CLOSED = -1e4


class Rewriting(nn.Module):
    """Source [B, S], pieces before and to come [B, T], both lengths [B] -> the loss.

    The vocabulary is compared with the places within the lengths alone."""

    def __init__(self, weights: layers.Weights, settings: Mapping[str, Any]) -> None:
        super().__init__()
        if settings["layers"] != 1:
            raise ValueError("the peer has one layer of cells each")
        self.dropout = settings["dropout"]
        self.table = layers.embedding(weights, "embedding.table")
        self.encoder = layers.recurrent(weights, "encoder", settings["cell"], both=True)
        self.decoder = layers.recurrent(weights, "decoder", settings["cell"])
        self.bridge = layers.linear(weights, "bridge")
        self.query = layers.linear(weights, "query")
        self.mix = layers.linear(weights, "mix")
        self.gate = layers.linear(weights, "gate")

    def embedded(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens) * math.sqrt(self.table.weight.shape[1])
        return F.dropout(x, self.dropout)

    def forward(
        self, source: Tensor, tokens: Tensor, targets: Tensor, source_lengths: Tensor,
        lengths: Tensor,
    ) -> Tensor:  # fmt: skip
        read = self.encoder(layers.packed(self.embedded(source), source_lengths))[0]
        memory = layers.padded(read, source.shape[1])
        first = torch.tanh(self.bridge(memory.sum(1) / source_lengths[:, None]))
        h = self.decoder(self.embedded(tokens), first[None])[0]
        allowed = (torch.arange(source.shape[1]) < source_lengths[:, None])[:, None]
        scores = self.query(h) @ memory.transpose(1, 2) / math.sqrt(memory.shape[2])
        scores = scores.masked_fill(~allowed, _CLOSED)
        seen = scores.softmax(-1) @ memory
        inside = torch.arange(tokens.shape[1]) < lengths[:, None]
        x = torch.tanh(self.mix(torch.cat([h, seen], dim=-1)[inside]))
        x = F.dropout(x, self.dropout)
        odds = self.gate(x)[:, 0]
        same = (targets[:, :, None] == source[:, None]) & allowed
        copied = scores.masked_fill(~same, _CLOSED).logsumexp(-1) - scores.logsumexp(-1)
        logits = x @ self.table.weight.T
        made = -F.cross_entropy(logits, targets[inside], reduction="none")
        found = torch.logaddexp(made - F.softplus(-odds), copied[inside] - F.softplus(odds))
        return -found.sum() / lengths.sum()


model = Rewriting
