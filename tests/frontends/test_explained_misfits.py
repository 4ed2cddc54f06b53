"""What cannot be answered or written says so with an error of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

import retrograde as rg


def test_a_picture_into_a_folder_that_is_not_there(tmp_path: Path) -> None:
    compiled = rg.compile(lambda x: x * 2.0, rg.spec("f32", "B"))
    with pytest.raises(rg.errors.DataError, match="missing"):
        compiled.inspect(tmp_path / "missing" / "out.svg")
    compiled.inspect(tmp_path / "out.svg")
    assert (tmp_path / "out.svg").read_text(encoding="utf-8").startswith("<")


@pytest.mark.parametrize("sizes", [{"B": "x"}, {"B": 2.5}, {"T": 3}, {}])
def test_the_peak_needs_whole_sizes(sizes: dict[str, object]) -> None:
    compiled = rg.compile(lambda x: x * 2.0, rg.spec("f32", "B"))
    with pytest.raises(rg.errors.ShapeError, match=r"test_explained_misfits\.py"):
        compiled.peak()(**sizes)
