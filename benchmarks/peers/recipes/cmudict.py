"""The model of `cmudict` in PyTorch: nn.GRU both ways, and one that attends to its states."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.peers import torch_layers as layers


class Pronunciation(nn.Module):
    """Letters [B, S], phonemes before and to come [B, T], both lengths [B] -> the loss.

    The encoder runs over packed words.  The decoder sees nothing ahead: what it makes beyond a
    word's end is not looked at, and to pack its rows would only cost time."""

    def __init__(self, weights: layers.Weights, settings: Mapping[str, Any]) -> None:
        super().__init__()
        if (settings["model"], settings["layers"]) != ("rnn", 1):
            raise ValueError("the peer has one layer of cells each")
        self.dropout = settings["dropout"]
        self.source_table = layers.embedding(weights, "source_embedding.table")
        self.encoder = layers.recurrent(weights, "encoder", settings["cell"], both=True)
        self.table = layers.embedding(weights, "embedding.table")
        self.decoder = layers.recurrent(weights, "decoder", settings["cell"])
        self.bridge = layers.linear(weights, "bridge")
        self.query = layers.linear(weights, "query")
        self.mix = layers.linear(weights, "mix")
        self.head = layers.linear(weights, "head")

    def forward(
        self, source: Tensor, tokens: Tensor, targets: Tensor, source_lengths: Tensor,
        lengths: Tensor,
    ) -> Tensor:  # fmt: skip
        scale = math.sqrt(self.table.weight.shape[1])
        letters = F.dropout(self.source_table(source) * scale, self.dropout)
        memory = self.encoder(layers.packed(letters, source_lengths))[0]
        memory = layers.padded(memory, source.shape[1])
        first = torch.tanh(self.bridge(memory.sum(1) / source_lengths[:, None]))
        taught = F.dropout(self.table(tokens) * scale, self.dropout)
        h = self.decoder(taught, first[None])[0]
        allowed = (torch.arange(source.shape[1]) < source_lengths[:, None])[:, None]
        seen = F.scaled_dot_product_attention(self.query(h), memory, memory, allowed)
        mixed = torch.tanh(self.mix(torch.cat([h, seen], dim=-1)))
        logits = self.head(F.dropout(mixed, self.dropout))
        inside = torch.arange(tokens.shape[1]) < lengths[:, None]
        return F.cross_entropy(logits[inside], targets[inside])


model = Pronunciation
