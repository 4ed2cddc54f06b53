"""Training steps from checkpoints that hold their program too.

Invariant: a step that was loaded goes on bit for bit as the one that was saved.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from retrograde import structures, tree
from retrograde.accumulation import Split
from retrograde.building import builder
from retrograde.captures import Captures
from retrograde.compiler.errors import CheckpointError, DataError, UnsupportedError
from retrograde.compiler.ir.graph import Graph, TensorType
from retrograde.compiler.ir.location import where
from retrograde.compiler.plan.decided import Decided
from retrograde.execution import Array, checked_budget, runnable
from retrograde.reading import refusing, tell_drift, unpacked
from retrograde.runtime import archive
from retrograde.saving import FILE, FORMAT, STEP, VERSION
from retrograde.structures import Described
from retrograde.taking import take
from retrograde.traces import checked_at
from retrograde.training import TrainStep
from retrograde.training_graph import KEY_TYPE, StepParts, TracedStep


def load_step(path: Path, backend: str | None, threads: int | None) -> LoadedStep:
    """The step of a checkpoint, in its state."""
    file = path / FILE
    if not file.is_file():
        raise CheckpointError(
            f"{path}: is a folder, and holds no program of a training step: save it with "
            "step.save(path, program=True), or compile the step and restore(path)"
        )
    kind, parts = archive.read(file, FORMAT, VERSION)
    if kind != STEP:
        raise CheckpointError(f"{file}: is no training step but {kind!r}")
    program, options, graph, captured, decided = unpacked(file, parts, backend, threads)
    with refusing(file, "holds no valid training step"):
        made = _parts(program, graph)
    with refusing(file, "its program cannot be compiled"):
        step = LoadedStep(file, program, made, graph, captured, decided, options)
    step.restore(path)
    return step


class LoadedStep(TrainStep):
    """A training step from a checkpoint: it has no model's Python, but all that it computes."""

    def __init__(
        self,
        path: Path,
        program: Mapping[str, Any],
        parts: StepParts,
        graph: Graph,
        captured: Sequence[Array],
        decided: Sequence[Decided],
        options: Mapping[str, Any],
    ) -> None:
        self._lock = threading.Lock()
        self._measuring = {}
        self._backend, self._threads = options["backend"], options["threads"]
        self._described: tuple[Described, Described] = (program["model"], program["batch"])
        self._structure = parts.model
        self._paths = list(program["paths"])
        self._parts = parts
        nothing = Captures({}, (), frozenset(), {}, {})
        metrics = tuple(program["metrics"])
        self._traced = TracedStep(graph, metrics, tuple(captured), nothing)
        self._at = checked_at(options["at"], graph.symbols())
        self._budget = checked_budget(options["budget"], self._at, graph.symbols())
        self._run = runnable(graph, self._at, self._backend, self._threads, self._budget, decided)
        tell_drift(path, self._run, options)
        self._last = dict(self._at)
        self._key = np.zeros(KEY_TYPE.shape, KEY_TYPE.dtype.numpy)  # restored with the rest
        self._fixed = []

    def _now(self) -> list[Array]:
        return list(self._traced.captured)

    def _entries(self) -> list[str]:
        return [str(key) for key, _ in self._described[1][1]]

    def _batch_leaves(self, batch: Mapping[str, Any]) -> list[Any]:
        return take(self._described[1], dict(batch), len(self._parts.batch_types), "batch")

    def _model_of(self, leaves: Sequence[Array]) -> Any:
        return builder(self._described[0])(leaves)

    def _model_leaves(self, model: Any) -> list[Any]:
        return take(self._described[0], model, len(self._paths), "model")

    def _descriptions(self) -> tuple[Described, Described]:
        return self._described

    def gradient_norms(self, /, *, per_row: bool = False, **batch: Any) -> NoReturn:
        """Not of a step that was loaded: it needs the Python of the loss."""
        _no_python()


def _no_python(*_: Any, **__: Any) -> NoReturn:
    raise UnsupportedError(
        f"{where()}a training step that was loaded has no Python of its loss: compile the step "
        "and restore() the checkpoint to look into it"
    )


def _parts(program: Any, graph: Graph) -> StepParts:
    """What the step is made of, as far as its file tells."""
    paths, trained, metrics = program["paths"], program["trained"], program["metrics"]
    state, entries = program["state"], program["entries"]
    n, fixed = len(trained), len(paths) - len(trained)
    donated = n + state + 1
    names, types = graph.input_names, [v.type for v in graph.inputs]
    fits = (
        donated + 1 + entries + fixed == program["inputs"] <= len(types) == len(names)
        and all(isinstance(text, str) for text in (*paths, *metrics))
        and all(type(i) is int and 0 <= i < len(paths) for i in trained)
        and trained == sorted(set(trained))
        and min(state, entries, fixed) >= 0
        and graph.aliases == tuple((i, i) for i in range(donated))
        and len(graph.outputs) == donated + len(metrics)
        and program["batch"][0] == "dict"
    )
    if not fits:
        raise DataError("its inputs are not those of a training step")
    structures.check(program["model"], len(paths), "its model")
    structures.check(program["batch"], entries, "its batch")
    none = tree.structure(None)
    first = donated + 1
    return StepParts(
        loss=_no_python,
        optimizer=None,
        model=none,
        trained=tuple(trained),
        parameters=tuple(types[:n]),
        fixed=tuple(types[first + entries : first + entries + fixed]),
        state=none,
        state_types=tuple(types[n : donated - 1]),
        batch=none,
        batch_leaves=(),
        batch_places=(),
        batch_types=tuple(types[first : first + entries]),
        names=tuple(names[: program["inputs"]]),
        clip_norm=None,
        truncate=None,
        split=_split(program.get("split"), types[first : first + entries]),
    )


def _split(held: Any, types: Sequence[TensorType]) -> Split | None:
    """How a batch is cut into microbatches, as its file tells."""
    if held is None:
        return None
    parts, rows, axes = held["parts"], held["rows"], held["axes"]
    fits = (
        type(parts) is int and parts > 1 and isinstance(rows, str) and len(axes) == len(types)
        and any(axis is not None for axis in axes)
        and all(
            axis is None or (type(axis) is int and 0 <= axis < t.ndim)
            for axis, t in zip(axes, types, strict=True)
        )
    )  # fmt: skip
    if not fits:
        raise DataError("its batch is cut in a way that it does not have")
    return Split(parts, rows, tuple(axes))
