"""A model made over to run step by step: (model, what it goes by) -> logits of the next tokens.

The function `call(model, tokens, **context)` is traced for all steps and made over for new ones
(`compiler.passes.incremental`); weights, caches and carries are state of the program, which a step
updates in place.  Invariant: the logits of a token are those that the whole sequence gives it, up
to rounding.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde import tree
from retrograde.compiler.errors import DataError, ShapeError
from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.dims import Dim, Symbol
from retrograde.compiler.ir.graph import TensorType
from retrograde.compiler.ir.location import where
from retrograde.compiler.passes.incremental import CAPACITY, NEW, Incremental, incremental
from retrograde.execution import Runnable, checked_backend, runnable, tracing_for
from retrograde.generation import known as beside
from retrograde.precision import checked_precision
from retrograde.specs import Spec, dim, is_spec
from retrograde.traces import Declared
from retrograde.tracing import Traced

Array = npt.NDArray[Any]
Call = Callable[..., Any]

BATCH, TIME = "B", "T"
FIRST_CAPACITY = 64  # steps in a new cache; it doubles as they fill up
_LEAST = (1, 16, 256)  # sizes that a function which needs several steps is traced for


class Decoder:
    """A compiled model that is fed tokens [B, N] and tells logits [B, N, V].

    `call(model, tokens, **context, **known)`, by default `model(tokens, ...)`, is the function.
    `context` has arrays, or specs, that do not grow with the text, such as the source of a
    translation: their first axis counts rows where it is as long as `rows`, or named "B".  `known`
    has arrays or specs of what is given with each token, [B, P, ...]: only their dtypes and the
    sizes behind P matter here.
    `longest`: the most tokens that the model can look at, by default its `context` if it has one.
    With `cached=False` every step computes the whole text again.

    Raises UnsupportedError, naming the line, for a model whose logits depend on later tokens, or on
    how many there are."""

    def __init__(
        self, model: Any, context: Mapping[str, Any] | None = None, *, rows: int | None = None,
        call: Call | None = None, longest: int | None = None, backend: str = "auto",
        threads: int | None = None, beams: bool = False, cached: bool = True,
        precision: str | None = None, dtype: str = "i32",
        known: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.call = call or usual_call
        self.longest = longest_of(model) if longest is None else longest
        self.backend, self.threads = checked_backend(backend), threads
        self.beams, self.cached = beams, cached
        self.dtype = dtypes.dtype(dtype)
        model = _evaluated(model)
        self._context = _specs(context or {}, rows)
        self._known = beside.named(known)
        self._declared, self._traced = self._trace(model, checked_precision(precision))
        graph = self._traced.graph
        self._tokens = sum(is_spec(x) for x in tree.leaves(model))
        self._beside = range(self._tokens + 1, self._tokens + 1 + len(tree.leaves(self._known)))
        self._made: Incremental | None = None
        if cached:
            symbol = graph.symbols()[TIME]
            self._made = incremental(
                graph, symbol, self._tokens, dims.dim(BATCH), beams=beams, known=self._beside
            )
        self._idle: list[Runnable] = []
        self._run = self._compiled()
        self._idle.append(self._run)
        self._first = None
        if self._made is not None and self._made.first is not None:
            self._first = runnable(self._made.first, {}, self.backend, threads)

    @property
    def known_types(self) -> list[TensorType]:
        """What is given with the tokens, [B, T, ...] each."""
        return [self._declared.types[i] for i in self._beside]

    def _compiled(self) -> Runnable:
        if self._made is None:
            return runnable(self._traced.graph, {}, self.backend, self.threads)
        at = {BATCH: 1, NEW: 1, CAPACITY: FIRST_CAPACITY}
        known = self._made.step.symbols()
        at = {name: n for name, n in at.items() if name in known}
        return runnable(self._made.step, at, self.backend, self.threads)

    def _trace(self, model: Any, half: Any) -> tuple[Declared, Traced]:
        def stepwise(model: Any, tokens: Any, known: Any, context: Any) -> Any:
            return self.call(model, tokens, **context, **known)

        top = None if self.longest is None or self.longest < 2 else self.longest
        misfit: ShapeError | None = None
        for least in _LEAST:
            if top is not None and least >= top and misfit is not None:
                break
            steps = dim(TIME, min=least, max=top)
            known = beside.declared(self._known, dim(BATCH), steps)
            tokens = Spec(self.dtype, (dim(BATCH), steps))
            declared = Declared.of(stepwise, (model, tokens, known, self._context), half)
            try:
                with tracing_for(self.backend):
                    traced, _ = declared.trace()
                return declared, traced
            except ShapeError as error:  # perhaps of a text of one token only
                misfit = misfit or error
        assert misfit is not None
        raise misfit

    @property
    def captured(self) -> Sequence[Any]:
        """The arrays that the function reads from outside."""
        return self._traced.captured

    @property
    def program(self) -> Incremental | None:
        """The graphs behind it; None where each step computes all."""
        return self._made

    def begin(self, model: Any, rows: int, context: Mapping[str, Any] | None = None) -> Session:
        """An empty text of so many rows."""
        arrays = self._arrays(_evaluated(model), rows, context or {})
        if self._made is None:
            return Whole(self, self._take(), arrays, rows)
        return Session(self, self._take(), arrays, rows)

    def _take(self) -> Runnable:
        return self._idle.pop() if self._idle else self._run.clone()

    def _arrays(self, model: Any, rows: int, context: Mapping[str, Any]) -> list[Array]:
        """The inputs of the graph, with nothing for what is fed."""
        blank = np.zeros((rows, max(_LEAST[0], 1)), self.dtype.numpy)
        known = tree.map(
            lambda x: np.zeros((*blank.shape, *x.shape[2:]), dtypes.dtype(x.dtype).numpy),
            self._known,
        )
        given = self._declared.arrays((model, blank, known, dict(context)))
        self._declared_rows(given, rows)
        return [*given, *self.captured]

    def _declared_rows(self, given: Sequence[Array], rows: int) -> None:
        for x, type, name in zip(
            given, self._declared.types, self._declared.input_names, strict=True
        ):
            want: list[Any] = [
                rows if d is dims.dim(BATCH) else d if isinstance(d, int) else None
                for d in type.shape
            ]
            fits = len(want) == x.ndim and all(
                w is None or w == n for w, n in zip(want, x.shape, strict=False)
            )
            if not fits:
                raise ShapeError(f"{where()}{name} is {type}, got {list(x.shape)} for {rows} rows")


class Session:
    """A text that goes on: tokens in, with what is known of their places, logits out."""

    def __init__(self, of: Decoder, run: Runnable, arrays: Sequence[Array], rows: int) -> None:
        self.of = of
        self.rows = rows
        self.start = 0  # tokens so far
        self.capacity = 0
        self._run: Runnable | None = run
        self._arrays = arrays
        self._firsts: list[Array] | None = None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives the memory back to the decoder."""
        if self._run is not None:
            self.of._idle.append(self._run)
            self._run = None

    def feed(
        self,
        tokens: Array,
        parents: Array | None = None,
        known: Mapping[str, Any] | None = None,
    ) -> Array:
        """The logits [B, N, V] of N new tokens of each row, with what is `known` of them
        [B, N, ...].  With `parents` [B] a row goes on from the text of another row, for which the
        same was known.

        Raises DataError where the text becomes longer than the model can look at."""
        tokens = self._checked(tokens)
        run = self._running()
        count = tokens.shape[1]
        given = [tokens, *beside.fed(known, self.of.known_types, self.rows, count)]
        self._room(run, self.start + count)
        if self.of.beams:
            given.append(np.arange(self.rows) if parents is None else np.asarray(parents, "i8"))
        out = run.run(given, {BATCH: self.rows, NEW: count, CAPACITY: self.capacity})
        self.start += count
        return out[0]

    def restart(self) -> None:
        """Back to the empty text."""
        self.start = 0
        if self.capacity:
            self._running().executable.set_state(self._first_state(self.capacity))

    def _checked(self, tokens: Array) -> Array:
        tokens = np.asarray(tokens, self.of.dtype.numpy)
        if tokens.ndim != 2 or tokens.shape[0] != self.rows or not tokens.shape[1]:
            raise ShapeError(
                f"{where()}tokens {list(tokens.shape)} are fed to {self.rows} rows: give [B, N]"
            )
        longest = self.of.longest
        if longest is not None and self.start + tokens.shape[1] > longest:
            raise DataError(
                f"{where()}the text has {self.start + tokens.shape[1]} tokens, and the model looks "
                f"at {longest} at most"
            )
        return tokens

    def _running(self) -> Runnable:
        if self._run is None:
            raise DataError(f"{where()}the text was closed")
        return self._run

    # --- state

    def _room(self, run: Runnable, steps: int) -> None:
        """Caches for so many steps: twice as many as there were."""
        if self.capacity >= steps:
            return
        before, most = self.capacity, self.of.longest
        wanted = max(steps, 2 * before, FIRST_CAPACITY)
        self.capacity = wanted if most is None else min(wanted, most)
        state = self._first_state(self.capacity)
        if before:
            for new, old in zip(state, run.executable.state(), strict=True):
                new[tuple(slice(n) for n in old.shape)] = old
        run.executable.set_state(state)

    def _first_state(self, capacity: int) -> list[Array]:
        made = self.of._made
        assert made is not None
        if self._firsts is None and self.of._first is not None:
            inputs = [self._arrays[i] for i in made.first_given]
            rows = np.zeros(self.rows, np.int32)
            self._firsts = self.of._first.run([*inputs, rows], self._sizes(made, capacity))
        state = []
        for s in made.state:
            if s.first is not None:
                source = self._arrays if s.kind == "given" else self._firsts
                assert source is not None
                state.append(np.array(source[s.first]))
            else:
                state.append(self._filled(s.type, s.fill, capacity))
        return state

    def _sizes(self, made: Incremental, capacity: int) -> dict[str, int]:
        return {BATCH: self.rows, CAPACITY: capacity, **self._own_sizes()}

    def _own_sizes(self) -> dict[str, int]:
        """Sizes that the context alone has."""
        found: dict[str, int] = {}
        for x, type in zip(self._arrays, self.of._declared.types, strict=False):
            for d, n in zip(type.shape, x.shape, strict=False):
                symbols = dims.symbols(d) if isinstance(d, dims.Poly) else ()
                if len(symbols) == 1 and d is _dim_of(symbols[0]) and symbols[0].name != TIME:
                    found[symbols[0].name] = n
        return found

    def _filled(self, type: TensorType, fill: float, capacity: int) -> Array:
        sizes = {BATCH: self.rows, CAPACITY: capacity, **self._own_sizes()}
        shape = [dims.evaluate(d, sizes) for d in type.shape]
        return np.full(shape, _number(fill, type), type.dtype.numpy)


