"""The whole order of passes, on one screen: traced Graph -> Program.

Differentiation has happened by then: `grad` applies `Backward` while it traces.  Invariant: the
verifier runs after every pass when it is on, and every stage can be kept or dumped by name.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import retrograde.compiler.ops  # noqa: F401  # declares the ops
from retrograde.compiler.codegen.numpy import print_schedule
from retrograde.compiler.errors import DataError
from retrograde.compiler.ir.collection import paused_collection
from retrograde.compiler.ir.graph import Graph
from retrograde.compiler.ir.verify import verify
from retrograde.compiler.passes.cse import CSE
from retrograde.compiler.passes.dce import DCE
from retrograde.compiler.passes.expand import Expand
from retrograde.compiler.passes.fold import Fold
from retrograde.compiler.passes.group import Group
from retrograde.compiler.passes.regions import everywhere
from retrograde.compiler.passes.rows import RowProducts
from retrograde.compiler.passes.scan_hoist import HoistScan
from retrograde.compiler.passes.scan_sink import SinkScan
from retrograde.compiler.passes.simplify import Simplify
from retrograde.compiler.plan.build import Planned, plan_program
from retrograde.compiler.plan.schedule import Order
from retrograde.compiler.program import Program

Pass = Callable[[Graph], Graph]
REFERENCE_SIZE = 64  # what a symbol counts as where `at` does not tell

PIPELINE: tuple[tuple[str, Pass], ...] = (
    ("dce", DCE()),
    ("expand", Expand()),
    ("simplify", Simplify()),
    ("fold", Fold()),
    ("cse", CSE()),
    ("hoist", HoistScan()),
    ("sink", SinkScan()),
    ("cse-again", CSE()),
    ("simplify-again", Simplify()),
    ("rows", RowProducts()),
    ("clean", DCE()),
    ("group", Group()),
)


@dataclass(frozen=True)
class Options:
    """How to compile.  `at`: the sizes the plan is made for.  `poison` overwrites dead buffers,
    `reuse=False` gives every buffer its own place: two ways to find faults of the plan."""

    at: Mapping[str, int] = field(default_factory=dict)
    poison: bool = False
    reuse: bool = True
    verify: bool = False
    dump: str | None = None

    @classmethod
    def from_environment(cls, at: Mapping[str, int] | None = None) -> Options:
        """The options that the RETROGRADE_ variables ask for."""
        return cls(
            at=dict(at or {}),
            poison=_flag("POISON"),
            reuse=not _flag("NO_REUSE"),
            verify=_flag("VERIFY"),
            dump=os.environ.get("RETROGRADE_DUMP") or None,
        )


def _flag(name: str) -> bool:
    return os.environ.get(f"RETROGRADE_{name}", "") not in ("", "0")


@dataclass(frozen=True)
class CompiledGraph:
    """A program and the graphs that led to it, by stage."""

    program: Program
    stages: Mapping[str, Graph]
    planned: Planned


def compile_graph(graph: Graph, options: Options | None = None) -> CompiledGraph:
    """Runs the pipeline."""
    with paused_collection():
        return _compile(graph, options)


def _compile(graph: Graph, options: Options | None) -> CompiledGraph:
    options = options or Options.from_environment()
    sizes = reference_sizes(graph, options.at)
    stages = {"trace": graph}
    _check(graph, "trace", options)
    passes: tuple[tuple[str, Pass], ...] = (*PIPELINE, ("order", Order(sizes)))
    for name, transform in passes:
        graph = everywhere(transform, graph)
        stages[name] = graph
        _check(graph, name, options)
    planned = plan_program(graph, sizes, inplace=options.reuse)
    symbols = tuple(graph.symbols()[name] for name in sorted(graph.symbols()))
    source = print_schedule(
        planned.schedule, planned.liveness, planned.places, [s.name for s in symbols],
        poison=options.poison,
    )  # fmt: skip
    program = Program(
        name=graph.name,
        symbols=symbols,
        inputs=planned.inputs,
        outputs=planned.outputs,
        returned=planned.returned,
        buffers=planned.buffers,
        orientation=planned.orientation,
        source=source,
        reuse=options.reuse,
    )
    if options.dump:
        _dump(Path(options.dump), stages, program, sizes)
    return CompiledGraph(program, stages, planned)


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
    folder: Path, stages: Mapping[str, Graph], program: Program, sizes: Mapping[str, int]
) -> None:
    """Writes every stage: 00-trace.ir …, plan.txt, schedule.py; from the second program of a
    process on into a folder of its own, 2-name."""
    number = next(_dumped)
    if number > 1:
        folder = folder / f"{number}-{''.join(c if c.isalnum() else '_' for c in program.name)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"RETROGRADE_DUMP: cannot make the folder {folder}: {error}") from None
    for i, (name, graph) in enumerate(stages.items()):
        (folder / f"{i:02d}-{name}.ir").write_text(graph.text(), encoding="utf-8")
    (folder / "schedule.py").write_text(program.source, encoding="utf-8")
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

