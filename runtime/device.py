"""Devices by name.  Invariant: asking for a device imports nothing of the others' libraries."""

from __future__ import annotations

from retrograde.compiler.errors import DeviceError
from retrograde.runtime.cupy_device import CupyDevice
from retrograde.runtime.numpy_device import NumpyDevice
from retrograde.runtime.protocol import Device

__all__ = ["Device", "get_device"]


def get_device(
    name: str = "auto", threads: int | None = None, blas: tuple[str, ...] | None = None
) -> Device:
    """The device called `name`: "native" or "numpy" for the CPU, "cupy" for an NVIDIA GPU, "auto"
    for what `default_name` says.  `threads` run the kernels of the native device, and a BLAS
    computes its products of the dtypes in `blas`; it knows itself what is faster.

    Raises DeviceError for a name that is unknown and for a GPU that is not there."""
    if name == "auto":
        name = default_name()
    if name == "numpy":
        return NumpyDevice()
    if name == "native":
        from retrograde.runtime.native.device import NativeDevice

        return NativeDevice(threads, blas)
    if name == "cupy":
        return CupyDevice()
    raise DeviceError(f"unknown device {name!r}: use 'auto', 'native', 'numpy' or 'cupy'")


def default_name() -> str:
    """What "auto" means: the native device where there is a C compiler, else, with a notice, the
    NumPy device."""
    from retrograde.runtime.native.toolchain import find_toolchain

    return "numpy" if find_toolchain() is None else "native"
