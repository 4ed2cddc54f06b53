"""Parts of a file -> graph, plan, arrays and options, checked.

Invariant: of the file nothing is executed; whatever it holds, reading it ends with a program or
with one of our errors, which names the file.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from retrograde.compiler.errors import (
    BudgetError,
    CheckpointError,
    DataError,
    DeviceError,
    Notice,
    RetrogradeError,
)
from retrograde.compiler.ir import parse
from retrograde.compiler.ir.graph import Derivative, Graph, same_type
from retrograde.compiler.ir.verify import verify
from retrograde.compiler.plan.decided import Decided
from retrograde.execution import BACKENDS, Array, Runnable, checked_backend
from retrograde.saving import ARRAYS, GRAPH, PLAN, PROGRAM, circumstances

# What safetensors calls them.
_STORED = {
    "bool": "BOOL", "u8": "U8", "i8": "I8", "u16": "U16", "i16": "I16", "u32": "U32", "i32": "I32",
    "u64": "U64", "i64": "I64", "f16": "F16", "bf16": "BF16", "f32": "F32", "f64": "F64",
}  # fmt: skip
_MOST = 1 << 26  # bytes of a text that is read

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
        graph = graph.replace(derivatives=_derivatives(program, graph))
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
    except (CheckpointError, DeviceError):
        raise
    except BudgetError as error:
        error.args = (f"{path}: {error}",)
        raise
    except RetrogradeError as error:
        raise CheckpointError(f"{path}: {what}: {error}") from error
    except Exception as error:  # a file may hold anything
        raise CheckpointError(f"{path}: {what} ({type(error).__name__}: {error})") from error


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
    if not {"f32", "f64"}.issuperset(planned.get("blas", ())):
        raise DataError("a BLAS computes none of its products")
    names = ("at", "budget", "backend", "threads", "planned")
    return {name: program[name] for name in names}


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


def _derivatives(program: Any, graph: Graph) -> tuple[Derivative, ...]:
    """What a file says of derivatives; older ones say nothing."""
    values = list(graph.values())
    found = []
    for parts in program.get("derivatives", ()):
        if any(type(i) is not int or not 0 <= i < len(values) for part in parts for i in part):
            raise DataError("a derivative is of values that there are not")
        of, seeds, wrt, results = (tuple(values[i] for i in part) for part in parts)
        pairs = [*zip(of, seeds, strict=True), *zip(wrt, results, strict=True)]
        if not all(same_type(a.type, b.type) and a.dtype.is_float for a, b in pairs):
            raise DataError("a derivative is not of the type of its value")
        found.append(Derivative(of, seeds, wrt, results))
    return tuple(found)


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
