"""Planning: an ordered graph -> steps, lifetimes, and the order of the buffers in the arena.

Invariant: the placement is made at reference sizes and kept as an orientation, so that at every
other size offsets are evaluated, not searched.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from retrograde.compiler.ir import dims
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.graph import Graph, Node
from retrograde.compiler.ops.region import graph_cost
from retrograde.compiler.passes.regions import is_apart
from retrograde.compiler.plan.decided import Decided, buffers_digest
from retrograde.compiler.plan.lifetimes import lower_bound
from retrograde.compiler.plan.liveness import Liveness, analyse
from retrograde.compiler.plan.lower import lower
from retrograde.compiler.plan.memory import Buffer, Orientation, Placement, orient, place
from retrograde.compiler.plan.recipe import Runs, TimeLoop
from retrograde.compiler.plan.specs import BufferSpec, Port
from retrograde.compiler.plan.steps import Schedule
from retrograde.compiler.plan.views import ALIGNMENT, Storage


@dataclass(frozen=True)
class Planned:
    """A schedule with everything decided about its memory."""

    schedule: Schedule
    liveness: Liveness
    places: Mapping[Storage, int]  # the index of each storage among the buffers
    buffers: tuple[BufferSpec, ...]
    orientation: Orientation
    placement: Placement
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    returned: tuple[int, ...]
    searched: bool = True  # False: the places are those that were given


def plan_program(
    graph: Graph,
    sizes: Mapping[str, int],
    inplace: bool = True,
    threads: int = 1,
    native: bool = False,
    decided: Decided | None = None,
    blas: Collection[str] = (),
) -> Planned:
    """Lowers `graph` in its order and places its buffers at the reference `sizes`, as `decided`
    if that is about the same buffers."""
    schedule, liveness = analyse(lower(graph, threads, native, blas, sizes), inplace)
    state = [v.storage for v in schedule.inputs if v.storage.kind == "state"]
    transient = [s for s in liveness.buffers() if s.kind != "state"]
    storages = [*state, *transient]
    places = {storage: i for i, storage in enumerate(storages)}
    end = liveness.steps
    specs = []
    for s in storages:
        life = liveness.lives[s]
        start, last = (0, end) if s.kind == "state" else (life.first, life.last + 1)
        specs.append(BufferSpec(s.name, s.kind, s.bytes, start, last, s.place))
    buffers = [
        Buffer(b.start, b.end, dims.evaluate(b.bytes, sizes)) for b in specs[len(state) :]
    ]
    known = decided is not None and decided.buffers == buffers_digest(specs)
    if known and decided is not None:
        height = max(map(lambda b, o: b.size + o, buffers, decided.offsets), default=0)
        placement = Placement(decided.offsets, height, lower_bound(buffers, ALIGNMENT))
    else:
        placement = place(buffers, align=ALIGNMENT)
    donated = {i for _, i in graph.aliases}
    replaced = {o for o, _ in graph.aliases}
    names = graph.output_names or ("",) * len(graph.outputs)
    input_names = graph.input_names or ("",) * len(graph.inputs)
    return Planned(
        schedule=schedule,
        liveness=liveness,
        places=places,
        buffers=tuple(specs),
        orientation=orient(buffers, placement.offsets),
        placement=placement,
        inputs=tuple(
            Port(name, v.type, i in donated)
            for i, (v, name) in enumerate(zip(graph.inputs, input_names, strict=True))
        ),
        outputs=tuple(
            Port(name, v.type, o in replaced)
            for o, (v, name) in enumerate(zip(graph.outputs, names, strict=True))
        ),
        returned=tuple(o for o in range(len(graph.outputs)) if o not in replaced),
        searched=not known,
    )



def time_loops(graph: Graph, turns: int = 1) -> tuple[TimeLoop, ...]:
    """The loops of `graph` that run back from kept states, with what it costs to find more; their
    segments are multiples of `turns` steps."""
    found = []
    for node, times in _outermost(graph):
        if node.op.name != "scan_replay":
            continue
        attrs = node.attrs
        step, again = (
            dims.substitute(graph_cost(attrs[name]), {attrs["symbol"]: 1})
            for name in ("advance", "again")
        )
        step, again = times * step, times * again
        slots = attrs["slots"]
        given = slots if isinstance(slots, int) else None
        found.append(
            TimeLoop(
                attrs["length"], step, again, attrs["symbol"], "" if given else str(slots),
                attrs.get("truncate"), given, 1 if given else turns,
            )
        )  # fmt: skip
    return tuple(found)


def loops_in_runs(graph: Graph) -> tuple[Runs, ...]:
    """The loops of `graph` whose runs are as long as the gradient goes back."""
    return tuple(
        Runs(node.attrs["symbol"], node.attrs["length"], node.attrs["truncate"])
        for node, _ in _outermost(graph)
        if node.op.name == "scan_sweep" and node.attrs["rest_last"]
    )


def _outermost(graph: Graph, times: Dim = 1) -> Iterator[tuple[Node, Dim]]:
    """The outermost nodes, and how often each runs."""
    for node in graph.nodes:
        yield node, times
        if is_apart(node):
            yield from _outermost(node.attrs["body"], node.attrs["length"] * times)
