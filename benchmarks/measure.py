"""Contenders -> step times and memory; each lives in its own fresh process, and they take turns.

A contender is named by "module:function"; the function builds it from its arguments inside the
process that measures it, so that no library's threads, caches or heap touch another's. The parent
gives the turns A B A B ..., so a machine that slows down slows down all alike: trust the ratios.
How much processor time the idle ones took is measured too.

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

import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.contender import Built, Contender, Entry, Memory, Timing

__all__ = [
    "Built",
    "Contender",
    "Entry",
    "Failed",
    "Memory",
    "Timing",
    "Worker",
    "measure_memory",
    "measure_times",
    "take_turns",
]

ROOT = Path(__file__).resolve().parents[1]
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "RETROGRADE_THREADS",
)
# A thread pool that has just worked spins for a while before it sleeps: OpenBLAS up to 26 ms.
PAUSE_SECONDS = 0.06


class Failed(Exception):
    """A contender that could not be measured, and why."""


class Worker:
    """A fresh process that holds one contender and works only when it is asked to."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        ours, theirs = socket.socketpair()
        threads = dict.fromkeys(THREAD_VARIABLES, str(entry.threads))
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        with theirs:
            self._process = subprocess.Popen(
                [entry.python, "-m", "benchmarks.inside", str(theirs.fileno())],
                env={**os.environ, **threads, "PYTHONPATH": path, **entry.environment},
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._connection = Connection(ours.detach())
        self._send(entry)

    def ask(self, *command: Any, limit: float | None = None) -> Any:
        """The answer to a command.  Raises Failed where there is none within `limit` seconds."""
        self._send(command)
        if limit is not None and not self._connection.poll(limit):
            raise Failed(f"{self.entry.name} took more than {limit:.0f} s")
        try:
            answer = self._connection.recv()
        except EOFError:
            status = self._process.wait()
            raise Failed(f"{self.entry.name} ended with status {status}") from None
        if isinstance(answer, str):
            raise Failed(f"{self.entry.name}: {answer}")
        return answer

    def cpu_seconds(self) -> float:
        """The processor time that it has taken, all of its threads together."""
        text = Path(f"/proc/{self._process.pid}/stat").read_text()
        user, system = text.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def _send(self, message: object) -> None:
        with suppress(BrokenPipeError):  # why it ended is told when its answer is read
            self._connection.send(message)

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.kill()
        else:
            self._send(None)
            self._process.wait()

    def kill(self) -> None:
        """Ends the process and those that it has started: the session is its own."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def take_turns(workers: Sequence[Worker], rounds: int, steps: Sequence[int]) -> list[Timing]:
    """Step times of contenders that are built: every round each has one turn, in their order."""
    seconds: list[list[float]] = [[] for _ in workers]
    idle, lasted = [0.0 for _ in workers], [0.0 for _ in workers]
    for _ in range(rounds):
        for i, worker in enumerate(workers):
            time.sleep(PAUSE_SECONDS)
            others = [other for other in workers if other is not worker]
            before, start = sum(w.cpu_seconds() for w in others), time.perf_counter()
            seconds[i] += worker.ask("time", steps[i])
            lasted[i] += time.perf_counter() - start
            idle[i] += sum(w.cpu_seconds() for w in others) - before
    return [
        Timing(worker.entry.name, tuple(own), count, took / whole if whole else 0.0)
        for worker, own, count, took, whole in zip(
            workers, seconds, steps, idle, lasted, strict=True
        )
    ]


def measure_times(
    entries: Sequence[Entry], *, rounds: int = 12, steps: int = 8, warmup: int = 10
) -> list[Timing]:
    """Step times of all entries, each in a process of its own."""
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(entry)) for entry in entries]
        for worker in workers:
            worker.ask("build", warmup)
        return take_turns(workers, rounds, [steps] * len(workers))


def measure_memory(
    entry: Entry,
    *,
    warmup: int = 5,
    steps: int = 7,
    processes: int = 3,
    limit: float | None = None,
) -> Memory:
    """Memory of one step of the entry: the middle one of several fresh processes.

    How a heap fragments differs from process to process, by two or three percent for PyTorch.
    """
    if processes % 2 == 0:
        raise ValueError(f"an even number of processes ({processes}) has no middle one")
    answers: list[Memory] = []
    for _ in range(processes):
        with Worker(entry) as worker:
            answers.append(worker.ask("memory", warmup, steps, limit=limit))
    return sorted(answers, key=lambda memory: memory.activation_bytes)[processes // 2]
