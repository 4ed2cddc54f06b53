"""The published data sets: what is downloaded is what the pages say.

These tests need a network; they run with RETROGRADE_NETWORK=1.  The downloads stay in the cache.
"""

from __future__ import annotations

import os
from collections import Counter

import numpy as np
import pytest

from retrograde.runtime.data import sets
from retrograde.runtime.data.sets import bible, brown, cmudict, japanese_vowels, weather

pytestmark = [
    pytest.mark.network,
    pytest.mark.skipif(
        os.environ.get("RETROGRADE_NETWORK") != "1", reason="needs RETROGRADE_NETWORK=1"
    ),
]


@pytest.mark.parametrize("name", [name for name in sets.NAMES if sets.packages_of(name)])
def test_every_file_has_its_size(name: str) -> None:
    for package, path in zip(sets.packages_of(name), sets.fetch(name), strict=True):
        assert path.stat().st_size == package.bytes


def test_japanese_vowels() -> None:
    data = japanese_vowels.load()
    assert [len(data.training), len(data.test)] == [270, 370]
    lengths = [len(example["frames"]) for example in data.training + data.test]
    assert [min(lengths), max(lengths)] == [7, 29]
    assert Counter(int(e["label"]) for e in data.training) == dict.fromkeys(range(9), 30)
    assert [Counter(int(e["label"]) for e in data.test)[k] for k in range(9)] == [
        *(31, 35, 88, 44, 29, 24, 40, 50, 29)
    ]
    np.testing.assert_array_equal(
        data.training[0]["frames"][0, :2], np.array([1.860936, -0.207383], np.float32)
    )


def test_brown() -> None:
    data = brown.load()
    parts = [data.training, data.validation, data.test]
    assert [len(part) for part in parts] == [44961, 6004, 6375]
    assert sum(len(s.words) for part in parts for s in part) == 1_161_192
    assert [len({s.text for s in part}) for part in parts] == [392, 55, 53]
    tags = {tag for part in parts for s in part for tag in s.tags}
    assert [len(tags), len({brown.coarse(tag) for tag in tags})] == [472, 92]
    assert data.training[0].words[:4] == ("The", "Fulton", "County", "Grand")


def test_cmudict() -> None:
    data = cmudict.load()
    assert [len(data.training), len(data.validation), len(data.test)] == [113426, 6325, 6301]
    entries = data.training + data.validation + data.test
    assert sum(len(e.pronunciations) for e in entries) == 135_164
    assert len(data.phonemes) == 84
    (tomato,) = (e for e in entries if e.word == "tomato")
    assert [" ".join(way) for way in tomato.pronunciations] == [
        "T AH0 M EY1 T OW2",
        "T AH0 M AA1 T OW2",
    ]


def test_bible() -> None:
    data = bible.load()
    assert [len(data.training), len(data.validation), len(data.test)] == [28311, 1406, 1382]
    first = data.training[0] if data.training[0].number == 1_001_001 else None
    verses = {v.number: v for v in data.training + data.validation + data.test}
    assert first is None or first == verses[1_001_001]
    assert verses[1_001_001].kjv == "In the beginning God created the heaven and the earth."
    assert verses[1_001_001].web == "In the beginning God created the heavens and the earth."
    assert verses[19_023_001].web == "Yahweh is my shepherd: I shall lack nothing."
    written = "".join(v.kjv + v.web for v in verses.values())
    assert not set("[]`\u2019\n0123456789") & set(written)


def test_weather() -> None:
    data = weather.load()
    assert data.values.shape == (3, 8730, 10)
    assert [str(data.hours[0]), str(data.hours[-1])] == ["2013-01-01T06", "2013-12-30T23"]
    assert data.seen[:, :, 0].sum() == 26_114
    speed = weather.VARIABLES.index("wind_speed")
    assert data.values[:, :, speed].max() < 50
    assert np.isfinite(data.values).all()
    for part, count in (("training", 16905), ("validation", 4323), ("test", 4251)):
        assert len(data.windows(part)) == count  # type: ignore[arg-type]
