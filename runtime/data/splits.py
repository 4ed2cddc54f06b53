"""Fixed splits: a key -> the part it belongs to, the same on every machine and in every order."""

from __future__ import annotations

import hashlib
from typing import Literal

from retrograde.compiler.errors import DataError

Part = Literal["training", "validation", "test"]


def part_of(key: str, validation: float = 0.05, test: float = 0.05) -> Part:
    """The part of `key`, by the first 8 bytes of its SHA-256.

    What shares a key stays together, and adding or removing keys moves no other one.
    """
    if not (validation >= 0.0 and test >= 0.0 and validation + test < 1.0):
        raise DataError(f"validation {validation} and test {test} leave nothing to train on")
    place = int.from_bytes(hashlib.sha256(key.encode("utf-8")).digest()[:8], "big") / 2**64
    if place < test:
        return "test"
    return "validation" if place < test + validation else "training"
