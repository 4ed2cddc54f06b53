"""Graph -> something that runs: the compiler, a device and the number of threads put together."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, cached_property
from typing import Any

import numpy.typing as npt

from retrograde.compiler.errors import DataError, DeviceError, UnsupportedError
from retrograde.compiler.ir.dims import Symbol
from retrograde.compiler.ir.graph import Graph
from retrograde.compiler.ir.location import where
from retrograde.compiler.passes.attention import tiled
from retrograde.compiler.passes.cross_entropy import chunked
from retrograde.compiler.pipeline import CompiledRecipe, Options, compile_graph
from retrograde.compiler.plan.decided import Decided
from retrograde.compiler.plan.recipe import Recipe
from retrograde.runtime.device import default_name, get_device
from retrograde.runtime.executable import Executable
from retrograde.specs import size_of

Array = npt.NDArray[Any]

BACKENDS = ("auto", "numpy", "native", "cupy")
_CALL = re.compile(r"|pass|run\d+\(.*\)")
_UNITS = {"B": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
          "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}  # fmt: skip


class Runnable:
    """A compiled graph on a device."""

    def __init__(
        self, executable: Executable, recipes: Sequence[CompiledRecipe], threads: int | None
    ) -> None:
        self.executable = executable
        self.recipes = recipes
        self.threads = threads

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
        with _limited(self.threads if self._uses_libraries else None):
            return self.executable.run(arrays, sizes)

    @cached_property
    def _uses_libraries(self) -> bool:
        """Whether anything runs but kernels of our own: setting the threads of BLAS, and setting
        them back, takes as long as a small program."""
        if self.executable.device.name != "native":
            return True
        return not all(map(_of_kernels, self.executable.program.recipes))

    def clone(self) -> Runnable:
        """Another one with memory, and a copy of the state, of its own."""
        return Runnable(self.executable.clone(), self.recipes, self.threads)


def runnable(
    graph: Graph,
    at: Mapping[str, int] | None = None,
    backend: str = "auto",
    threads: int | None = None,
    budget: int | None = None,
    decided: Sequence[Decided] = (),
) -> Runnable:
    """Compiles `graph` for a device, with what is `decided` already.  Raises DeviceError for one
    that is not there, BudgetError for a budget that cannot be met at the sizes of `at`."""
    backend = checked_backend(backend)
    threads = checked_threads(threads)
    device = get_device(backend, threads)
    native = device.name == "native"
    options = Options.from_environment(at, budget, native, device.threads if native else 1)
    compiled = compile_graph(graph, options, decided)
    executable = Executable(compiled.program, device, poison=options.poison)
    return Runnable(executable, compiled.recipes, threads)


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


def refuse_unbuilt(precision: Any) -> None:
    """UnsupportedError for what this release does not have yet."""
    if precision is not None:
        raise UnsupportedError(
            f"{where()}precision={precision!r}: mixed precision is not in this release. Leave it "
            "out: the dtypes are those that the model is written in"
        )


def _of_kernels(recipe: Recipe) -> bool:
    """Whether a run is nothing but calls of lists of launches."""
    body = recipe.source.partition("def run():\n")[2].partition("\n\n")[0]
    return all(_CALL.fullmatch(line.partition("#")[0].strip()) for line in body.splitlines())


def _limited(threads: int | None) -> AbstractContextManager[Any]:
    if threads is None:
        return nullcontext()
    limits: AbstractContextManager[Any] = _controller().limit(limits=threads, user_api="blas")
    return limits


@cache
def _controller() -> Any:
    from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

    return ThreadpoolController()
