"""Compiled functions and training steps -> files: graph, plan, arrays and signature as data.

    program.json         what it takes and returns, and how it was compiled
    graph.ir             the graph as it was traced
    plan.json            for each recipe: the order of the nodes, the places of the buffers
    arrays.safetensors   what the function reads from outside, if anything

The program of a training step is such a file in its checkpoint, beside the state.  Invariant: a
file holds no code but what `export` adds, and the same function makes the same file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from retrograde import version
from retrograde.compiler.errors import CheckpointError, DeviceError, UnsupportedError
from retrograde.compiler.ir import parse
from retrograde.compiler.ir.graph import Graph
from retrograde.compiler.ir.location import where
from retrograde.execution import Array, Runnable
from retrograde.runtime import archive
from retrograde.signature import Signature
from retrograde.structures import Described
from retrograde.training_graph import StepParts, TracedStep

FORMAT, VERSION = "retrograde program", 1
PROGRAM, GRAPH, PLAN, ARRAYS = "program.json", "graph.ir", "plan.json", "arrays.safetensors"
DATA, CODE, STEP = "data", "data and compiled code", "training step"  # kinds of files
FILE = "program.rg"  # of a training step, in its checkpoint


class Function(Protocol):
    """What is saved of a compiled function."""

    def _saved(self) -> tuple[Signature, Graph, Sequence[Array], Runnable]: ...


class Step(Protocol):
    """What is saved of a training step."""

    _parts: StepParts
    _traced: TracedStep
    _paths: list[str]
    _run: Runnable

    def _descriptions(self) -> tuple[Described, Described]: ...

    def _now(self) -> Sequence[Array]: ...


def save(compiled: Function, path: str | os.PathLike[str]) -> None:
    """Writes a compiled function as data."""
    archive.write(path, FORMAT, VERSION, DATA, _parts(compiled)[0])


def export(compiled: Function, path: str | os.PathLike[str]) -> None:
    """Writes a compiled function as data and as code for this processor."""
    parts, run = _parts(compiled)
    if run.executable.device.name != "native":
        raise DeviceError(
            f"{where()}nothing is compiled on the {run.executable.device.name} device: compile "
            "with backend='native' to export, or save() the function as data"
        )
    from retrograde.runtime.native import binaries

    recipes = run.executable.program.recipes
    libraries = binaries.collect(
        [file.code for r in recipes for file in r.kernels], version.__version__
    )
    shown = {f"{binaries.FOLDER}schedule{i}.py": r.source.encode() for i, r in enumerate(recipes)}
    archive.write(path, FORMAT, VERSION, CODE, {**parts, **libraries, **shown})


def _parts(compiled: Function) -> tuple[dict[str, bytes], Runnable]:
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
    about = {**program, "derivatives": _derivatives(graph), "planned": circumstances(run)}
    parts = {PROGRAM: _json(about), GRAPH: text.encode(), PLAN: _json(plan)}
    if captured:
        parts[ARRAYS] = _stored(captured)
    return parts


def _derivatives(graph: Graph) -> list[list[list[int]]]:
    """What is known of derivatives, by the places of their values in the text; the rules that led
    to them are Python, and are not saved."""
    places = {v: i for i, v in enumerate(graph.values())}
    return [
        [[places[v] for v in values] for values in (d.of, d.seeds, d.wrt, d.results)]
        for d in graph.derivatives
    ]


def _json(x: Any) -> bytes:
    return json.dumps(x, separators=(",", ":")).encode("ascii") + b"\n"


def circumstances(run: Runnable) -> dict[str, Any]:
    """What a plan depends on beside the graph."""

    device = run.executable.device
    return {
        "version": version.__version__, "device": device.name, "threads": device.threads,
        "blas": list(device.blas),
    }  # fmt: skip


def _stored(arrays: Sequence[Array]) -> bytes:
    from safetensors.numpy import save as to_bytes

    plain = [np.asarray(x, dtype=x.dtype.newbyteorder("<"), order="C") for x in arrays]
    made: bytes = to_bytes({str(i): x for i, x in enumerate(plain)})
    return made


# --- training steps


def step_parts(step: Step) -> dict[str, bytes]:
    """The parts of a step's file."""
    model, batch = step._descriptions()
    parts = step._parts
    captured, graph = list(step._now()), step._traced.graph
    program = {
        "model": model,
        "batch": batch,
        "paths": step._paths,
        "trained": list(parts.trained),
        "state": len(parts.state_types),
        "entries": len(parts.batch_types),
        "inputs": len(parts.types),
        "metrics": list(step._traced.metrics),
        **({} if parts.split is None else {"split": asdict(parts.split)}),
        **how_compiled(step),
    }
    return packed(program, graph, captured, step._run)


def write_step(path: str | os.PathLike[str], parts: Mapping[str, bytes]) -> None:
    """Puts a step's file into its checkpoint."""
    archive.write(Path(path) / FILE, FORMAT, VERSION, STEP, parts)


def forget_another(path: str | os.PathLike[str], step: Step) -> None:
    """Removes the file of another step, whose state is no longer the one that is there."""
    file = Path(path) / FILE
    if not file.exists():
        return
    try:
        held = archive.read(file, FORMAT, VERSION)[1].get(GRAPH)
    except CheckpointError:
        held = None
    if held != step._traced.graph.text().encode():
        file.unlink(missing_ok=True)
