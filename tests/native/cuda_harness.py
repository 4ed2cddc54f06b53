"""Programs on emulated CUDA: a graph -> its steps over rows printed for CUDA, compiled as C++ and
run in the plan's own arena; what has no such kernel runs by the op's reference."""

from __future__ import annotations

import ctypes
import itertools
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde.compiler.codegen.cuda import (
    CudaFunction,
    Shape,
    cuda_file,
    cuda_function,
    shape_of,
)
from retrograde.compiler.codegen.kernel import kernel_of, reduce_kernel
from retrograde.compiler.ir import dims
from retrograde.compiler.ir.binding import bind_sizes
from retrograde.compiler.ir.graph import Graph
from retrograde.compiler.ir.interpreter import run_node
from retrograde.compiler.ir.registry import Kind
from retrograde.compiler.pipeline import Options, compile_graph
from retrograde.compiler.plan.steps import CopyStep, FusedStep, OpStep, Step
from retrograde.compiler.plan.views import Literal, Operand, View

Array = npt.NDArray[Any]

CXX = shutil.which("g++") or shutil.which("clang++")
FLAGS = ("-std=c++17", "-O1", "-march=native", "-ffp-contract=off", "-fwrapv", "-fPIC", "-shared")
EMULATOR = Path(__file__).with_name("cuda_emulator.h")
EDGE = 4096  # bytes around the arena that nothing may touch
_built = itertools.count()


def cuda_of(step: Step) -> CudaFunction | None:
    """The kernel of a step, None where it is none over rows."""
    if isinstance(step, OpStep) and step.node.op.name in ("sum", "prod", "max", "min"):
        return _total(step)
    if isinstance(step, OpStep) and step.node.op.kind is not Kind.ELEMENTWISE:
        return None
    if isinstance(step, (FusedStep, CopyStep, OpStep)):
        return cuda_function(kernel_of(step))
    return None


def _total(step: OpStep) -> CudaFunction | None:
    """The kernel of a reduction along the rows of a matrix."""
    (x,), (out,) = step.operands, step.results
    rows = isinstance(x, View) and len(x.shape) == 2 and step.node.attrs["axes"] == (1,)
    column = out.reshaped((out.shape[0], 1)) if rows else None
    if column is None or not isinstance(x, View):
        return None
    return cuda_function(reduce_kernel(step.node, x, column))


def cuda_source(functions: Sequence[CudaFunction]) -> str:
    return cuda_file([f.text.replace("@", f"k{i}", 1) for i, f in enumerate(functions)])


def emulated(functions: Sequence[CudaFunction], folder: Path) -> ctypes.CDLL:
    """The kernels as a library with an entry `launch<number>` for each."""
    assert CXX is not None
    launches = [
        f'extern "C" int launch{i}(const i64 *a, unsigned blocks, unsigned across, unsigned down, '
        f"u64 seed) {{ return emulator::launch(k{i}, a, blocks, across, down, seed); }}"
        for i in range(len(functions))
    ]
    text = "\n".join([f'#include "{EMULATOR}"', cuda_source(functions), *launches])
    source = folder / f"kernels{next(_built)}.cpp"
    source.write_text(text, encoding="utf-8")
    library = source.with_suffix(".so")
    subprocess.run([CXX, *FLAGS, "-o", str(library), str(source)], check=True)
    return ctypes.CDLL(str(library))


@dataclass
class Launched:
    """What ran: the kernel, and with which shape."""

    function: CudaFunction
    shape: Shape


class Emulated:
    """A compiled graph; a call runs it with the threads in an order drawn from `seed`."""

    def __init__(self, graph: Graph, folder: Path, at_once: int = 3) -> None:
        made = compile_graph(graph, Options(native=True, threads=at_once, verify=True))
        self.graph, self.program, self.planned = graph, made.program, made.planned
        self.at_once = at_once
        self.kernels = [cuda_of(step) for step in self.planned.schedule.steps]
        self.functions = [f for f in self.kernels if f is not None]
        self.library = emulated(self.functions, folder)
        self.launched: list[Launched] = []

    def __call__(self, *arrays: Array, seed: int = 0) -> list[Array]:
        types = [v.type for v in self.graph.inputs]
        sizes = bind_sizes(types, self.graph.input_names, [x.shape for x in arrays])
        offsets, _, height = self.program.layout(sizes)
        memory = np.full(height + 2 * EDGE, 0xA5, np.uint8)
        run = _Run(self, sizes, memory, offsets)
        schedule = self.planned.schedule
        for view, x in zip(schedule.inputs, arrays, strict=True):
            run.array(view)[...] = x
        self.launched = []
        number = 0
        for step, function in zip(schedule.steps, self.kernels, strict=True):
            if function is None:
                run.reference(step)
                continue
            self.launched.append(Launched(function, run.launch(number, function, seed)))
            number += 1
        assert (memory[:EDGE] == 0xA5).all() and (memory[-EDGE:] == 0xA5).all()
        return [np.array(run.array(v)) for v in schedule.outputs]


@dataclass
class _Run:
    of: Emulated
    sizes: Mapping[str, int]
    memory: npt.NDArray[np.uint8]
    offsets: Sequence[int]

    def number(self, d: dims.Dim) -> int:
        return dims.evaluate(d, self.sizes)

    def place(self, v: View) -> int:
        """The byte of the arena at which a view begins."""
        planned = self.of.planned
        home = planned.places[planned.liveness.home(v.storage)]
        return EDGE + self.offsets[home] + self.number(v.offset) * v.dtype.bytes

    def array(self, x: Operand) -> Array:
        if isinstance(x, Literal):
            return np.asarray(x.value, x.dtype.numpy)
        shape = [self.number(d) for d in x.shape]
        strides = [self.number(s) * x.dtype.bytes for s in x.strides]
        return np.ndarray(shape, x.dtype.numpy, self.memory, self.place(x), strides)

    def launch(self, number: int, f: CudaFunction, seed: int) -> Shape:
        rows = self.number(f.rows)
        shape = shape_of(f, rows, self.number(f.inner), self.of.at_once)
        places = [self.memory.ctypes.data + self.place(v) for v in f.places]
        given = [*places, *map(self.number, f.sizes), rows]
        arguments = (ctypes.c_int64 * len(given))(*given)
        launch = self.of.library[f"launch{number}"]
        fault = launch(arguments, shape.blocks, shape.across, shape.down, ctypes.c_uint64(seed))
        assert fault == 0, f"threads wait for each other for ever in\n{f.text}"
        return shape

    def reference(self, step: Step) -> None:
        assert isinstance(step, OpStep), f"{type(step).__name__} has no reference here"
        operands = [
            np.broadcast_to(self.array(x), [self.number(d) for d in v.shape])
            for v, x in zip(step.node.inputs, step.operands, strict=True)
        ]
        for out, y in zip(step.results, run_node(step.node, operands, self.sizes), strict=True):
            self.array(out)[...] = y
