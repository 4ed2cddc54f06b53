"""A call with room for the frames of what it calls."""

from __future__ import annotations

import traceback

import pytest

from retrograde.compiler.ir import headroom
from retrograde.compiler.ir.headroom import with_headroom

CHUNK = 16 << 10  # bytes, of CPython's frames


def test_the_frame_is_larger_than_a_chunk_and_leaves_room_in_two() -> None:
    bytes = 8 * headroom._wide().__code__.co_nlocals
    assert CHUNK < bytes < 2 * CHUNK - 8192


def test_results_and_errors_are_those_of_the_function() -> None:
    assert with_headroom(divmod, 7, 2) == (3, 1)
    assert with_headroom(lambda: None) is None

    def deep(levels: int) -> int:
        return 0 if levels == 0 else 1 + with_headroom(deep, levels - 1)  # type: ignore[no-any-return]

    assert deep(300) == 300

    def fails() -> None:
        raise KeyError("here")

    with pytest.raises(KeyError, match="here") as raised:
        with_headroom(fails)
    assert traceback.extract_tb(raised.value.__traceback__)[-1].name == "fails"
