"""`compile_training`: a loss, a model and an optimizer -> one program that is a training step.

Parameters, optimizer state and the step counter live in the program's memory and are updated in
place; what a caller gets are copies.  Invariant: a step that raises leaves all of them as they
were, and so does a restore that does not fit.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from retrograde import random, tree
from retrograde.accumulation import checked_accumulate
from retrograde.captures import snapshot
from retrograde.compiler.errors import (
    CheckpointError,
    DataError,
    ShapeError,
)
from retrograde.compiler.ir import dtypes
from retrograde.compiler.ir.binding import bind_sizes
from retrograde.compiler.ir.expr import SCALARS
from retrograde.compiler.ir.graph import TensorType
from retrograde.compiler.ir.location import where
from retrograde.diagnosed import Diagnosed
from retrograde.execution import (
    Array,
    Runnable,
    checked_backend,
    checked_budget,
    runnable,
    tracing_for,
)
from retrograde.explained import Explained
from retrograde.precision import checked_precision
from retrograde.runtime.training import checkpoint
from retrograde.runtime.training.interrupts import uninterrupted
from retrograde.structures import Described, describe
from retrograde.traces import as_array, checked_at
from retrograde.training_graph import KEY, KEY_TYPE, TracedStep, check_loss, trace_step
from retrograde.training_parts import chosen, model_leaf, parameter_names, state_names, step_parts
from retrograde.truncation import checked_truncation
from retrograde.updating import AVERAGED, Kept, checked_decay

if TYPE_CHECKING:
    from retrograde.certificates.subject import Subject

MODEL, OPTIMIZER, STEP = "model", "optimizer", "step"


def compile_training(
    loss: Callable[..., Any],
    model: Any,
    optimizer: Any,
    batch: Mapping[str, Any],
    *,
    budget: int | str | None = None,
    at: Mapping[str, int] | None = None,
    backend: str = "auto",
    precision: str | None = None,
    threads: int | None = None,
    accumulate: int = 1,
    truncate: int | None = None,
    clip_norm: float | None = None,
    seed: int = 0,
    ema: float | None = None,
) -> TrainStep:
    """Compiles one training step: loss, gradients, clipping and the optimizer's update.

    `loss(model, **batch)` returns one float or a `Mean`; the batch's entries are specs (or trees of
    them) with named sizes, and one program serves all sizes.  Every float array of `model` is
    trained.  `clip_norm` bounds the norm of all gradients together; `seed` is that of dropout; `at`
    names the sizes that the plan is made for.

    `accumulate` of k works on a batch in k parts, one after the other within the step, in the
    memory of one part and the sums of the gradients.  The loss is a `Mean`, whose counts are
    totalled over the whole batch first: so the step is that of the batch in one piece up to
    rounding, dropout included, as long as its rows do not meet in the loss.  The batch is cut along
    the named size that most entries have as an axis (the first of these); entries without it go to
    all parts whole.  A step on a batch that is no multiple of k raises ShapeError; a loss whose
    parts do not add up to that of the batch is an UnsupportedError.

    `budget`: the most bytes that a step may take at any
    size, parameters and optimizer included, as a number or "64MiB"; what does not fit is computed
    again instead of being kept.  Raises BudgetError where that is not
    enough, at the sizes of `at` now and at others when a step runs.  `truncate` of K: gradients go
    back through loops over time for runs of K steps only; the carries go on (see `scan`).
    `precision` "bf16" or "f16": activations and products in 16 bits; parameters, their gradients,
    the optimizer, sums and the loss in f32 (Micikevicius et al. 2018).  With f16 the loss is scaled
    by a power of two, which the step chooses: where gradients overflow, it halves the scale and
    changes nothing else; the metrics then have `scale` and `skipped` (0 or 1).

    `ema` of d keeps a running average of the parameters, d a + (1 - d) p after each step from the
    first values on, as `step.averaged`."""
    kept = Kept(checked_decay(ema), checked_precision(precision))
    accumulate = checked_accumulate(accumulate)
    truncate = checked_truncation(truncate)
    if clip_norm is not None and not (isinstance(clip_norm, SCALARS) and clip_norm > 0):
        raise DataError(f"{where()}clip_norm is {clip_norm!r}: it must be above 0, or None")
    if isinstance(optimizer, type) or not hasattr(optimizer, "init"):
        shown = optimizer.__name__ if isinstance(optimizer, type) else type(optimizer).__name__
        raise DataError(
            f"{where()}{shown} is no optimizer: give an object such as rg.optim.AdamW(1e-3)"
        )
    check_loss(loss, model, batch)
    checked_backend(backend)
    return TrainStep(
        loss, model, optimizer, batch, at, backend, threads, clip_norm, seed, budget, truncate,
        accumulate, kept,
    )  # fmt: skip


class TrainStep(Diagnosed, Explained):
    """A training step: `metrics = step(**batch)` updates the model and returns numbers."""

    _known_sizes: tuple[list[tuple[int, ...]], dict[str, int]] | None = None  # of the last shapes

    def __init__(
        self,
        loss: Callable[..., Any],
        model: Any,
        optimizer: Any,
        batch: Mapping[str, Any],
        at: Mapping[str, int] | None,
        backend: str,
        threads: int | None,
        clip_norm: float | None,
        seed: int,
        budget: int | str | None,
        truncate: int | None,
        accumulate: int,
        kept: Kept,
    ) -> None:
        self._lock = threading.Lock()
        self._measuring = {}
        self._backend, self._threads = backend, threads
        self._key = np.asarray(random.key(seed), KEY_TYPE.dtype.numpy)
        leaves, self._structure = tree.flatten(model)
        self._paths = [path or "parameter" for path in tree.names(self._structure)]
        arrays = [model_leaf(x, path) for x, path in zip(leaves, self._paths, strict=True)]
        floats = [i for i, x in enumerate(arrays) if dtypes.dtype(x.dtype).is_float]
        optimizer, trained = chosen(optimizer, self._paths, floats)
        if not trained:
            raise DataError(f"{where()}the model has no float arrays: there is nothing to train")
        self._fixed = [x.copy() for i, x in enumerate(arrays) if i not in set(trained)]
        params = [arrays[i] for i in trained]
        state, state_structure = tree.flatten(kept.first(optimizer.init(params), params))
        state = [np.asarray(x) for x in state]
        names = parameter_names(self._paths, trained)
        moments = state_names(tree.names(state_structure), names)
        self._parts = step_parts(
            loss, optimizer, self._structure, trained, arrays, state, state_structure,
            [*names, *moments, STEP], batch, clip_norm, truncate, accumulate, kept,
        )  # fmt: skip
        self._traced = self._trace()
        symbols = self._traced.graph.symbols()
        self._at = checked_at(at, symbols)
        self._check_split(self._at)
        self._budget = checked_budget(budget, self._at, symbols)
        self._run = self._compiled(self._traced)
        self._last = dict(self._at)
        self._run.executable.set_state([*params, *state, np.zeros((), np.int64)])

    def _trace(self) -> TracedStep:
        with tracing_for(self._backend):
            return trace_step(self._parts)

    def _compiled(self, traced: TracedStep) -> Runnable:
        return runnable(traced.graph, self._at, self._backend, self._threads, self._budget)

    def _runnable(self) -> Runnable:
        return self._run

    def __call__(self, **batch: Any) -> dict[str, float]:
        """One update on one batch: the loss before it, the norm of the gradients, the rate.

        Raises DataError for a missing, unknown or empty entry and for an index out of range,
        ShapeError and DTypeError for what is not as declared; nothing has changed then.  Ctrl-C is
        heard when the step is done."""
        arrays = self._batch(batch)
        with self._lock:
            captured = self._now()
            sizes = self._sizes_of(arrays)
            with uninterrupted():
                results = self._run.run([self._key, *arrays, *self._fixed, *captured], sizes)
                self._last = sizes
        names = self._traced.metrics
        return {name: float(x) for name, x in zip(names, results, strict=True)}

    def _subject(self, args: tuple[Any, ...], batch: Mapping[str, Any]) -> Subject:
        from retrograde.certificates.subject import of_step

        if args:
            raise DataError(f"{where()}certify() of a step takes a batch: certify(**batch)")
        examples = self._batch(batch) if batch else None
        sizes = {} if examples is None else self._sizes_of(examples)
        with self._lock:
            rest = [*self._fixed, *self._now()]  # which may trace anew: first of all
            first = [*self._run.executable.state(), self._key]
            return of_step(self._parts, self._traced, self._run, first, rest, examples, sizes)

    def _batch(self, batch: Mapping[str, Any]) -> list[Array]:
        """The arrays of a batch, in order, checked against the specs."""
        parts = self._parts
        declared = self._entries()
        missing = [name for name in declared if name not in batch]
        unknown = [name for name in batch if name not in declared]
        if missing or unknown:
            said = f"{missing[0]!r} is missing" if missing else f"{unknown[0]!r} is not expected"
            raise DataError(
                f"{where()}the batch does not fit: {said}; the step takes {', '.join(declared)}"
            )
        names = parts.names[parts.donated + 1 :]
        leaves = self._batch_leaves(batch)
        arrays = [
            as_array(x, type, name)
            for x, type, name in zip(leaves, parts.batch_types, names, strict=False)
        ]
        for x, name in zip(arrays, names, strict=False):
            if x.size == 0:
                raise DataError(f"{where()}the batch is empty: {name} has shape {list(x.shape)}")
        return arrays

    def _entries(self) -> Sequence[str]:
        """The names in a batch."""
        return list(tree.unflatten(self._parts.batch, self._parts.batch_leaves))

    def _batch_leaves(self, batch: Mapping[str, Any]) -> list[Any]:
        """What stands in the places of the specs."""
        leaves, structure = tree.flatten(dict(batch))
        if structure != self._parts.batch:
            raise ShapeError(
                f"{where()}the batch is not of the structure of its specs: "
                f"{tree.difference(self._parts.batch, structure)}"
            )
        return [leaves[i] for i in self._parts.batch_places]

    def _sizes_of(self, arrays: Sequence[Array]) -> dict[str, int]:
        """The sizes of a batch; those of the last shapes are known."""
        parts, shapes = self._parts, [x.shape for x in arrays]
        known = self._known_sizes
        if known is None or known[0] != shapes:
            names = parts.names[parts.donated + 1 :][: len(arrays)]
            if parts.split is not None:
                entry, axis = parts.split.told_by
                rows = shapes[entry][axis] if axis < len(shapes[entry]) else parts.split.parts
                parts.split.check(rows, f"axis {axis} of {names[entry]} is {rows}")
            known = self._known_sizes = shapes, bind_sizes(parts.batch_types, names, shapes)
        return known[1]

    def _check_split(self, sizes: Mapping[str, int]) -> None:
        """ShapeError for sizes whose rows are no multiple of the parts of a batch."""
        split = self._parts.split
        if split is not None and split.rows in sizes:
            split.check(sizes[split.rows], f"the size {split.rows}")

    def _now(self) -> list[Array]:
        """The arrays captured by the loss, as they are; traced anew where a setting has changed."""
        found = self._traced.captures.current(snapshot(self._parts.loss))
        if found is not None:
            return found
        traced = self._trace()
        same = traced.graph.text() == self._traced.graph.text()
        traced = replace(traced, captures=traced.captures.after(self._traced.captures, same))
        if not same:
            state = self._run.executable.state()
            self._run = self._compiled(traced)
            self._run.executable.set_state(state)
        self._traced = traced
        return list(traced.captured)

    # --- what it holds

    @property
    def model(self) -> Any:
        """A snapshot of the model: its parameters as they are now, as NumPy arrays.

        Assigning a model of the same structure, shapes and dtypes replaces the parameters; the
        optimizer's state and the counter stay."""
        with self._lock:
            state = self._run.executable.state()
        return self._model_of(self._merged(state))

    @model.setter
    def model(self, model: Any) -> None:
        leaves = self._model_leaves(model)
        arrays = [model_leaf(x, path) for x, path in zip(leaves, self._paths, strict=True)]
        types = self._leaf_types()
        for x, type, path in zip(arrays, types, self._paths, strict=True):
            as_array(x, type, path)
            if x.shape != type.shape:
                raise ShapeError(f"{where()}{path}: expected {type}, got shape {list(x.shape)}")
        trained = self._parts.trained
        with self._lock:
            state = self._run.executable.state()
            new = [arrays[i] for i in trained] + state[len(trained) :]
            with uninterrupted():
                self._run.executable.set_state(new)
                self._fixed = [x.copy() for i, x in enumerate(arrays) if i not in set(trained)]

    @property
    def averaged(self) -> Any:
        """A snapshot of the model with the running averages of its parameters, where it has `ema`;
        DataError where not."""
        prefix = f"{AVERAGED}."
        names = self._parts.names[len(self._parts.parameters) : self._parts.donated - 1]
        places = [i for i, name in enumerate(names) if name.startswith(prefix)]
        if len(places) != len(self._parts.parameters):
            raise DataError(
                f"{where()}this step keeps no average of its parameters: compile it with ema=0.999"
            )
        with self._lock:
            state = self._run.executable.state()[len(self._parts.parameters) :]
        return self._model_of(self._merged([state[i] for i in places]))

    def _model_of(self, leaves: Sequence[Array]) -> Any:
        return tree.unflatten(self._structure, leaves)

    def _model_leaves(self, model: Any) -> list[Any]:
        leaves, structure = tree.flatten(model)
        if structure != self._structure:
            raise ShapeError(
                f"{where()}the model is of another structure than the one compiled for: "
                f"{tree.difference(self._structure, structure)}"
            )
        return leaves

    def _descriptions(self) -> tuple[Described, Described]:
        """Of the model and of a batch, for a file."""
        parts = self._parts
        leaves = enumerate(parts.batch_leaves)
        settings = {i: x for i, x in leaves if i not in set(parts.batch_places)}
        return (
            describe(self._structure, {}, "model: "),
            describe(parts.batch, settings, "batch: "),
        )

    def _leaf_types(self) -> list[TensorType]:
        mine, others = iter(self._parts.parameters), iter(self._parts.fixed)
        chosen = set(self._parts.trained)
        return [next(mine) if i in chosen else next(others) for i in range(len(self._paths))]

    def _merged(self, state: Sequence[Array]) -> list[Array]:
        """All leaves of the model, from the program's state and what is not trained."""
        mine, others = iter(state), iter(self._fixed)
        chosen = set(self._parts.trained)
        return [next(mine) if i in chosen else next(others).copy() for i in range(len(self._paths))]

    def state(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """All that later steps depend on beside their batches: arrays by name, and JSON."""
        with self._lock:
            held = self._run.executable.state()
            fixed = [x.copy() for x in self._fixed]
        tensors = dict(zip(self._tensor_names(), [*held, self._key.copy(), *fixed], strict=True))
        return tensors, {"steps": int(tensors[STEP])}

    def set_state(self, tensors: Mapping[str, Array], meta: Mapping[str, Any]) -> None:
        """Puts back what `state` gave; CheckpointError, with nothing changed, if it is another
        model's."""
        names = self._tensor_names()
        missing = [name for name in names if name not in tensors]
        unknown = [name for name in tensors if name not in names]
        if missing or unknown:
            said = f"it has no {missing[0]!r}" if missing else f"it has {unknown[0]!r}"
            raise CheckpointError(
                f"the checkpoint is of another model or optimizer: {said}, unlike this step "
                f"({len(missing)} missing, {len(unknown)} unknown)"
            )
        parts = self._parts
        types = [*parts.types[: parts.donated], KEY_TYPE, *parts.fixed]
        for name, type in zip(names, types, strict=True):
            x = tensors[name]
            if x.shape != type.shape or x.dtype != type.dtype.numpy:
                raise CheckpointError(
                    f"the checkpoint is of another model: {name} is "
                    f"{x.dtype}{list(x.shape)} in it, and {type} here"
                )
        arrays = [np.array(tensors[name]) for name in names]
        with self._lock, uninterrupted():
            self._run.executable.set_state(arrays[: parts.donated])
            self._key = arrays[parts.donated]
            self._fixed = arrays[parts.donated + 1 :]

    def _tensor_names(self) -> list[str]:
        parts = self._parts
        n = len(parts.parameters)
        trained = set(parts.trained)
        return [
            *(f"{MODEL}.{name}" for name in parts.names[:n]),
            *(f"{OPTIMIZER}.{name}" for name in parts.names[n : parts.donated - 1]),
            STEP,
            KEY,
            *(f"{MODEL}.{path}" for i, path in enumerate(self._paths) if i not in trained),
        ]

    def save(self, path: str | os.PathLike[str], program: bool = False) -> None:
        """Writes the state to a checkpoint directory, whole at every moment.

        With `program` also what was compiled, as data: then `rg.load(path)` gives back the step,
        without the Python of the model, the loss and the optimizer."""
        from retrograde import saving  # many steps are never saved

        # What cannot be saved is told before anything is written.
        with self._lock:
            made = saving.step_parts(self) if program else None
        tensors, meta = self.state()
        checkpoint.prepare(path)
        saving.forget_another(path, self)
        checkpoint.save(path, tensors, meta)
        if made is not None:
            saving.write_step(path, made)

    def restore(self, path: str | os.PathLike[str]) -> None:
        """Continues from a checkpoint, bit for bit; CheckpointError, with nothing changed, for one
        that is damaged or of another model."""
        tensors, meta = checkpoint.load(path)
        self.set_state(tensors, meta)

    @property
    def peak_bytes(self) -> int:
        """The planned peak at the sizes of the last step (before the first: at those of `at`, else
        the memory that the state takes)."""
        sizes = self._last
        if any(s.name not in sizes for s in self._program.symbols):
            return sum(int(t.bytes) for t in self._parts.types[: self._parts.donated])
        return self._program.layout(sizes)[2]

    def clone(self) -> TrainStep:
        """A step of its own that goes on from the same state."""
        other: TrainStep = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._lock = threading.Lock()
        other._run = self._run.clone()
        other._fixed = [x.copy() for x in self._fixed]
        return other

    def __repr__(self) -> str:
        count = sum(int(t.size) for t in self._parts.parameters)
        return f"<training step of {self._traced.graph.name}: {count} parameters>"
