"""Which path a module has in the model being traced: module -> scope of the nodes it makes; and how
often a path has asked for something of its own (a key for its dropout).

While a trace is at work, every module that is put together for it says its path.  Invariant: a
module called during a trace runs under its own path, from wherever it is called; one that no trace
put together (it came by closure) is a root, and its parts get their paths when it is called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any

from retrograde.compiler.ir.location import current_scope, scope_at

_Bound = dict[int, tuple[Any, str]]  # id -> the module, which stays alive, and its path

_bound: ContextVar[_Bound | None] = ContextVar("retrograde_module_paths", default=None)


@contextmanager
def binding() -> Iterator[None]:
    """Modules put together inside are known by their paths."""
    token = _bound.set(dict(_bound.get() or {}))
    try:
        yield
    finally:
        _bound.reset(token)


def bind(module: Any, path: str) -> None:
    """Says where `module` stands in its model; nothing happens outside of a trace."""
    found = _bound.get()
    if found is not None:
        found[id(module)] = (module, path)


@contextmanager
def entered(module: Any, parts: Callable[[Any], Iterable[tuple[Any, str]]]) -> Iterator[None]:
    """Runs the call of `module` under its path; `parts` lists a root's modules with their paths."""
    found = _bound.get()
    if found is not None and id(module) in found:
        with scope_at(found[id(module)][1]):
            yield
        return
    around = current_scope()
    with binding():
        for part, path in parts(module):
            bind(part, ".".join(name for name in (around, path) if name))
        yield


# --- how often a path has asked

_asked: ContextVar[dict[str, int] | None] = ContextVar("retrograde_asked", default=None)


@contextmanager
def counting() -> Iterator[None]:
    """Inside, paths count from zero."""
    token = _asked.set({})
    try:
        yield
    finally:
        _asked.reset(token)


def asked(path: str) -> int:
    """How often `path` has asked before; asking counts."""
    counts = _asked.get()
    if counts is None:
        return 0
    counts[path] = counts.get(path, 0) + 1
    return counts[path] - 1


def repeated() -> Callable[[], AbstractContextManager[None]]:
    """For the body of a loop: each time that it is entered, paths count from the same numbers.

    So a body that is traced once and one that runs step by step get the same keys."""
    outer = _asked.get()
    before = dict(outer or {})

    @contextmanager
    def body() -> Iterator[None]:
        if outer is None:
            yield
            return
        inner = dict(before)
        token = _asked.set(inner)
        try:
            yield
        finally:
            _asked.reset(token)
            outer.update(inner)

    return body
