"""The checks of `make lint` and `make types` see through the folder mapping.

A copy of the tree gets modules that break each rule; the checkers have to name every one of them.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import check_installed

ROOT = Path(__file__).parents[2]

IMPORTS = {
    "compiler/ir/planted.py": "import retrograde.compiler.ops\n",
    "compiler/plan/planted.py": "def f():\n    from retrograde.compiler import codegen\n",
    "compiler/passes/planted.py": "import retrograde.runtime\n",
    "compiler/ops/planted.py": "from retrograde.nn import planted\n",
    "frontends/nn/planted.py": "import sympy\n",
    "compiler/codegen/planted.py": "import retrograde\n",
    "compiler/unplaced.py": "",
    "runtime/planted.py": "from retrograde.compiler.plan import planted\n",
    "runtime/data/planted.py": "import pickle\n",
    "runtime/training/planted.py": "def f():\n    import cupy\n",
    "frontends/models/planted_a.py": "from retrograde.models import planted_b\n",
    "frontends/models/planted_b.py": "def f():\n    import retrograde.models.planted_a\n",
    "frontends/cli/planted_a.py": "from retrograde.cli import planted_b\n",
    "frontends/cli/planted_b.py": (
        "from typing import TYPE_CHECKING\n\n"
        "if TYPE_CHECKING:\n    from retrograde.cli import planted_a\n"
    ),
}

REPORTED = [
    "retrograde.compiler.ir.planted -> retrograde.compiler.ops (l.1)",
    "retrograde.compiler.plan.planted -> retrograde.compiler.codegen (l.2)",
    "retrograde.compiler.passes.planted -> retrograde.runtime (l.1)",
    "retrograde.compiler.ops.planted -> retrograde.nn.planted (l.1)",
    "retrograde.nn.planted -> sympy (l.1)",
    "retrograde.compiler.codegen.planted -> retrograde (l.1)",
    "retrograde.compiler.unplaced",
    "retrograde.runtime.planted -> retrograde.compiler.plan.planted (l.1)",
    "retrograde.runtime.data.planted -> pickle (l.1)",
    "retrograde.runtime.training.planted -> cupy (l.2)",
    "circle of imports: retrograde.models.planted_a -> retrograde.models.planted_b"
    " -> retrograde.models.planted_a",
]

# A type error that only `strict` minds, a plain one, and one across two of the folders.
TYPES = {
    "compiler/planted.py": "def untyped(x):\n    return x\n",
    "runtime/planted.py": "def seven() -> int:\n    return '7'\n",
    "frontends/planted.py": "from retrograde.runtime.planted import seven\n\nx: str = seven()\n",
}

TYPE_ERRORS = [
    "compiler/planted.py:1: error: Function is missing a type annotation",
    'runtime/planted.py:2: error: Incompatible return value type (got "str", expected "int")',
    "frontends/planted.py:3: error: Incompatible types in assignment",
]


def planted(copy: Path, files: dict[str, str]) -> Path:
    """Copy to `copy` what the checks read of the tree, and add `files` to it."""
    for folder in (*check_installed.FOLDERS, "tools"):
        shutil.copytree(
            ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in check_installed.BUILD_INPUTS:
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, copy)
    if (ROOT / ".mypy_cache").exists():  # what is not planted need not be checked again
        shutil.copytree(ROOT / ".mypy_cache", copy / ".mypy_cache")
    for name, source in files.items():
        (copy / name).write_text(source)
    return copy


def check(tree: Path, what: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, str(tree / "tools" / "check_installed.py"), what],
        capture_output=True,
        text=True,
    )
    assert not done.stderr
    return done.returncode, done.stdout


def test_planted_imports_are_found(tmp_path: Path) -> None:
    status, report = check(planted(tmp_path, IMPORTS), "imports")
    assert status == 1
    assert [line for line in REPORTED if line not in report] == [], report
    # A circle of types alone is no circle.
    assert "retrograde.cli.planted_a" not in report


def test_planted_type_errors_are_found(tmp_path: Path) -> None:
    status, report = check(planted(tmp_path, TYPES), "types")
    assert status == 1
    assert [line for line in TYPE_ERRORS if line not in report] == [], report
