"""What a function reads beside its arguments: function -> the arrays and settings it can reach.

Tracing runs the Python once, the compiled program runs many times: what the function finds in its
closure, its globals, its object or a model it holds may change in between.  `snapshot` walks all
that the code names, with the path to each: arrays are read again at each call, settings (numbers,
strings, functions, structures) must be what they were, else the function is traced anew.
Invariant: a value that the walk reaches is never used when it is out of date.
"""

from __future__ import annotations

import dis
import functools
import inspect
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.array_utils import byte_bounds

from retrograde import tree

Array = npt.NDArray[Any]
Path = tuple[Any, ...]

_SCALARS = (bool, int, float, complex, str, bytes, type(None), np.generic)
_FLOATS = (float, complex, np.generic)
_MOST = 100_000  # values looked at; beyond, a container is data, and no setting
_STANDARD = sys.stdlib_module_names


@dataclass
class Snapshot:
    """What was reached: arrays by path, settings by path (as something comparable)."""

    arrays: dict[Path, Array] = field(default_factory=dict)
    settings: dict[Path, Any] = field(default_factory=dict)


def snapshot(fn: Any, objects: Sequence[Any] = ()) -> Snapshot:
    """What `fn` can reach at this moment, by itself or through `objects` that it is given."""
    walk = _Walk()
    walk.visit(fn, (), _NO_NAMES)
    names = _code_names(fn) if objects else _NO_NAMES
    for i, x in enumerate(objects):
        walk.visit(x, ("argument", i), names)
    return walk.found


def _code_names(fn: Any) -> frozenset[str]:
    inner = inspect.unwrap(fn) if callable(fn) else fn
    code = getattr(getattr(inner, "__func__", inner), "__code__", None)
    return _names(code)[0] if code is not None else _NO_NAMES


