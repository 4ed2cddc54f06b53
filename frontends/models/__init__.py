"""Complete models, built from `retrograde.nn`."""

from __future__ import annotations

from retrograde.models.encoder import Encoder
from retrograde.models.gpt import GPT
from retrograde.models.parts import (
    EventEmbedding,
    FrameEmbedding,
    PatchEmbedding,
    Positions,
    TokenEmbedding,
)
from retrograde.models.pooling import Pooling
from retrograde.models.rnn_seq2seq import RNNSeq2Seq
from retrograde.models.rnnlm import RNNLM
from retrograde.models.seq2seq import Seq2Seq
from retrograde.models.transformer import Transformer

__all__ = [
    "GPT",
    "RNNLM",
    "Encoder",
    "EventEmbedding",
    "FrameEmbedding",
    "PatchEmbedding",
    "Pooling",
    "Positions",
    "RNNSeq2Seq",
    "Seq2Seq",
    "TokenEmbedding",
    "Transformer",
]
