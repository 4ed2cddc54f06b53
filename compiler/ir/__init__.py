"""The intermediate representation: types, symbolic dimensions, graphs and their text form."""

from __future__ import annotations

from retrograde.compiler.ir.text import parse

__all__ = ["parse"]
