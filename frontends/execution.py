"""Graph -> something that runs: the compiler, a device and the number of threads put together."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import numpy.typing as npt

from retrograde.compiler.errors import DeviceError, UnsupportedError
from retrograde.compiler.ir.graph import Graph
from retrograde.compiler.ir.location import where
from retrograde.compiler.pipeline import Options, compile_graph
from retrograde.runtime.device import get_device
from retrograde.runtime.executable import Executable

Array = npt.NDArray[Any]


class Runnable:
    """A compiled graph on a device."""

    def __init__(
        self, executable: Executable, stages: Mapping[str, Graph], threads: int | None
    ) -> None:
        self.executable = executable
        self.stages = stages
        self.threads = threads

    def run(self, arrays: Sequence[Array], sizes: Mapping[str, int]) -> list[Array]:
        """The outputs that are not state, as fresh arrays."""
        with _limited(self.threads):
            return self.executable.run(arrays, sizes)

    def clone(self) -> Runnable:
        """Another one with memory, and a copy of the state, of its own."""
        return Runnable(self.executable.clone(), self.stages, self.threads)


def runnable(
    graph: Graph,
    at: Mapping[str, int] | None = None,
    backend: str = "auto",
    threads: int | None = None,
) -> Runnable:
    """Compiles `graph` for a device.  Raises DeviceError for one that is not there."""
    options = Options.from_environment(at)
    device = get_device(checked_backend(backend))
    compiled = compile_graph(graph, options)
    executable = Executable(compiled.program, device, poison=options.poison)
    return Runnable(executable, compiled.stages, checked_threads(threads))


def checked_backend(backend: str) -> str:
    """A backend that there is in this release."""
    if backend == "native":
        raise UnsupportedError(
            f"{where()}the native backend is not in this release: use backend='numpy' (or 'auto'), "
            "or 'cupy' on an NVIDIA GPU"
        )
    if backend not in ("auto", "numpy", "cupy"):
        raise DeviceError(f"{where()}unknown backend {backend!r}: use 'auto', 'numpy' or 'cupy'")
    return backend


def checked_threads(threads: int | None) -> int | None:
    """How many threads matrix products may use; None leaves it to the library."""
    if threads is None:
        text = os.environ.get("RETROGRADE_THREADS", "")
        if not text:
            return None
        if not text.isdigit():
            raise DeviceError(f"RETROGRADE_THREADS is {text!r}: give a number of threads")
        threads = int(text)
    if threads < 1:
        raise DeviceError(f"{where()}threads={threads}: give at least one")
    return threads


def refuse_unbuilt(budget: Any, precision: Any) -> None:
    """UnsupportedError for what this release does not have yet."""
    if budget is not None:
        raise UnsupportedError(
            f"{where()}budget={budget!r}: memory budgets are not in this release. Leave it out; "
            "plan() and peak() tell what a step needs before it runs"
        )
    if precision is not None:
        raise UnsupportedError(
            f"{where()}precision={precision!r}: mixed precision is not in this release. Leave it "
            "out: the dtypes are those that the model is written in"
        )


def _limited(threads: int | None) -> AbstractContextManager[Any]:
    if threads is None:
        return nullcontext()
    limits: AbstractContextManager[Any] = _controller().limit(limits=threads, user_api="blas")
    return limits


@cache
def _controller() -> Any:
    from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

    return ThreadpoolController()
