"""Functions called on arrays: traced, compiled and run, and the program kept for the next call.

A program serves calls of one signature: structure, dtypes, ranks, static arguments, and the
settings that the function reads from outside.  The first call is compiled for its sizes; a size
that comes out different at a later call becomes a symbol, and axes that were equal so far share
one.  Sizes 0 and 1, which broadcast, stay what they are.  Invariant: a call returns what tracing
the function anew at that moment would.
"""

from __future__ import annotations

import functools
import re
import threading
import types
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from retrograde import tree
from retrograde.captures import Captures, Snapshot, captures, snapshot
from retrograde.compiler.errors import TraceError
from retrograde.compiler.ir import dims, dtypes
from retrograde.compiler.ir.dims import Dim, Poly
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.graph import TensorType, same_type
from retrograde.compiler.ir.location import where
from retrograde.eager_mode import EagerTracer, array_of
from retrograde.execution import Runnable, runnable, tracing_for
from retrograde.tracing import (
    Traced,
    argument_names,
    checked_function,
    is_traced,
    lifted,
    name_of,
    trace_root,
)

if TYPE_CHECKING:
    from retrograde.certificates.certificate import Certificate

Array = npt.NDArray[Any]
Shapes = Sequence[tuple[int, ...]]

_KEPT = 64  # programs of one function; the one unused for longest goes first
_HISTORY = 8  # calls whose sizes are compared


