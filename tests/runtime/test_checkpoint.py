"""Checkpoints: what goes in comes out, and everything that is not whole is refused by name."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from retrograde.compiler.errors import CheckpointError
from retrograde.runtime.training import checkpoint

TENSORS: dict[str, npt.NDArray[Any]] = {
    "zeta.weight": np.arange(15, dtype=np.float32).reshape(3, 5),
    "alpha.bias": np.arange(7, dtype=np.float64) / 3,
    "half": np.linspace(-2, 2, 11).astype(ml_dtypes.bfloat16),
    "step": np.array(41, np.int64),
    "none": np.zeros((0, 4), np.float32),
}
META = {"step": 41, "rate": 0.1, "name": "größe", "nested": {"list": [1, None, True, 2.5e-300]}}


def contents(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir() if file.name != ".lock"}


def assert_same(found: dict[str, npt.NDArray[Any]], wanted: dict[str, npt.NDArray[Any]]) -> None:
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype, name
        assert found[name].shape == array.shape, name
        assert found[name].tobytes() == array.tobytes(), name


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    checkpoint.save(path, TENSORS, META)
    return path


# --- round trips


def test_tensors_and_metadata_come_back(saved: Path) -> None:
    tensors, meta = checkpoint.load(saved)
    assert_same(tensors, TENSORS)
    assert meta == META
    assert list(meta) == list(META)
    assert type(meta["step"]) is int
    assert checkpoint.read_meta(saved) == META
    assert checkpoint.exists(saved)


def test_loaded_arrays_are_writable_and_their_own(saved: Path) -> None:
    first, _ = checkpoint.load(saved)
    for array in first.values():
        assert array.flags.writeable
        assert array.flags.owndata
        array[...] = 0
    assert_same(checkpoint.load(saved)[0], TENSORS)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3).T,
        np.arange(24, dtype=np.int32).reshape(2, 3, 4)[:, ::2, 1:],
        np.arange(5, dtype=">f8"),
        np.arange(9, dtype=np.float32).astype(ml_dtypes.bfloat16).reshape(3, 3).T,
        np.broadcast_to(np.float32(3), (2, 5)),
        np.array([True, False, True]),
        np.array([2**64 - 1, 0], np.uint64),
        np.array([np.nan, -np.inf, -0.0], np.float16),
        np.array([1 + 2j, 3 - 1j], np.complex64),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_any_layout_and_dtype(tmp_path: Path, array: npt.NDArray[Any]) -> None:
    checkpoint.save(tmp_path / "run", {"x": array, "y": np.ones(2)}, {})
    found = checkpoint.load(tmp_path / "run")[0]["x"]
    assert found.dtype == array.dtype.newbyteorder("<")
    assert found.shape == array.shape
    np.testing.assert_array_equal(
        found.astype(np.complex128), np.asarray(array).astype(np.complex128)
    )


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**200), 2**200)
    | st.floats(allow_nan=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    meta=st.dictionaries(st.text(), JSON, max_size=4),
    array=hnp.arrays(
        st.sampled_from([np.dtype("f4"), np.dtype("i8"), np.dtype("?"), np.dtype("f2")]),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5),
    ),
    name=st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
)
def test_round_trip_of_anything(
    tmp_path: Path, meta: dict[str, Any], array: npt.NDArray[Any], name: str
) -> None:
    checkpoint.save(tmp_path / "run", {name: array}, meta)
    tensors, found = checkpoint.load(tmp_path / "run")
    assert_same(tensors, {name: array})
    assert found == meta


def test_floats_that_json_lacks_come_back(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, {}, {"best": math.inf, "last": math.nan})
    tensors, meta = checkpoint.load(tmp_path)
    assert tensors == {}
    assert meta["best"] == math.inf
    assert math.isnan(meta["last"])


# --- saving again, and where


def test_saving_again_replaces_and_leaves_one_state(saved: Path) -> None:
    newer = {**TENSORS, "step": np.array(42)}
    checkpoint.save(saved, newer, {"step": 42})
    assert_same(checkpoint.load(saved)[0], newer)
    assert sorted(contents(saved)) == ["checkpoint.json", "state-00000002.safetensors"]


def test_leftovers_of_a_dead_process_go(saved: Path) -> None:
    (saved / ".tmp-state-00000002.safetensors").write_bytes(b"cut sho")
    (saved / ".tmp-checkpoint.json").write_bytes(b"{")
    shutil.copy(saved / "state-00000001.safetensors", saved / "state-00000009.safetensors")
    assert_same(checkpoint.load(saved)[0], TENSORS)
    checkpoint.save(saved, {"x": np.ones(3)}, {})
    # The number goes on from the highest, used or not.
    assert sorted(contents(saved)) == ["checkpoint.json", "state-00000010.safetensors"]


def test_parents_are_made_and_metrics_may_lie_beside(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "one"
    path.mkdir(parents=True)
    (path / "metrics.jsonl").write_text("{}\n")
    checkpoint.save(path, TENSORS, META)
    checkpoint.save(tmp_path / "runs" / "a" / "b", TENSORS, META)
    assert_same(checkpoint.load(path)[0], TENSORS)
    assert_same(checkpoint.load(tmp_path / "runs" / "a" / "b")[0], TENSORS)


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    for path in (file, file / "below"):
        with pytest.raises(CheckpointError, match=r"notes\.txt.*is a file.*another path"):
            checkpoint.save(path, TENSORS, META)
    assert file.read_text() == "mine"


def test_a_foreign_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(CheckpointError, match=r"not empty.*thesis\.tex.*empty directory"):
        checkpoint.save(tmp_path, TENSORS, META)
    assert contents(tmp_path) == {"thesis.tex": b"mine"}


def test_an_unreadable_checkpoint_is_not_overwritten(saved: Path) -> None:
    index = json.loads((saved / "checkpoint.json").read_text())
    (saved / "checkpoint.json").write_text(json.dumps({**index, "version": 2}))
    before = contents(saved)
    with pytest.raises(CheckpointError, match="version 2"):
        checkpoint.save(saved, TENSORS, META)
    assert contents(saved) == before


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_failing_disk_leaves_the_old_checkpoint(
    saved: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    before = contents(saved)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if call == "write":
        monkeypatch.setattr(checkpoint, "open", lambda *_: full(), raising=False)
    else:
        monkeypatch.setattr(os, call, full)
    with pytest.raises(CheckpointError, match=r"run: .*No space left.*is whole.*another path"):
        checkpoint.save(saved, {"x": np.ones(3)}, {})
    monkeypatch.undo()
    assert contents(saved) == before
    assert_same(checkpoint.load(saved)[0], TENSORS)


def test_two_savers_do_not_mix(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from filelock import FileLock

    monkeypatch.setattr(checkpoint, "_LOCK_SECONDS", 0.05)
    before = contents(saved)
    with (
        FileLock(saved / ".lock"),
        pytest.raises(CheckpointError, match=r"another process.*its own path"),
    ):
        checkpoint.save(saved, {"x": np.ones(3)}, {})
    assert contents(saved) == before


def test_a_save_during_a_load_is_followed(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    newer = {"x": np.arange(3.0)}
    read = checkpoint._read_state
    calls = []

    def save_first(directory: Path, index: Any) -> Any:
        if not calls:
            checkpoint.save(saved, newer, {"new": True})
        calls.append(index.state)
        return read(directory, index)

    monkeypatch.setattr(checkpoint, "_read_state", save_first)
    tensors, meta = checkpoint.load(saved)
    assert_same(tensors, newer)
    assert meta == {"new": True}
    assert len(calls) == 2


# --- what cannot be stored


@pytest.mark.parametrize(
    ("meta", "where"),
    [
        ({"a": {"b": [1, (2, 3)]}}, r"meta\['a'\]\['b'\]\[1\] is a tuple"),
        ({"a": np.float32(1)}, r"meta\['a'\] is a float32"),
        ({"a": {1: 2}}, r"meta\['a'\] has the key 1"),
        ({"a": np.ones(2)}, r"meta\['a'\] is a ndarray"),
    ],
)
def test_metadata_that_would_not_come_back_is_refused(
    saved: Path, meta: dict[str, Any], where: str
) -> None:
    before = contents(saved)
    with pytest.raises(CheckpointError, match=where):
        checkpoint.save(saved, TENSORS, meta)
    assert contents(saved) == before


@pytest.mark.parametrize(
    "array",
    [
        np.array([None]),
        np.ones(2, np.complex128),
        np.array(["a"]),
        np.ones(3).astype(ml_dtypes.float8_e4m3fn),
        [1.0, 2.0],
    ],
    ids=str,
)
def test_tensors_that_would_not_come_back_are_refused(saved: Path, array: Any) -> None:
    before = contents(saved)
    with pytest.raises(CheckpointError, match="tensor 'odd' is of"):
        checkpoint.save(saved, {"fine": np.ones(2), "odd": array}, META)
    with pytest.raises(CheckpointError, match="__metadata__"):
        checkpoint.save(saved, {"__metadata__": np.ones(2)}, META)
    assert contents(saved) == before


# --- what cannot be loaded


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere/checkpoint\.json: there is none.*Name"):
        checkpoint.load(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"checkpoint\.json: the directory holds no"):
        checkpoint.load(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match=r"file: not a checkpoint.*directory"):
        checkpoint.load(tmp_path / "file")
    assert not checkpoint.exists(tmp_path)


def rewrite(path: Path, **changes: Any) -> None:
    """An index with `changes` and a checksum that fits them."""
    index = json.loads((path / "checkpoint.json").read_text())
    del index["sha256"]
    index.update(changes)
    index["sha256"] = checkpoint._digest(index)
    (path / "checkpoint.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p / "checkpoint.json").write_text("{}"), "not a checkpoint of Retrograde"),
        (lambda p: (p / "checkpoint.json").write_text("[1]"), "not a checkpoint of Retrograde"),
        (lambda p: (p / "checkpoint.json").write_text(""), "not JSON"),
        (lambda p: (p / "checkpoint.json").write_text("[" * 100_000), "not JSON"),
        (lambda p: (p / "checkpoint.json").write_bytes(b"\xff\xfe"), "not text"),
        (lambda p: os.truncate(p / "checkpoint.json", 200), "cut short"),
        (lambda p: rewrite(p, version=3), r"format version 3.*reads version 1"),
        (lambda p: rewrite(p, version=None), "format version None"),
        (lambda p: rewrite(p, format="other"), "not a checkpoint of Retrograde"),
        (lambda p: rewrite(p, meta=[]), "entries are missing"),
        (lambda p: rewrite(p, state={"file": "../../x"}), "entries are missing"),
        (lambda p: (p / "state-00000001.safetensors").unlink(), "is missing"),
        (lambda p: os.truncate(p / "state-00000001.safetensors", 100), "has 100 bytes where"),
        (lambda p: os.truncate(p / "state-00000001.safetensors", 0), "has 0 bytes where"),
    ],
)
def test_damage_is_named_and_nothing_changes(saved: Path, damage: Any, message: str) -> None:
    damage(saved)
    before = contents(saved)
    with pytest.raises(CheckpointError, match=message) as caught:
        checkpoint.load(saved)
    assert str(saved) in str(caught.value)
    assert contents(saved) == before


def test_state_of_other_names_is_refused(saved: Path) -> None:
    index = json.loads((saved / "checkpoint.json").read_text())
    rewrite(saved, state={**index["state"], "tensors": ["zeta.weight", "other"]})
    with pytest.raises(CheckpointError, match="not the state that"):
        checkpoint.load(saved)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_no_flipped_byte_goes_unnoticed(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("flip")
    checkpoint.save(path, TENSORS, META)
    file = path / data.draw(st.sampled_from(["checkpoint.json", "state-00000001.safetensors"]))
    content = bytearray(file.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    file.write_bytes(bytes(content))
    try:
        tensors, meta = checkpoint.load(path)
    except CheckpointError:
        return
    # One blank for another between two entries of the JSON: the same checkpoint.
    assert file.name == "checkpoint.json"
    assert_same(tensors, TENSORS)
    assert meta == META
