"""Gaps between the buffers of an arena, filled before a run and checked after it.

A recipe with gaps reuses no memory, so whatever stands in a gap after a run was written by a step
that went beyond its buffers.  Invariant: without gaps nothing is done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from retrograde.compiler.errors import OverrunError
from retrograde.compiler.program import BufferSpec, Recipe
from retrograde.runtime.protocol import Device

_PATTERN = 0xA5


class Zone(NamedTuple):
    """A gap of `bytes` at `offset`, and the buffers on both sides of it."""

    offset: int
    bytes: int
    before: BufferSpec | None
    behind: BufferSpec | None


def of(recipe: Recipe, sizes: Mapping[str, int]) -> list[Zone]:
    """The gaps of a recipe at its sizes; none where it has none."""
    if not recipe.gap:
        return []
    offsets, _, height = recipe.layout(sizes)
    sides = [None, *recipe.buffers, None]
    ends = [offset - recipe.gap for offset in offsets] + [height - recipe.gap]
    return [Zone(at, recipe.gap, sides[i], sides[i + 1]) for i, at in enumerate(ends)]


def fill(device: Device, arena: Any, zones: Sequence[Zone]) -> None:
    """Writes the pattern into all gaps."""
    for zone in zones:
        device.write(_view(arena, zone), np.full(zone.bytes, _PATTERN, np.uint8))


def check(program: str, device: Device, arena: Any, zones: Sequence[Zone]) -> None:
    """Raises OverrunError for the first gap that holds anything else."""
    for zone in zones:
        changed = np.flatnonzero(device.read(_view(arena, zone)) != _PATTERN)
        if not len(changed):
            continue
        first, last = int(changed[0]), int(changed[-1])
        raise OverrunError(
            f"{program}: a step wrote outside of its buffers, {len(changed)} bytes from "
            f"{first} to {last + 1} of the {zone.bytes} between {_told(zone.before)} and "
            f"{_told(zone.behind)}"
        )


def _view(arena: Any, zone: Zone) -> Any:
    return arena.view(zone.offset, np.dtype(np.uint8), (zone.bytes,), None)


def _told(buffer: BufferSpec | None) -> str:
    if buffer is None:
        return "the end of the arena"
    name = " ".join(filter(None, (buffer.kind, buffer.name)))
    made = f", of steps {buffer.start} to {buffer.end - 1}"
    return f"the {name}" + (f" of {buffer.place}" if buffer.place else "") + made
