"""Checks that must look at the installed package: source tree -> exit status of a checker.

Three folders make up one package, and an editable install maps them by an import hook that
neither mypy nor import-linter follows. So the wheel is built, installed into a scratch folder,
and checked there; third-party libraries are those of the running interpreter. Paths in the
output are translated back to the tree.

    python tools/check_installed.py imports      the rules of [tool.importlinter], and no circles
    python tools/check_installed.py types        mypy --strict on all three folders
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("frontends", "compiler", "runtime")
BUILD_INPUTS = ("pyproject.toml", "README.md", "LICENSE")


def build_wheel(root: Path, out: Path) -> Path:
    """Build the wheel of the tree `root` into the folder `out` and return its path.

    It is built from a copy: setuptools reuses a `build/` folder it finds in a tree, and with it
    files that were deleted long ago.
    """
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch)
        for folder in FOLDERS:
            shutil.copytree(
                root / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__")
            )
        for name in BUILD_INPUTS:
            if (root / name).exists():
                shutil.copy(root / name, copy)
        _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out), str(copy))
    (wheel,) = out.glob("*.whl")
    return wheel


def install(root: Path, target: Path) -> None:
    """Install the tree `root`, without its dependencies, into the folder `target`."""
    with tempfile.TemporaryDirectory() as scratch:
        wheel = build_wheel(root, Path(scratch))
        _pip("install", "--no-deps", "--no-compile", "--target", str(target), str(wheel))


def to_tree(text: str) -> str:
    """Translate installed paths in a checker's output to those of the tree."""
    text = re.sub(r"\bretrograde/(compiler|runtime)/", r"\1/", text)
    return re.sub(r"\bretrograde/(?=[\w/]+\.py)", "frontends/", text)


def main(arguments: list[str]) -> int:
    checks = {"imports": [_rules(), _circles()], "types": [_types()]}
    if len(arguments) != 1 or arguments[0] not in checks:
        print(f"usage: check_installed.py {'|'.join(checks)}", file=sys.stderr)
        return 2

    with tempfile.TemporaryDirectory() as scratch:
        install(ROOT, Path(scratch))
        # A list, not a generator: after a failing check the others still run.
        return max([_run(check, Path(scratch)) for check in checks[arguments[0]]])


def _rules() -> list[str]:
    command = str(Path(sys.executable).parent / "lint-imports")
    return [command, "--config", str(ROOT / "pyproject.toml"), "--no-cache", "--no-logo"]


def _circles() -> list[str]:
    return [sys.executable, str(ROOT / "tools" / "circles.py"), "retrograde"]


def _types() -> list[str]:
    return [
        *(sys.executable, "-m", "mypy", "-p", "retrograde"),
        *("--config-file", str(ROOT / "pyproject.toml")),
        *("--cache-dir", str(ROOT / ".mypy_cache")),
    ]


def _run(command: list[str], folder: Path) -> int:
    """Run a check inside `folder`, which comes first on its path, and print what it says."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder), "COLUMNS": "100"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    print(to_tree(done.stdout), end="", flush=True)
    return abs(done.returncode)


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
