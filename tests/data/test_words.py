"""Words and their tokens: there and back, in an order of their own."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrograde.compiler.errors import DataError
from retrograde.runtime.data.words import Words

some_words = st.lists(st.text("ab\u00e9 ", max_size=3), max_size=30)


@given(some_words, some_words, st.integers(1, 3), st.none() | st.integers(1, 5))
def test_there_and_back(
    known: list[str], words: list[str], minimum: int, limit: int | None
) -> None:
    made = Words.of(
        iter(known), minimum_count=minimum, limit=limit, specials=("<pad>", "?"), unknown="?"
    )
    counts = Counter(known)
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    assert list(made.words) == [word for word in ranked if counts[word] >= minimum][:limit]
    tokens = made.encode(words)
    assert tokens.dtype == np.int32
    assert made.decode(tokens) == [word if word in made else "?" for word in words]
    assert made.token("<pad>") == 0
    assert len(made) == 2 + len(made.words)
    assert Words.from_json(json.loads(json.dumps(made.to_json()))) == made


def test_specials_are_not_words() -> None:
    made = Words.of(["<end>", "a", "<end>", "b", "b"], specials=["<end>"])
    assert made.words == ("b", "a")
    assert made.encode(["a", "<end>"]).tolist() == [2, 0]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Words(("a", "b", "a")), "'a' is listed twice"),
        (lambda: Words(("a",), ("a",)), "'a' is listed twice"),
        (lambda: Words(("a",), ("b",), "c"), "unknown is 'c'"),
        (lambda: Words(("a",)).token("b"), "'b' is not among the 1 words"),
        (lambda: Words(("a",)).decode([1]), "from 1 to 1 do not fit 1 words"),
        (lambda: Words(("a",)).decode([-1]), "do not fit"),
        (lambda: Words(("a",)).decode([0.5]), "do not fit"),
        (lambda: Words.of([], minimum_count=0), "at least 1"),
        (lambda: Words.from_json({"kind": "characters"}), "not the JSON of words"),
        (lambda: Words.from_json({"kind": "words", "words": ["a"]}), "lacks"),
        (lambda: Words.from_json({"kind": "words", "words": [1], "specials": []}), "lacks"),
        (
            lambda: Words.from_json({"kind": "words", "words": [], "specials": [], "unknown": 3}),
            "lacks",
        ),
    ],
)
def test_what_cannot_be(make: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        make()
