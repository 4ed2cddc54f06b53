"""Compiled functions in files: graph, plan, arrays and signature as data, and back.

    program.json         what the function takes and returns, and how it was compiled
    graph.ir             the graph as it was traced
    plan.json            for each recipe: the order of the nodes, the places of the buffers
    arrays.safetensors   what the function reads from outside, if anything

Invariant: what is loaded gives the same bits and has the same plan; of the file nothing is
executed; whatever it holds, loading ends with the function or with one of our errors.
"""

from __future__ import annotations

import json
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from retrograde import structures
from retrograde.compiled import Compiled
from retrograde.compiler.errors import (
    BudgetError,
    CheckpointError,
    DataError,
    DeviceError,
    Notice,
    RetrogradeError,
    UnsupportedError,
)
from retrograde.compiler.ir import parse
from retrograde.compiler.ir.graph import Graph, TensorType
from retrograde.compiler.ir.location import where
from retrograde.compiler.ir.verify import verify
from retrograde.compiler.plan.decided import Decided
from retrograde.execution import (
    BACKENDS,
    Array,
    Runnable,
    checked_backend,
    checked_budget,
    runnable,
)
from retrograde.runtime import archive
from retrograde.signature import Signature
from retrograde.traces import checked_at
from retrograde.training import TrainStep

FORMAT, VERSION = "retrograde program", 1
PROGRAM, GRAPH, PLAN, ARRAYS = "program.json", "graph.ir", "plan.json", "arrays.safetensors"
DATA, CODE, STEP = "data", "data and compiled code", "training step"  # kinds of files
# What safetensors calls them.
_STORED = {
    "bool": "BOOL", "u8": "U8", "i8": "I8", "u16": "U16", "i16": "I16", "u32": "U32", "i32": "I32",
    "u64": "U64", "i64": "I64", "f16": "F16", "bf16": "BF16", "f32": "F32", "f64": "F64",
}  # fmt: skip
_MOST = 1 << 26  # bytes of a text that is read


# --- saving


def save(compiled: Compiled, path: str | os.PathLike[str]) -> None:
    """Writes a compiled function as data."""
    archive.write(path, FORMAT, VERSION, DATA, _parts(compiled)[0])


def export(compiled: Compiled, path: str | os.PathLike[str]) -> None:
    """Writes a compiled function as data and as code for this processor."""
    parts, run = _parts(compiled)
    if run.executable.device.name != "native":
        raise DeviceError(
            f"{where()}nothing is compiled on the {run.executable.device.name} device: compile "
            "with backend='native' to export, or save() the function as data"
        )
    from retrograde import __version__
    from retrograde.runtime.native import binaries

    recipes = run.executable.program.recipes
    libraries = binaries.collect([text for r in recipes for text in r.kernels], __version__)
    shown = {f"{binaries.FOLDER}schedule{i}.py": r.source.encode() for i, r in enumerate(recipes)}
    archive.write(path, FORMAT, VERSION, CODE, {**parts, **libraries, **shown})


def _parts(compiled: Compiled) -> tuple[dict[str, bytes], Runnable]:
    signature, graph, captured, run = compiled._saved()
    program = {
        "function": signature.function,
        "arguments": signature.arguments,
        "outputs": signature.outputs,
        "inputs": len(signature.names),
        **how_compiled(compiled),
    }
    return packed(program, graph, captured, run), run


def how_compiled(compiled: Any) -> dict[str, Any]:
    """The options that a function or training step was compiled with."""
    names = ("at", "budget", "backend", "threads")
    return {name: getattr(compiled, f"_{name}") for name in names}


def packed(
    program: Mapping[str, Any], graph: Graph, captured: Sequence[Array], run: Runnable
) -> dict[str, bytes]:
    """The parts of a file; `unpacked` gives back what went in."""
    text = graph.text()
    if parse(text).text() != text:
        raise UnsupportedError(f"{where()}the graph of {graph.name} cannot be written as text")
    plan = [asdict(made.decided()) for made in run.recipes]
    about = {**program, "planned": circumstances(run)}
    parts = {PROGRAM: _json(about), GRAPH: text.encode(), PLAN: _json(plan)}
    if captured:
        parts[ARRAYS] = _stored(captured)
    return parts


def _json(x: Any) -> bytes:
    return json.dumps(x, separators=(",", ":")).encode("ascii") + b"\n"


def circumstances(run: Runnable) -> dict[str, Any]:
    """What a plan depends on beside the graph."""
    from retrograde import __version__

    device = run.executable.device
    return {"version": __version__, "device": device.name, "threads": device.threads}


