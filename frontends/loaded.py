"""Compiled functions from files.

Invariant: what is loaded gives the same bits as what was saved, and has the same plan.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrograde import structures, version
from retrograde.compiled import Compiled, no_names
from retrograde.compiler.errors import CheckpointError, DataError, DeviceError
from retrograde.compiler.ir.graph import Graph, TensorType
from retrograde.compiler.plan.decided import Decided
from retrograde.execution import Array, Runnable, checked_budget, runnable
from retrograde.reading import refusing, tell_drift, unpacked
from retrograde.runtime import archive
from retrograde.saving import CODE, DATA, FORMAT, STEP, VERSION
from retrograde.signature import Signature
from retrograde.traces import checked_at

if TYPE_CHECKING:
    from retrograde.certificates.subject import Subject


def load_function(
    path: str | os.PathLike[str], backend: str | None, threads: int | None, trust: bool
) -> Compiled:
    """What `rg.load` gives of a file."""
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
        from retrograde.runtime.native import binaries

        if backend not in (None, "native"):
            raise DeviceError(f"{path}: holds code for the native device, not for {backend!r}")
        binaries.provide(path, parts, version.__version__)
    return _loaded(Path(path), parts, backend, threads, kind == CODE)


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
            graph, self._at, self._backend, self._threads, self._budget, decided,
            options.get("blas"),
        )  # fmt: skip
        tell_drift(path, self._run, options)

    def __call__(self, *args: Any) -> Any:
        """As the function that was saved."""
        arrays = self._signature.arrays(args)
        sizes = self._signature.sizes(arrays)
        return self._result(self._run.run([*arrays, *self._captured], sizes))

    def _saved(self) -> tuple[Signature, Graph, Sequence[Array], Runnable]:
        return self._signature, self._graph, self._captured, self._run

    def _subject(self, args: tuple[Any, ...], batch: Mapping[str, Any]) -> Subject:
        from retrograde.certificates.subject import Subject

        no_names(batch)
        count = len(self._signature.types)
        held = {count + i: x for i, x in enumerate(self._captured)}
        if not args:
            return Subject(self._graph, self._run, held)
        arrays = self._signature.arrays(args)
        return Subject(self._graph, self._run, held, (), arrays, self._signature.sizes(arrays))

    def _inputs(self) -> tuple[str, Sequence[str], Sequence[TensorType]]:
        return self._graph.name, self._signature.names, self._signature.types


def _loaded(
    path: Path, parts: Mapping[str, bytes], backend: str | None, threads: int | None, code: bool
) -> Compiled:
    program, options, graph, captured, decided = unpacked(path, parts, backend, threads)
    if code:  # its libraries are those of a schedule for so many threads, and with these products
        options["backend"], options["threads"] = "native", options["planned"]["threads"]
        options["blas"] = tuple(options["planned"].get("blas", ()))
    with refusing(path, "holds no valid program"):
        signature = _signature(program, graph)
    with refusing(path, "what it returns cannot be made"):
        result = signature.builder()
    with refusing(path, "its program cannot be compiled"):
        return Loaded(path, signature, result, graph, captured, decided, options)


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
