"""The whole order of passes, on one screen: traced Graph -> Program.

Differentiation has happened by then: `grad` applies `Backward` while it traces.  With a budget the
graph is compiled once for each recipe of the ladder.  Invariant: the verifier runs after every pass
when it is on, and every stage can be kept or dumped by name.
"""

from __future__ import annotations

import gc
import itertools
import math
import operator
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import retrograde.compiler.ops  # noqa: F401  # declares the ops
from retrograde.compiler.codegen.native import NativeProgram
from retrograde.compiler.codegen.numpy import print_schedule
from retrograde.compiler.errors import DataError
from retrograde.compiler.ir import dims
from retrograde.compiler.ir.collection import paused_collection
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.graph import Graph
from retrograde.compiler.ir.headroom import with_headroom
from retrograde.compiler.ir.verify import verify
from retrograde.compiler.ops.region import graph_cost
from retrograde.compiler.ops.segments import segment_count
from retrograde.compiler.passes.attention import TileAttention
from retrograde.compiler.passes.attention_wide import WideAttention
from retrograde.compiler.passes.cross_entropy import ChunkHeads
from retrograde.compiler.passes.cse import CSE
from retrograde.compiler.passes.dce import DCE
from retrograde.compiler.passes.expand import Expand
from retrograde.compiler.passes.fold import Fold
from retrograde.compiler.passes.group import Group
from retrograde.compiler.passes.ladder import Rung, Stage, ladder
from retrograde.compiler.passes.over_time import OverTime
from retrograde.compiler.passes.regions import (
    AtWork,
    everywhere,
    outermost,
    outermost_nodes,
    part_at_work,
    runs_back,
)
from retrograde.compiler.passes.rows import RowProducts
from retrograde.compiler.passes.scan_hoist import HoistScan
from retrograde.compiler.passes.scan_lookup import LookUpInScan
from retrograde.compiler.passes.scan_sink import SinkScan
from retrograde.compiler.passes.scan_truncate import truncation
from retrograde.compiler.passes.simplify import Simplify
from retrograde.compiler.passes.slices import SliceFirst
from retrograde.compiler.passes.table_sums import TableSums
from retrograde.compiler.passes.tables import TableProducts
from retrograde.compiler.passes.turns import turns_at_a_time
from retrograde.compiler.plan.build import Planned, loops_in_runs, plan_program, time_loops
from retrograde.compiler.plan.decided import Decided, buffers_digest, graph_digest
from retrograde.compiler.plan.recipe import Recipe, Runs, TimeLoop
from retrograde.compiler.plan.recomputing import Recomputing
from retrograde.compiler.plan.schedule import Order
from retrograde.compiler.program import KernelFile, Program

GAP = 256  # bytes of a red zone: a few of the widest vectors
REFERENCE_SIZE = 64  # what a symbol counts as where `at` does not tell

ALGEBRA: tuple[Stage, ...] = (
    ("dce", DCE()),
    ("expand", Expand()),
    ("simplify", Simplify()),
    ("fold", Fold()),
    ("cse", CSE()),
)
# What compiled kernels do whole.
NATIVE: tuple[Stage, ...] = (("attention", TileAttention()),)
# Behind what decides about keeping: it keeps 16 bits.
WIDE: tuple[Stage, ...] = (("wide", WideAttention()),)
HEADS: tuple[Stage, ...] = (("heads", ChunkHeads()),)
LOOPS: tuple[Stage, ...] = (("sink", SinkScan()), ("hoist", HoistScan()))
END: tuple[Stage, ...] = (
    ("cse-again", CSE()),
    ("simplify-again", Simplify()),
    ("rows", RowProducts()),
    ("clean", DCE()),
    ("group", Group()),
)
BEFORE_ORDER = END[-1][0]
NATIVE_END: tuple[Stage, ...] = (
    ("slices", SliceFirst()),
    ("lookup", LookUpInScan()),
    *END[:-1],
    ("group", Group(native=True)),
)
PIPELINE: tuple[Stage, ...] = (*ALGEBRA, *LOOPS, *END)  # but for what depends on sizes

