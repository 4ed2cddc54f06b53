"""Pages -> the same pages with what their Python blocks print today in the `text` blocks.

Invariant: nothing but the `text` blocks that directly follow a Python block changes. Printed line
numbers of a page can move with its own outputs, so it is run until it stays as it is.

    python tools/docs_outputs.py docs/architecture.md
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
import types
from pathlib import Path

import docs_blocks

ROUNDS = 4


def refreshed(page: Path) -> str:
    """The text of the page with the outputs of one run, in a scratch folder."""
    lines = page.read_text(encoding="utf-8").splitlines()
    found = docs_blocks.blocks(page)
    module = types.ModuleType("page")
    module.__file__ = str(page)
    sys.modules[module.__name__] = module
    changes: list[tuple[int, int, list[str]]] = []  # first line, last line, what stands there
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for at, block in enumerate(found):
            if block.language != "python":
                continue
            source = "\n" * (block.line - 1) + block.source
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(source, str(page), "exec", dont_inherit=True), module.__dict__)
            if block.prints is not None:
                first = found[at + 1].line - 1
                fence = lines[first - 1].strip().removesuffix("text")
                last = lines.index(fence, first)
                changes.append((first, last, printed.getvalue().rstrip().splitlines()))
    for first, last, text in reversed(changes):
        lines[first:last] = text
    return "\n".join(lines) + "\n"


def main(pages: list[str]) -> int:
    os.environ["RETROGRADE_BACKEND"] = "numpy"  # whose numbers are the same on every machine
    for name in pages:
        page = Path(name).resolve()
        for _ in range(ROUNDS):
            before, after = page.read_text(encoding="utf-8"), refreshed(page)
            if before == after:
                break
            page.write_text(after, encoding="utf-8")
        else:
            print(f"{name}: prints something else at every run", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
