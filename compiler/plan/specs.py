"""What a plan says of a program's ports and buffers: plain data, at every size."""

from __future__ import annotations

from dataclasses import dataclass

from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.graph import TensorType


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output: its name and type; donated inputs are state and stay in the arena."""

    name: str
    type: TensorType
    donated: bool = False


@dataclass(frozen=True, slots=True)
class BufferSpec:
    """One buffer: lifetime in steps, half-open, and size in bytes."""

    name: str
    kind: str  # state, input, value, scratch
    bytes: Dim
    start: int
    end: int
    place: str  # the source line that it is for
