"""Small data sets of the shapes that the published ones have, and recipes as small as can be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from retrograde.cli.recipes import RECIPES
from retrograde.cli.settings import Resolved, resolve
from retrograde.runtime.data.sets import (
    bible,
    brown,
    cmudict,
    japanese_vowels,
    python_tokens,
    weather,
)

# For each recipe: settings of a run that takes seconds, and inputs to predict from.
TINY: dict[str, tuple[dict[str, Any], list[str]]] = {
    "japanese-vowels": ({"width": 6, "batch": 8}, ["test:1", "test:0"]),
    "python-tags": ({"width": 8, "batch": 6, "longest": 12}, ["total = sum(x)"]),
    "brown-tags": ({"width": 8, "batch": 5, "longest": 9, "minimum": 1}, ["the dog saw a cat ."]),
    "weather": ({"width": 6, "past": 24, "batch": 7, "horizon": 26}, ["JFK 2013-11-10T06"]),
    "cartpole": ({"width": 8, "heads": 2, "layers": 1, "batch": 9, "context": 6}, ["30"]),
    "cmudict": (
        {"width": 8, "batch": 6, "beams": 3, "test_words": 9, "dropout": 0.2}, ["abba", "cab"]
    ),
    "bible": (
        {"width": 8, "batch": 6, "merges": 60, "longest": 30, "beams": 2, "test_verses": 4},
        ["And thou saith unto Adam.", "the thou"],
    ),
}  # fmt: skip
# The same for the recipes of text, which learn a file (`writing`).
TEXTS: dict[str, dict[str, Any]] = {
    "char-gpt": {"width": 8, "heads": 2, "layers": 1, "batch": 5, "length": 9, "dropout": 0.1},
    "char-lstm": {"width": 8, "batch": 5, "length": 9, "dropout": 0.1},
    "bpe-gpt": {
        "width": 8, "heads": 2, "layers": 1, "batch": 5, "length": 9, "dropout": 0.1,
        "vocabulary": 270,
    },
}
WORDS = {"the": "at", "a": "at", "dog": "nn", "cat": "nn", "saw": "vbd", "ran": "vbd", ".": "."}
TODAY = {"thou": "you", "hath": "has", "saith": "says", "unto": "to"}
SOUNDS = {"a": "AH0", "b": "B", "c": "K"}


def pairs(name: str, **more: Any) -> list[str]:
    """`name=value` of each setting that makes a recipe small."""
    own = TEXTS[name] if name in TEXTS else TINY[name][0]
    given = {"warmup": 2, "learning_rate": 0.01, "threads": 1, **own, **more}
    return [f"{key}={value}" for key, value in given.items()]


def settings(name: str, **more: Any) -> Resolved:
    """The settings of a recipe, as small as can be."""
    return resolve(RECIPES[name].settings, name, {}, pairs(name, **more), environment={})


def writing(folder: Path) -> str:
    """The path of a text of some 8000 characters of one to four bytes."""
    words = ["the", "lazy", "f\u00fcr", "\u00fcber", "dog\u2014", "\U0001d6fc\U0001d6fd", "\n"]
    chosen = np.random.default_rng(0).choice(words, 2000)
    path = folder / "writing.txt"
    path.write_text(" ".join(chosen), encoding="utf-8")
    return str(path)


def speakers() -> japanese_vowels.JapaneseVowels:
    """Three speakers who differ in their mean frame."""
    rng = np.random.default_rng(3)

    def some(count: int) -> list[dict[str, Any]]:
        found = []
        for k in range(count):
            frames = rng.normal(size=(4 + k % 5, 12)) + 2.0 * np.eye(12)[k % 3]
            found.append({"frames": frames.astype(np.float32), "label": np.array(k % 3, np.int32)})
        return found

    return japanese_vowels.JapaneseVowels(some(40), some(15))


def sentences() -> brown.Brown:
    """Random sentences, whose words have one tag each but for one that has two."""
    rng = np.random.default_rng(4)

    def sentence() -> brown.Sentence:
        words = rng.choice(list(WORDS), int(rng.integers(2, 12))).tolist()
        noun = [k > 0 and w == "saw" and words[k - 1] in ("a", "the") for k, w in enumerate(words)]
        tags = ["nn" if n else WORDS[w] for n, w in zip(noun, words, strict=True)]
        return brown.Sentence(tuple(words), tuple(tags), "ca01")

    return brown.Brown(*([sentence() for _ in range(count)] for count in (60, 20, 12)))


def dictionary() -> cmudict.CMUdict:
    """Words whose letters have a phoneme each; those with a c may be said in two ways."""
    rng = np.random.default_rng(5)

    def entry() -> cmudict.Entry:
        word = "".join(rng.choice(list("abc"), int(rng.integers(1, 6))).tolist())
        way = tuple(SOUNDS[letter] for letter in word)
        return cmudict.Entry(word, (way, (*way, "S")) if "c" in word else (way,))

    parts = ([entry() for _ in range(count)] for count in (80, 20, 18))
    return cmudict.CMUdict(*parts, ("AH0", "B", "K", "S"))


def verses() -> bible.Bible:
    """Verses of a few words, of which four have others in their place."""
    rng = np.random.default_rng(7)

    def verse(number: int) -> bible.Verse:
        old = rng.choice([*TODAY, "Adam", "the", "and"], int(rng.integers(2, 6))).tolist()
        new = " ".join(TODAY.get(word, word) for word in old)
        return bible.Verse(number, " ".join(old) + ".", new + ".")

    return bible.Bible(*([verse(k) for k in range(count)] for count in (60, 12, 9)))


def hours() -> weather.Weather:
    """A day's wave with a drift, with gaps, from August to November."""
    rng = np.random.default_rng(6)
    every = np.arange(np.datetime64("2013-08-20T00", "h"), np.datetime64("2013-11-13T00", "h"))
    values = rng.normal(size=(3, every.size, 10))
    wave = 9 * np.sin(2 * np.pi * every.astype(np.int64) / 24)
    values[:, :, 0] = 50 + wave + np.cumsum(rng.normal(size=(3, every.size)), axis=1) * 0.3
    seen = rng.random(values.shape) > 0.05
    return weather.Weather(every, values.astype(np.float32), seen, weather._calendar(every))


def python_lines() -> python_tokens.PythonTokens:
    """Lines of some short files."""
    sources = [
        f"def f{k}(x, y={k}):\n    z = g(x, key=y.name)\n    return z.h(x) + {k}\n"
        f"class C{k}(Base):\n    a{k} = f{k}(1)\n    b = lambda u: u * a{k}\n"
        for k in range(12)
    ]
    found = [line for k, s in enumerate(sources) for line in python_tokens.lines(s, f"{k}.py")]
    return python_tokens.PythonTokens(found[:50], found[50:70], found[50:])