def jit(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn`, compiled at the first call of each signature.

    Arrays and Python floats are traced; integers, booleans, strings and other hashable objects
    are part of the signature.  Arrays that `fn` reads from its closure or globals are read at each
    call, and a setting found there that has changed has it traced anew.  Inside of a trace it is
    `fn` itself.  `jit(fn).certify(*args)` certifies the program for these arguments, on them."""

    @functools.wraps(fn)
    def jitted(*args: Any, **kwargs: Any) -> Any:
        if is_traced():
            args, kwargs = lifted((args, kwargs))
            return fn(*args, **kwargs)
        return shared_jit(fn, ("jit",), fn)(*args, **kwargs)

    def certify(*args: Any, **kwargs: Any) -> Certificate:
        return shared_jit(fn, ("jit",), fn).certify(*args, **kwargs)

    jitted.certify = certify  # type: ignore[attr-defined]
    return jitted


def shared_jit(
    fn: Callable[..., Any],
    key: tuple[Any, ...],
    call: Callable[..., Any],
    others: Sequence[Callable[..., Any]] = (),
) -> Jit:
    """The programs made of `fn` for the purpose `key`: the same at every request.

    `call` is traced; `fn` and `others` are the user's functions, whose surroundings are looked
    at."""
    checked_function(fn)
    if not isinstance(fn, types.FunctionType):
        return _kept_by_object(fn, key, call, others)
    owner, made = fn.__dict__.get(_KEPT_AS, (None, None))
    if owner is not fn:  # functools.wraps copies a function's attributes to its wrapper
        made = {}
        fn.__dict__[_KEPT_AS] = (fn, made)
    found: Jit | None = made.get(key)
    if found is None:
        found = made[key] = Jit(fn, call, others)
    return found


_KEPT_AS = "__retrograde_programs__"
_of_objects: OrderedDict[Any, Jit] = OrderedDict()


def _kept_by_object(
    fn: Any, key: tuple[Any, ...], call: Callable[..., Any], others: Sequence[Any]
) -> Jit:
    """Bound methods and callable objects have no room for their programs: a few are kept here."""
    whole: tuple[Any, ...] = (_Identity(fn), *key)
    found = _of_objects.get(whole)
    if found is None:
        found = _of_objects[whole] = Jit(fn, call, others)
        while len(_of_objects) > _KEPT:
            _of_objects.popitem(last=False)
    _of_objects.move_to_end(whole)
    return found


class _Identity:
    """An object as a key: itself; a bound method by its object and function."""

    def __init__(self, x: Any) -> None:
        bound = isinstance(x, types.MethodType)
        self.parts = (x.__self__, x.__func__) if bound else (x, None)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and all(
            a is b for a, b in zip(self.parts, other.parts, strict=True)
        )

    def __hash__(self) -> int:
        return hash(tuple(map(id, self.parts)))


@dataclass
class _Program:
    """A traced and compiled function, for every call whose sizes fit `types`."""

    types: tuple[TensorType, ...]
    traced: Traced
    captures: Captures
    runnable: Runnable

    def fits(self, types: Sequence[TensorType]) -> bool:
        """Whether it was traced for just these types."""
        return all(map(same_type, self.types, types))

    def sizes(self, shapes: Shapes) -> dict[str, int] | None:
        """The symbols at these shapes; None where they do not fit."""
        found: dict[str, int] = {}
        for type, shape in zip(self.types, shapes, strict=True):
            for d, n in zip(type.shape, shape, strict=True):
                expected = found.setdefault(str(d), n) if isinstance(d, Poly) else d
                if expected != n:
                    return None
        return found


@dataclass
class _Signature:
    """What is known of the calls of one signature."""

    programs: list[_Program] = field(default_factory=list)
    history: list[tuple[int, ...]] = field(default_factory=list)  # all sizes of a call, in a row
    static: bool = False  # the function cannot be traced with symbolic sizes


@dataclass(frozen=True)
class _Call:
    """The arguments of one call."""

    structure: tree.TreeDef
    leaves: tuple[Any, ...]
    traced: tuple[int, ...]  # the leaves that are arrays or floats
    arrays: tuple[Array, ...]
    weak: tuple[bool, ...]
    key: Any

    @property
    def shapes(self) -> Shapes:
        return [x.shape for x in self.arrays]


class Jit:
    """The programs of one function."""

    def __init__(
        self, fn: Callable[..., Any], call: Callable[..., Any], others: Sequence[Any] = ()
    ) -> None:
        self.__wrapped__ = fn
        self._others = tuple(others)
        self._call = call
        self._signatures: OrderedDict[Any, _Signature] = OrderedDict()
        self._compiled: OrderedDict[str, Runnable] = OrderedDict()
        self._lock = threading.RLock()
        self.traces = 0  # how often the Python has run

    @property
    def compilations(self) -> int:
        """How many programs are kept."""
        return len(self._compiled)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = self._bound(args, kwargs)
        with self._lock:
            program, arrays, sizes = self._program(call, self._snapshot(call))
        outputs = program.runnable.run([*call.arrays, *arrays], sizes)
        return tree.unflatten(program.traced.structure, outputs)

    def certify(self, *args: Any, **kwargs: Any) -> Certificate:
        """The certificate of the program for these arguments, at these arguments."""
        from retrograde.certificates.check import certificate
        from retrograde.certificates.subject import Subject

        call = self._bound(args, kwargs)
        with self._lock:
            program, captured, sizes = self._program(call, self._snapshot(call))
        held = dict(enumerate(captured, len(call.arrays)))
        graph, run = program.traced.graph, program.runnable
        subject = Subject(graph, run, held, (), call.arrays, sizes)
        return certificate(subject, None, 2, None, False, 0)

    def _snapshot(self, call: _Call) -> Snapshot:
        traced = set(call.traced)
        objects = [x for i, x in enumerate(call.leaves) if i not in traced]
        return snapshot(self.__wrapped__, [*self._others, *objects])

    def _bound(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _Call:
        leaves, structure = tree.flatten((args, dict(kwargs)))
        leaves = [_concrete(x) for x in leaves]
        traced = tuple(i for i, x in enumerate(leaves) if _is_traced_leaf(x))
        arrays = tuple(np.asarray(leaves[i]) for i in traced)
        weak = tuple(not isinstance(leaves[i], np.ndarray) for i in traced)
        numbers = set(traced)
        static = tuple((type(x), x) for i, x in enumerate(leaves) if i not in numbers)
        kinds = tuple(
            (x.dtype.str if x.dtype.kind != "V" else x.dtype.name, w, tuple(map(_stays, x.shape)))
            for x, w in zip(arrays, weak, strict=True)
        )
        key = (structure, traced, kinds, static)
        try:
            hash(key)
        except TypeError:
            bad = next(x for _, x in static if type(x).__hash__ is None)
            raise TraceError(
                f"{where()}{name_of(self.__wrapped__)} got a {type(bad).__name__}: arguments are "
                "arrays, numbers, hashable settings, and lists, tuples, dicts or modules of these"
            ) from None
        return _Call(structure, tuple(leaves), traced, arrays, weak, key)

    def _program(self, call: _Call, now: Snapshot) -> tuple[_Program, list[Array], dict[str, int]]:
        """The program for a call, the captured arrays and the sizes to run it with."""
        signature = self._signatures.setdefault(call.key, _Signature())
        self._signatures.move_to_end(call.key)
        while len(self._signatures) > _KEPT:
            self._signatures.popitem(last=False)
        for i, program in enumerate(signature.programs):
            sizes = program.sizes(call.shapes)
            arrays = None if sizes is None else program.captures.current(now)
            if sizes is not None and arrays is not None:
                signature.programs.insert(0, signature.programs.pop(i))
                return program, arrays, sizes
        program = self._new(call, signature, now)
        old = next((p for p in signature.programs if p.fits(program.types)), None)
        if old is not None:
            same = old.runnable is program.runnable
            program.captures = program.captures.after(old.captures, same)
            if same and old.captures.settings == program.captures.settings:
                signature.programs = [p for p in signature.programs if p is not old]
        signature.programs.insert(0, program)
        del signature.programs[_KEPT:]
        sizes = program.sizes(call.shapes)
        assert sizes is not None
        return program, list(program.traced.captured), sizes

    def _new(self, call: _Call, signature: _Signature, now: Snapshot) -> _Program:
        flat = tuple(n for shape in call.shapes for n in shape)
        earlier = [h for h in signature.history if h != flat]
        signature.history = [*earlier[-_HISTORY + 1 :], flat]
        exact = [TensorType(dtypes.dtype(x.dtype), x.shape) for x in call.arrays]
        names = self._names(call)
        varying = _with_symbols(exact, names, signature.history)
        symbolic = any(isinstance(d, Poly) for t in varying for d in t.shape)
        if symbolic and not signature.static:
            try:
                return self._traced(call, varying, names, now)
            except Exception:
                # Some Python needs the number (a loop over an axis, a look-up by size): one program
                # for each size then, if that works; an error of the function shows up again.
                program = self._traced(call, exact, names, now)
                signature.static = True
                return program
        return self._traced(call, exact, names, now)

    def _names(self, call: _Call) -> list[str]:
        """What the traced leaves are called: argument, then path."""
        paths = tree.steps(call.structure)
        count = 1 + max((path[1] for path in paths if path[0] == 0), default=-1)
        labels = argument_names(self.__wrapped__, count)
        found = []
        for i in call.traced:
            kind, which, *rest = paths[i]
            name = labels[which] if kind == 0 else which
            found.append(".".join(map(str, (name, *rest))))
        return found

    def _traced(
        self, call: _Call, types: Sequence[TensorType], names: Sequence[str], now: Snapshot
    ) -> _Program:
        def run(exprs: list[Expr]) -> Any:
            leaves = list(call.leaves)
            for i, x in zip(call.traced, exprs, strict=True):
                leaves[i] = x
            args, kwargs = tree.unflatten(call.structure, leaves)
            return self._call(*args, **kwargs)

        self.traces += 1
        with tracing_for("auto"):
            traced = trace_root(name_of(self.__wrapped__), types, names, call.weak, run)
        return _Program(
            tuple(types), traced, captures(now, traced.captured), self._compile(traced, call)
        )

    def _compile(self, traced: Traced, call: _Call) -> Runnable:
        """Compiles the graph, unless an equal one has been: what changed may not have mattered."""
        text = traced.graph.text()
        found = self._compiled.get(text)
        if found is None:
            at = _binding(traced.graph.inputs, call.shapes)
            found = self._compiled[text] = runnable(traced.graph, at)
            while len(self._compiled) > _KEPT:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(text)
        return found


def _concrete(x: Any) -> Any:
    if isinstance(x, EagerTracer):
        return array_of(x)
    if isinstance(x, Expr):
        raise TraceError(
            f"{where()}a traced value ({x.type}) is used outside of the function being traced: "
            "return it from that function instead of storing it"
        )
    return x


def _is_traced_leaf(x: Any) -> bool:
    return isinstance(x, (np.ndarray, float, np.floating))


def _stays(n: int) -> int:
    """A size as the signature sees it: 0 and 1 broadcast, all others are alike."""
    return n if n < 2 else 2


def _with_symbols(
    types: Sequence[TensorType], names: Sequence[str], history: Sequence[tuple[int, ...]]
) -> list[TensorType]:
    """The types with a symbol for each axis whose size has changed; equal axes share one."""
    columns = list(zip(*history, strict=True))
    symbols: dict[tuple[int, ...], Dim] = {}
    taken: set[str] = set()
    out = []
    at = 0
    for type, name in zip(types, names, strict=True):
        shape: list[Dim] = []
        for axis, n in enumerate(type.shape):
            column = columns[at]
            at += 1
            if len(set(column)) == 1:
                shape.append(n)
                continue
            if column not in symbols:
                label = re.sub(r"\W+", "_", f"{name}_{axis}")
                label = label if label.isidentifier() and not label.startswith("_") else f"n{label}"
                while label in taken:
                    label += "_"
                taken.add(label)
                symbols[column] = dims.dim(label, min=2)
            shape.append(symbols[column])
        out.append(TensorType(type.dtype, tuple(shape)))
    return out


def _binding(inputs: Sequence[Any], shapes: Shapes) -> dict[str, int]:
    """The sizes of this call: the ones the plan is made for."""
    found = {}
    for v, shape in zip(inputs, shapes, strict=False):
        for d, n in zip(v.shape, shape, strict=True):
            if isinstance(d, Poly):
                found[str(d)] = n
    return found
