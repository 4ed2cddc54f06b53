"""The steps of a schedule: what a device does, in order, on views of the arena.

Invariant: a step reads its operands and writes its results and its scratch, nothing else; views
already say where everything lies, so a printer only has to spell the steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.dims_poly import of_atom
from retrograde.compiler.ir.dims_terms import Symbol
from retrograde.compiler.ir.graph import Node
from retrograde.compiler.plan.sweeps import Sweeps
from retrograde.compiler.plan.views import Operand, Storage, View


@dataclass(frozen=True, eq=False)
class OpStep:
    """One op, lowered by its kind or evaluated by its reference."""

    node: Node
    operands: tuple[Operand, ...]
    results: tuple[View, ...]
    scratch: tuple[View, ...] = ()


@dataclass(frozen=True, eq=False)
class CopyStep:
    """`result[...] = operand`; `why` says what made the copy necessary."""

    operand: Operand
    result: View
    why: str
    node: Node | None = None


@dataclass(frozen=True, eq=False)
class MatmulStep:
    """A batched matrix product of views shaped (batch…, m, k), (batch…, k, n), (batch…, m, n)."""

    node: Node
    operands: tuple[View, View]
    results: tuple[View]
    panels: View | None = None  # the right operand as a `PackStep` left it
    blas: bool = False  # whether a BLAS computes it, from the operands as they lie


@dataclass(frozen=True, eq=False)
class PackStep:
    """Puts the matrices of `operand`, (batch…, k, n), into panels of some columns each, one row
    after the other, as a product reads them: f16 and bf16 in f32."""

    node: Node
    operand: View
    result: View


@dataclass(frozen=True, slots=True)
class Tile:
    """A variable of a fused step: the tile of operand, result or scratch `index`."""

    role: str  # "x", "y" or "t"
    index: int

    def __str__(self) -> str:
        return f"{self.role}{self.index}"


tile = lru_cache(maxsize=1 << 10)(Tile)  # schedules are kept, and most of them name the same tiles


@dataclass(frozen=True, eq=False, slots=True)
class Statement:
    """One op of a fused step, on tiles."""

    node: Node
    operands: tuple[Tile, ...]
    result: Tile


@dataclass(frozen=True, eq=False)
class FusedStep:
    """Statements that run together on one tile after the other of the space `shape`.

    `rows[k]` tells that scratch `k` holds one element per row."""

    node: Node
    shape: tuple[Dim, ...]
    operands: tuple[Operand, ...]
    results: tuple[View, ...]
    scratch: tuple[View, ...]
    rows: tuple[bool, ...]
    statements: tuple[Statement, ...]
    whole_rows: bool  # the last axis is reduced over, so tiles hold it whole
    sweeps: Sweeps | None = None  # how a kernel runs it; `scratch` is what they keep then


@dataclass(frozen=True, eq=False)
class LoopStep:
    """A loop over time.  Before it: carries are set; each turn: slices in, body, results out.

    What the steps of the body can read or write where it lies is not copied: it has the views that
    move with the turns of `turns`; the stacked results written so are `direct`."""

    node: Node
    length: Dim
    reverse: bool
    carries: tuple[tuple[Operand, View], ...]  # (initial value, the carry's place)
    slices: tuple[tuple[View, View], ...]  # (stacked operand, its place within a turn)
    body: tuple[Step, ...]
    updates: tuple[tuple[Operand, View], ...]  # (new carry, the carry's place)
    stacked: tuple[tuple[Operand, View], ...]  # (a turn's result, the stacked result)
    captured: tuple[View, ...]  # read by the body, defined outside
    direct: tuple[View, ...] = ()
    turns: object = None
    rows: Rows | None = None  # of a ragged loop that can leave rows out
    split: Rows | None = None  # of a loop whose rows threads can share out, for all of its turns

    @property
    def mask(self) -> View | None:
        """Of a ragged loop, which rows have which step: bool [time, batch]."""
        live = self.node.attrs.get("live")
        return None if live is None else self.slices[live][0]


@dataclass(frozen=True, eq=False)
class Rows:
    """A turn of a ragged loop on the first rows of the batch alone: the parts of a `LoopStep`, with
    views of rows that end at the size ROWS.  Everything lies where it lies for the whole batch."""

    slices: tuple[tuple[View, View], ...]
    body: tuple[Step, ...]
    updates: tuple[tuple[Operand, View], ...]
    stacked: tuple[tuple[Operand, View], ...]
    axes: tuple[int | None, ...]  # the axis of each stacked result that holds the batch
    batch: Dim = 0  # how many rows there are in all


# How many rows a turn runs, spelled `rows` in generated code, and the first of them where threads
# share them out, spelled `first`.  No size of a user's has these names.
ROWS = of_atom(Symbol("__rows__"))
FIRST = of_atom(Symbol("__first__", 0))


@dataclass(frozen=True, eq=False)
class BranchStep:
    """One of two runs of steps, each of which ends with the results in their places."""

    node: Node
    flag: Operand
    then: tuple[Step, ...]
    otherwise: tuple[Step, ...]
    results: tuple[View, ...]
    captured: tuple[View, ...]  # read by the branches, defined outside


@dataclass(frozen=True, eq=False)
class WhileStep:
    """Before it: carries are set; each turn: condition, and where `flag` is true body, updates."""

    node: Node
    carries: tuple[tuple[Operand, View], ...]  # (initial value, the carry's place)
    condition: tuple[Step, ...]
    flag: Operand  # the result of the condition
    body: tuple[Step, ...]
    updates: tuple[tuple[Operand, View], ...]  # (new carry, the carry's place)
    captured: tuple[View, ...]  # read by condition and body, defined outside


@dataclass(frozen=True, eq=False)
class PartStep:
    """Copies what the segment at work covers of a stacked array: to `result`, or with `back` to
    that part of `result`."""

    node: Node
    operand: Operand
    result: View
    back: bool = False


@dataclass(frozen=True)
class Segments:
    """How the steps of a loop are cut: `length` of them into segments of `segment`, whose symbol
    has that name within the runs of steps over one segment."""

    length: Dim
    segment: Dim
    symbol: str
    slots: Dim
    reverse: bool
    rest_last: bool


@dataclass(frozen=True, eq=False)
class SweepStep:
    """A loop in segments.  Before it: carries are set; each segment: `advance`, which leaves the
    new carries in their places, or for the last `ahead`, which leaves `residuals` too.  Some of the
    carries that enter a segment go to `kept`."""

    node: Node
    cut: Segments
    carries: tuple[tuple[Operand, View], ...]  # (initial value, the carry's place)
    advance: tuple[Step, ...]
    ahead: tuple[Step, ...]  # nothing where all segments are alike
    kept: tuple[View, ...]  # by carry: [slots + 1, ...], the last row for the state at work
    residuals: tuple[View, ...]
    stacked: tuple[View, ...]  # the stacked results
    captured: tuple[View, ...]  # read by the segments, defined outside


@dataclass(frozen=True, eq=False)
class ReplayStep:
    """The way back through a loop in segments.  Before it: carries are set.  `advance` runs a
    segment on the last row of `kept`, and leaves the new state there; `again` leaves the residuals
    of the segment that this state enters; `retreat` goes back from them, and leaves the new carries
    in their places."""

    node: Node
    cut: Segments
    kept: tuple[View, ...]
    residuals: tuple[View, ...]
    carries: tuple[tuple[Operand, View], ...]
    advance: tuple[Step, ...]
    again: tuple[Step, ...]
    retreat: tuple[Step, ...]
    stacked: tuple[View, ...]
    captured: tuple[View, ...]


@dataclass(frozen=True, eq=False)
class ChainStep:
    """Matrix products and row kernels over the same `rows`, run on one block of rows after the
    other: what a link leaves of a block, the next one finds in the cache.  Threads share out the
    blocks and do not wait for each other between the links."""

    rows: Dim
    links: tuple[MatmulStep | FusedStep | OpStep, ...]
    rowed: frozenset[Storage]  # of which each link reads and writes the rows of the block alone

    @property
    def node(self) -> Node:
        return self.links[0].node


Step = (
    OpStep | CopyStep | MatmulStep | FusedStep | LoopStep | BranchStep | WhileStep
    | PartStep | SweepStep | ReplayStep | PackStep | ChainStep
)  # fmt: skip


def inside(step: Step) -> tuple[tuple[Step, ...], ...]:
    """The runs of steps that a step holds, in the order of time."""
    if isinstance(step, LoopStep):
        return (step.body,)
    if isinstance(step, BranchStep):
        return step.then, step.otherwise
    if isinstance(step, WhileStep):
        return step.condition, step.body
    if isinstance(step, SweepStep):
        return step.advance, step.ahead
    if isinstance(step, ReplayStep):
        return step.advance, step.again, step.retreat
    if isinstance(step, ChainStep):
        return (step.links,)
    return ()


def replaced_runs(step: Step, runs: Sequence[tuple[Step, ...]]) -> Step:
    """A step with other runs of steps in it, in the order of `inside`."""
    if isinstance(step, LoopStep):
        return replace(step, body=runs[0])
    if isinstance(step, BranchStep):
        return replace(step, then=runs[0], otherwise=runs[1])
    if isinstance(step, WhileStep):
        return replace(step, condition=runs[0], body=runs[1])
    if isinstance(step, SweepStep):
        return replace(step, advance=runs[0], ahead=runs[1])
    if isinstance(step, ReplayStep):
        return replace(step, advance=runs[0], again=runs[1], retreat=runs[2])
    return step


def walk_all(steps: Iterable[Step]) -> Iterator[Step]:
    """The steps and all that they hold."""
    for step in steps:
        yield step
        for run in inside(step):
            yield from walk_all(run)


def reads(step: Step) -> Iterator[View]:
    """The views that a step reads (of one that holds steps: those from outside of it)."""
    if isinstance(step, (CopyStep, PartStep, PackStep)):
        operands: Sequence[Operand] = (step.operand,)
    elif isinstance(step, MatmulStep) and step.panels is not None:
        operands = (step.operands[0], step.panels)
    elif isinstance(step, LoopStep):
        operands = (
            *(x for x, _ in step.carries), *(x for x, _ in step.slices), *step.captured
        )  # fmt: skip
    elif isinstance(step, BranchStep):
        operands = (step.flag, *step.captured)
    elif isinstance(step, (WhileStep, SweepStep)):
        operands = (*(x for x, _ in step.carries), *step.captured)
    elif isinstance(step, ReplayStep):
        operands = (*(x for x, _ in step.carries), *step.captured, *step.kept, *step.residuals)
    elif isinstance(step, ChainStep):
        made = {v.storage for link in step.links for v in writes(link)}
        operands = [v for link in step.links for v in reads(link) if v.storage not in made]
    else:
        operands = step.operands
    return (x for x in operands if isinstance(x, View))


def writes(step: Step) -> Iterator[View]:
    """The views that a step writes, scratch included (of one that holds steps: those read after
    it)."""
    if isinstance(step, (CopyStep, PartStep, PackStep)):
        yield step.result
    elif isinstance(step, (SweepStep, ReplayStep)):
        yield from (place for _, place in step.carries)
        yield from step.kept
        yield from step.residuals
        yield from step.stacked
    elif isinstance(step, LoopStep):
        yield from (place for _, place in step.carries)
        yield from (place for _, place in step.stacked)
        yield from step.direct
    elif isinstance(step, WhileStep):
        yield from (place for _, place in step.carries)
    elif isinstance(step, ChainStep):
        for link in step.links:
            yield from writes(link)
    else:
        yield from step.results
        if not isinstance(step, (MatmulStep, BranchStep)):
            yield from step.scratch


@dataclass(frozen=True)
class SizeCheck:
    """`lower <= upper`, which the symbols' bounds leave open: checked when sizes are bound."""

    lower: Dim
    upper: Dim
    message: str


@dataclass(frozen=True)
class Unchained:
    """A matrix product whose result a step reads that is not in one chain with it, and why."""

    reason: str
    product: str  # source lines
    reader: str


@dataclass(frozen=True, eq=False)
class Schedule:
    """Steps in order, with the places of the graph's inputs and outputs.

    `donated` holds (output index, input index) pairs; those inputs are state and lie in the
    persistent part of the arena."""

    name: str
    steps: tuple[Step, ...]
    inputs: tuple[View, ...]
    outputs: tuple[Operand, ...]
    donated: tuple[tuple[int, int], ...]
    checks: tuple[SizeCheck, ...] = ()
    merged: tuple[tuple[Storage, Storage], ...] = ()  # (a storage, the one whose place it takes)
    unchained: tuple[Unchained, ...] = ()
