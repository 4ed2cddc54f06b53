"""Optimizers, their groups of parameters, and learning rates."""

from __future__ import annotations

from retrograde.optim.adafactor import Adafactor
from retrograde.optim.base import Optimizer
from retrograde.optim.groups import groups
from retrograde.optim.rules import SGD, Adam, AdamW, Lion
from retrograde.optim.schedules import constant, cosine, linear, warmup_cosine

__all__ = [
    "SGD",
    "Adafactor",
    "Adam",
    "AdamW",
    "Lion",
    "Optimizer",
    "constant",
    "cosine",
    "groups",
    "linear",
    "warmup_cosine",
]