class Whole(Session):
    """A text whose logits are computed from the first token on, each time."""

    def __init__(self, of: Decoder, run: Runnable, arrays: Sequence[Array], rows: int) -> None:
        super().__init__(of, run, arrays, rows)
        self._fed: list[Array] = []  # tokens, and what is known of them
        self.restart()

    def feed(
        self,
        tokens: Array,
        parents: Array | None = None,
        known: Mapping[str, Any] | None = None,
    ) -> Array:
        tokens = self._checked(tokens)
        given = [tokens, *beside.fed(known, self.of.known_types, self.rows, tokens.shape[1])]
        before = [x if parents is None else x[parents] for x in self._fed]
        self._fed = [np.concatenate(pair, axis=1) for pair in zip(before, given, strict=True)]
        self.start += tokens.shape[1]
        arrays = list(self._arrays)
        for i, x in zip((self.of._tokens, *self.of._beside), self._fed, strict=True):
            arrays[i] = x
        sizes = {BATCH: self.rows, TIME: self.start, **self._own_sizes()}
        out = self._running().run(arrays, sizes)[0]
        return out[:, self.start - tokens.shape[1] :]

    def restart(self) -> None:
        self.start = 0
        types = [TensorType(self.of.dtype, (self.rows, 0)), *self.of.known_types]
        self._fed = [np.zeros((self.rows, 0, *t.shape[2:]), t.dtype.numpy) for t in types]


