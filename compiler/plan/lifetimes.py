"""Lifetimes of buffers.  Input: what lives when and how large; output: the max-live bound.

Invariant: a lifetime is half-open, [start, end), so a buffer that ends where another starts does
not meet it.  Plain data: nothing here knows the IR.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retrograde.compiler.errors import DataError

# Offsets are computed in 64 bits; sums of sizes beyond this could wrap around unseen.
LARGEST = 2**60


@dataclass(frozen=True, slots=True)
class Buffer:
    """`size` bytes that are needed from `start` until just before `end`."""

    start: int
    end: int
    size: int

    def __post_init__(self) -> None:
        for name in ("start", "end", "size"):
            object.__setattr__(self, name, whole(getattr(self, name), f"Buffer.{name}"))
        if self.end < self.start:
            raise DataError(
                f"a buffer cannot end before it starts: start={self.start}, end={self.end}; "
                "lifetimes are half-open, [start, end)"
            )
        if self.size < 0:
            raise DataError(f"a buffer cannot have a negative size: size={self.size}")


def whole(value: object, what: str) -> int:
    """`value` as a Python int; anything that is not an integer is refused, truth values too."""
    if type(value) is int:
        return value
    if isinstance(value, (bool, np.bool_)):
        raise DataError(f"{what} must be an integer, not the truth value {value!r}")
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        kind = type(value).__name__
        raise DataError(f"{what} must be an integer, not {value!r} ({kind})") from None


def check_buffers(buffers: Sequence[Buffer], align: int = 1) -> None:
    """Raise unless every item is a `Buffer` and all numbers, and their sum, fit 64 bits."""
    for index, buffer in enumerate(buffers):
        if not isinstance(buffer, Buffer):
            raise DataError(
                f"item {index} is {buffer!r} ({type(buffer).__name__}); "
                "write Buffer(start, end, size)"
            )
        if max(-buffer.start, buffer.end) > LARGEST:
            raise DataError(f"item {index} lives beyond the {LARGEST} instants allowed: {buffer}")
    total = sum(round_up(buffer.size, align) for buffer in buffers)
    if total > LARGEST:
        raise DataError(f"the sizes add up to {total} bytes, more than the {LARGEST} allowed")


def round_up(size: int, align: int) -> int:
    """The smallest multiple of `align` that holds `size`."""
    return -(-size // align) * align


def lower_bound(buffers: Sequence[Buffer], align: int = 1) -> int:
    """A height that no placement can beat, exact: the largest total size alive at one instant.

    A buffer that lives for no time still has to fit, so the largest single size counts as well.
    """
    check_buffers(buffers, align)
    # At one instant the ends come before the starts: half-open lifetimes do not meet there.
    events: list[tuple[int, int]] = []
    largest = 0
    for buffer in buffers:
        size = round_up(buffer.size, align)
        largest = max(largest, size)
        if buffer.end > buffer.start:
            events.append((buffer.start, size))
            events.append((buffer.end, -size))
    events.sort()
    live = 0
    for _, change in events:
        live += change
        largest = max(largest, live)
    return largest
