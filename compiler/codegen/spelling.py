"""Sizes and attributes as Python text: `Dim` and attribute values -> expressions over the symbols.

Invariant: no name of a size means anything else in generated text; a size called as one of its
variables gets another name there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from retrograde.compiler.ir import dims
from retrograde.compiler.ir.dims import Dim, Poly
from retrograde.compiler.ir.dtypes import DType
from retrograde.compiler.ir.graph import Attrs, Graph

INDENT = "    "
_TAKEN = re.compile(
    r"memory|m|at|bytes|rt|xp|run|bind|support|range|float|len|start|rows|first|turn"
    r"|(?:v|c|f|i|x|y|t|tiles|part|parts|turns|live|run)\d+"
)
_OWN = {"__rows__": "rows", "__first__": "first"}  # which rows of a batch a turn runs


class Spelling:
    """The text of sizes, given the names of all symbols."""

    def __init__(self, symbols: Sequence[str]) -> None:
        self._renamed: dict[str, str] = dict(_OWN)
        used = set(symbols)
        for name in symbols:
            if _TAKEN.fullmatch(name):
                other = f"{name}_"
                while other in used:
                    other += "_"
                used.add(other)
                self._renamed[name] = other
        self.names = [self._renamed.get(name, name) for name in symbols]

    def size(self, d: Dim) -> str:
        """A size as an expression."""
        if isinstance(d, Poly):
            changed = {
                s.name: dims.dim(self._renamed[s.name], s.min, s.max)
                for s in dims.symbols(d)
                if s.name in self._renamed
            }
            d = dims.substitute(d, changed) if changed else d
        return dims.source(d)

    def shape(self, items: Sequence[Dim]) -> str:
        """A tuple of sizes."""
        inner = ", ".join(map(self.size, items))
        return f"({inner},)" if len(items) == 1 else f"({inner})"

    def keywords(self, attrs: Attrs) -> list[str]:
        """Attributes as the keyword arguments of a call."""
        return [f"{k}={self.attribute(v)}" for k, v in sorted(attrs.items())]

    def mapping(self, attrs: Attrs) -> str:
        """Attributes as a dictionary."""
        items = (f"{k!r}: {self.attribute(v)}" for k, v in sorted(attrs.items()))
        return "{" + ", ".join(items) + "}"

    def attribute(self, x: Any) -> str:
        """The value of an attribute."""
        if isinstance(x, Poly):
            return self.size(x)
        if isinstance(x, DType):
            return f"rt.dtype({x.name!r})"
        if isinstance(x, tuple):
            return "(" + "".join(f"{self.attribute(item)}, " for item in x) + ")"
        if isinstance(x, Graph):
            raise TypeError("regions are lowered before they are printed")
        return number(x) if isinstance(x, float) else repr(x)


def number(value: bool | int | float) -> str:
    """A scalar, also one that has no literal."""
    text = repr(value)
    return f"float({text!r})" if text in ("inf", "-inf", "nan") else text


def comment(text: str) -> str:
    """Text from a model on one line, whatever it holds: it can never become a statement."""
    return text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)
