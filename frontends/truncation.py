"""Truncated backpropagation through time: how many steps the gradients of loops go back.

Invariant: what is set holds for the outermost loops that are traced meanwhile, not for loops in
the bodies of loops.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np

from retrograde.compiler.errors import DataError
from retrograde.compiler.ir.location import where

_steps: ContextVar[int | None] = ContextVar("retrograde_truncate", default=None)


@contextmanager
def truncated(steps: int | None) -> Iterator[None]:
    """Cuts the gradient of every loop traced inside after each run of `steps` steps."""
    token = _steps.set(steps)
    try:
        yield
    finally:
        _steps.reset(token)


def truncation(given: Any) -> int | None:
    """The steps of a run that hold for a loop: those `given` to it, else those set around it."""
    return _steps.get() if given is None else checked_truncation(given)


def checked_truncation(steps: Any) -> int | None:
    """`steps` as an int of at least 1, or None; DataError for anything else."""
    if steps is None:
        return None
    whole = isinstance(steps, (int, np.integer)) and not isinstance(steps, bool)
    if not whole or steps < 1:
        raise DataError(
            f"{where()}truncate={steps!r}: give the number of steps that gradients go back, at "
            "least 1, or None for all of them"
        )
    return int(steps)