# All stages that there may be, in their order.
STAGES = (
    "heads", "attention", *(name for name, _ in ALGEBRA), "table-sums", "join", "over-time", "lean",
    "truncate", "segments",
    *(name for name, _ in LOOPS), "tables", *(name for name, _ in NATIVE_END[:-1]), "remat",
    "wide", NATIVE_END[-1][0], "order",
)  # fmt: skip
NEEDED = frozenset({"expand", "wide", "order"})


@dataclass(frozen=True)
class Options:
    """How to compile.  `at`: the sizes the plan is made for.  `budget`: the most bytes that the
    arena may have.  `poison` overwrites dead buffers,
    `native` compiles kernels, of which `threads` may run at once; `blas` are the dtypes whose
    products a BLAS computes there; `heads` computes the loss of wide
    heads without their logits (what is differentiated: under `chunked()` of passes.cross_entropy);
    `reuse=False` gives every buffer its own place, `red_zones` also gaps around it, in which a run
    may write nothing: ways to find faults of the plan and of kernels.  Stages `without` are left
    out, and those behind `stop_after` too (nothing runs without "order", and composites not without
    "expand"): a way to find the pass at fault."""

    at: Mapping[str, int] = field(default_factory=dict)
    budget: int | None = None
    native: bool = False
    heads: bool = False
    threads: int = 1
    blas: tuple[str, ...] = ()
    poison: bool = False
    reuse: bool = True
    red_zones: bool = False
    verify: bool = False
    dump: str | None = None
    without: tuple[str, ...] = ()
    stop_after: str | None = None

    @classmethod
    def from_environment(
        cls,
        at: Mapping[str, int] | None = None,
        budget: int | None = None,
        native: bool = False,
        threads: int = 1,
        blas: tuple[str, ...] = (),
    ) -> Options:
        """The options that the RETROGRADE_ variables ask for."""
        return cls(
            at=dict(at or {}),
            budget=budget,
            native=native,
            heads=native,
            threads=threads,
            blas=blas,
            poison=_flag("POISON"),
            reuse=not (_flag("NO_REUSE") or _flag("RED_ZONES")),
            red_zones=_flag("RED_ZONES"),
            verify=_flag("VERIFY"),
            dump=os.environ.get("RETROGRADE_DUMP") or None,
            without=_stages("WITHOUT"),
            stop_after=next(iter(_stages("STOP_AFTER")), None),
        )

    def leaves_out(self, stage: str) -> bool:
        """Whether a stage is not to run."""
        if stage in self.without:
            return True
        if self.stop_after is None or stage in NEEDED or stage not in STAGES:
            return False
        return STAGES.index(stage) > STAGES.index(self.stop_after)


def _stages(name: str) -> tuple[str, ...]:
    """The stages that a variable names, with commas between them."""
    text = os.environ.get(f"RETROGRADE_{name}", "").replace(" ", "")
    found = tuple(filter(None, text.split(",")))
    for stage in found:
        if stage not in STAGES:
            raise DataError(
                f"RETROGRADE_{name}: there is no stage {stage!r}; there are {', '.join(STAGES)}"
            )
        if stage == "order" and name == "WITHOUT":
            raise DataError("RETROGRADE_WITHOUT: nothing runs without the stage 'order'")
    return found


def _flag(name: str) -> bool:
    return os.environ.get(f"RETROGRADE_{name}", "") not in ("", "0")


@dataclass(frozen=True)
class CompiledGraph:
    """A program, and for each of its recipes the graphs that led to it, by stage."""

    program: Program
    recipes: tuple[CompiledRecipe, ...]

    @property
    def stages(self) -> Mapping[str, Graph]:
        """Those of the first recipe."""
        return self.recipes[0].stages

    @property
    def planned(self) -> Planned:
        """That of the first recipe."""
        return self.recipes[0].planned


@dataclass(frozen=True)
class CompiledRecipe:
    """A recipe and how it came about."""

    recipe: Recipe
    stages: Mapping[str, Graph]
    planned: Planned
    orders: tuple[tuple[int, ...], ...]  # of the nodes of all graphs, bodies first
    as_decided: bool = False  # nothing about it was searched for

    def decided(self) -> Decided:
        """What the search for it decided: given to `compile_graph`, it is not searched again."""
        return Decided(
            self.recipe.name,
            graph_digest(self.stages[BEFORE_ORDER]),
            self.orders,
            buffers_digest(self.recipe.buffers),
            self.planned.placement.offsets,
        )


