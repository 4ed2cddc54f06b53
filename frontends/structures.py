"""Structures of trees as plain data: a structure with its leaves <-> JSON, for files.

A description is nested lists: ["leaf", 3], ["is", setting], ["list", [...]], ["dict", [[key, …]]],
["module", class, [[field, …]]].  Classes stand in it by name.  `taking` takes trees apart that fit
a description, `building` makes them.  Invariant: reading a description imports nothing and calls
nothing.
"""

from __future__ import annotations

import enum
import sys
import types
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from retrograde import tree
from retrograde.compiler.errors import DataError, UnsupportedError
from retrograde.compiler.ir.dtypes import DType
from retrograde.compiler.ir.location import where
from retrograde.nn.module import Module

Described = list[Any]
_PLAIN = (bool, int, str, type(None))
DICTS: dict[str, Callable[..., Any]] = {"dict": dict, "ordered": OrderedDict}
LISTS: dict[str, Callable[..., Any]] = {"list": list, "tuple": tuple}


class _Mark:
    """Stands for a leaf."""

    def __init__(self, index: int) -> None:
        self.index = index


# --- structure -> description


def describe(structure: tree.TreeDef, settings: Mapping[int, Any], what: str) -> Described:
    """The description of `structure`, in which the leaves `settings` are no arrays, but these.

    The arrays are numbered in their order.  Raises UnsupportedError, naming `what` has it, for what
    cannot be told from others by a file: lambdas, local functions, objects."""
    marks: list[Any] = []
    for i in range(structure.num_leaves):
        marks.append(settings[i] if i in settings else _Mark(i - sum(s < i for s in settings)))
    return _described(tree.unflatten(structure, marks), what)


def _described(x: Any, path: str) -> Described:
    if isinstance(x, _Mark):
        return ["leaf", x.index]
    if x is None:
        return ["none"]
    if isinstance(x, Module):
        fields = [[k, _described_field(v, f"{path}.{k}")] for k, v in vars(x).items()]
        return ["module", name_of_class(type(x)), fields]
    return _container(x, path, _described) or ["is", setting(x, path)]


def _described_field(x: Any, path: str) -> Described:
    """A field of a module: what is no array and holds none is a setting."""
    if isinstance(x, (_Mark, Module)):
        return _described(x, path)
    return _container(x, path, _described_field) or ["is", setting(x, path)]


def _container(x: Any, path: str, inside: Callable[[Any, str], Described]) -> Described | None:
    for tag, cls in DICTS.items():
        if type(x) is cls:
            return [tag, [[setting(k, path), inside(v, f"{path}.{k}")] for k, v in x.items()]]
    for tag, cls in LISTS.items():
        if type(x) is cls:
            return [tag, [inside(v, f"{path}.{i}") for i, v in enumerate(x)]]
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        fields = list(x._fields)
        items = [inside(v, f"{path}.{k}") for k, v in zip(fields, x, strict=True)]
        return ["named", name_of_class(type(x)), fields, items]
    if tree.is_registered(type(x)):
        parts, meta = tree.parts(x)
        items = [inside(v, f"{path}.{i}") for i, v in enumerate(parts)]
        return ["class", name_of_class(type(x)), setting(meta, path), items]
    if isinstance(x, (dict, list)):
        raise UnsupportedError(
            f"{where()}{path} is a {type(x).__name__}, which cannot be saved: use a dict, list, "
            "tuple, named tuple or module"
        )
    return None


def setting(x: Any, path: str) -> Any:
    """What is no array, as JSON that tells it from all others."""
    if type(x) in _PLAIN:
        return x
    if type(x) is float:
        return ["float", x.hex()]
    if type(x) is bytes:
        return ["bytes", x.hex()]
    if type(x) is tuple:
        return ["tuple", [setting(item, path) for item in x]]
    if isinstance(x, DType):
        return ["dtype", x.name]
    if isinstance(x, np.generic) and not x.dtype.hasobject:
        return ["number", x.dtype.name, x.tobytes().hex()]
    if isinstance(x, np.dtype):
        return ["numpy dtype", x.name]
    if isinstance(x, enum.Enum):
        return ["object", f"{name_of_class(type(x))}.{x.name}"]
    if isinstance(x, (type, types.FunctionType, types.BuiltinFunctionType, np.ufunc)):
        name = _leading_to(x)
        if name:
            return ["object", name]
    shown = getattr(x, "__qualname__", type(x).__name__)
    raise UnsupportedError(
        f"{where()}{path} is {shown}, which a file cannot tell from others: numbers, texts, tuples "
        "of these, and functions and classes from the top of a module can be saved"
    )


