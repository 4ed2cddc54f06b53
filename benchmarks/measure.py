"""Contenders -> step times and memory; each lives in its own fresh process, and they take turns.

A contender is named by "module:function"; the function builds it from its arguments inside the
process that measures it, so that no library's threads, caches or heap touch another's. The parent
gives the turns A B A B ..., so a machine that slows down slows down all alike: trust the ratios.

Activation memory of a step, in bytes:

    high water - persistent - baseline

    high water  VmHWM after the step, reset just before it by writing 5 to /proc/self/clear_refs;
                taken after the warm-up, the median of several steps and then of several processes
    persistent  parameters and optimizer state: what must outlive a step. Gradients are not in it.
    baseline    what is resident without the problem: the anonymous and shared pages (RssAnon +
                RssShmem; an arena may be either) after the library is imported and has run the
                same program, threads and all, on a tiny problem that was then dropped; and the
                file pages (RssFile) as they are after the measured step, because code that is
                paged in late is not memory of the model.

What the allocator keeps between steps counts, for every contender, as it does in real life;
the allocator is left at its defaults. The kernel counts pages in batches a processor, so a figure
is good to about a quarter of a MiB.
"""

from __future__ import annotations

import gc
import importlib
import multiprocessing
import os
import statistics
import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "RETROGRADE_THREADS",
)
# A thread pool that has just worked spins for a while before it sleeps: OpenBLAS up to 26 ms.
PAUSE_SECONDS = 0.06


@dataclass(frozen=True)
class Contender:
    """A step that can be run again and again, and what it keeps for good."""

    step: Callable[[], object]
    persistent_bytes: int
    planned_peak_bytes: int | None = None
    arena_bytes: int | None = None


@dataclass(frozen=True)
class Entry:
    """How to build a contender in a fresh process."""

    name: str
    factory: str
    arguments: tuple[Any, ...]
    tiny_arguments: tuple[Any, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    threads: int = 2

    def build(self, arguments: tuple[Any, ...]) -> Contender:
        module, function = self.factory.split(":")
        make = getattr(importlib.import_module(module), function)
        contender = make(*arguments, self.threads, **self.options)
        assert isinstance(contender, Contender)
        return contender


@dataclass(frozen=True)
class Timing:
    """Seconds of every timed step."""

    name: str
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def minimum(self) -> float:
        return min(self.seconds)


@dataclass(frozen=True)
class Memory:
    """Where the bytes of a step are; see the module docstring for each term."""

    name: str
    high_water_bytes: int
    persistent_bytes: int
    baseline_anonymous_bytes: int
    baseline_file_bytes: int
    late_file_bytes: int  # file pages that came in after the tiny problem; part of the baseline
    resident_between_steps_bytes: int
    traced_peak_bytes: int
    planned_peak_bytes: int | None
    arena_bytes: int | None

    @property
    def baseline_bytes(self) -> int:
        return self.baseline_anonymous_bytes + self.baseline_file_bytes

    @property
    def activation_bytes(self) -> int:
        return self.high_water_bytes - self.persistent_bytes - self.baseline_bytes


def process_status() -> dict[str, int]:
    """The memory lines of /proc/self/status, in bytes."""
    text = Path("/proc/self/status").read_text()
    lines = (line.split() for line in text.splitlines() if line.endswith(" kB"))
    return {name.rstrip(":"): int(kib) * 1024 for name, kib, _ in lines}


def high_water_of(step: Callable[[], object]) -> int:
    """VmHWM of this process during one call."""
    Path("/proc/self/clear_refs").write_text("5")
    step()
    return process_status()["VmHWM"]


def traced_peak_of(step: Callable[[], object]) -> int:
    """The most bytes that Python and NumPy held at once during one call, beyond those before it.

    The arena exists before the call, so this is what a step allocates outside of it. Allocators
    that do not report to tracemalloc (PyTorch's) do not show up.
    """
    tracemalloc.start()
    try:
        step()
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        step()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def measure_memory_here(entry: Entry, warmup: int, steps: int) -> Memory:
    """Memory of the contender in this process, which must be fresh and is spoilt afterwards."""
    tiny = entry.build(entry.tiny_arguments)
    for _ in range(3):
        tiny.step()
    del tiny
    gc.collect()
    baseline = process_status()

    contender = entry.build(entry.arguments)
    for _ in range(warmup):
        contender.step()
    high_water = statistics.median(high_water_of(contender.step) for _ in range(steps))
    after = process_status()
    return Memory(
        name=entry.name,
        high_water_bytes=int(high_water),
        persistent_bytes=contender.persistent_bytes,
        baseline_anonymous_bytes=baseline["RssAnon"] + baseline["RssShmem"],
        baseline_file_bytes=after["RssFile"],
        late_file_bytes=after["RssFile"] - baseline["RssFile"],
        resident_between_steps_bytes=after["VmRSS"],
        traced_peak_bytes=traced_peak_of(contender.step),
        planned_peak_bytes=contender.planned_peak_bytes,
        arena_bytes=contender.arena_bytes,
    )


def _time_steps(step: Callable[[], object], count: int) -> list[float]:
    seconds = []
    step()  # wakes the thread pool and the caches after the other contenders' turns; not timed
    for _ in range(count):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return seconds


def _serve(connection: Connection, entry: Entry) -> None:
    """The child's loop: ("memory", warmup, steps), ("build", warmup), ("time", count) or None."""
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(entry.threads)))
    contender: Contender | None = None
    while (command := connection.recv()) is not None:
        try:
            match command:
                case ("memory", warmup, steps):
                    answer: Any = measure_memory_here(entry, warmup, steps)
                case ("build", warmup):
                    contender = entry.build(entry.arguments)
                    answer = _time_steps(contender.step, warmup)
                case ("time", count):
                    assert contender is not None, "time before build"
                    answer = _time_steps(contender.step, count)
            connection.send(answer)
        except Exception as error:
            connection.send(error)
            raise


class Worker:
    """A fresh process that holds one contender and works only when it is asked to."""

    def __init__(self, entry: Entry) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, child = context.Pipe()
        self._process = context.Process(target=_serve, args=(child, entry), daemon=True)
        self._process.start()
        child.close()

    def ask(self, *command: Any) -> Any:
        self._connection.send(command)
        answer = self._connection.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process.is_alive() and kind is None:
            self._connection.send(None)
        else:
            self._process.terminate()
        self._process.join()


def measure_times(
    entries: Sequence[Entry], *, rounds: int = 12, steps: int = 8, warmup: int = 10
) -> list[Timing]:
    """Step times of all entries: every round each has one turn, in the order given."""
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(entry)) for entry in entries]
        for worker in workers:
            worker.ask("build", warmup)
        seconds: list[list[float]] = [[] for _ in entries]
        for _ in range(rounds):
            for worker, own in zip(workers, seconds, strict=True):
                time.sleep(PAUSE_SECONDS)
                own.extend(worker.ask("time", steps))
    return [Timing(entry.name, tuple(own)) for entry, own in zip(entries, seconds, strict=True)]


def measure_memory(entry: Entry, *, warmup: int = 5, steps: int = 7, processes: int = 3) -> Memory:
    """Memory of one step of the entry: the middle one of several fresh processes.

    How a heap fragments differs from process to process, by two or three percent for PyTorch.
    """
    if processes % 2 == 0:
        raise ValueError(f"an even number of processes ({processes}) has no middle one")
    answers: list[Memory] = []
    for _ in range(processes):
        with Worker(entry) as worker:
            answers.append(worker.ask("memory", warmup, steps))
    return sorted(answers, key=lambda memory: memory.activation_bytes)[processes // 2]
