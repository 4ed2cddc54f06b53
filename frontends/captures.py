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
import sys
import types
import zlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

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
    _fingerprints: dict[Path, int] = field(default_factory=dict)

    def fingerprint(self, path: Path) -> int:
        """A number that changes with what the array at `path` holds."""
        found = self._fingerprints.get(path)
        if found is None:
            data = np.ascontiguousarray(self.arrays[path]).view(np.uint8).reshape(-1).data
            found = self._fingerprints[path] = zlib.crc32(data)
        return found


def snapshot(fn: Any, objects: Sequence[Any] = ()) -> Snapshot:
    """What `fn` can reach at this moment, by itself or through `objects` that it is given."""
    owner = getattr(fn, "__func__", fn)
    names = _names_used.get(owner, _NO_NAMES) if _is_kept(owner) else _NO_NAMES
    while True:
        walk = _Walk(names)
        walk.visit(fn, ())
        for i, x in enumerate(objects):
            walk.visit(x, ("argument", i))
        if walk.named <= names:
            return walk.found
        # A function that was reached only now may read attributes of what was passed before.
        names |= walk.named
        if _is_kept(owner):
            _names_used[owner] = names


# What all code that a function reaches has named so far: the next walk begins with it.
_names_used: WeakKeyDictionary[Any, frozenset[str]] = WeakKeyDictionary()


def _is_kept(fn: Any) -> bool:
    return isinstance(fn, types.FunctionType)


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
    """One walk; of an object it looks at the attributes in `names`, which the code names that is
    met on the way (`named`)."""

    def __init__(self, names: frozenset[str]) -> None:
        self.found = Snapshot()
        self.names = names
        self.named: set[str] = set()
        # What was visited, and by which path; it stays alive, so that no id comes twice.
        self.seen: dict[int, tuple[Any, Path]] = {}
        self.left = _MOST

    def visit(self, x: Any, path: Path) -> None:
        """Looks at `x`, and at what can be reached from it."""
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
        if id(x) in self.seen:
            self.found.settings[path] = ("seen as", self.seen[id(x)][1])
            return
        self.seen[id(x)] = (x, path)
        if isinstance(x, types.FunctionType):
            self._function(x, path)
        elif isinstance(x, types.MethodType):
            self.visit(x.__self__, (*path, "self"))
            self.visit(x.__func__, (*path, "function"))
        elif isinstance(x, functools.partial):
            self.visit(x.func, (*path, "partial"))
            self.visit(x.args, (*path, "args"))
            self.visit(x.keywords, (*path, "keywords"))
        elif isinstance(x, ContextVar):
            self.found.settings[path] = _Same(x)
            self.visit(x.get(None), (*path, "value"))
        elif tree.is_registered(type(x)):
            leaves, made = tree.flatten(x)
            self.found.settings[path] = made
            for leaf, name in zip(leaves, tree.names(made), strict=True):
                self.visit(leaf, (*path, name))
            self._lent(type(x), path)
        elif isinstance(x, Mapping):
            self.found.settings[path] = ("mapping", len(x))
            for key, value in x.items():
                self.visit(value, (*path, key if isinstance(key, str) else repr(key)))
            self._own(x, path)
        elif isinstance(x, (list, tuple, set, frozenset, deque)):
            self.found.settings[path] = (type(x).__name__, len(x))
            for i, value in enumerate(x):
                self.visit(value, (*path, i))
            self._own(x, path)
        else:
            self.found.settings[path] = _Same(x)
            if not isinstance(x, types.ModuleType):
                self._own(x, path)
            elif not _is_foreign(x.__name__):
                self._attributes(vars(x), path)

    def _function(self, fn: types.FunctionType, path: Path) -> None:
        wrapped = getattr(fn, "__wrapped__", None)
        if wrapped is not None:
            self.visit(wrapped, (*path, "wrapped"))
        if _is_foreign(fn.__globals__.get("__name__")):
            # Also a wrapper of ours, which says that it is of its function's module.
            self.found.settings[path] = _Same(fn)
            return
        # The code, so that a helper that is redefined is traced anew.
        self.found.settings[path] = fn.__code__
        named, stored = _names(fn.__code__)
        self.named |= named
        for name, value in _cells(fn):
            if name not in stored:
                self.visit(value, (*path, "closure", name))
        for name in sorted(named - stored):
            if name in fn.__globals__:
                self.visit(fn.__globals__[name], (*path, "global", name))
        for i, value in enumerate(fn.__defaults__ or ()):
            self.visit(value, (*path, "default", i))
        for name, value in (fn.__kwdefaults__ or {}).items():
            self.visit(value, (*path, "default", name))
        self._attributes(vars(fn), path)

    def _own(self, x: Any, path: Path) -> None:
        """The attributes of an object or class, and what its class lends it."""
        cls = x if isinstance(x, type) else type(x)
        if _is_foreign(cls.__module__):
            wrapped = getattr(x, "__wrapped__", None)
            if wrapped is not None:
                self.visit(wrapped, (*path, "wrapped"))
        else:
            self._lent(cls, path)
        if cls is x:
            return
        held = getattr(x, "__dict__", None)
        held = dict(held) if isinstance(held, dict) else {}
        for base in cls.__mro__:
            slots = vars(base).get("__slots__", ())
            for slot in (slots,) if isinstance(slots, str) else slots:
                if not slot.startswith("__") and hasattr(x, slot):
                    held[slot] = getattr(x, slot)
        dynamic = not _DYNAMIC.isdisjoint(self.names)
        self._attributes(held, path, everything=dynamic and _is_open(cls))

    def _attributes(self, held: Mapping[str, Any], path: Path, everything: bool = False) -> None:
        for name in sorted(held if everything else self.names & held.keys()):
            self.visit(held[name], (*path, name))

    def _lent(self, cls: type, path: Path) -> None:
        """What a class and its bases lend an object: methods, properties, values.

        An overridden one counts too, for `super()`; operators and protocols (`x[i]`, `for`, `with`)
        are used without being named."""
        for i, base in enumerate(cls.__mro__):
            if _is_foreign(base.__module__):
                continue
            for name, value in vars(base).items():
                if name not in self.names and not (_is_special(name) and _is_python(value)):
                    continue
                for part in ("__func__", "fget", "func"):
                    value = getattr(value, part, value)
                self.visit(value, (*path, "class", i, name))


