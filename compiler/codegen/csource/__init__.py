"""The C that generated files are made from: the name of a part -> its text.

Invariant: a part includes nothing but the C library; what it needs of other parts comes before it.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files


@cache
def part(name: str) -> str:
    """The text of the header `name`, such as "base"."""
    return files(__name__).joinpath(f"{name}.h").read_text(encoding="utf-8")
