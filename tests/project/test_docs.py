"""What the pages say is true: their Python runs and prints what they state; commands exist."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import docs_blocks
import pytest

from retrograde.runtime.native.toolchain import find_toolchain

ROOT = Path(__file__).parents[2]
PAGES = [
    page
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md")))
    if page.exists()
]
on_each_page = pytest.mark.parametrize(
    "page", PAGES, ids=[page.relative_to(ROOT).as_posix() for page in PAGES]
)


def run_page(page: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(Path(docs_blocks.__file__)), str(page)],
        cwd=folder,
        env=os.environ | {"RETROGRADE_CACHE_DIR": str(folder / "cache")},
        capture_output=True,
        text=True,
        timeout=280,
    )


@on_each_page
def test_python_blocks_run_and_print_what_the_page_states(page: Path, tmp_path: Path) -> None:
    if 'backend="native"' in page.read_text(encoding="utf-8") and find_toolchain() is None:
        pytest.skip("there is no C compiler for the native device of this page")
    done = run_page(page, tmp_path)
    assert done.returncode == 0, done.stderr


@on_each_page
def test_no_block_escapes_by_its_label(page: Path) -> None:
    aliases = re.compile(r"(py|shell|console|zsh|ba?sh\b.|sh\b.)", re.IGNORECASE)
    for block in docs_blocks.blocks(page):
        if block.language == "python":
            continue
        assert not aliases.match(block.language), (
            f"{page}:{block.line}: label it python or sh, and nothing more, not {block.language!r}"
        )


@on_each_page
def test_commands_exist(page: Path) -> None:
    for command in docs_blocks.commands(page):
        words = [word for word in command if not re.match(r"[A-Z_]+=", word)]
        program = Path(words[0]).name if words else ""
        if program == "make":
            missing = {word for word in words[1:] if word[0] != "-"} - make_targets()
            assert not missing, f"{command}: no such target in the Makefile: {missing}"
        if program == "retrograde":
            check_command_line(words[1:])


def check_command_line(words: list[str]) -> None:
    if not hasattr(importlib.import_module("retrograde.cli"), "main"):
        pytest.skip("retrograde.cli has no `main` yet")
    names = [words[0]] if words and words[0][0] != "-" else []
    status, text = help_text(*names)
    assert status == 0, f"retrograde {' '.join(words)}: {text}"
    for word in words:
        option = word.split("=")[0]
        if option.startswith("-") and not re.fullmatch(r"-[\d.]+", option):
            assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", text), (
                f"retrograde {' '.join(words)}: {option} is not in its help:\n{text}"
            )


@cache
def help_text(*names: str) -> tuple[int, str]:
    code = "from retrograde.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *names, "--help"], capture_output=True, text=True
    )
    return done.returncode, done.stdout + done.stderr


@cache
def make_targets() -> frozenset[str]:
    rules = re.findall(r"^([a-z][\w-]*):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return frozenset(rules)


def test_a_page_that_states_something_else_fails(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    text = "# A\n\n```python\nx = 3\n```\n\n```python\nprint(x * 2)\n```\n\n```text\n{}\n```\n"
    page.write_text(text.format(6))
    assert run_page(page, tmp_path).returncode == 0

    page.write_text(text.format(7))
    wrong = run_page(page, tmp_path)
    assert wrong.returncode != 0
    assert f"{page}:8: the page states\n7\n" in wrong.stderr

    page.write_text(text.format(6).replace("x * 2", "y"))
    assert f'"{page}", line 8' in run_page(page, tmp_path).stderr


def test_commands_are_taken_apart(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```sh\ncd x && make test ARGS='-k a b'  # all of it\n"
        "retrograde train \\\n    char-gpt | tee log; A=1 make\n```\n"
        "```text\nmake nonsense\n```\n"
    )
    assert docs_blocks.commands(page) == [
        ["cd", "x"],
        ["make", "test", "ARGS=-k a b"],
        ["retrograde", "train", "char-gpt"],
        ["tee", "log"],
        ["A=1", "make"],
    ]
