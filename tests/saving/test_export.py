"""Exported functions: compiled code that travels, and runs only where it was said to be trusted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import retrograde as rg
from retrograde.errors import CheckpointError, DeviceError
from retrograde.runtime import archive
from retrograde.runtime.native import binaries, toolchain
from retrograde.saving import CODE, FORMAT, VERSION
from tests.saving.programs import GPT, PROGRAMS, compiled

pytestmark = pytest.mark.skipif(
    toolchain.find_toolchain() is None, reason="there is no C compiler"
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "gpt.rg"
    compiled("gpt", "native").export(path)
    return path


@pytest.fixture(autouse=True)
def nothing_provided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "_provided", {})


def parts_of(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as opened:
        return {n: opened.read(n) for n in opened.namelist() if n != archive.INDEX}


def changed(path: Path, to: Path, **about: Any) -> Path:
    parts = parts_of(path)
    listed = {**json.loads(parts[binaries.LIST]), **about}
    parts[binaries.LIST] = json.dumps(listed).encode()
    archive.write(to, FORMAT, VERSION, CODE, parts)
    return to


SCRIPT = """
import sys, warnings
warnings.simplefilter("error")
import numpy as np
import retrograde as rg
c = rg.load(sys.argv[1], trust=True)
weights = dict(np.load(sys.argv[2]))
np.save(sys.argv[3], c(weights, np.arange(20, dtype=np.int32).reshape(2, 10) % 11))
"""


def test_no_compiler_is_needed(exported: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "weights.npz", **GPT.parameters())
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, exported, tmp_path / "weights.npz", tmp_path / "out.npy"],
        env={**os.environ, "PATH": "/nowhere", "RETROGRADE_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    arguments = PROGRAMS["gpt"].arguments(2, 10)
    assert np.array_equal(compiled("gpt", "native")(*arguments), np.load(tmp_path / "out.npy"))
    assert not list((tmp_path / "cache").glob("kernels*"))  # nothing was compiled


def test_code_is_loaded_only_when_trusted(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETROGRADE_CACHE_DIR", str(tmp_path / "cache"))
    with pytest.raises(CheckpointError, match=r"holds compiled code.*trust=True"):
        rg.load(exported)
    assert not (tmp_path / "cache").exists()
    loaded = rg.load(exported, trust=True)
    arguments = PROGRAMS["gpt"].arguments(3, 16)
    assert np.array_equal(compiled("gpt", "native")(*arguments), loaded(*arguments))
    assert loaded._run.recipes[0].as_decided
    compiled("mean").save(tmp_path / "data")
    rg.load(tmp_path / "data", trust=True)  # nothing in it needs trust


def test_code_for_another_machine_or_version(exported: Path, tmp_path: Path) -> None:
    here = toolchain.machine()
    for line, other, said in (
        (2, "pdp11", "another machine, pdp11, and this one is"),
        (-1, here[-1] + " amx9 " + "x" * 90, "with amx9"),
    ):
        machine = list(here)
        machine[line] = other
        with pytest.raises(DeviceError, match=said):
            rg.load(changed(exported, tmp_path / "p", machine=machine), trust=True)
    with pytest.raises(DeviceError, match=r"another machine, of \d+ facts"):
        rg.load(changed(exported, tmp_path / "p", machine=here[:-1]), trust=True)
    with pytest.raises(DeviceError, match=r"compiled by Retrograde 0\.0\.3"):
        rg.load(changed(exported, tmp_path / "p", version="0.0.3"), trust=True)
    with pytest.raises(DeviceError, match="not for 'numpy'"):
        rg.load(exported, trust=True, backend="numpy")
    assert toolchain._provided == {}


def test_code_that_is_not_what_its_list_says(exported: Path, tmp_path: Path) -> None:
    whole = exported.read_bytes()
    at = whole.index(b"\x7fELF") + 5000 if b"\x7fELF" in whole else len(whole) // 2
    (tmp_path / "p").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(CheckpointError, match="damaged"):
        rg.load(tmp_path / "p", trust=True)
    for listed in ({"a": "missing.so"}, [], {"a": 7}, None):
        with pytest.raises(CheckpointError, match="list of compiled code is none"):
            rg.load(changed(exported, tmp_path / "p", libraries=listed), trust=True)
    parts = parts_of(exported)
    name = next(n for n in parts if n.endswith(".so"))
    parts[name] = b"\x7fELF nothing"
    archive.write(tmp_path / "p", FORMAT, VERSION, CODE, parts)
    with pytest.raises(DeviceError, match="cannot be loaded"):
        loaded = rg.load(tmp_path / "p", trust=True)
        library = toolchain.load(toolchain._given(parts[name]))
        assert library and loaded


def test_only_what_is_compiled_can_be_exported(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="nothing is compiled on the numpy device"):
        compiled("gpt").export(tmp_path / "p")
    assert not (tmp_path / "p").exists()
