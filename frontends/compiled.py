"""`compile(fn, *specs)`: a function and what it will be given -> a program for every size.

Invariant: one program serves all sizes within the bounds; what a call returns is fresh.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from retrograde import tree
from retrograde.captures import Captures, snapshot
from retrograde.compiler.errors import DataError
from retrograde.compiler.ir.graph import Graph, TensorType
from retrograde.compiler.ir.location import where
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
from retrograde.traces import Declared, checked_at
from retrograde.tracing import Traced

if TYPE_CHECKING:
    from retrograde.certificates.subject import Subject
    from retrograde.signature import Signature


def compile(
    fn: Callable[..., Any],
    *specs: Any,
    budget: int | str | None = None,
    at: Mapping[str, int] | None = None,
    backend: str = "auto",
    precision: str | None = None,
    threads: int | None = None,
) -> Compiled:
    """Compiles `fn` for arguments as `specs` describe them: `rg.spec`, arrays, trees of both.

    `at` names the sizes that the plan is made for, {"B": 32, "T": 256}; the program runs at every
    size.  `backend`: "auto" or "numpy" (CPU), "cupy" (GPU).  `threads`: for matrix products.
    `budget`: the most bytes of the arena at any size, as a number or "64MiB"; what does not fit
    is computed again instead of being kept.
    BudgetError where even that does not fit, at the sizes of `at` now and at others when called.
    `precision` "bf16" or "f16": products, attention and what follows from them are computed and
    kept in 16 bits, sums, exponentials and gradients by f32 arguments in f32 (Micikevicius et al.
    2018).  f16 has a small range: `compile_training` scales the loss for it, this does not."""
    half = checked_precision(precision)
    checked_backend(backend)
    return Compiled(Declared.of(fn, specs, half), at, backend, threads, budget)


def no_names(batch: Mapping[str, Any]) -> None:
    """DataError for arguments by name."""
    if batch:
        raise DataError(
            f"{where()}certify() got {', '.join(batch)}: give all arguments in their order, or "
            "none of them"
        )


class Compiled(Explained):
    """A compiled function: called like the function, on arrays of any size within the bounds."""

    def __init__(
        self,
        declared: Declared,
        at: Mapping[str, int] | None,
        backend: str,
        threads: int | None,
        budget: int | str | None,
    ) -> None:
        self._declared = declared
        self._backend = backend
        self._threads = threads
        self._lock = threading.Lock()
        self._traced, self._captures = self._trace()
        symbols = self._traced.graph.symbols()
        self._at = checked_at(at, symbols)
        self._budget = checked_budget(budget, self._at, symbols)
        self._run = self._compiled(self._traced)

    def _trace(self) -> tuple[Traced, Captures]:
        with tracing_for(self._backend):
            return self._declared.trace()

    def _compiled(self, traced: Traced) -> Runnable:
        return runnable(traced.graph, self._at, self._backend, self._threads, self._budget)

    def _runnable(self) -> Runnable:
        return self._run

    def __call__(self, *args: Any) -> Any:
        """What the function returns, as fresh arrays.

        Raises ShapeError, DTypeError or DataError, naming the argument, for what does not fit."""
        arrays = self._declared.arrays(args)
        sizes = self._declared.sizes(arrays)
        with self._lock:
            run, traced, captured = self._now()
        outputs = run.run([*arrays, *captured], sizes)
        return tree.unflatten(traced.structure, outputs)

    def _now(self) -> tuple[Runnable, Traced, Sequence[Array]]:
        """The program and the captured arrays of this moment; traced anew where that is due."""
        found = self._captures.current(snapshot(self._declared.fn))
        if found is None:
            traced, captures = self._trace()
            same = traced.graph.text() == self._traced.graph.text()
            self._captures = captures.after(self._captures, same)
            if not same:
                self._run = self._compiled(traced)
            self._traced = traced
            found = list(traced.captured)
        return self._run, self._traced, found

    def clone(self) -> Compiled:
        """The same program with memory of its own, to run beside this one."""
        other: Compiled = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._lock = threading.Lock()
        other._run = self._run.clone()
        return other

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the compiled function to the file `path`; `rg.load` gives it back.

        The file holds the graph, the plan and the arrays that the function reads from outside, as
        they are now: data, and no code.  Raises UnsupportedError for arguments or results that a
        file cannot describe, CheckpointError where it cannot be written."""
        from retrograde.saving import save

        save(self, path)

    def export(self, path: str | os.PathLike[str]) -> None:
        """Writes what `save` writes, with the compiled code for this processor.

        `rg.load(path, trust=True)` runs that code: it needs no C compiler.  Raises DeviceError
        where nothing was compiled, because the backend is another."""
        from retrograde.saving import export

        export(self, path)

    def _saved(self) -> tuple[Signature, Graph, Sequence[Array], Runnable]:
        """What is written to a file, at this moment."""
        from retrograde.signature import Signature

        with self._lock:
            run, traced, captured = self._now()
            return Signature.of(self._declared, traced), traced.graph, list(captured), run

    def _subject(self, args: tuple[Any, ...], batch: Mapping[str, Any]) -> Subject:
        from retrograde.certificates.subject import Subject

        no_names(batch)
        with self._lock:
            run, traced, captured = self._now()
        count = len(self._declared.types)
        held = {count + i: x for i, x in enumerate(captured)}
        if not args:
            return Subject(traced.graph, run, held)
        arrays = self._declared.arrays(args)
        return Subject(traced.graph, run, held, (), arrays, self._declared.sizes(arrays))

    def _inputs(self) -> tuple[str, Sequence[str], Sequence[TensorType]]:
        return self._traced.graph.name, self._declared.input_names, self._declared.types

    def __repr__(self) -> str:
        name, names, types = self._inputs()
        inputs = ", ".join(f"{n}: {t}" for n, t in zip(names, types, strict=True))
        return f"<compiled {name}({inputs})>"
