"""Generated Python -> the function that binds it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from retrograde.runtime.protocol import Bound


def bind_of(source: str, file: str) -> Callable[..., Bound]:
    """The `bind` of a schedule's source, which tracebacks call `file`."""
    namespace: dict[str, Any] = {}
    exec(compile(source, file, "exec"), namespace)
    found: Callable[..., Bound] = namespace["bind"]
    return found
