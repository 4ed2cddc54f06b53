"""Japanese vowels: who of 9 men speaks -> frames float32[T, 12] and a label from 0 to 8.

Each recording is /ae/ as 12 LPC cepstrum coefficients in 7 to 29 frames; 270 to train (30 of each
speaker) and 370 to test, the split as published.  Source: Kudo, Toyama, Shimbo, "Multidimensional
curve classification using passing-through regions", Pattern Recognition Letters 20 (1999), from
the UCI archive, in the package aeon (BSD).  Invariant: labels start at 0; no frame is missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde.runtime.data.packages import Package
from retrograde.runtime.data.sets.reading import Members, members, misread, only, text

ABOUT = "speech: which of 9 men says the vowels; 12 coefficients, 7 to 29 frames"
PACKAGES = (
    Package(
        registry="pypi",
        project="aeon",
        version="1.6.0",
        file="aeon-1.6.0-py3-none-any.whl",
        bytes=6421000,
        sha256="d05227086706f80111ac5fee8de4d5d3115bb3bcfd1c786c8629393055816409",
    ),
)
CHANNELS = 12
SPEAKERS = 9

Example = dict[str, npt.NDArray[Any]]  # "frames": float32[T, 12], "label": int32[]


@dataclass(frozen=True)
class JapaneseVowels:
    """Both parts, as examples `{"frames": float32[T, 12], "label": int32[]}`."""

    training: list[Example]
    test: list[Example]


def load() -> JapaneseVowels:
    """The data set, downloaded where the cache lacks it."""
    return parse(members(PACKAGES[0], r"aeon/datasets/data/JapaneseVowels/.*_(TRAIN|TEST)\.ts"))


def parse(contents: Members) -> JapaneseVowels:
    """The data set from the members `JapaneseVowels_TRAIN.ts` and `…_TEST.ts`."""
    parts = (only(contents, f"/JapaneseVowels_{part}.ts") for part in ("TRAIN", "TEST"))
    training, test = (_examples(name, text(name, content)) for name, content in parts)
    return JapaneseVowels(training, test)


def _examples(name: str, content: str) -> list[Example]:
    """Each line is channel:channel:…:label, each channel numbers with commas between."""
    lines = content.splitlines()
    headers = [line.strip().lower() for line in lines]
    if "@data" not in headers:
        raise misread(name, "there is no @data")
    first = headers.index("@data") + 1
    found: list[Example] = []
    for number, line in enumerate(lines[first:], first + 1):
        if line.strip():
            found.append(_example(name, number, line))
    return found


def _example(name: str, number: int, line: str) -> Example:
    *channels, label = line.strip().split(":")
    if len(channels) != CHANNELS:
        raise misread(name, f"{len(channels)} channels, not {CHANNELS}", number)
    try:
        rows = [np.array(channel.split(","), np.float32) for channel in channels]
        speaker = int(label)
    except ValueError as error:
        raise misread(name, f"not a number: {error}", number) from error
    if len({row.size for row in rows}) != 1:
        raise misread(name, "channels of unequal length", number)
    if not 1 <= speaker <= SPEAKERS:
        raise misread(name, f"speaker {speaker} of {SPEAKERS}", number)
    frames = np.ascontiguousarray(np.stack(rows, axis=1))
    if not np.isfinite(frames).all():
        raise misread(name, "a frame that is no number", number)
    return {"frames": frames, "label": np.array(speaker - 1, np.int32)}
