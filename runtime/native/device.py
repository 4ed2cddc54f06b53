"""The native device: an arena in memory, kernels compiled from C, a pool of threads.

What has no kernel runs with NumPy, on views of the same arena.  Invariant: a program's library is
compiled once, whatever its sizes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde.compiler.program import KernelFile
from retrograde.runtime.native import ahead
from retrograde.runtime.native import blas as libraries
from retrograde.runtime.native.pool import Fault, Pool, check_count, pool, table, thread_count
from retrograde.runtime.native.pool import source as pool_source
from retrograde.runtime.native.toolchain import (
    Toolchain,
    find_toolchain,
    is_provided,
    load,
    needed,
    shared_library,
)
from retrograde.runtime.numpy_device import NumpyArena, NumpyDevice
from retrograde.runtime.protocol import Bound

Table = npt.NDArray[np.int64]

NAME = "kernels"  # of files with the kernels of programs


class NativeArena(NumpyArena):
    """Memory with its address."""

    def __init__(self, bytes: int) -> None:
        super().__init__(bytes)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.map))


class _Sequence:
    """A list of launches with its arguments."""

    def __init__(
        self, threads: Pool, code: Table, kernels: Table, arguments: Table, movers: Table
    ) -> None:
        parts, count = arguments.shape
        self.origin = table(parts, max(count, 1))
        self.origin[:, :count] = arguments
        self.work = table(parts, max(count, 1))
        self.work[...] = self.origin
        self.run = threads.bind(code, kernels, self.origin, self.work, movers)

    def __call__(self) -> None:
        self.run()

    def move(self, argument: int, value: int) -> None:
        self.origin[:, argument] = value
        self.work[:, argument] = value


class NativeMemory:
    """An arena as one program's kernels see it."""

    def __init__(self, arena: NativeArena, library: Library, threads: Pool) -> None:
        self._arena, self._library, self._pool = arena, library, threads
        self.xp = arena.xp
        self.address = arena.address
        self.threads = threads.threads
        self.panels = library.panels

    def __getattr__(self, name: str) -> Any:
        return getattr(self._arena, name)

    @property
    def blas(self) -> dict[str, tuple[int, int]]:
        return libraries.products()

    def sequence(self, code: Table, arguments: Table, movers: Table) -> _Sequence:
        return _Sequence(self._pool, code, self._library.kernels, arguments, movers)

    def fault(self, error: Exception) -> tuple[int, int] | None:
        return (error.index, error.code) if isinstance(error, Fault) else None


class Library:
    """The compiled kernels of a program, by their numbers."""

    def __init__(
        self, files: Sequence[KernelFile], loaded: Sequence[ctypes.CDLL]
    ) -> None:
        self._loaded = loaded  # their functions live as long as they do
        found: dict[int, int] = {}
        self.panels: dict[str, int] = {}
        for file, library in zip(files, loaded, strict=True):
            table = ctypes.c_int64 * len(file.numbers)
            found.update(zip(file.numbers, table.in_dll(library, "rg_kernels"), strict=True))
            widths = (ctypes.c_int64 * 2).in_dll(library, "rg_panels")
            if widths[0]:
                self.panels = {"f32": widths[0], "f64": widths[1]}
        self.kernels = np.array([found[n] for n in range(len(found))], np.int64)


class NativeDevice(NumpyDevice):
    """Runs schedules with compiled kernels on the CPU; `blas` are the dtypes whose products a BLAS
    computes, where it is not told the faster ones (see native.blas)."""

    name = "native"

    def __init__(
        self, threads: int | None = None, blas: tuple[str, ...] | None = None
    ) -> None:
        self.blas = libraries.dtypes() if blas is None else blas
        self.threads = thread_count() if threads is None else threads
        check_count(self.threads)
        ahead.begin([("pool", pool_source())], None if is_provided(pool_source()) else needed())

    def allocate(self, bytes: int) -> NativeArena:
        return NativeArena(bytes)

    def expect(self, kernels: Sequence[KernelFile]) -> None:
        ahead.begin([(NAME, file.code) for file in kernels], _toolchain(kernels))

    def load(self, source: str, file: str, kernels: Sequence[KernelFile]) -> Callable[..., Bound]:
        with ThreadPoolExecutor(1) as beside:  # the C compiler works while Python's does
            compiled = beside.submit(_compiled, kernels, _toolchain(kernels))
            bind = super().load(source, file, kernels)
            library = Library(kernels, compiled.result())

        threads = pool(self.threads)

        def bound(arena: NativeArena, *arguments: Any) -> Bound:
            return bind(NativeMemory(arena, library, threads), *arguments)

        return bound


def _toolchain(kernels: Sequence[KernelFile]) -> Toolchain | None:
    return None if all(is_provided(file.code) for file in kernels) else find_toolchain()


def _compiled(
    kernels: Sequence[KernelFile], toolchain: Toolchain | None
) -> list[ctypes.CDLL]:
    """The libraries of the C files, compiled as many at a time as there are processors."""

    def made(file: KernelFile) -> ctypes.CDLL:
        return load(shared_library(file.code, toolchain, name=NAME))

    if len(kernels) < 2:
        return list(map(made, kernels))
    with ThreadPoolExecutor(min(len(kernels), thread_count())) as threads:
        return list(threads.map(made, kernels))