def name_of_class(x: Any) -> str:
    return f"{x.__module__}:{x.__qualname__}"


def _leading_to(x: Any) -> str:
    """The name by which `x` is found again: in its module, or in a package around it."""
    module = "numpy" if isinstance(x, np.ufunc) else x.__module__ or ""
    name = getattr(x, "__qualname__", x.__name__)
    while module:
        try:
            if looked_up(f"{module}:{name}") is x:
                return f"{module}:{name}"
        except DataError:
            pass
        module = module.rpartition(".")[0]
    return ""


def not_imported(name: str) -> DataError:
    module = name.partition(":")[0]
    return DataError(
        f"{where()}the program returns a {class_of(name)}, a class that is not there: import "
        f"{module} before loading"
    )


def looked_up(name: str) -> Any:
    """What is called so in a module that is imported; looks nothing up that would run code."""
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        outer = types.ModuleType if found is sys.modules.get(module) else type
        if not isinstance(found, outer) or part not in vars(found):
            raise not_imported(name)
        found = vars(found)[part]
    return found


# --- checks


def check(shape: Any, count: int, what: str) -> None:
    """Raises DataError unless `shape` is a description of `count` leaves."""
    seen: set[int] = set()
    _check(shape, count, seen, what)
    if len(seen) != count:
        raise DataError(f"{what}: {len(seen)} leaves are described, and there are {count}")


def _check(shape: Any, count: int, seen: set[int], what: str) -> None:
    def require(holds: bool) -> None:
        if not holds:
            raise DataError(f"{what}: the structure is no description of a tree")

    require(isinstance(shape, list) and bool(shape) and isinstance(shape[0], str))
    tag, rest = shape[0], shape[1:]
    if tag == "leaf":
        require(len(rest) == 1 and type(rest[0]) is int and 0 <= rest[0] < count)
        seen.add(rest[0])
        return
    if tag == "none":
        return
    if tag == "is":
        require(len(rest) == 1 and _is_setting(rest[0]))
        return
    if tag in DICTS or tag == "module":
        if tag == "module":
            require(len(rest) == 2 and isinstance(rest[0], str))
        pairs = rest[-1]
        require(len(rest) == 1 + (tag == "module") and isinstance(pairs, list))
        for pair in pairs:
            require(isinstance(pair, list) and len(pair) == 2 and _is_setting(pair[0]))
            require(tag != "module" or isinstance(pair[0], str))
            _check(pair[1], count, seen, what)
        return
    if tag in LISTS:
        require(len(rest) == 1 and isinstance(rest[0], list))
        items = rest[0]
    else:
        require(tag in ("named", "class") and len(rest) == 3 and isinstance(rest[0], str))
        items = rest[2]
        require(isinstance(items, list))
        if tag == "named":
            names = rest[1]
            require(isinstance(names, list) and len(names) == len(items))
            require(all(isinstance(name, str) for name in names))
        else:
            require(_is_setting(rest[1]))
    for item in items:
        _check(item, count, seen, what)


def _is_setting(x: Any) -> bool:
    if type(x) in _PLAIN:
        return True
    if not isinstance(x, list) or len(x) < 2:
        return False
    if x[0] == "tuple":
        return len(x) == 2 and isinstance(x[1], list) and all(map(_is_setting, x[1]))
    kinds = ("float", "bytes", "dtype", "numpy dtype", "object", "number")
    return (
        x[0] in kinds
        and len(x) == 2 + (x[0] == "number")
        and all(isinstance(held, str) for held in x[1:])
    )


def comparable(setting: Any) -> Any:
    """A setting as something that compares and hashes, with 1 and True apart."""
    if isinstance(setting, list):
        if setting[0] == "object":  # a class or function may have moved to another module
            return ("object", class_of(setting[1]))
        return tuple(map(comparable, setting))
    return (type(setting).__name__, setting)


def class_of(name: str) -> str:
    return name.partition(":")[2]


def shown(setting: Any) -> str:
    if not isinstance(setting, list):
        return str(setting)
    if setting[0] == "float":
        return str(float.fromhex(setting[1]))
    if setting[0] == "tuple":
        return f"({', '.join(map(shown, setting[1]))})"
    return str(setting[-1])
