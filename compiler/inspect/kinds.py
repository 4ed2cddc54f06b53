"""What the buffers of a plan hold, over time: Planned, sizes -> bars, each with its kind.

Invariant: the bars of a buffer lie within its lifetime, and every buffer has at least one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from retrograde.compiler.ir.graph import Node
from retrograde.compiler.plan.build import Planned
from retrograde.compiler.plan.liveness import walk
from retrograde.compiler.plan.recipe import Recipe
from retrograde.compiler.plan.steps import Schedule, Step, reads, writes
from retrograde.compiler.plan.views import Storage

# In the order of a legend.
KINDS = ("state", "input", "value", "saved for backward", "recomputed", "gradient", "update",
         "scratch")  # fmt: skip
_OF_ROLE = {"primal": "value", "cotangent": "gradient", "recompute": "recomputed"}


@dataclass(frozen=True)
class Bar:
    """What lies at `offset` from step `start` to step `end - 1`; bytes."""

    name: str
    kind: str
    bytes: int
    offset: int
    start: int
    end: int
    place: str


def bars(recipe: Recipe, planned: Planned, sizes: Mapping[str, int]) -> list[Bar]:
    """What is in the arena at `sizes`, those that the recipe leaves open included.  Where results
    took the place of operands, later bars lie on top of the first."""
    offsets, *_ = recipe.layout(sizes)
    size = recipe.buffer_bytes(sizes)
    kinds = storage_kinds(planned.schedule)
    liveness = planned.liveness
    found = []
    for storage, at in planned.places.items():
        b = recipe.buffers[at]
        kind = kinds.get(storage, storage.kind)
        found.append(Bar(b.name, kind, size[at], offsets[at], b.start, b.end, b.place))
    for storage in liveness.merged:
        home = liveness.home(storage)
        if home.kind == "state":
            continue
        at, life = planned.places[home], liveness.lives[storage]
        kind = kinds.get(storage, storage.kind)
        found.append(
            Bar(storage.name, kind, size[at], offsets[at], life.first, life.last + 1, storage.place)
        )
    return found


def storage_kinds(schedule: Schedule) -> dict[Storage, str]:
    """By storage, one of `KINDS`: of values, by the role of what makes them; "saved for backward"
    is what the way forward made and the way back reads."""
    kinds: dict[Storage, str] = {}
    for step, node in _nodes(schedule):
        made = _OF_ROLE.get(node.origin.role, "update")
        for view in writes(step):
            if view.storage.kind == "value":
                kinds.setdefault(view.storage, made)
    for step, node in _nodes(schedule):
        if node.origin.role not in ("cotangent", "recompute"):
            continue
        for view in reads(step):
            if kinds.get(view.storage) == "value":
                kinds[view.storage] = "saved for backward"
    return kinds


def _nodes(schedule: Schedule) -> Iterator[tuple[Step, Node]]:
    for _, step, _ in walk(schedule.steps):
        if step.node is not None:
            yield step, step.node