def _is_special(name: str) -> bool:
    return name.startswith("__") and name.endswith("__") and name not in _NOT_WHILE_TRACING


def _is_open(cls: type) -> bool:
    """Whether an object may hold anything under any name: the user's, and bare namespaces."""
    return not _is_foreign(cls.__module__) or cls.__name__ in ("SimpleNamespace", "Namespace")


_NOT_WHILE_TRACING = {"__init__", "__new__", "__del__", "__repr__", "__str__", "__init_subclass__"}
# By these, attributes are reached that the code does not name.
_DYNAMIC = frozenset({"getattr", "attrgetter", "vars", "__dict__", "dir", "asdict", "fields"})
_NO_NAMES: frozenset[str] = frozenset()


def _is_python(fn: Any) -> bool:
    return isinstance(fn, types.FunctionType)


def _cells(fn: types.FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not assigned yet
            continue


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


_SMALL = 1 << 16  # bytes; the Python of a model decides nothing by larger arrays
_OFTEN = 3  # changes that left the graph what it was, until an array counts as data alone


@dataclass(frozen=True)
class Captures:
    """The arrays that a trace captured, and how to find what stands in their place now.

    An array that no path leads to was made while tracing, out of who knows what: then every array
    that can be reached must still hold what it held.  One that is captured as it is may have been
    read by Python too (`float(w[0])`): a small one is watched until it has changed a few times and
    the graph has not."""

    settings: Mapping[Path, Any]
    places: tuple[_Place | Array, ...]
    reached: frozenset[Path]  # every array
    contents: Mapping[Path, int]  # fingerprints of the arrays that are watched
    calm: Mapping[Path, int]  # those captured as they are: changes without effect, -1 if it decides

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
        if any(now.fingerprint(path) != was for path, was in self.contents.items()):
            return None
        return out

    def after(self, old: Captures, same: bool) -> Captures:
        """These captures, knowing what the trace before found, and whether its graph was the
        same."""
        if self.settings != old.settings:
            return self
        calm = {}
        for path in self.calm:
            calm[path] = count = old.calm.get(path, 0)
            if count >= 0 and old.contents.get(path, self.contents[path]) != self.contents[path]:
                calm[path] = count + 1 if same else -1
        contents = {p: x for p, x in self.contents.items() if calm.get(p, 0) < _OFTEN}
        return replace(self, contents=contents, calm=calm)


def captures(before: Snapshot, captured: tuple[Any, ...]) -> Captures:
    """How the arrays that a trace captured are found again, given what it could reach."""
    paths: dict[int, list[Path]] = {}
    for path, array in before.arrays.items():
        paths.setdefault(id(array), []).append(path)
    places = tuple(_place(x, paths, before) for x in captured)
    direct = {path for p in places if isinstance(p, _Place) for path in p.paths}
    if not all(isinstance(p, _Place) for p in places):
        direct = set()
    watched = [p for p, x in before.arrays.items() if p not in direct or x.nbytes <= _SMALL]
    # A mask selects as many elements as it has true ones: it always decides.
    calm = [p for p in watched if p in direct and before.arrays[p].dtype != np.bool_]
    return Captures(
        before.settings,
        places,
        frozenset(before.arrays),
        {path: before.fingerprint(path) for path in watched},
        dict.fromkeys(calm, 0),
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