Expect = Callable[[Sequence[KernelFile]], None]


def compile_graph(
    graph: Graph, options: Options | None = None, decided: Sequence[Decided] = (),
    expect: Expect = lambda files: None,
) -> CompiledGraph:  # fmt: skip
    """Runs the pipeline.  Raises BudgetError where no recipe is within the budget at the sizes that
    the plan is made for.

    A recipe that was `decided` before gets the order and the places that it had, if it is still
    the same; DataError for decisions that are none.  `expect` is told the C files of the program as
    soon as they are known, some of them before the others."""
    with paused_collection():
        known = {d.recipe: d for d in decided}
        made: CompiledGraph = with_headroom(_compile, graph, options, known, expect)
        return made


def _compile(
    graph: Graph, options: Options | None, decided: Mapping[str, Decided], expect: Expect
) -> CompiledGraph:
    options = options or Options.from_environment()
    sizes = reference_sizes(graph, options.at)
    symbols = tuple(graph.symbols()[name] for name in sorted(graph.symbols()))
    stages = {"trace": graph}
    _check(graph, "trace", options)
    if options.heads:
        stages |= _staged(graph, HEADS, options, inside=False)
    start = stages[next(reversed(stages))]
    stages |= _staged(start, (*NATIVE, *ALGEBRA) if options.native else ALGEBRA, options)
    start = stages[ALGEBRA[-1][0]]
    stages |= _staged(start, (("table-sums", TableSums(sizes)),), options, inside=False)
    start = stages["table-sums"]
    truncated = tuple(truncation(start))
    turns = turns_at_a_time(start, sizes)
    made: list[CompiledRecipe] = []
    met: list[Graph] = []
    seen: set[str] = set()
    asked = any(node.attrs.get("slots") is not None for node in outermost_nodes(start))
    ragged = any("live" in node.attrs for node in outermost_nodes(start))
    over_time: Stage = ("over-time", OverTime(turns, merges=options.native))
    for rung in ladder(bool(truncated), options.budget is not None, asked):
        names = [name for name, _ in rung.passes]
        changes = {"join", "lean"} & {*names} and "truncate" not in names
        if ragged and not options.native and changes:
            continue  # a BLAS may round the rows that live otherwise than all rows
        at = names.index("join") + 1 if "join" in names else 0
        passes = (*rung.passes[:at], over_time, *rung.passes[at:])
        changed = _staged(start, passes, options, inside=False)
        end = changed[passes[-1][0]]
        if options.budget is not None or truncated:
            # There may be nothing in the graph for this recipe; texts take long to write.
            if any(_of_the_same_nodes(end, other) for other in met) or (text := end.text()) in seen:
                continue
            met.append(end)
            seen.add(text)
        limits = () if rung.passes else truncated  # the first rung cuts nothing
        made += _recipes(
            rung, end, {**stages, **changed}, symbols, limits, sizes, options, decided, expect,
            turns,
        )
    planned = made[0].planned
    program = Program(
        name=graph.name,
        symbols=symbols,
        inputs=planned.inputs,
        outputs=planned.outputs,
        returned=planned.returned,
        recipes=tuple(item.recipe for item in made),
        budget=options.budget,
    )
    if options.budget is not None:
        program.choose(sizes)
    if options.dump:
        _dump(Path(options.dump), made, program, sizes)
    return CompiledGraph(program, tuple(made))


def _staged(
    graph: Graph, passes: Sequence[Stage], options: Options, inside: bool = True
) -> dict[str, Graph]:
    """The graph after each of the passes, which act on sub-graphs too where `inside`, else on the
    graph and what it does part by part.

    A kernel has no memory for an order at some size to save: groups stay as they are."""
    but = "fused" if options.native else ""
    stages: dict[str, Graph] = {}
    for name, transform in passes:
        if options.leaves_out(name):
            stages[name] = graph
            continue
        graph = stages[name] = (everywhere if inside else outermost)(transform, graph, but)
        _check(graph, name, options)
    return stages


