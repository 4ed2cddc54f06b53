"""Data sets: a name -> the module that reads it, and the packages it is read from.

Every module has `PACKAGES`, `ABOUT` (one line), `load()` and, where it reads archives, `parse(...)`
from members to plain arrays and lists.  Invariant: a data set has a fixed split, and nothing of
its packages is imported or run.
"""

from __future__ import annotations

import difflib
from importlib import import_module
from pathlib import Path
from types import ModuleType

from retrograde.compiler.errors import DataError
from retrograde.runtime.data import packages

NAMES = (
    "bible",
    "brown",
    "cartpole",
    "cmudict",
    "japanese_vowels",
    "python_tokens",
    "weather",
)


def module(name: str) -> ModuleType:
    """The module of a data set; `-` counts as `_`.  Raises `DataError` for an unknown name."""
    plain = name.replace("-", "_")
    if plain not in NAMES:
        near = difflib.get_close_matches(plain, NAMES, 1)
        meant = f" Do you mean {near[0]}?" if near else ""
        raise DataError(f"there is no data set {name!r}.{meant} There are: {', '.join(NAMES)}.")
    return import_module(f"{__name__}.{plain}")


def packages_of(name: str) -> tuple[packages.Package, ...]:
    """What a data set is read from; empty where it needs no download."""
    pinned: tuple[packages.Package, ...] = module(name).PACKAGES
    return pinned


def fetch(name: str) -> tuple[Path, ...]:
    """The files of a data set, downloaded where they are not in the cache."""
    return tuple(packages.fetch(package) for package in packages_of(name))
