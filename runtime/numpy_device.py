"""The NumPy device: one anonymous mapping as the arena, NumPy arrays as views of it.

Invariant: the arena is the only large allocation; its pages are the process's own until it goes.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from retrograde.compiler.program import KernelFile
from retrograde.runtime.protocol import Bound, HostArray
from retrograde.runtime.source import bind_of

LARGE = 1 << 21  # bytes of an arena that may have large pages, and grows where it lies
POISON = np.array([0xFF, 0xFF, 0xFF, 0x7F], np.uint8)  # NaN in f32, huge or NaN in other types


class NumpyArena:
    """Zeroed pages from the operating system, aligned to a page, and views of them."""

    xp = np

    def __init__(self, bytes: int) -> None:
        self.bytes = bytes
        self.ragged: dict[int, tuple[int, ...]] = {}
        self.map = _reserved(bytes)
        self._large_pages(0)

    def grow(self, bytes: int) -> bool:
        """Makes room for `bytes` without moving anything, where there are so many addresses."""
        if bytes > len(self.map):
            return False
        before, self.bytes = self.bytes, bytes
        self._large_pages(before)
        return True

    def _large_pages(self, start: int) -> None:
        """Asks for large pages from `start` to the end, but not beyond it."""
        start -= start % mmap.PAGESIZE
        if hasattr(mmap, "MADV_HUGEPAGE") and self.bytes >= LARGE:
            self.map.madvise(mmap.MADV_HUGEPAGE, start, self.bytes - start)

    def view(
        self, offset: int, dtype: Any, shape: tuple[int, ...], strides: tuple[int, ...] | None
    ) -> Any:
        if 0 in shape:  # may lie at the very end of the arena
            return np.empty(shape, dtype)
        return np.ndarray(shape, dtype, self.map, offset, strides)

    def fill(self, offset: int, bytes: int) -> None:
        if bytes:
            np.ndarray((bytes,), np.uint8, self.map, offset)[:] = np.resize(POISON, bytes)

    def special(self) -> Any:
        import scipy.special

        return scipy.special


def _reserved(bytes: int) -> mmap.mmap:
    """A mapping, if it is large with addresses to grow into, which take no memory until then."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    if bytes >= LARGE:
        with contextlib.suppress(OSError):  # a limit on addresses
            return mmap.mmap(-1, bytes + bytes // 2, flags=flags)
    return mmap.mmap(-1, max(bytes, 1), flags=flags)


class NumpyDevice:
    """Runs schedules with NumPy on the CPU."""

    name = "numpy"
    threads = 1
    blas: tuple[str, ...] = ()

    def allocate(self, bytes: int) -> NumpyArena:
        return NumpyArena(bytes)

    def copy_arena(self, source: NumpyArena, target: NumpyArena, bytes: int) -> None:
        np.copyto(
            np.ndarray((bytes,), np.uint8, target.map), np.ndarray((bytes,), np.uint8, source.map)
        )

    def expect(self, kernels: Sequence[KernelFile]) -> None:
        pass

    def load(self, source: str, file: str, kernels: Sequence[KernelFile]) -> Callable[..., Bound]:
        return bind_of(source, file)

    def bind(self, bind: Callable[..., Bound], arena: NumpyArena, *arguments: Any) -> Bound:
        run, inputs, outputs = bind(arena, *arguments)

        def quiet() -> None:
            with np.errstate(all="ignore"):
                run()

        return quiet, inputs, outputs

    def write(self, target: Any, value: HostArray) -> None:
        np.copyto(target, value)

    def read(self, source: Any) -> HostArray:
        found: HostArray = np.array(source, order="C", copy=True)
        return found
