"""The process of one contender: commands from a pipe -> answers; idle in between.

    python -m benchmarks.inside DESCRIPTOR     as benchmarks/measure.py starts it

Invariant: nothing but the standard library is imported before the contender is built.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.contender import Built, Contender, Entry, Memory

CHECKED_STEPS = 3  # how many first steps are compared between contenders


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


def time_steps(step: Callable[[], object], count: int) -> list[float]:
    """Seconds of `count` steps, after one that is not timed: it wakes the pool and the caches."""
    step()
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return seconds


def start(contender: Contender, warmup: int) -> Built:
    """Runs the first steps: what they compute, and how much longer than others the first took."""
    begin = time.perf_counter()
    results = [contender.step()]
    first = time.perf_counter() - begin
    if contender.numbers is None:
        results += [contender.step() for _ in range(CHECKED_STEPS - 1)]
        numbers = tuple(float(x) for result in results for x in _sequence(result))
    else:
        numbers = tuple(map(float, contender.numbers()))
    usual = statistics.median(time_steps(contender.step, max(1, warmup)))
    return Built(usual, contender.compile_seconds + max(0.0, first - usual), numbers)


def _sequence(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


def serve(connection: Connection) -> None:
    """Answers ("memory", warmup, steps), ("build", warmup) and ("time", count) until None comes or
    the other end is gone.  What fails is answered by its text, and ends the process."""
    entry: Entry = connection.recv()
    contender: Contender | None = None
    while (command := _received(connection)) is not None:
        try:
            match command:
                case ("memory", warmup, steps):
                    answer: Any = measure_memory_here(entry, warmup, steps)
                case ("build", warmup):
                    contender = entry.build(entry.arguments)
                    answer = start(contender, warmup)
                case ("time", count):
                    assert contender is not None, "time before build"
                    answer = time_steps(contender.step, count)
            connection.send(answer)
        except Exception as error:
            connection.send(f"{type(error).__name__}: {error}")
            raise


def _received(connection: Connection) -> Any:
    try:
        return connection.recv()
    except EOFError:
        return None


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