def _stored(arrays: Sequence[Array]) -> bytes:
    from safetensors.numpy import save as to_bytes

    plain = [np.asarray(x, dtype=x.dtype.newbyteorder("<"), order="C") for x in arrays]
    made: bytes = to_bytes({str(i): x for i, x in enumerate(plain)})
    return made


# --- loading


def load(
    path: str | os.PathLike[str], backend: str | None, threads: int | None, trust: bool
) -> Compiled | TrainStep:
    """`rg.load`."""
    if Path(path).is_dir():
        from retrograde.saved_steps import load_step

        return load_step(Path(path), backend, threads)
    kind, parts = archive.read(path, FORMAT, VERSION)
    if kind == STEP:
        raise CheckpointError(f"{path}: is part of a checkpoint: load the folder that it is in")
    if kind not in (DATA, CODE):
        raise CheckpointError(f"{path}: damaged, it is neither data nor code but {kind!r}")
    if kind == CODE:
        if not trust:
            raise CheckpointError(
                f"{path}: holds compiled code, which would run with all your rights: load it with "
                "trust=True if you trust who wrote it, or ask for a file made with save()"
            )
        from retrograde import __version__
        from retrograde.runtime.native import binaries

        if backend not in (None, "native"):
            raise DeviceError(f"{path}: holds code for the native device, not for {backend!r}")
        binaries.provide(path, parts, __version__)
    return _loaded(Path(path), parts, backend, threads, kind == CODE)


def tell_drift(path: Path, run: Runnable, options: Mapping[str, Any]) -> None:
    """A notice where a program was planned anew, though nothing else was asked for."""
    if options["other device"] or all(made.as_decided for made in run.recipes):
        return
    now, then = circumstances(run), options["planned"]
    odd = [f"{k} was {then.get(k)}, is {v}" for k, v in now.items() if then.get(k) != v]
    warnings.warn(
        f"{path}: planned anew, so that the peak may be another one: "
        f"{', '.join(odd) or 'the RETROGRADE_ variables differ'}",
        Notice,
        stacklevel=6,
    )


class Loaded(Compiled):
    """A compiled function from a file: the arrays that it read from outside are its own."""

    def __init__(
        self,
        path: Path,
        signature: Signature,
        result: Callable[[Sequence[Array]], Any],
        graph: Graph,
        captured: Sequence[Array],
        decided: Sequence[Decided],
        options: Mapping[str, Any],
    ) -> None:
        self._signature, self._graph, self._captured = signature, graph, list(captured)
        self._lock = threading.Lock()
        self._at = checked_at(options["at"], graph.symbols())
        self._budget = checked_budget(options["budget"], self._at, graph.symbols())
        self._backend, self._threads = options["backend"], options["threads"]
        self._result = result
        self._run = runnable(
            graph, self._at, self._backend, self._threads, self._budget, decided
        )
        tell_drift(path, self._run, options)

    def __call__(self, *args: Any) -> Any:
        """As the function that was saved."""
        arrays = self._signature.arrays(args)
        sizes = self._signature.sizes(arrays)
        return self._result(self._run.run([*arrays, *self._captured], sizes))

    def _saved(self) -> tuple[Signature, Graph, Sequence[Array], Runnable]:
        return self._signature, self._graph, self._captured, self._run

    def _inputs(self) -> tuple[str, Sequence[str], Sequence[TensorType]]:
        return self._graph.name, self._signature.names, self._signature.types


Contents = tuple[dict[str, Any], dict[str, Any], Graph, list[Array], list[Decided]]


def unpacked(
    path: Path, parts: Mapping[str, bytes], backend: str | None, threads: int | None
) -> Contents:
    """What `packed` wrote, checked: the program, its options, graph, arrays and plan.

    Raises CheckpointError for anything that no program of ours looks like."""
    with refusing(path, "holds no valid program"):
        program, plan = _read_json(path, parts, PROGRAM), _read_json(path, parts, PLAN)
        graph = parse(_text(path, parts, GRAPH))
        verify(graph, made_by="the file")
        options = _options(program)
        captured = _restored(path, parts.get(ARRAYS), graph, program["inputs"])
        decided = _decided(plan)
    options["other device"] = not (backend is None and threads is None)
    if backend is not None:
        options["backend"] = checked_backend(backend)
    if threads is not None:
        options["threads"] = threads
    return program, options, graph, captured, decided


