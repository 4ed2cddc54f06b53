"""Complete models, built from `retrograde.nn`."""

from __future__ import annotations

from retrograde.models.bodies import AttentionBody, RecurrentBody, SSMBody, TCNBody
from retrograde.models.copying import CopyingSeq2Seq
from retrograde.models.encoder import Encoder
from retrograde.models.forecaster import Forecaster
from retrograde.models.gpt import GPT
from retrograde.models.labelling import SSMLM, TCN, Classifier, Tagger
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
from retrograde.models.trajectory import TrajectoryTransformer
from retrograde.models.transformer import Transformer

__all__ = [
    "GPT",
    "RNNLM",
    "SSMLM",
    "TCN",
    "AttentionBody",
    "Classifier",
    "CopyingSeq2Seq",
    "Encoder",
    "EventEmbedding",
    "Forecaster",
    "FrameEmbedding",
    "PatchEmbedding",
    "Pooling",
    "Positions",
    "RNNSeq2Seq",
    "RecurrentBody",
    "SSMBody",
    "Seq2Seq",
    "TCNBody",
    "Tagger",
    "TokenEmbedding",
    "TrajectoryTransformer",
    "Transformer",
]
