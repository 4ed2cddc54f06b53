"""Running graphs on devices: graph, arrays, device -> outputs, in all three modes of memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde.compiler.ir.binding import bind_sizes
from retrograde.compiler.ir.graph import Graph
from retrograde.compiler.ir.interpreter import evaluate
from retrograde.compiler.pipeline import CompiledGraph, Options, compile_graph
from retrograde.runtime.cupy_device import CupyDevice
from retrograde.runtime.device import get_device
from retrograde.runtime.executable import Executable
from retrograde.runtime.protocol import Device
from tests.device import fake_cupy

Array = npt.NDArray[Any]

# Results must not depend on the memory: dead buffers overwritten, or every buffer on its own.
MODES = {
    "plain": Options(verify=True),
    "poison": Options(poison=True),
    "apart": Options(reuse=False),
}


def device_named(name: str) -> Device:
    """numpy, cupy, or the strict stand-in for CuPy."""
    if name == "standin":
        return CupyDevice(fake_cupy, fake_cupy.special)
    return get_device(name, threads=2)


def executable(
    graph: Graph, device: Device, options: Options | None = None
) -> tuple[CompiledGraph, Executable]:
    options = options or MODES["plain"]
    if device.name == "native":
        options = replace(options, native=True, threads=device.threads)
    compiled = compile_graph(graph, options)
    return compiled, Executable(compiled.program, device, poison=options.poison)


class Compiled:
    """A graph on a device in every mode; a call runs them all and compares them bit for bit."""

    def __init__(self, graph: Graph, device: Device) -> None:
        self.graph = graph
        self.exact = device.name == "numpy" or isinstance(getattr(device, "xp", None), type(np))
        self.runs = {mode: executable(graph, device, o)[1] for mode, o in MODES.items()}
        self.donated = {i for _, i in graph.aliases}

    def sizes(self, arrays: Sequence[Array]) -> dict[str, int]:
        types = [v.type for v in self.graph.inputs]
        return bind_sizes(types, self.graph.input_names, [x.shape for x in arrays])

    def __call__(self, arrays: Sequence[Array]) -> list[Array]:
        """The outputs that are not state; state is set first."""
        sizes = self.sizes(arrays)
        given = [x for i, x in enumerate(arrays) if i not in self.donated]
        state = [x for i, x in enumerate(arrays) if i in self.donated]
        found: dict[str, list[Array]] = {}
        for mode, run in self.runs.items():
            if state:
                run.set_state(state)
            found[mode] = run.run(given, sizes)
        for mode, outputs in found.items():
            for a, b in zip(found["plain"], outputs, strict=True):
                same_bits(a, b, f"{mode} differs from plain")
        return found["plain"]


def same_bits(a: Array, b: Array, why: str = "") -> None:
    """Equal bit for bit, except that all NaNs are one."""
    assert a.dtype == b.dtype and a.shape == b.shape, why
    if a.tobytes() == b.tobytes():
        return
    assert a.dtype.kind not in "biu", why
    equal = (a == b) & (np.signbit(a) == np.signbit(b)) | (np.isnan(a) & np.isnan(b))
    assert equal.all(), why


# How far results of one op may lie apart: sums are taken in other orders, composites otherwise.
TOLERANCE = {"float64": 1e-12, "float32": 2e-5, "float16": 4e-3, "bfloat16": 4e-2}


def agree(
    found: Array, expected: Array, tolerance: float | None = None, scale: float = 1.0
) -> None:
    """Type, shape, and values up to `tolerance` times the scale of the computation."""
    assert isinstance(found, np.ndarray)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    if expected.dtype.kind in "biu":
        np.testing.assert_array_equal(found, expected)
        return
    wide = np.float64
    tolerance = TOLERANCE[expected.dtype.name] if tolerance is None else tolerance
    np.testing.assert_allclose(
        found.astype(wide), expected.astype(wide), rtol=tolerance, atol=tolerance * scale
    )


def check(
    graph: Graph, device: Device, runs: Sequence[Sequence[Array]], tolerance: float | None = None
) -> Compiled:
    """Compiles once, runs on each list of arrays, and compares with the interpreter."""
    compiled = Compiled(graph, device)
    for arrays in runs:
        largest = [1.0]
        expected = evaluate(graph, arrays, trace=lambda node, results, m=largest: grow(m, results))
        for x, y in zip(compiled(arrays), expected, strict=True):
            agree(x, y, tolerance, largest[0])
    return compiled


def grow(largest: list[float], results: Sequence[Array]) -> None:
    """Keeps the largest finite magnitude seen."""
    for x in results:
        if x.dtype.kind in "biu" or not x.size:
            continue
        top = np.abs(x.astype(np.float64))
        largest[0] = max(largest[0], float(np.max(top, initial=0.0, where=np.isfinite(top))))


def sized(**sizes: int) -> Mapping[str, int]:
    return sizes
