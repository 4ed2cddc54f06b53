"""Text from models: `generate`, `stream`, and what they are made of."""

from __future__ import annotations

from retrograde.generation.choosing import Sampling, Stream
from retrograde.generation.decoder import Decoder, Session
from retrograde.generation.generating import generate, stream

__all__ = ["Decoder", "Sampling", "Session", "Stream", "generate", "stream"]
