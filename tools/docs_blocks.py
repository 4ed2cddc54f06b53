"""Fenced blocks of a Markdown page: page -> blocks, and a run of its Python blocks.

The Python blocks of a page run in order in one namespace. Where a `text` block directly follows a
Python block, it is what that block prints, to the letter.

    python tools/docs_blocks.py README.md
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import sys
import textwrap
import types
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"( *)(`{3,}|~{3,})(.*)")


@dataclass(frozen=True)
class Block:
    """The text between two fences; `line` is that of its first line in the page, counted from 1."""

    language: str
    source: str
    line: int
    prints: str | None = None


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, a Python block together with the output the page states."""
    found: list[Block] = []
    lines = page.read_text(encoding="utf-8").splitlines()
    at, adjacent = 0, False
    while at < len(lines):
        opening = _FENCE.fullmatch(lines[at])
        at += 1
        if opening is None:
            adjacent = adjacent and not lines[at - 1].strip()
            continue
        start = at
        while at < len(lines) and lines[at].strip() != opening[2]:
            at += 1
        if at == len(lines):
            raise SyntaxError(f"{page}:{start}: a block that is opened here is never closed")
        source = textwrap.dedent("\n".join(lines[start:at]) + "\n")
        block = Block(opening[3].strip(), source, start + 1)
        if adjacent and block.language == "text" and found[-1].language == "python":
            found[-1] = Block("python", found[-1].source, found[-1].line, prints=source)
        found.append(block)
        at, adjacent = at + 1, True
    return found


def run(page: Path) -> None:
    """Run the Python blocks of a page; `AssertionError` names a block that prints otherwise."""
    module = types.ModuleType("page")
    module.__file__ = str(page)
    # Dataclasses and type hints look their module up by name.
    sys.modules[module.__name__] = module
    for block in blocks(page):
        if block.language != "python":
            continue
        # As many empty lines before it as in the page, so that a traceback shows the page's line.
        code = compile("\n" * (block.line - 1) + block.source, str(page), "exec", dont_inherit=True)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, module.__dict__)
        if block.prints is not None and printed.getvalue().rstrip() != block.prints.rstrip():
            raise AssertionError(
                f"{page}:{block.line}: the page states\n{block.prints}\n"
                f"but the block prints\n{printed.getvalue()}"
            )


def commands(page: Path) -> list[list[str]]:
    """The words of every command in the shell blocks of a page, one list each."""
    found = []
    for block in blocks(page):
        if block.language not in ("sh", "bash"):
            continue
        for line in block.source.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars="();<>|&")
            lexer.whitespace_split = True
            command: list[str] = []
            for word in [*lexer, ";"]:
                if not set(word) <= set(";|&"):
                    command.append(word)
                elif command:
                    found.append(command)
                    command = []
    return found


if __name__ == "__main__":
    run(Path(sys.argv[1]).resolve())