def _number(fill: float, type: TensorType) -> Any:
    if np.isfinite(fill) or type.dtype.is_float:
        return fill
    limits = np.iinfo(type.dtype.numpy)
    return limits.min if fill < 0 else limits.max


def _dim_of(symbol: Symbol) -> Dim:
    return dims.dim(symbol.name, symbol.min, symbol.max)


def _evaluated(model: Any) -> Any:
    return model.eval() if hasattr(model, "eval") else model


def longest_of(model: Any) -> int | None:
    """The longest text that a model says it can look at."""
    found = getattr(model, "context", None)
    return int(found) if isinstance(found, (int, np.integer)) else None


def usual_call(model: Any, tokens: Any, **context: Any) -> Any:
    """The logits of a model for tokens, its first argument or the one of that name, and what else
    it goes by."""
    if "tokens" in inspect.signature(model).parameters:
        return model(tokens=tokens, **context)
    return model(tokens, **context)


def _specs(context: Mapping[str, Any], rows: int | None) -> dict[str, Any]:
    """What `context` is declared as: rows are counted by B."""

    def declared(x: Any) -> Any:
        if isinstance(x, np.ndarray) and x.ndim and x.shape[0] == rows:
            return Spec(dtypes.dtype(x.dtype), (dim(BATCH), *x.shape[1:]))
        return x

    return {name: tree.map(declared, x) for name, x in context.items()}