def _recipes(
    rung: Rung,
    graph: Graph,
    stages: Mapping[str, Graph],
    symbols: Sequence[dims.Symbol],
    limits: tuple[tuple[Dim, int], ...],
    sizes: Mapping[str, int],
    options: Options,
    decided: Mapping[str, Decided],
    expect: Expect,
    turns: int,
) -> list[CompiledRecipe]:
    """Runs the rest of the pipeline, and plans: with what is kept by default, and under a budget
    with more and more that is computed again."""
    loops, runs = time_loops(graph, turns), loops_in_runs(graph)
    sizes = {**sizes, **_reference_cuts(loops, runs, sizes)}
    *end, group = NATIVE_END if options.native else END
    # A BLAS may round a row otherwise in a product of more rows: there each step has its own.
    behind = (
        ("sink", SinkScan(turns, merges=options.native)),
        ("hoist", HoistScan(merges=options.native)),
    )
    tables = ("tables", TableProducts(sizes))
    stages = {**stages, **_staged(graph, (*behind, tables, *end), options)}
    graph = stages[end[-1][0]]
    own = dict.fromkeys(s for loop in loops for s in (loop.segment, loop.slots) if s)
    own |= dict.fromkeys(part.name for part in runs)
    everything = (*symbols, *(dims.symbols(dims.dim(s))[0] for s in own))
    names = [s.name for s in everything]
    native = NativeProgram() if options.native else None
    reuse = options.reuse and not options.red_zones
    made: list[CompiledRecipe] = []
    told = lowest = 0
    late = (*WIDE, group) if options.native else (group,)
    found, ways = _ways(rung.name, graph, group, sizes, options)
    for name, again in ways:
        given = decided.get(name)
        wide = None if again or given is not None else _unwidened(graph, options)
        if found is not None and wide is not None:
            last, orders, given = {**wide, **found[0]}, *found[1:]
        else:
            last, orders, given = _in_order(graph, again, late, sizes, options, given)
        ordered = last["order"]
        planned = plan_program(
            ordered, sizes, reuse, options.threads, options.native, given, options.blas
        )
        height = planned.placement.height
        if made and height >= lowest:
            continue  # one that computes less again takes no more memory
        lowest = height
        recipe = Recipe(
            name, everything, planned.buffers, planned.orientation,
            _printed(planned, names, native, options), (),
            graph_cost(ordered), rung.slower, loops, runs, limits, reuse,
            GAP if options.red_zones else 0, schedule=planned.schedule,
        )  # fmt: skip
        if native is not None and not made:
            files = native.files
            told = len(files)
            expect(files)
        made.append(
            CompiledRecipe(recipe, {**stages, **last}, planned, orders, not planned.searched)
        )
        gc.collect(0)  # what planning and printing leave in circles, before there is more of it
    if native is None:
        return made
    files = native.files
    expect(files[told:])
    return [replace(item, recipe=replace(item.recipe, kernels=files)) for item in made]


# Stages, the orders of all graphs, and by which decision.
_Ordered = tuple[dict[str, Graph], tuple[tuple[int, ...], ...], Decided | None]


def _in_order(
    graph: Graph, again: Sequence[Stage], late: Sequence[Stage], sizes: Mapping[str, int],
    options: Options, given: Decided | None = None,
) -> _Ordered:  # fmt: skip
    """The stages to the end: `again` on the part at work, `late` on all graphs, and the order, as
    it is `given` if that is of the same graph."""
    last = _staged(graph, again, options, inside=False)
    last |= _staged(last["remat"] if again else graph, late, options)
    if given is not None and given.graph != graph_digest(last[BEFORE_ORDER]):
        given = None
    order = Order(sizes, given=None if given is None else iter(given.orders))
    last |= _staged(last[BEFORE_ORDER], (("order", order),), options)
    return last, tuple(order.chosen), given


def _unwidened(graph: Graph, options: Options) -> dict[str, Graph] | None:
    """What WIDE leaves of a graph that it does nothing to; None for another graph."""
    if not options.native:
        return {}
    stages = _staged(graph, WIDE, options)
    return stages if _of_the_same_nodes(stages[WIDE[-1][0]], graph) else None


