"""Where a node came from: the user's file and line, and the module scope being traced.

Input: the Python stack at trace time; invariant: a `Loc` never points inside Retrograde itself,
except for models that ship with it (`retrograde.models`, `nn`, `recipes`), whose callers are users.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from types import FrameType

import numpy as np

_COMPILER_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_NUMPY_ROOT = os.path.dirname(os.path.abspath(np.__file__)) + os.sep


@dataclass(frozen=True, slots=True)
class Loc:
    """A source position; `file` is absolute, printed by its base name."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{_base_name(self.file)}:{self.line}"

    @property
    def full(self) -> str:
        """The position with its whole path, as error messages show it."""
        return f"{self.file}:{self.line}"


@cache
def _base_name(file: str) -> str:
    return os.path.basename(file)


_skip_prefixes: list[str] = [_COMPILER_ROOT, _NUMPY_ROOT]
_skip_cache: dict[str, bool] = {}


def skip_frames_under(prefix: str) -> None:
    """Registers a folder or file whose frames are not the user's (each layer registers itself)."""
    _skip_prefixes.append(os.path.abspath(prefix))
    _skip_cache.clear()


def _is_internal(filename: str) -> bool:
    known = _skip_cache.get(filename)
    if known is None:
        path = os.path.abspath(filename)
        known = any(path.startswith(p) for p in _skip_prefixes) or filename.startswith("<frozen")
        _skip_cache[filename] = known
    return known


def caller(outside: str = "") -> Loc | None:
    """The innermost frame that is not part of Retrograde, nor of the folder `outside`, or None."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        passed = bool(outside) and os.path.abspath(file).startswith(outside)
        if not passed and not _is_internal(file):
            return Loc(frame.f_code.co_filename, frame.f_lineno)
        frame = frame.f_back
    return None


def where(loc: Loc | None = None, outside: str = "") -> str:
    """A message prefix such as `model.py:12: ` for `loc`, or for the calling user's line.

    `outside` is a folder whose frames are not taken for the user's, in this message."""
    found = loc or caller(outside)
    return f"{found.full}: " if found else ""


_scope: ContextVar[str] = ContextVar("retrograde_scope", default="")


def current_scope() -> str:
    """The dotted module path being traced, "" at top level."""
    return _scope.get()


@contextmanager
def scope(name: str) -> Iterator[None]:
    """Names what is traced inside: nested scopes are joined by dots."""
    outer = _scope.get()
    with scope_at(f"{outer}.{name}" if outer else name):
        yield


@contextmanager
def scope_at(path: str) -> Iterator[None]:
    """Names what is traced inside by a whole path, whatever scope is around."""
    token = _scope.set(path)
    try:
        yield
    finally:
        _scope.reset(token)
