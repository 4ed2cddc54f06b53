"""The device protocol: where an arena lives and which array module computes on it.

Invariant: a device knows nothing of graphs; it allocates an arena, makes views of it, moves arrays
in and out, and loads the sources that a program brings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy.typing as npt

from retrograde.compiler.program import KernelFile

HostArray = npt.NDArray[Any]
Bound = tuple[Callable[[], None], list[Any], list[Any]]  # run, views of inputs, of outputs


class Arena(Protocol):
    """One allocation; generated code makes its views through it (see codegen.numpy_support)."""

    bytes: int
    # What each ragged loop ran in the run at hand: rows, rows of all steps, steps run, steps.
    ragged: dict[int, tuple[int, ...]]

    def grow(self, bytes: int) -> bool:
        """Makes room for `bytes` where the arena lies, or says that there is none."""
        ...

    def fill(self, offset: int, bytes: int) -> None:
        """Overwrites memory with a pattern that no computation should read."""
        ...


class Device(Protocol):
    """What an executable needs of a device."""

    name: str
    threads: int  # that run kernels; 1 where a library has its own
    blas: tuple[str, ...]  # dtypes whose products compiled kernels leave to a BLAS

    def allocate(self, bytes: int) -> Any:
        """An arena of at least `bytes`, aligned to 64."""
        ...

    def copy_arena(self, source: Any, target: Any, bytes: int) -> None:
        """Copies the first `bytes` (the state) from one arena to another."""
        ...

    def expect(self, kernels: Sequence[KernelFile]) -> None:
        """Says what will be loaded: it may be compiled meanwhile."""
        ...

    def load(self, source: str, file: str, kernels: Sequence[KernelFile]) -> Callable[..., Bound]:
        """The `bind` of a generated source; `kernels` is what a compiler makes its kernels of."""
        ...

    def bind(self, bind: Callable[..., Bound], arena: Any, *arguments: Any) -> Bound:
        """Calls the `bind` of a generated source: buffer offsets, their bytes, the sizes."""
        ...

    def write(self, target: Any, value: HostArray) -> None:
        """Copies a host array into a view."""
        ...

    def read(self, source: Any) -> HostArray:
        """A fresh host array with what a view holds."""
        ...