@contextmanager
def refusing(path: Path, what: str) -> Iterator[None]:
    """Whatever is raised by what a file holds ends as a CheckpointError that names the file."""
    try:
        yield
    except (CheckpointError, DeviceError, BudgetError):
        raise
    except RetrogradeError as error:
        raise CheckpointError(f"{path}: {what}: {error}") from error
    except Exception as error:  # a file may hold anything
        raise CheckpointError(f"{path}: {what} ({type(error).__name__}: {error})") from error


def _loaded(
    path: Path, parts: Mapping[str, bytes], backend: str | None, threads: int | None, code: bool
) -> Compiled:
    program, options, graph, captured, decided = unpacked(path, parts, backend, threads)
    if code:  # its libraries are those of a schedule for so many threads
        options["backend"], options["threads"] = "native", options["planned"]["threads"]
    with refusing(path, "holds no valid program"):
        signature = _signature(program, graph)
    with refusing(path, "what it returns cannot be made"):
        result = signature.builder()
    with refusing(path, "its program cannot be compiled"):
        return Loaded(path, signature, result, graph, captured, decided, options)


def _text(path: Path, parts: Mapping[str, bytes], name: str) -> str:
    data = parts.get(name)
    if data is None:
        raise CheckpointError(f"{path}: damaged, it has no {name}")
    if len(data) > _MOST:
        raise CheckpointError(f"{path}: {name} has {len(data)} bytes, which no program needs")
    return data.decode("utf-8")


def _read_json(path: Path, parts: Mapping[str, bytes], name: str) -> Any:
    return json.loads(_text(path, parts, name))


def _options(program: Any) -> dict[str, Any]:
    at, budget, threads = program["at"], program["budget"], program["threads"]
    planned = program["planned"]
    numbers = (budget, threads, program["inputs"], planned["threads"])
    whole = [*at.values(), *(x for x in numbers if x is not None)]
    if any(type(x) is not int or not 0 <= x < 2**48 for x in whole):
        raise DataError("a size, a budget or a number of threads is none")
    if program["backend"] not in BACKENDS or 0 in (threads, planned["threads"]):
        raise DataError("it does not say for what it was compiled")
    names = ("at", "budget", "backend", "threads", "planned")
    return {name: program[name] for name in names}


def _signature(program: Any, graph: Graph) -> Signature:
    count = program["inputs"]
    if not isinstance(program["function"], str) or count > len(graph.inputs):
        raise DataError("its function takes other inputs than its graph")
    if graph.aliases:
        raise DataError("its graph replaces inputs, which no function does")
    structures.check(program["arguments"], count, "its arguments")
    structures.check(program["outputs"], len(graph.outputs), "its results")
    if program["arguments"][0] != "tuple":
        raise DataError("its arguments are no tuple")
    names = graph.input_names or ("",) * len(graph.inputs)
    return Signature(
        program["function"],
        program["arguments"],
        program["outputs"],
        tuple(names[:count]),
        tuple(v.type for v in graph.inputs[:count]),
    )


def _restored(path: Path, data: bytes | None, graph: Graph, count: int) -> list[Array]:
    types = [v.type for v in graph.inputs[count:]]
    if data is None and not types:
        return []
    if data is None:
        raise CheckpointError(f"{path}: damaged, the arrays of its function are missing")
    import safetensors

    found = dict(safetensors.deserialize(data))  # type: ignore[no-untyped-call]
    arrays = []
    for i, type in enumerate(types):
        held = found.pop(str(i))
        array = np.frombuffer(held["data"], type.dtype.numpy.newbyteorder("<"))
        arrays.append(array.reshape(held["shape"]).astype(type.dtype.numpy, copy=False))
        if arrays[-1].shape != type.shape or held["dtype"] != _STORED[type.dtype.name]:
            raise CheckpointError(
                f"{path}: damaged, an array is {held['dtype']}{held['shape']} and not {type}"
            )
    if found:
        raise CheckpointError(f"{path}: damaged, it has more arrays than its graph takes")
    return arrays


def _decided(plan: Any) -> list[Decided]:
    made = []
    for recipe in plan:
        d = Decided(
            recipe["recipe"],
            recipe["graph"],
            tuple(tuple(order) for order in recipe["orders"]),
            recipe["buffers"],
            tuple(recipe["offsets"]),
        )
        numbers = [*d.offsets, *(i for order in d.orders for i in order)]
        texts = (d.recipe, d.graph, d.buffers)
        if not all(type(n) is int and 0 <= n < 2**60 for n in numbers) or not all(
            isinstance(text, str) for text in texts
        ):
            raise DataError("its plan is none")
        made.append(d)
    return made
