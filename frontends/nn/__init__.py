"""Layers: modules are dataclass pytrees whose arrays are the parameters."""

from __future__ import annotations

from retrograde.nn.attention import CrossAttention, MultiHeadAttention, attention
from retrograde.nn.cells import GRUCell, LayerNormGRUCell, LayerNormLSTMCell, LSTMCell, RNNCell
from retrograde.nn.convolution import Conv1d
from retrograde.nn.feedforward import MLP, SwiGLU
from retrograde.nn.initial import Source
from retrograde.nn.layers import Dropout, Embedding, LayerNorm, Linear, RMSNorm, Sequential
from retrograde.nn.module import Module
from retrograde.nn.positions import Rotary, sinusoidal
from retrograde.nn.recurrent import Recurrent
from retrograde.nn.stacked import GRU, LSTM, RNN, SequenceDropout, Stack
from retrograde.nn.state_space import DiagonalSSM
from retrograde.nn.torch_layout import from_torch_layout, to_torch_layout

__all__ = [
    "GRU",
    "LSTM",
    "MLP",
    "RNN",
    "Conv1d",
    "CrossAttention",
    "DiagonalSSM",
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
    "Rotary",
    "SequenceDropout",
    "Sequential",
    "Source",
    "Stack",
    "SwiGLU",
    "attention",
    "from_torch_layout",
    "sinusoidal",
    "to_torch_layout",
]
