"""Layers: modules are dataclass pytrees whose arrays are the parameters."""

from __future__ import annotations

from retrograde.nn.attention import MultiHeadAttention, attention
from retrograde.nn.cells import GRUCell, LayerNormGRUCell, LayerNormLSTMCell, LSTMCell, RNNCell
from retrograde.nn.initial import Source
from retrograde.nn.layers import Dropout, Embedding, LayerNorm, Linear, RMSNorm, Sequential
from retrograde.nn.module import Module
from retrograde.nn.recurrent import Recurrent
from retrograde.nn.stacked import GRU, LSTM, RNN, SequenceDropout, Stack
from retrograde.nn.torch_layout import from_torch_layout, to_torch_layout

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Dropout",
    "Embedding",
    "GRUCell",
    "LSTMCell",
    "LayerNorm",
    "LayerNormGRUCell",
    "LayerNormLSTMCell",
    "Linear",
    "Module",
    "MultiHeadAttention",
    "RMSNorm",
    "RNNCell",
    "Recurrent",
    "SequenceDropout",
    "Sequential",
    "Source",
    "Stack",
    "attention",
    "from_torch_layout",
    "to_torch_layout",
]
