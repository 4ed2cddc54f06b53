"""The CuPy device: the same schedules on an NVIDIA GPU.

Invariant: cupy is imported here alone, when a device is made; without a GPU that is a DeviceError.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from retrograde.compiler.errors import DeviceError
from retrograde.compiler.program import KernelFile
from retrograde.runtime.protocol import Bound, HostArray
from retrograde.runtime.source import bind_of


class CupyArena:
    """One allocation of device memory, and views of it."""

    def __init__(self, xp: Any, special: Callable[[], Any], bytes: int) -> None:
        self.xp = xp
        self.bytes = bytes
        self.ragged: dict[int, tuple[int, ...]] = {}
        self._special = special
        self.memory = xp.zeros(max(bytes, 1), dtype=np.uint8)

    def view(
        self, offset: int, dtype: Any, shape: tuple[int, ...], strides: tuple[int, ...] | None
    ) -> Any:
        try:
            if 0 in shape:  # may lie at the very end of the arena
                return self.xp.empty(shape, dtype)
            return self.xp.ndarray(shape, dtype, self.memory.data + offset, strides)
        except TypeError as error:
            raise DeviceError(
                f"this CuPy has no arrays of {dtype}: use another dtype, or backend='numpy'"
            ) from error

    def grow(self, bytes: int) -> bool:
        return False

    def fill(self, offset: int, bytes: int) -> None:
        self.memory[offset : offset + bytes] = 0xFF

    def special(self) -> Any:
        return self._special()


class CupyDevice:
    """Runs schedules with CuPy.  `module` and `special` are cupy and cupyx.scipy.special."""

    name = "cupy"
    threads = 1
    blas: tuple[str, ...] = ()

    def __init__(self, module: Any = None, special: Any = None) -> None:
        if module is None:
            module, special = _import_cupy()
        self.xp = module
        self._special = special

    def allocate(self, bytes: int) -> CupyArena:
        return CupyArena(self.xp, lambda: self._special, bytes)

    def copy_arena(self, source: CupyArena, target: CupyArena, bytes: int) -> None:
        target.memory[:bytes] = source.memory[:bytes]

    def expect(self, kernels: Sequence[KernelFile]) -> None:
        pass

    def load(self, source: str, file: str, kernels: Sequence[KernelFile]) -> Callable[..., Bound]:
        return bind_of(source, file)

    def bind(self, bind: Callable[..., Bound], arena: CupyArena, *arguments: Any) -> Bound:
        return bind(arena, *arguments)

    def write(self, target: Any, value: HostArray) -> None:
        target.set(np.ascontiguousarray(value).reshape(target.shape))

    def read(self, source: Any) -> HostArray:
        found: HostArray = self.xp.ascontiguousarray(source).get().reshape(source.shape)
        return found


def _import_cupy() -> tuple[Any, Any]:
    try:
        import cupy
        import cupyx.scipy.special
    except ImportError as error:
        raise DeviceError(
            "the cupy backend needs CuPy: pip install 'retrograde[gpu]', or use backend='numpy'"
        ) from error
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:  # the CUDA runtime raises its own classes
        raise DeviceError(f"CuPy finds no usable GPU ({error}): use backend='numpy'") from error
    if not count:
        raise DeviceError("CuPy finds no usable GPU: use backend='numpy'")
    return cupy, cupyx.scipy.special
