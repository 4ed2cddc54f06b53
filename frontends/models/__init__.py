"""Complete models, built from `retrograde.nn`."""

from __future__ import annotations

from retrograde.models.gpt import GPT
from retrograde.models.rnnlm import RNNLM

__all__ = ["GPT", "RNNLM"]
