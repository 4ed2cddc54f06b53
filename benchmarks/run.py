"""A workload -> its figures: every contender is checked, then all take turns, then memory.

Order: the compilation of ours from an empty cache, each in a fresh process; one process for each
contender, which builds it (ours now from the filled cache) and computes its first results; those
that do not agree with the reference are left out; A B A B ...; memory, in fresh processes again.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import cache

from benchmarks.calibration import Copy, MultiplyAdds
from benchmarks.contender import Built, Entry, Memory, Timing
from benchmarks.measure import Failed, Worker, measure_memory, take_turns
from benchmarks.workload import Peer, Workload

FMA, COPY = "multiply-adds", "copy"
MOST_STEPS = 200  # a turn


@dataclass(frozen=True)
class Settings:
    """How to measure.  `limit`: the most seconds that a contender may take to be ready."""

    rounds: int = 12
    turn_seconds: float = 0.4
    memory_processes: int = 3
    threads: int = 2
    backend: str = "native"
    jax_python: str = sys.executable
    limit: float = 150.0
    quick: bool = False

    def hurried(self) -> Settings:
        """To see that everything runs: the figures mean little."""
        return replace(self, rounds=2, turn_seconds=0.05, memory_processes=1, quick=True)


@dataclass
class Result:
    """What was found of a workload; `skipped` says who is missing, and why."""

    workload: Workload
    timings: dict[str, Timing] = field(default_factory=dict)
    memories: dict[str, Memory] = field(default_factory=dict)
    built: dict[str, Built] = field(default_factory=dict)
    cold_seconds: dict[str, float] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)

    def share_of_fma(self, name: str) -> float | None:
        """How much of the limit of multiply-adds, as measured beside it."""
        flops = float(self.workload.problem.flops)
        if not flops or FMA not in self.timings:
            return None
        ratio = self.timings[name].times_faster(self.timings[FMA])
        return ratio * flops / MultiplyAdds().flops

    def share_of_copy(self, name: str) -> float | None:
        """How much of the bandwidth of a copy that moves as much as has to be moved."""
        if COPY not in self.timings:
            return None
        return self.timings[name].times_faster(self.timings[COPY])


def run(workload: Workload, settings: Settings, say: Callable[[str], None]) -> Result:
    """Measures a workload; `say` is told of what is left out at once.

    A problem with `prepared` is asked to read its data first; where it cannot, nothing is measured.
    """
    result = Result(workload)

    def skip(reason: str) -> None:
        result.skipped.append(reason)
        say(f"  left out: {reason}")

    if hasattr(workload.problem, "prepared"):
        try:
            workload = replace(workload, problem=workload.problem.prepared())
        except Exception as error:  # data may be missing in many ways
            skip(f"{workload.name}, because {error}")
            return result
        result.workload = workload
    with tempfile.TemporaryDirectory(prefix="retrograde-bench-") as folder:
        entries = _entries(workload, settings, folder, skip)
        for entry in entries:
            if entry.name in workload.own:
                with suppress(Failed), Worker(entry) as worker:  # its failure is told below
                    cold: Built = worker.ask("build", 0, limit=settings.limit)
                    result.cold_seconds[entry.name] = cold.compile_seconds
        with ExitStack() as stack:
            workers = _ready(entries, settings, result, stack, skip)
            steps = [_steps(result.built[w.entry.name], settings) for w in workers]
            for timing in take_turns(workers, settings.rounds, steps):
                result.timings[timing.name] = timing
        for entry in entries:
            contender = workload.contenders.get(entry.name)
            if entry.name in result.timings and contender is not None and not contender.compiles:
                result.memories[entry.name] = measure_memory(
                    entry,
                    warmup=1 if settings.quick else 5,
                    steps=1 if settings.quick else 5,
                    processes=settings.memory_processes,
                )
    return result


def _entries(
    workload: Workload, settings: Settings, folder: str, skip: Callable[[str], None]
) -> list[Entry]:
    """The contenders whose library is there, and the limits that they are held against."""
    entries = []
    tiny = workload.problem.tiny()
    for name, peer in workload.contenders.items():
        python = settings.jax_python if peer.library == "jax" else sys.executable
        if not importable(peer.library, python):
            skip(f"{name}, because {peer.library} is not installed")
            continue
        if peer.compiles and settings.quick:
            skip(f"{name}, because it takes long to compile and this is a quick run")
            continue
        entries.append(_entry(name, peer, workload, tiny, settings, python, f"{folder}/{name}"))
    for name, factory, problem in (
        (FMA, "benchmarks.calibration:multiply_adds", MultiplyAdds()),
        (COPY, "benchmarks.calibration:copy", Copy(workload.footprint)),
    ):
        if workload.footprint if name == COPY else workload.problem.flops:
            entries.append(Entry(name, factory, (problem,), (problem,), {}, settings.threads))
    return entries


def _entry(
    name: str,
    peer: Peer,
    workload: Workload,
    tiny: object,
    settings: Settings,
    python: str,
    folder: str,
) -> Entry:
    options = dict(peer.options)
    if name in workload.own:
        options["backend"] = settings.backend
    return Entry(
        name, peer.factory, (workload.problem,), (tiny,), options,
        settings.threads, python,
        {"RETROGRADE_CACHE_DIR": folder, "TORCHINDUCTOR_CACHE_DIR": folder},
    )  # fmt: skip


@cache
def importable(library: str, python: str) -> bool:
    """Whether an interpreter has a library."""
    if python == sys.executable:
        return importlib.util.find_spec(library) is not None
    try:
        return not subprocess.run(
            [python, "-c", f"import {library}"], capture_output=True, check=False
        ).returncode
    except OSError:
        return False


def _ready(
    entries: Sequence[Entry],
    settings: Settings,
    result: Result,
    stack: ExitStack,
    skip: Callable[[str], None],
) -> list[Worker]:
    """The contenders that are built and compute what the reference computes."""
    workers: list[Worker] = []
    for entry in entries:
        worker = stack.enter_context(Worker(entry))
        try:
            result.built[entry.name] = worker.ask("build", 3, limit=settings.limit)
            workers.append(worker)
        except Failed as reason:
            skip(str(reason))
            worker.kill()
    right = _agreeing(result, skip)
    return [worker for worker in workers if worker.entry.name in right]


def _agreeing(result: Result, skip: Callable[[str], None]) -> set[str]:
    """The contenders whose numbers are those of the reference, or of the first there is."""
    workload, built = result.workload, result.built
    compared = [name for name in built if name in workload.contenders]
    right = built.keys() - set(compared)
    if not compared:
        return set(right)
    reference = workload.reference if workload.reference in built else compared[0]
    wanted = built[reference].numbers
    for name in compared:
        error = relative_error(built[name].numbers, wanted)
        if error <= workload.tolerance:
            right = {*right, name}
        else:
            skip(f"{name}, because its results differ from those of {reference} by {error:.1e}")
    return set(right)


def relative_error(found: Sequence[float], wanted: Sequence[float]) -> float:
    """The largest error of a number, relative to what it should be; infinite for NaN."""
    if len(found) != len(wanted):
        return float("inf")
    errors = [abs(a - b) / max(abs(b), 1e-12) for a, b in zip(found, wanted, strict=True)]
    return max((error if error == error else float("inf") for error in errors), default=0.0)


def _steps(built: Built, settings: Settings) -> int:
    """How many steps make a turn."""
    wanted = settings.turn_seconds / max(built.step_seconds, 1e-6)
    return int(min(MOST_STEPS, max(1, wanted)))
