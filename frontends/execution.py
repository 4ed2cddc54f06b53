"""Graph -> something that runs: the compiler, a device and the number of threads put together."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

import retrograde.compiler.ops  # noqa: F401  # declares the ops
from retrograde.compiler.errors import DataError, DeviceError, UnsupportedError
from retrograde.compiler.ir.dims import Symbol
from retrograde.compiler.ir.graph import Graph
from retrograde.compiler.ir.location import where
from retrograde.compiler.passes.attention import tiled
from retrograde.compiler.passes.cross_entropy import chunked
from retrograde.compiler.plan.decided import Decided
from retrograde.runtime.blas_threads import limited
from retrograde.runtime.device import Device, default_name, get_device
from retrograde.runtime.executable import Executable
from retrograde.specs import size_of

if TYPE_CHECKING:
    from retrograde.compiler.pipeline import CompiledRecipe, Options

Array = npt.NDArray[Any]

BACKENDS = ("auto", "numpy", "native", "cupy")
_UNITS = {"B": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
          "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}  # fmt: skip


class Runnable:
    """A compiled graph on a device."""

    def __init__(
        self,
        executable: Executable,
        recipes: Sequence[CompiledRecipe],
        threads: int | None,
        options: Options,
    ) -> None:
        self.executable = executable
        self.recipes = recipes
        self.threads = threads
        self.options = options  # what it was compiled with

    @property
    def ladder(self) -> list[Mapping[str, Graph]]:
        """For each recipe, the graphs that led to it."""
        return [made.stages for made in self.recipes]

    @property
    def stages(self) -> Mapping[str, Graph]:
        """Those of the first recipe."""
        return self.recipes[0].stages

    def run(self, arrays: Sequence[Array], sizes: Mapping[str, int]) -> list[Array]:
        """The outputs that are not state, as fresh arrays."""
        shared = self.executable.device.name != "native"  # whose kernels have threads of their own
        limits = nullcontext() if self.threads is None or not shared else limited(self.threads)
        with limits:
            return self.executable.run(arrays, sizes)

    def clone(self) -> Runnable:
        """Another one with memory, and a copy of the state, of its own."""
        return Runnable(self.executable.clone(), self.recipes, self.threads, self.options)


def runnable(
    graph: Graph,
    at: Mapping[str, int] | None = None,
    backend: str = "auto",
    threads: int | None = None,
    budget: int | None = None,
    decided: Sequence[Decided] = (),
    blas: tuple[str, ...] | None = None,
) -> Runnable:
    """Compiles `graph` for a device, with what is `decided` already; `blas`: the dtypes whose
    products a BLAS computes on the native device, where that is known.

    Raises DeviceError for a device that is not there, BudgetError for a budget that cannot be met
    at the sizes of `at`."""
    backend = checked_backend(backend)
    threads = checked_threads(threads)
    device = get_device(backend, threads, blas)
    options = options_for(device, at, budget)
    from retrograde.compiler.codegen.foreseen import foreseen
    from retrograde.compiler.pipeline import compile_graph  # takes long; nothing is compiled yet

    if options.native:
        device.expect(foreseen(graph, device.blas))
    compiled = compile_graph(graph, options, decided, device.expect)
    executable = Executable(compiled.program, device, poison=options.poison)
    return Runnable(executable, compiled.recipes, threads, options)


def options_for(
    device: Device, at: Mapping[str, int] | None = None, budget: int | None = None
) -> Options:
    """How graphs are compiled for a device."""
    from retrograde.compiler.pipeline import Options

    native = device.name == "native"
    threads = device.threads if native else 1
    return Options.from_environment(at, budget, native, threads, device.blas)


def checked_backend(backend: str) -> str:
    """A backend that there is; RETROGRADE_BACKEND says what "auto" means where it is set."""
    if backend == "auto":
        backend = os.environ.get("RETROGRADE_BACKEND") or "auto"
    if backend not in BACKENDS:
        raise DeviceError(
            f"{where()}unknown backend {backend!r}: use 'auto', 'native', 'numpy' or 'cupy'"
        )
    return backend


@contextmanager
def tracing_for(backend: str) -> Iterator[None]:
    """While a function is traced for `backend`: what that backend has kernels of its own for is
    recognised before it is differentiated."""
    name = checked_backend(backend)
    if name == "auto":
        name = default_name()
    if name != "native":
        yield
        return
    with tiled(), chunked():
        yield


def checked_threads(threads: int | None) -> int | None:
    """How many threads matrix products may use; None leaves it to the library."""
    if threads is None:
        text = os.environ.get("RETROGRADE_THREADS", "")
        if not text:
            return None
        if not text.isdecimal():  # isdigit takes superscripts, int does not
            raise DeviceError(f"RETROGRADE_THREADS is {text!r}: give a number of threads")
        threads = int(text)
    if threads < 1:
        raise DeviceError(f"{where()}threads={threads}: give at least one")
    return threads


def checked_budget(
    budget: int | str | None, at: Mapping[str, int], symbols: Mapping[str, Symbol]
) -> int | None:
    """The budget in bytes.  Raises DataError where a size without bounds is not given by `at`:
    recipes are made for sizes."""
    if budget is None:
        return None
    found = in_bytes(budget)
    open_ended = [name for name, s in symbols.items() if s.max is None and name not in at]
    if open_ended:
        sizes = ", ".join(f"{name!r}: …" for name in open_ended)
        raise DataError(
            f"{where()}a budget needs to know sizes to plan for, and {', '.join(open_ended)} may "
            f"be any: give at={{{sizes}}}; the program still runs at every size that fits"
        )
    return found


def in_bytes(budget: int | str) -> int:
    """A number of bytes, also as "64MiB" or "1.5GB"."""
    if not isinstance(budget, str):
        return size_of("budget", budget)
    text = budget.replace(" ", "").upper()
    digits = text.rstrip("KMGTIB")
    unit = text[len(digits) :] or "B"
    try:
        return int(float(digits) * _UNITS[unit])
    except (KeyError, ValueError, OverflowError):
        raise UnsupportedError(
            f"{where()}{budget!r} is no number of bytes: write 67108864 or '64MiB'"
        ) from None
