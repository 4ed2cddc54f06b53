"""What was decided about the values of a plan: Planned, its graph -> who is kept, computed again,
fused or in place, and what that gives and costs.

Invariant: every output of the scheduled nodes, those within fused ones included, has one decision;
bytes and operations are those that the plan and the cost of the ops say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from retrograde.compiler.inspect.kinds import storage_kinds
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.graph import Graph, Node, Value
from retrograde.compiler.plan.build import Planned
from retrograde.compiler.plan.liveness import walk
from retrograde.compiler.plan.steps import (
    ChainStep,
    CopyStep,
    FusedStep,
    MatmulStep,
    OpStep,
    PackStep,
    Step,
    reads,
    writes,
)
from retrograde.compiler.plan.views import Storage, View


@dataclass(frozen=True)
class Decision:
    """What became of one value.

    `fate`: kept (for the way back), again (computed a second time here), fused (never in memory),
    view (of another value), state, or stored.  `operations` make it out of what its step reads.
    `start` and `end`: the first step that writes it and the last that reads it.  `over`: whose
    place it takes.  `again`: the steps at which it is computed again, `gap`: those between its
    last reader and the first of them, in which its bytes are free."""

    node: Node
    value: Value
    fate: str
    bytes: Dim
    operations: Dim
    step: int
    end: int
    over: str = ""
    again: tuple[int, ...] = ()
    reader: str = ""  # the line of the last step of the way back that reads it

    @property
    def gap(self) -> int:
        return max(0, self.again[0] - self.end - 1) if self.again else 0


def decisions(planned: Planned, graph: Graph) -> list[Decision]:
    """One decision for each value of `graph`, the scheduled one, in the order of steps."""
    positions: dict[Node, tuple[int, Step | None]] = {}
    for position, at_work, _ in walk(planned.schedule.steps):
        node = at_work.node
        if node is not None and not isinstance(at_work, (ChainStep, CopyStep, PackStep)):
            positions.setdefault(node, (position, at_work))
    kinds = storage_kinds(planned.schedule)
    owners, ends = _owners(planned), _ends(planned)
    readers = _readers(planned)
    made: list[Decision] = []
    clones: dict[int, list[int]] = {}  # by the id of a node: the steps that repeat it
    for node, outer in _every(graph):
        position, step = positions.get(outer, (-1, None))
        if node.origin.made_by == "remat" and node.origin.role == "recompute" and position >= 0:
            clones.setdefault(node.origin.ancestors[0], []).append(position)
        for value in node.outputs:
            storage = _storage(step, outer, node, value)
            fate = _fate(node, outer, storage, position, kinds)
            end, over = position, ""
            if storage is not None:
                end = ends.get(storage, position)
                if storage in planned.liveness.merged:
                    over = _called(planned.liveness.merged[storage], owners)
            reader = readers.get(storage, "") if storage is not None else ""
            cost = node.op.cost(
                [v.type for v in node.inputs], [v.type for v in node.outputs], node.attrs
            )
            made.append(
                Decision(
                    node, value, fate, value.type.bytes, cost, position, end, over, (), reader
                )
            )
    return [_with_clones(d, clones) for d in made]


def _with_clones(d: Decision, clones: Mapping[int, Sequence[int]]) -> Decision:
    if d.fate == "again" or d.node.id not in clones:
        return d
    again = tuple(sorted(clones[d.node.id]))
    return Decision(
        d.node, d.value, "stored" if d.fate == "kept" else d.fate, d.bytes, d.operations, d.step,
        d.end, d.over, again, d.reader,
    )  # fmt: skip


def _every(graph: Graph) -> Iterator[tuple[Node, Node]]:
    """(a node, the node of the schedule that it is part of): those that were fused, one by one."""
    for node in graph.nodes:
        if node.op.name != "fused":
            yield node, node
            continue
        for inner in node.attrs["body"].nodes:
            yield inner, node


def _storage(step: Step | None, outer: Node, node: Node, value: Value) -> Storage | None:
    """Where a step leaves a value; None where it does not."""
    if step is None:
        return None
    if isinstance(step, FusedStep):
        results = outer.attrs["body"].outputs
        return step.results[results.index(value)].storage if value in results else None
    if isinstance(step, (OpStep, MatmulStep)):
        at = node.outputs.index(value)
        return step.results[at].storage if at < len(step.results) else None
    places = [v.storage for v in writes(step) if v.storage.kind != "scratch"]
    return places[0] if len(places) == 1 else None


def _fate(
    node: Node, outer: Node, storage: Storage | None, position: int, kinds: Mapping[Storage, str]
) -> str:
    if position < 0:
        return "view"
    if node.origin.role == "recompute":
        return "again"
    if storage is None:
        return "fused" if outer is not node else "stored"
    if storage.kind == "state":
        return "state"
    return "kept" if kinds.get(storage) == "saved for backward" else "stored"


def _owners(planned: Planned) -> dict[Storage, Node]:
    found: dict[Storage, Node] = {}
    for _, step, _ in walk(planned.schedule.steps):
        if step.node is not None:
            for view in writes(step):
                found.setdefault(view.storage, step.node)
    return found


def _ends(planned: Planned) -> dict[Storage, int]:
    """By storage: the last step that reads it, as itself: what takes its place lives on."""
    found: dict[Storage, int] = {}
    for _, step, end in walk(planned.schedule.steps):
        if not isinstance(step, ChainStep):
            found.update((view.storage, end) for view in reads(step))
    for view in planned.schedule.outputs:
        if isinstance(view, View):
            found[view.storage] = planned.liveness.steps - 1
    return found


def _called(storage: Storage, owners: Mapping[Storage, Node]) -> str:
    """How people know what lies in a storage."""
    if storage.kind in ("state", "input"):
        return storage.name
    node = owners.get(storage)
    return " ".join(filter(None, (storage.name, node.place if node else storage.place)))


def _readers(planned: Planned) -> dict[Storage, str]:
    """By storage: the last step of the way back that reads it."""
    found: dict[Storage, str] = {}
    for position, step, _ in walk(planned.schedule.steps):
        node = step.node
        if node is None or isinstance(step, ChainStep) or node.origin.role == "primal":
            continue
        for view in reads(step):
            found[view.storage] = f"{node.op.name} at step {position}"
    return found
