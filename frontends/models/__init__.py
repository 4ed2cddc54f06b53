"""Complete models, built from `retrograde.nn`."""

from __future__ import annotations

from retrograde.models.gpt import GPT

__all__ = ["GPT"]
