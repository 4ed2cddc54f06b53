"""Layers of PyTorch with weights of ours: recurrent ones, linear ones, norms, embeddings.

Each takes its arrays out of the weights.  Invariant: a layer trains as many numbers as ours does,
so norms of gradients and updates are comparable; of PyTorch's two biases of a gate one stays 0."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

Weights = dict[str, npt.NDArray[Any]]
KINDS: dict[str, tuple[type[nn.RNNBase], int]] = {"lstm": (nn.LSTM, 4), "gru": (nn.GRU, 3)}


def linear(weights: Weights, name: str) -> nn.Linear:
    """x W + b, W [inputs, outputs]."""
    weight = weights.pop(f"{name}.weight")
    bias = weights.pop(f"{name}.bias", None)
    made = nn.Linear(*weight.shape, bias=bias is not None)
    _fill(made.weight, weight.T)
    if bias is not None:
        _fill(made.bias, bias)
    return made


def embedding(weights: Weights, name: str) -> nn.Embedding:
    """Rows of a table [places, width]."""
    return nn.Embedding.from_pretrained(
        torch.from_numpy(np.array(weights.pop(f"{name}.weight"))), freeze=False
    )


def norm(weights: Weights, name: str) -> nn.LayerNorm:
    """With gain and bias, eps 1e-5."""
    gain = weights.pop(f"{name}.weight")
    made = nn.LayerNorm(gain.size)
    _fill(made.weight, gain)
    _fill(made.bias, weights.pop(f"{name}.bias"))
    return made


def recurrent(
    weights: Weights, name: str, kind: str, layers: int = 1, both: bool = False,
    dropout: float = 0.0,
) -> nn.RNNBase:  # fmt: skip
    """nn.LSTM or nn.GRU over [B, T, inputs]; `both`: it runs both ways."""
    make, gates = KINDS[kind]
    ways = {"forward": "", **({"backward": "_reverse"} if both else {})}
    first = weights[f"{name}.forward.0.cell.weight_input"]
    made = make(
        first.shape[0], first.shape[1] // gates, layers, batch_first=True, bidirectional=both,
        dropout=dropout if layers > 1 else 0.0,  # between the layers
    )  # fmt: skip
    own = dict(made.named_parameters())
    for way, suffix in ways.items():
        for k in range(layers):
            cell, at = f"{name}.{way}.{k}.cell", f"l{k}{suffix}"
            _fill(own[f"weight_ih_{at}"], weights.pop(f"{cell}.weight_input").T)
            _fill(own[f"weight_hh_{at}"], weights.pop(f"{cell}.weight_recurrent").T)
            _fill(own[f"bias_ih_{at}"], weights.pop(f"{cell}.bias"))
            second = own[f"bias_hh_{at}"]
            _fill(second, np.zeros(second.shape, np.float32))
            if kind == "lstm":
                second.requires_grad_(False)
                continue
            # Of a GRU the candidate alone has a second bias: it is reset with the product.
            candidate = weights.pop(f"{cell}.recurrent_bias")
            kept = torch.zeros_like(second)
            kept[-candidate.size :] = 1.0
            with torch.no_grad():
                second[-candidate.size :] = torch.from_numpy(np.array(candidate))
            second.register_hook(lambda g, kept=kept: g * kept)
    return made


def packed(x: Tensor, lengths: Tensor) -> PackedSequence:
    """[B, T, …] without what stands beyond the lengths."""
    return pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)


def padded(x: PackedSequence, time: int) -> Tensor:
    """[B, time, …] again, with zeros."""
    return pad_packed_sequence(x, batch_first=True, total_length=time)[0]


def _fill(parameter: Tensor, array: npt.NDArray[Any]) -> None:
    with torch.no_grad():
        parameter.copy_(torch.from_numpy(np.array(array, order="C")))
