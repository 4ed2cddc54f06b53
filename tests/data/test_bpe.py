"""Byte-pair tokens: every text comes back, and the merges are those of the plain algorithm."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrograde.compiler.errors import DataError
from retrograde.runtime.data.bpe import _PIECE, BytePairs
from retrograde.runtime.data.text import stdlib_text

TEXT = "the cat sat on the mat, that fat cat; 12 cats and 120 hats\n    aaaa aaaaa\n" * 3
TRAINED = BytePairs.train(TEXT, 60, specials=("<end>", "<begin>"))
# Letters of the text, so that merges apply, and anything else that there is.
texts = st.text(st.sampled_from("theca snmf12\n,a\u00e9\U0001f600") | st.characters(), max_size=60)


def merged_one_by_one(piece: bytes, merges: tuple[tuple[int, int], ...]) -> list[int]:
    parts = list(piece)
    for number, pair in enumerate(merges):
        at = 0
        while at < len(parts) - 1:
            if tuple(parts[at : at + 2]) == pair:
                parts[at : at + 2] = [256 + number]
            at += 1
    return parts


@given(texts)
def test_every_text_comes_back(text: str) -> None:
    tokens = TRAINED.encode(text)
    assert tokens.dtype == np.int32
    assert TRAINED.decode(tokens) == text
    assert tokens.size <= len(text.encode("utf-8", "surrogatepass"))


@given(st.binary(max_size=60))
def test_all_bytes_come_back(content: bytes) -> None:
    assert TRAINED.decode_bytes(TRAINED.encode(content)) == content


@given(st.text("at heca\n", max_size=40) | st.text("a", max_size=700))
def test_encoding_is_the_merges_in_their_order(text: str) -> None:
    pieces = _PIECE.findall(text.encode())
    expected = [t for piece in pieces for t in merged_one_by_one(piece, TRAINED.merges)]
    assert TRAINED.encode(text).tolist() == expected


@pytest.mark.parametrize("pattern", ["ab", "aab", "aaaaab b", "mat the cat "])
def test_long_pieces_are_encoded_as_short_ones(pattern: str) -> None:
    pairs = BytePairs.train(pattern * 40, 12)
    piece = (pattern * 400).encode().replace(b" ", b"")
    assert list(pairs._tokens_of_long(piece)) == merged_one_by_one(piece, pairs.merges)
    start = time.perf_counter()
    assert pairs.decode(pairs.encode("a" * 200_000)) == "a" * 200_000
    assert time.perf_counter() - start < 5


@given(st.lists(st.text("abc ", max_size=12), max_size=8), st.integers(0, 12))
def test_merges_are_those_of_the_plain_algorithm(words: list[str], count: int) -> None:
    pieces = Counter(piece for word in words for piece in _PIECE.findall(word.encode()))
    split = {piece: list(piece) for piece in pieces}
    expected: list[tuple[int, int]] = []
    for _ in range(count):
        counts: Counter[tuple[int, int]] = Counter()
        for piece, parts in split.items():
            for i in range(len(parts) - 1):
                counts[parts[i], parts[i + 1]] += pieces[piece]
        if not counts or max(counts.values()) < 2:
            break
        expected.append(min(counts, key=lambda pair: (-counts[pair], pair)))
        split = {p: merged_one_by_one(p, tuple(expected)) for p in split}
    assert list(BytePairs.train(words, count).merges) == expected


def test_a_megabyte_takes_seconds_and_less_than_half_the_tokens() -> None:
    text = stdlib_text()[: 1 << 20]
    start = time.perf_counter()
    pairs = BytePairs.train(text, 512)
    assert time.perf_counter() - start < 20
    assert len(pairs) == 768
    tokens = pairs.encode(text)
    assert tokens.size < 0.5 * len(text.encode())
    assert pairs.decode(tokens) == text


def test_the_same_in_every_process() -> None:
    code = (
        "from retrograde.runtime.data.bpe import BytePairs;"
        f"print(list(BytePairs.train({TEXT!r}, 60).merges))"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert runs == {f"{list(TRAINED.merges)}\n"}


def test_no_merge_crosses_words() -> None:
    assert all(
        re.fullmatch(rb" ?[a-z]+| ?[0-9]+|[ \n]+| ?[,;]+", content)
        for content in TRAINED.contents[256:-2]
    )


def test_specials_stand_for_no_text(tmp_path: Path) -> None:
    end, begin = TRAINED.special("<end>"), TRAINED.special("<begin>")
    assert {end, begin} == {len(TRAINED) - 2, len(TRAINED) - 1}
    assert end not in TRAINED.encode("<end>")
    assert TRAINED.decode([begin, *TRAINED.encode("the cat").tolist(), end]) == "the cat"
    with pytest.raises(DataError, match="no special token '<pad>'"):
        TRAINED.special("<pad>")


def test_saved_and_loaded(tmp_path: Path) -> None:
    path = tmp_path / "pairs.json"
    TRAINED.save(path)
    loaded = BytePairs.load(path)
    assert loaded == TRAINED
    assert loaded.encode(TEXT).tolist() == TRAINED.encode(TEXT).tolist()
    assert BytePairs.from_json(json.loads(json.dumps(TRAINED.to_json()))) == TRAINED
    assert [file.name for file in tmp_path.iterdir()] == ["pairs.json"]


@pytest.mark.parametrize(
    "data",
    [
        None,
        {"kind": "characters"},
        {"kind": "byte pairs"},
        {"kind": "byte pairs", "merges": [[1, 2, 3]]},
        {"kind": "byte pairs", "merges": [[1, "2"]]},
        {"kind": "byte pairs", "merges": [[1, 256]]},  # of a token that is not made yet
        {"kind": "byte pairs", "merges": [[-1, 2]]},
        {"kind": "byte pairs", "merges": [[1, 2], [1, 2]]},
        {"kind": "byte pairs", "merges": [[True, 2]]},
        {"kind": "byte pairs", "merges": [], "specials": [3]},
        {"kind": "byte pairs", "merges": [], "specials": ["a", "a"]},
    ],
)
def test_other_json_is_refused(data: Any, tmp_path: Path) -> None:
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps(data))
    with pytest.raises(DataError):
        BytePairs.load(path)


def test_what_cannot_be(tmp_path: Path) -> None:
    for tokens in ([-1], [len(TRAINED)], [0.5]):
        with pytest.raises(DataError, match="tokens"):
            TRAINED.decode(tokens)
    assert TRAINED.decode([]) == ""
    assert TRAINED.decode([0xE9]) == "\ufffd"
    with pytest.raises(DataError, match="must not be negative"):
        BytePairs.train("a", -1)
    with pytest.raises(DataError, match="cannot be read"):
        BytePairs.load(tmp_path / "nowhere")
