"""Passes that are asked for around a trace: inside, each gradient is derived of what they make.

A gradient is derived while a model is traced, so what is to be rewritten with a gradient of its own
must be rewritten before `Backward` looks at it.  Invariant: nothing changes where nothing is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Generic, TypeVar

from retrograde.compiler.ir.graph import Graph

Pass = TypeVar("Pass", bound=Callable[[Graph], Graph])


class Asked(Generic[Pass]):
    """One such pass; `default` makes the one that is meant where none is given."""

    def __init__(self, name: str, default: Callable[[], Pass]) -> None:
        self._now: ContextVar[Pass | None] = ContextVar(name, default=None)
        self._default = default

    @contextmanager
    def around(self, transform: Pass | None = None) -> Iterator[Pass]:
        """Inside, what is differentiated is rewritten by `transform` first; by default, by what is
        asked for around."""
        transform = transform or self._now.get() or self._default()
        token = self._now.set(transform)
        try:
            yield transform
        finally:
            self._now.reset(token)

    def applied(self, graph: Graph) -> Graph:
        """What `Backward` differentiates in the place of `graph`."""
        transform = self._now.get()
        return graph if transform is None else transform(graph)
