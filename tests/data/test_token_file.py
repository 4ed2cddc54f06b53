"""Files of tokens: what is written comes back, mapped; what is damaged is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retrograde.compiler.errors import CheckpointError, DataError
from retrograde.runtime.data.batches import EpochWindows, Windows, evaluation_batches
from retrograde.runtime.data.token_file import HEAD, TokenFile

same_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@same_folder
@given(
    st.lists(st.lists(st.integers(0, 70000), max_size=9), max_size=5),
    st.sampled_from([None, 70001, 2**31]),
)
def test_what_is_written_comes_back(
    tmp_path: Path, parts: list[list[int]], vocabulary: int | None
) -> None:
    file = TokenFile.write(tmp_path / "tokens", parts, vocabulary)
    flat = [token for part in parts for token in part]
    assert len(file) == len(flat)
    assert file[:].tolist() == flat
    assert file[:].dtype == np.int32
    assert file.vocabulary == vocabulary
    assert file.path.stat().st_size == HEAD + 4 * len(flat)
    file.verify()
    assert [path.name for path in tmp_path.iterdir()] == ["tokens"]


def test_small_vocabularies_take_two_bytes(tmp_path: Path) -> None:
    tokens = np.random.default_rng(0).integers(0, 1 << 16, 3001)
    file = TokenFile.write(tmp_path / "t", iter([tokens[:7], tokens[7:]]), 1 << 16)
    assert file.path.stat().st_size == HEAD + 2 * 3001
    np.testing.assert_array_equal(file[5:99], tokens[5:99])
    assert isinstance(file.tokens, np.memmap)


@pytest.mark.parametrize("vocabulary", [500, None])
def test_windows_of_a_file_are_those_of_its_tokens(tmp_path: Path, vocabulary: Any) -> None:
    tokens = np.random.default_rng(1).integers(0, 500, 2003).astype(np.int32)
    file = TokenFile.write(tmp_path / "t", [tokens], vocabulary)
    for kind in (Windows, EpochWindows):
        there, here = kind(file, 4, 9, seed=3), kind(tokens, 4, 9, seed=3)
        here.restore(there.state())  # the same identity: one run may go on with the other
        for _ in range(60):
            taken, expected = next(there), next(here)
            for name in ("tokens", "targets"):
                np.testing.assert_array_equal(taken[name], expected[name])
                assert taken[name].dtype == np.int32
                assert type(taken[name]) is np.ndarray
    held = list(evaluation_batches(file, 5, 9))
    assert sum(batch["tokens"].shape[0] for batch in held) == 2002 // 9


def test_other_tokens_are_not_resumed_with(tmp_path: Path) -> None:
    one = TokenFile.write(tmp_path / "a", [np.arange(50)], 50)
    two = TokenFile.write(tmp_path / "b", [np.arange(50)[::-1]], 50)
    with pytest.raises(CheckpointError, match="crc32"):
        Windows(two, 2, 4).restore(Windows(one, 2, 4).state())


def test_damage_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t"
    TokenFile.write(path, [np.arange(100)], 100)
    whole = path.read_bytes()
    for wrong in (whole[:-1], whole + b"\0", whole[:HEAD], whole[:12], b"", b"X" + whole[1:]):
        path.write_bytes(wrong)
        with pytest.raises(DataError, match=r"damaged|not a file of tokens"):
            TokenFile(path)
    flipped = bytearray(whole)
    flipped[HEAD + 30] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(DataError, match="CRC-32"):
        TokenFile(path).verify()
    with pytest.raises(DataError, match="cannot be read"):
        TokenFile(tmp_path / "nowhere")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "t"
    TokenFile.write(path, [[1, 2]], 10)

    def parts() -> Any:
        yield [3]
        raise RuntimeError("the source failed")

    with pytest.raises(RuntimeError, match="the source failed"):
        TokenFile.write(path, parts(), 10)
    for wrong in ([10], [-1], [[1]], [0.5]):
        with pytest.raises(DataError, match="tokens"):
            TokenFile.write(path, [wrong], 10)
    with pytest.raises(DataError, match="cannot be written"):
        TokenFile.write(tmp_path / "no" / "t", [[1]])
    assert TokenFile(path)[:].tolist() == [1, 2]
    assert [file.name for file in tmp_path.iterdir()] == ["t"]
