"""Text, characters and the split: deterministic, lossless where they say so, and named errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrograde.compiler.errors import DataError
from retrograde.runtime.data import text as texts
from retrograde.runtime.data.text import (
    UNKNOWN,
    Vocabulary,
    read_text,
    split,
    stdlib_parts,
    stdlib_text,
    text_parts,
)

# --- sources


def test_stdlib_text_is_much_source_and_no_tests() -> None:
    text = stdlib_text()
    assert 4e6 < len(text) < 4e7
    assert "class Counter(dict):" in text  # collections/__init__.py
    assert "class TestProgram(object):" in text  # unittest is part of the library
    assert "import test.support" not in text  # its own tests are not
    assert "\0" not in text
    assert stdlib_text() == text


def test_stdlib_text_order_and_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in {
        "b.py": b"bee",
        "a/z.py": b"zed",
        "a.py": "größe".encode(),
        "a/test/t.py": b"no",
        "site-packages/p.py": b"no",
        "idlelib/idle_test/i.py": b"no",
        "latin.py": "größe".encode("latin1"),
        "empty.py": b"",
        "note.txt": b"no",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(texts.sysconfig, "get_path", lambda _: str(tmp_path))
    assert stdlib_text() == "größe\nzed\nbee"


def test_stdlib_without_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts.sysconfig, "get_path", lambda _: str(tmp_path / "python311.zip"))
    with pytest.raises(DataError, match=r"python311\.zip.*--data FILE"):
        stdlib_text()


def test_read_text(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes("\ufeffgröße 日本 😀\r\n".encode())
    assert read_text(file) == "größe 日本 😀\r\n"
    assert read_text(str(file)) == "größe 日本 😀\r\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty or blank"),
        (b" \n\t\n", "empty or blank"),
        (b"PK\x03\x04abc\0def", "binary, not text .a NUL at byte 7"),
        (b"caf\xe9 au lait", "not UTF-8 .byte 0xe9 at 3.*iconv"),
        ("größe".encode("utf-16"), "binary, not text"),
    ],
)
def test_read_text_refuses(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "data.bin"
    file.write_bytes(content)
    with pytest.raises(DataError, match=rf"data\.bin: .*{message}"):
        read_text(file)


def test_read_text_without_a_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.txt: there is no such file"):
        read_text(tmp_path / "gone.txt")
    with pytest.raises(DataError, match="this is a directory"):
        read_text(tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        read_text("a\0b")


@pytest.mark.skipif(
    os.name != "posix" or os.geteuid() == 0, reason="nothing is unreadable to the superuser"
)
def test_read_text_without_permission(tmp_path: Path) -> None:
    file = tmp_path / "secret.txt"
    file.write_text("x")
    file.chmod(0)
    with pytest.raises(DataError, match="Permission denied"):
        read_text(file)


# --- characters

ANY_TEXT = st.text(st.characters(), min_size=1, max_size=60)  # lone surrogates included


@given(ANY_TEXT)
def test_encode_decode_is_the_identity_on_known_characters(text: str) -> None:
    vocabulary = Vocabulary.of(text)
    tokens = vocabulary.encode(text)
    assert tokens.dtype == np.int32
    assert tokens.shape == (len(text),)
    assert vocabulary.decode(tokens) == text
    assert len(vocabulary) == len(set(text) | {UNKNOWN})


@given(ANY_TEXT, ANY_TEXT, st.integers(1, 3), st.one_of(st.none(), st.integers(1, 4)))
def test_encode_against_a_plain_loop(
    text: str, other: str, minimum: int, limit: int | None
) -> None:
    vocabulary = Vocabulary.of(text, minimum_count=minimum, limit=limit)
    counts = Counter(text.replace(UNKNOWN, ""))
    ranked = sorted((c for c in counts if counts[c] >= minimum), key=lambda c: (-counts[c], c))
    kept = "".join(sorted(ranked[:limit]))
    assert vocabulary.characters == kept
    wanted = [1 + kept.index(c) if c in kept else 0 for c in text + other]
    assert vocabulary.encode(text + other).tolist() == wanted


def test_unknown_characters() -> None:
    vocabulary = Vocabulary.of("abcabcab", minimum_count=3)
    assert vocabulary.characters == "ab"
    assert len(vocabulary) == 3
    assert vocabulary.encode("cab\U0010ffff\ufffd").tolist() == [0, 1, 2, 0, 0]
    assert vocabulary.decode([2, 0, 1]) == f"b{UNKNOWN}a"
    assert vocabulary.encode("").shape == (0,)
    assert vocabulary.decode([]) == ""
    everything_rare = Vocabulary.of("abc", minimum_count=2)
    assert everything_rare.encode("abc").tolist() == [0, 0, 0]


def test_pieces_join(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "größe 日本 😀 abc" * 5
    whole = Vocabulary.of(text)
    tokens = whole.encode(text)
    monkeypatch.setattr(texts, "_CHUNK", 7)
    assert Vocabulary.of(text) == whole
    np.testing.assert_array_equal(whole.encode(text), tokens)


def test_json_round_trip_and_refusals() -> None:
    vocabulary = Vocabulary.of("größe 😀\n")
    assert Vocabulary.from_json(json.loads(json.dumps(vocabulary.to_json()))) == vocabulary
    for wrong in (None, [], {}, {"kind": "bytes"}, {"kind": "characters", "characters": 3}):
        with pytest.raises(DataError, match="JSON of a character vocabulary"):
            Vocabulary.from_json(wrong)
    for characters in ("ba", "aa", "a\ufffd"):
        with pytest.raises(DataError):
            Vocabulary.from_json({"kind": "characters", "characters": characters})


def test_vocabulary_refusals() -> None:
    with pytest.raises(DataError, match="empty text"):
        Vocabulary.of("")
    with pytest.raises(DataError, match="at least 1"):
        Vocabulary.of("a", minimum_count=0)
    with pytest.raises(DataError, match="at least 1"):
        Vocabulary.of("a", limit=0)
    vocabulary = Vocabulary.of("abc")
    for tokens in ([4], [-1]):
        with pytest.raises(DataError, match="do not fit a vocabulary of 4"):
            vocabulary.decode(tokens)
    with pytest.raises(DataError, match="integers"):
        vocabulary.decode([0.5])


def test_same_vocabulary_in_every_process() -> None:
    program = (
        "from retrograde.runtime.data.text import Vocabulary;"
        "print(ascii(Vocabulary.of('the größe of 日本 the', limit=6).characters))"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(seen) == 1


def test_encoding_twelve_million_characters_is_fast() -> None:
    text = "def größe(日本): return None  # abc\n" * 350_000
    vocabulary = Vocabulary.of(text)
    started = time.perf_counter()
    tokens = vocabulary.encode(text)
    # 0.2 s on one core; a Python loop takes more than a second even on a fast machine, and the
    # limit leaves room for a slow one.
    assert time.perf_counter() - started < 1.5
    assert vocabulary.decode(tokens[:35]) == text[:35]


# --- the split


@given(size=st.integers(40, 60_000), validation=st.floats(0.05, 0.9), blocks=st.integers(1, 20))
def test_split_is_a_partition(size: int, validation: float, blocks: int) -> None:
    tokens = np.arange(size, dtype=np.int32)
    training, held_out = split(tokens, validation, blocks)
    together = np.concatenate([training, held_out])
    np.testing.assert_array_equal(np.sort(together), tokens)
    # Each part keeps the order of the text and has few seams.
    for part in (training, held_out):
        steps = np.diff(part)
        assert (steps > 0).all()
        assert (steps > 1).sum() < blocks
    assert abs(held_out.size - size * validation) <= blocks


def test_split_spreads_over_the_text() -> None:
    tokens = np.arange(1_000_000)
    training, held_out = split(tokens, 0.1)
    assert (training.size, held_out.size) == (900_000, 100_000)
    # One tenth of every sixteenth of the text.
    per_stripe = np.bincount(held_out * 16 // tokens.size)
    assert per_stripe.size == 16
    assert np.ptp(per_stripe) <= 1
    again = split(tokens, 0.1)
    np.testing.assert_array_equal(again[1], held_out)
    # A short text is not chopped into blocks shorter than a window.
    assert (np.diff(split(np.arange(5000), 0.1)[1]) == 1).all()


def test_split_refusals() -> None:
    for validation in (0.0, 1.0, -1, float("nan")):
        with pytest.raises(DataError, match="between 0 and 1"):
            split(np.arange(100), validation)
    with pytest.raises(DataError, match="at least 1"):
        split(np.arange(100), blocks=0)
    with pytest.raises(DataError, match="one axis"):
        split(np.zeros((3, 5), np.int32))
    for size in (0, 1, 3):
        with pytest.raises(DataError, match=f"{size} tokens are too few"):
            split(np.arange(size))


# --- three parts


@given(size=st.integers(30, 60_000), held_out=st.floats(0.1, 0.9), blocks=st.integers(1, 20))
def test_parts_of_a_text_share_nothing(size: int, held_out: float, blocks: int) -> None:
    text = "".join(map(chr, range(size)))  # each character once
    parts = text_parts(text, held_out, blocks)
    assert sorted(parts.training + parts.validation + parts.test) == list(text)
    assert abs(len(parts.validation) - len(parts.test)) <= blocks
    told = split(np.arange(size), held_out, blocks)
    assert [ord(c) for c in parts.training] == told[0].tolist()  # both cut alike


def test_a_text_too_short_for_three_parts() -> None:
    for text in ("", "a", "too short"):
        with pytest.raises(DataError, match=f"too short: of {len(text)} characters"):
            text_parts(text)


def test_files_of_the_library_are_in_one_part_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts.sysconfig, "get_path", lambda _: str(tmp_path))

    def parts() -> dict[str, set[str]]:
        found = stdlib_parts()
        every = {name: getattr(found, name) for name in ("training", "validation", "test")}
        return {name: set(part.split("\n")) for name, part in every.items()}

    for k in range(200):
        (tmp_path / f"m{k}.py").write_text(f"x = {k}")
    before = parts()
    assert set.union(*before.values()) == {f"x = {k}" for k in range(200)}
    assert sum(map(len, before.values())) == 200
    assert 3 <= len(before["test"]) <= 20 and 3 <= len(before["validation"]) <= 20
    for k in range(0, 200, 2):  # what is not there, or is new, moves no other file
        (tmp_path / f"m{k}.py").rename(tmp_path / f"other{k}.py")
    after = parts()
    for name, lines in before.items():
        odd = {line for line in lines if int(line[4:]) % 2}
        assert odd <= after[name]


def test_the_parts_of_the_library_are_large_enough_to_judge_by() -> None:
    parts = stdlib_parts()
    assert len(parts.training) > 4e6
    assert len(parts.validation) > 2e5 and len(parts.test) > 2e5
