"""The wheel holds the three folders under their mapped names, whole, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import check_installed
import pytest

ROOT = Path(__file__).parents[2]
MAPPED = {
    "frontends": "retrograde",
    "compiler": "retrograde/compiler",
    "runtime": "retrograde/runtime",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return check_installed.build_wheel(ROOT, tmp_path_factory.mktemp("wheel"))


def test_the_wheel_is_the_tree(wheel: Path) -> None:
    expected = {
        f"{name}/{file.relative_to(ROOT / folder).as_posix()}"
        for folder, name in MAPPED.items()
        for file in (ROOT / folder).rglob("*")
        if file.suffix in {".py", ".h", ".c"} or file.name == "py.typed"
    }
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == expected


def test_every_package_is_marked_as_typed_and_has_an_init() -> None:
    for folder in MAPPED:
        assert (ROOT / folder / "py.typed").exists()
        for file in (ROOT / folder).rglob("*.py"):
            assert (file.parent / "__init__.py").exists(), file


def test_the_wheel_carries_licence_and_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name.partition(".dist-info/")[2]: name for name in archive.namelist()}
        licence = archive.read(names["licenses/LICENSE"])
        commands = archive.read(names["entry_points.txt"]).decode()
    assert licence == (ROOT / "LICENSE").read_bytes()
    assert "retrograde = retrograde.cli:main" in commands.splitlines()


def test_an_installed_wheel_is_imported_from_where_it_lies(tmp_path: Path) -> None:
    check_installed.install(ROOT, tmp_path)
    code = (
        "import retrograde, retrograde.compiler.ir, retrograde.runtime.training as t;"
        "print(retrograde.__file__, retrograde.compiler.ir.__file__, t.__file__, sep='\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [
        str(tmp_path / "retrograde" / name / "__init__.py")
        for name in ("", "compiler/ir", "runtime/training")
    ]
