"""Devices by name.  Invariant: asking for a device imports nothing of the others' libraries."""

from __future__ import annotations

from retrograde.compiler.errors import DeviceError
from retrograde.runtime.cupy_device import CupyDevice
from retrograde.runtime.numpy_device import NumpyDevice
from retrograde.runtime.protocol import Device

__all__ = ["Device", "get_device"]


def get_device(name: str = "auto", threads: int | None = None) -> Device:
    """The device called `name`: "auto" or "numpy" for the CPU, "cupy" for an NVIDIA GPU.

    Raises DeviceError for a name that is unknown and for a GPU that is not there."""
    if name in ("auto", "numpy"):
        return NumpyDevice()
    if name == "native":
        from retrograde.runtime.native.device import NativeDevice

        return NativeDevice(threads)
    if name == "cupy":
        return CupyDevice()
    raise DeviceError(f"unknown device {name!r}: use 'auto', 'numpy' or 'cupy'")