@lru_cache(maxsize=4096)
def _names(code: types.CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """The globals and attributes that code names, and what it assigns outside of itself.

    Nested functions, comprehensions and lambdas included."""
    named, stored = set(code.co_names), set()
    for step in dis.get_instructions(code):
        if step.opname in ("STORE_GLOBAL", "DELETE_GLOBAL") or (
            step.opname == "STORE_DEREF" and step.argval in code.co_freevars
        ):
            stored.add(str(step.argval))
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            inner, assigned = _names(const)
            named |= inner
            stored |= assigned
    return frozenset(named), frozenset(stored)


@lru_cache(maxsize=4096)
def _is_foreign(name: str | None) -> bool:
    """Whether a module is a library, whose state is its own: the standard one, this one, and what
    is installed as a package."""
    root = (name or "").partition(".")[0]
    if root == "retrograde" or root in _STANDARD:
        return root != "__main__"
    return "site-packages" in str(getattr(sys.modules.get(root), "__file__", ""))


class _Same:
    """An object as a setting: it stays what it was only where it is that very object."""

    __slots__ = ("it",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, it: Any) -> None:
        self.it = it

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.it is other.it


class _Walk:
    def __init__(self) -> None:
        self.found = Snapshot()
        # What was visited, and for which names; it stays alive, so that no id comes twice.
        self.seen: dict[tuple[int, frozenset[str]], Any] = {}
        self.left = _MOST

    def visit(self, x: Any, path: Path, names: frozenset[str]) -> None:
        """Looks at `x`; of a plain object, only at the attributes in `names`."""
        self.left -= 1
        if self.left < 0:
            return
        if isinstance(x, np.ndarray) and not x.dtype.hasobject:
            self.found.arrays[path] = x
            return
        if isinstance(x, _SCALARS):
            # NaN is unequal to itself, 0.0 equals -0.0, and 1 equals True.
            self.found.settings[path] = (type(x), repr(x) if isinstance(x, _FLOATS) else x)
            return
        mark = (id(x), _NO_NAMES if isinstance(x, types.FunctionType) else names)
        if mark in self.seen:
            return
        self.seen[mark] = x
        if isinstance(x, types.FunctionType):
            self._function(x, path)
        elif isinstance(x, types.MethodType):
            self._method(x, path, names)
        elif isinstance(x, functools.partial):
            self.visit(x.func, (*path, "partial"), names)
            self.visit(x.args, (*path, "args"), names)
            self.visit(x.keywords, (*path, "keywords"), names)
        elif tree.is_registered(type(x)):
            self._container(x, path, names)
        elif isinstance(x, Mapping):
            self.found.settings[path] = ("mapping", len(x))
            for key, value in x.items():
                self.visit(value, (*path, key if isinstance(key, str) else repr(key)), names)
        elif isinstance(x, (list, tuple, set, frozenset)):
            self.found.settings[path] = (type(x).__name__, len(x))
            for i, value in enumerate(x):
                self.visit(value, (*path, i), names)
        else:
            self._object(x, path, names)

    def _function(self, fn: types.FunctionType, path: Path) -> None:
        wrapped = getattr(fn, "__wrapped__", None)
        if wrapped is not None:
            self.visit(wrapped, (*path, "wrapped"), _NO_NAMES)
        if _is_foreign(fn.__globals__.get("__name__")):
            # Also a wrapper of ours, which says that it is of its function's module.
            self.found.settings[path] = _Same(fn)
            return
        # The code, so that a helper that is redefined is traced anew.
        self.found.settings[path] = fn.__code__
        named, stored = _names(fn.__code__)
        for name, value in _cells(fn):
            if name not in stored:
                self.visit(value, (*path, "closure", name), named)
        for name in sorted(named - stored):
            if name in fn.__globals__:
                self.visit(fn.__globals__[name], (*path, "global", name), named)
        for i, value in enumerate(fn.__defaults__ or ()):
            self.visit(value, (*path, "default", i), named)
        for name, value in (fn.__kwdefaults__ or {}).items():
            self.visit(value, (*path, "default", name), named)

    def _method(self, x: types.MethodType, path: Path, names: frozenset[str]) -> None:
        function = x.__func__
        if _is_python(function):
            names = names | _names(function.__code__)[0]
        self.visit(x.__self__, (*path, "self"), names)
        self.visit(function, (*path, "function"), names)

    def _container(self, x: Any, path: Path, names: frozenset[str]) -> None:
        leaves, made = tree.flatten(x)
        self.found.settings[path] = made
        for leaf, name in zip(leaves, tree.names(made), strict=True):
            self.visit(leaf, (*path, name), names)
        self._lent(type(x), path, names)

    def _object(self, x: Any, path: Path, names: frozenset[str]) -> None:
        self.found.settings[path] = _Same(x)
        if isinstance(x, types.ModuleType):
            if not _is_foreign(x.__name__):
                self._attributes(vars(x), path, names)
            return
        cls = x if isinstance(x, type) else type(x)
        if _is_foreign(cls.__module__):
            wrapped = getattr(x, "__wrapped__", None)
            if wrapped is not None:
                self.visit(wrapped, (*path, "wrapped"), names)
            return
        names = self._lent(cls, path, names)
        held = dict(getattr(x, "__dict__", {})) if cls is not x else {}
        for slot in getattr(cls, "__slots__", ()):
            if cls is not x and hasattr(x, slot):
                held[slot] = getattr(x, slot)
        self._attributes(held, path, names)

    def _attributes(self, held: Mapping[str, Any], path: Path, names: frozenset[str]) -> None:
        for name in sorted(names & held.keys()):
            self.visit(held[name], (*path, name), names)

    def _lent(self, cls: type, path: Path, names: frozenset[str]) -> frozenset[str]:
        """Visits what a class lends its objects under `names`: methods, properties, values.

        Returns the names with those that its methods use in turn."""
        done: set[str] = set()
        wanted = names | {"__call__"}
        while wanted - done:
            for name in sorted(wanted - done):
                done.add(name)
                base = next((b for b in cls.__mro__ if name in vars(b)), None)
                if base is None or _is_foreign(base.__module__):
                    continue
                value = vars(base)[name]
                value = getattr(value, "__func__", getattr(value, "fget", value))
                if _is_python(value):
                    inner = inspect.unwrap(value)
                    wanted = wanted | _names(inner.__code__)[0]
                self.visit(value, (*path, "class", name), wanted)
        return wanted


_NO_NAMES: frozenset[str] = frozenset()


def _is_python(fn: Any) -> bool:
    return isinstance(fn, types.FunctionType)


def _cells(fn: types.FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not assigned yet
            continue


def fingerprint(x: Array) -> int:
    """A number that changes with what an array holds."""
    import zlib

    return zlib.crc32(np.ascontiguousarray(x).view(np.uint8).reshape(-1).data)


@dataclass(frozen=True)
class _Place:
    """Where a captured array stands: every path to it, or to the array that it is a view of."""

    paths: tuple[Path, ...]
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    view: tuple[int, np.dtype[Any], tuple[int, ...], tuple[int, ...]] | None = None

    def current(self, now: Snapshot) -> Array | None:
        """The array there now, if there is one, and one only, of the same type."""
        found = [now.arrays.get(path) for path in self.paths]
        first = found[0]
        if first is None or any(x is not first for x in found):
            return None
        if first.dtype != self.dtype or first.shape != self.shape:
            return None
        if self.view is None:
            return first
        if not first.flags.c_contiguous:
            return None
        offset, dtype, shape, strides = self.view
        return np.ndarray(shape, dtype, first.data, offset, strides)


@dataclass(frozen=True)
class Captures:
    """The arrays that a trace captured, and how to find what stands in their place now.

    An array that no path leads to was made while tracing, out of who knows what: then every array
    that can be reached must still hold what it held."""

    settings: Mapping[Path, Any]
    places: tuple[_Place | Array, ...]
    reached: frozenset[Path]  # every array
    contents: Mapping[Path, int]  # of those that NumPy may have worked on while tracing

    def current(self, now: Snapshot) -> list[Array] | None:
        """The arrays to run on; None where the function has to be traced anew."""
        if now.settings != self.settings or now.arrays.keys() != self.reached:
            return None
        out = []
        for place in self.places:
            array = place.current(now) if isinstance(place, _Place) else place
            if array is None:
                return None
            out.append(array)
        if any(fingerprint(now.arrays[path]) != was for path, was in self.contents.items()):
            return None
        return out


def captures(before: Snapshot, captured: tuple[Any, ...]) -> Captures:
    """How the arrays that a trace captured are found again, given what it could reach."""
    paths: dict[int, list[Path]] = {}
    for path, array in before.arrays.items():
        paths.setdefault(id(array), []).append(path)
    places = tuple(_place(x, paths, before) for x in captured)
    direct = {path for p in places if isinstance(p, _Place) for path in p.paths}
    if not all(isinstance(p, _Place) for p in places):
        direct = set()
    return Captures(
        before.settings,
        places,
        frozenset(before.arrays),
        {path: fingerprint(x) for path, x in before.arrays.items() if path not in direct},
    )


def _place(x: Array, paths: Mapping[int, list[Path]], before: Snapshot) -> _Place | Array:
    if id(x) in paths:
        return _Place(tuple(paths[id(x)]), x.dtype, x.shape)
    low, high = byte_bounds(x)
    for path, held in before.arrays.items():
        first, last = byte_bounds(held)
        if first <= low and high <= last and x.size and held.flags.c_contiguous:
            offset = x.__array_interface__["data"][0] - first
            return _Place((path,), held.dtype, held.shape, (offset, x.dtype, x.shape, x.strides))
    return x
