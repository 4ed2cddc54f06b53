"""Layers: modules are dataclass pytrees whose arrays are the parameters."""

from __future__ import annotations

from retrograde.nn.attention import MultiHeadAttention, attention
from retrograde.nn.initial import Source
from retrograde.nn.layers import Dropout, Embedding, LayerNorm, Linear, RMSNorm, Sequential
from retrograde.nn.module import Module

__all__ = [
    "Dropout",
    "Embedding",
    "LayerNorm",
    "Linear",
    "Module",
    "MultiHeadAttention",
    "RMSNorm",
    "Sequential",
    "Source",
    "attention",
]