def _of_the_same_nodes(graph: Graph, other: Graph) -> bool:
    """Whether both do the same: no more is found than that they are made of the same objects."""
    return all(
        len(ours) == len(theirs) and all(map(operator.is_, ours, theirs))
        for ours, theirs in ((graph.nodes, other.nodes), (graph.outputs, other.outputs))
    )


def _ways(
    name: str, graph: Graph, group: Stage, sizes: Mapping[str, int], options: Options
) -> tuple[_Ordered | None, list[tuple[str, tuple[Stage, ...]]]]:
    """How the graph runs as it is, if that had to be found out; and names of recipes, with what
    each of them computes again."""
    work = part_at_work(graph)
    if not runs_back(work) or not (options.native or options.budget is not None):
        return None, [(name, ())]
    ordered = _in_order(graph, (), (group,), sizes, options)
    found = Recomputing(work, part_at_work(ordered[0]["order"]), sizes, options.native)
    light = found.usual() if options.native else None
    ways: list[tuple[str, tuple[Stage, ...]]] = [
        (name, () if light is None else (("remat", AtWork(light.transform)),))
    ]
    if options.budget is not None:
        for way in found.under_budget(None if light is None else light.peak):
            ways.append((f"{name}, {way.name}", (("remat", AtWork(way.transform)),)))
    return ordered, ways


def _printed(
    planned: Planned, symbols: Sequence[str], native: NativeProgram | None, options: Options
) -> str:
    """The source of a schedule; the kernels that it launches are those of `native`."""
    parts = (planned.schedule, planned.liveness, planned.places, symbols, options.poison)
    return print_schedule(*parts) if native is None else native.print(*parts)


def _reference_cuts(
    loops: Sequence[TimeLoop], runs: Sequence[Runs], sizes: Mapping[str, int]
) -> dict[str, int]:
    """What the plan's symbols count as while buffers are placed: about as many states as steps."""
    cuts = {part.name: part.steps for part in runs}
    for loop in loops:
        length = max(1, dims.evaluate(loop.length, sizes))
        cuts[loop.segment] = 1 if loop.given else max(1, math.isqrt(length) // 3)
        cuts[loop.slots] = segment_count(length, cuts[loop.segment])
    return cuts


def reference_sizes(graph: Graph, at: Mapping[str, int]) -> dict[str, int]:
    """The sizes that a plan is made for: those given, else a middling size within the bounds."""
    sizes = {}
    for name, symbol in graph.symbols().items():
        largest = REFERENCE_SIZE if symbol.max is None else min(symbol.max, REFERENCE_SIZE)
        sizes[name] = at.get(name, max(symbol.min, largest))
    return sizes


def _check(graph: Graph, name: str, options: Options) -> None:
    if options.verify:
        verify(graph, made_by=name)


_dumped = itertools.count(1)


def _dump(
    folder: Path, made: Sequence[CompiledRecipe], program: Program, sizes: Mapping[str, int]
) -> None:
    """Writes every stage of the recipe for `sizes`: 00-trace.ir …, plan.txt, schedule.py, for the
    native device kernels.c, kernels-2.c …; from the second program of a process on into a folder of
    its own, 2-name."""
    chosen = made[program.choose(sizes).index]
    number = next(_dumped)
    if number > 1:
        folder = folder / f"{number}-{''.join(c if c.isalnum() else '_' for c in program.name)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"RETROGRADE_DUMP: cannot make the folder {folder}: {error}") from None
    for i, (name, graph) in enumerate(chosen.stages.items()):
        (folder / f"{i:02d}-{name}.ir").write_text(graph.text(), encoding="utf-8")
    (folder / "schedule.py").write_text(chosen.recipe.source, encoding="utf-8")
    for i, file in enumerate(chosen.recipe.kernels, 1):
        name = "kernels.c" if i == 1 else f"kernels-{i}.c"
        (folder / name).write_text(file.text, encoding="utf-8")
    plan = program.plan(sizes)
    lines = [
        f"peak {plan.peak_bytes} bytes at {dict(sizes)}, bound {plan.lower_bound_bytes}",
        *(
            f"[{b.start:5d}, {b.end:5d}) {b.offset:12d} {b.bytes:12d} {b.kind:8s} "
            f"{b.name} {b.place}"
            for b in plan.buffers
        ),
    ]
    (folder / "plan.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")

