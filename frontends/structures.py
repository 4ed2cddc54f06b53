"""Structures of trees as plain data: a structure with its leaves <-> JSON, for files.

A description is nested lists: ["leaf", 3], ["is", setting], ["list", [...]], ["dict", [[key, …]]],
["module", class, [[field, …]]].  Classes stand in it by name.  `take` takes a tree apart that fits
a description, whether or not its classes were there when the description was read; `build` needs
them.  Invariant: reading a description imports nothing, and calls nothing but the constructors of
containers and of classes that are registered as such.
"""

from __future__ import annotations

import enum
import sys
import types
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from retrograde import tree
from retrograde.compiler.errors import CheckpointError, DataError, ShapeError, UnsupportedError
from retrograde.compiler.ir import dtypes
from retrograde.compiler.ir.dtypes import DType
from retrograde.compiler.ir.location import where
from retrograde.nn.module import Module

Described = list[Any]
_PLAIN = (bool, int, str, type(None))
_DICTS: dict[str, type] = {"dict": dict, "ordered": OrderedDict}
_LISTS: dict[str, type] = {"list": list, "tuple": tuple}


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
        return ["module", _name(type(x)), fields]
    return _container(x, path, _described) or ["is", _setting(x, path)]


def _described_field(x: Any, path: str) -> Described:
    """A field of a module: what is no array and holds none is a setting."""
    if isinstance(x, (_Mark, Module)):
        return _described(x, path)
    return _container(x, path, _described_field) or ["is", _setting(x, path)]


def _container(x: Any, path: str, inside: Callable[[Any, str], Described]) -> Described | None:
    for tag, cls in _DICTS.items():
        if type(x) is cls:
            return [tag, [[_setting(k, path), inside(v, f"{path}.{k}")] for k, v in x.items()]]
    for tag, cls in _LISTS.items():
        if type(x) is cls:
            return [tag, [inside(v, f"{path}.{i}") for i, v in enumerate(x)]]
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        fields = list(x._fields)
        items = [inside(v, f"{path}.{k}") for k, v in zip(fields, x, strict=True)]
        return ["named", _name(type(x)), fields, items]
    if tree.is_registered(type(x)):
        parts, meta = tree.parts(x)
        items = [inside(v, f"{path}.{i}") for i, v in enumerate(parts)]
        return ["class", _name(type(x)), _setting(meta, path), items]
    if isinstance(x, (dict, list)):
        raise UnsupportedError(
            f"{where()}{path} is a {type(x).__name__}, which cannot be saved: use a dict, list, "
            "tuple, named tuple or module"
        )
    return None


def _setting(x: Any, path: str) -> Any:
    """What is no array, as JSON that tells it from all others."""
    if type(x) in _PLAIN:
        return x
    if type(x) is float:
        return ["float", x.hex()]
    if type(x) is bytes:
        return ["bytes", x.hex()]
    if type(x) is tuple:
        return ["tuple", [_setting(item, path) for item in x]]
    if isinstance(x, DType):
        return ["dtype", x.name]
    if isinstance(x, np.generic) and not x.dtype.hasobject:
        return ["number", x.dtype.name, x.tobytes().hex()]
    if isinstance(x, np.dtype):
        return ["numpy dtype", x.name]
    if isinstance(x, enum.Enum):
        return ["object", f"{_name(type(x))}.{x.name}"]
    if isinstance(x, (type, types.FunctionType, types.BuiltinFunctionType, np.ufunc)):
        name = _leading_to(x)
        if name:
            return ["object", name]
    shown = getattr(x, "__qualname__", type(x).__name__)
    raise UnsupportedError(
        f"{where()}{path} is {shown}, which a file cannot tell from others: numbers, texts, tuples "
        "of these, and functions and classes from the top of a module can be saved"
    )


def _name(x: Any) -> str:
    return f"{x.__module__}:{x.__qualname__}"


def _leading_to(x: Any) -> str:
    """The name by which `x` is found again: in its module, or in a package around it."""
    module = "numpy" if isinstance(x, np.ufunc) else x.__module__ or ""
    name = getattr(x, "__qualname__", x.__name__)
    while module:
        try:
            if _looked_up(f"{module}:{name}") is x:
                return f"{module}:{name}"
        except CheckpointError:
            pass
        module = module.rpartition(".")[0]
    return ""


# --- description and tree -> leaves


def take(shape: Described, x: Any, count: int, what: str) -> list[Any]:
    """The `count` leaves of `x`, which has to be as `shape` describes.

    In the place of a module, a flat dict {path: array} of its arrays will do.  Raises ShapeError or
    DataError, naming the part that is not as described."""
    leaves: list[Any] = [_MISSING] * count
    _take(shape, x, leaves, what)
    return leaves


_MISSING = object()


def _take(shape: Described, x: Any, leaves: list[Any], path: str) -> None:
    tag = shape[0]
    if tag == "leaf":
        index = shape[1]
        if leaves[index] is not _MISSING and leaves[index] is not x:
            raise ShapeError(f"{where()}{path} is tied to another array, and has to be that array")
        leaves[index] = x
    elif tag == "is":
        found = _setting(x, path)
        if _plain(found) != _plain(shape[1]):
            raise DataError(
                f"{where()}{path} is {x!r}, and the program was saved for {_shown(shape[1])}"
            )
    elif tag == "none":
        if x is not None:
            raise _misfit(path, "None", x)
    elif tag in _DICTS:
        _take_items(shape, x, leaves, path)
    elif tag in _LISTS:
        if type(x) is not _LISTS[tag] or len(x) != len(shape[1]):
            raise _misfit(path, f"a {tag} of {len(shape[1])}", x)
        for i, (part, item) in enumerate(zip(shape[1], x, strict=True)):
            _take(part, item, leaves, f"{path}.{i}")
    elif tag == "named":
        if not isinstance(x, tuple) or list(getattr(x, "_fields", ())) != shape[2]:
            raise _misfit(path, f"a named tuple with {', '.join(shape[2])}", x)
        for name, part, item in zip(shape[2], shape[3], x, strict=True):
            _take(part, item, leaves, f"{path}.{name}")
    elif tag == "module":
        _take_module(shape, x, leaves, path)
    else:
        _take_registered(shape, x, leaves, path)


def _take_items(shape: Described, x: Any, leaves: list[Any], path: str) -> None:
    keys = {_plain(key): key for key, _ in shape[1]}
    if not isinstance(x, Mapping):
        raise _misfit(path, "a dict", x)
    given = {_plain(_setting(key, path)): value for key, value in x.items()}
    missing, unknown = keys.keys() - given.keys(), given.keys() - keys.keys()
    if missing or unknown:
        said = f"{min(missing)} is missing" if missing else f"{min(unknown)} is not expected"
        raise ShapeError(f"{where()}{path}: {said}, among {len(keys)} keys")
    for key, part in shape[1]:
        _take(part, given[_plain(key)], leaves, f"{path}.{_shown(key)}")


def _take_module(shape: Described, x: Any, leaves: list[Any], path: str) -> None:
    name = _class_of(shape[1])
    if isinstance(x, Module):
        if type(x).__qualname__ != name:
            raise _misfit(path, f"a {name}", x)
        fields = vars(x)
        if [k for k, _ in shape[2]] != list(fields):
            raise ShapeError(
                f"{where()}{path}: this {name} has the fields {', '.join(fields)}, and the program "
                f"was saved for one with {', '.join(k for k, _ in shape[2])}"
            )
        for field, part in shape[2]:
            _take(part, fields[field], leaves, f"{path}.{field}")
        return
    if not isinstance(x, Mapping):
        raise _misfit(path, f"a {name}, or a dict of its arrays by path", x)
    places = dict(_paths(shape, ""))
    missing = [key for key in places if key not in x]
    unknown = [key for key in x if key not in places]
    if missing or unknown:
        said = f"{missing[0]!r} is missing" if missing else f"{unknown[0]!r} is not expected"
        raise ShapeError(f"{where()}{path}: {said}, among the {len(places)} arrays of a {name}")
    for key, index in places.items():
        leaves[index] = x[key]


def _paths(shape: Described, path: str) -> Sequence[tuple[str, int]]:
    """The paths of the leaves below, a tied one once."""
    found: dict[int, str] = {}

    def visit(part: Described, path: str) -> None:
        tag, prefix = part[0], f"{path}." if path else ""
        if tag == "leaf":
            found.setdefault(part[1], path)
        elif tag in _LISTS:
            for i, item in enumerate(part[1]):
                visit(item, f"{prefix}{i}")
        elif tag in _DICTS or tag == "module":
            for key, item in part[-1]:
                visit(item, f"{prefix}{_shown(key)}")
        elif tag in ("named", "class"):
            names = part[2] if tag == "named" else range(len(part[3]))
            for key, item in zip(names, part[3], strict=True):
                visit(item, f"{prefix}{key}")

    visit(shape, path)
    return [(path, index) for index, path in found.items()]


def _take_registered(shape: Described, x: Any, leaves: list[Any], path: str) -> None:
    name = _class_of(shape[1])
    if not tree.is_registered(type(x)) or type(x).__qualname__ != name:
        raise _misfit(path, f"a {name}", x)
    parts, meta = tree.parts(x)
    if _plain(_setting(meta, path)) != _plain(shape[2]) or len(parts) != len(shape[3]):
        raise ShapeError(f"{where()}{path}: this {name} is made up in another way than when saved")
    for i, (part, item) in enumerate(zip(shape[3], parts, strict=True)):
        _take(part, item, leaves, f"{path}.{i}")


def _misfit(path: str, expected: str, x: Any) -> ShapeError:
    return ShapeError(f"{where()}{path}: {expected} was expected, got a {type(x).__name__}")


# --- description and leaves -> tree


def builder(shape: Described) -> Callable[[Sequence[Any]], Any]:
    """What makes a tree of leaves.  Raises CheckpointError for a class that is not imported."""
    tag = shape[0]
    if tag == "leaf":
        index = shape[1]
        return lambda leaves: leaves[index]
    if tag == "none":
        return lambda leaves: None
    if tag == "is":
        value = _value(shape[1], None)
        return lambda leaves: value
    if tag in _DICTS:
        pairs = [(_value(key, None), builder(part)) for key, part in shape[1]]
        make = _DICTS[tag]
        return lambda leaves: make((key, part(leaves)) for key, part in pairs)
    if tag in _LISTS:
        items, cls = [builder(part) for part in shape[1]], _LISTS[tag]
        return lambda leaves: cls(part(leaves) for part in items)
    if tag == "named":
        return _builder_of_named(shape)
    if tag == "module":
        return _builder_of_module(shape)
    found, meta = _registered(shape[1]), _value(shape[2], None)
    parts = [builder(part) for part in shape[3]]
    return lambda leaves: tree.put_together(found, meta, [part(leaves) for part in parts])


def _builder_of_named(shape: Described) -> Callable[[Sequence[Any]], Any]:
    cls = _looked_up(shape[1])
    fields = getattr(cls, "_fields", None)
    if not isinstance(cls, type) or not issubclass(cls, tuple) or list(fields or ()) != shape[2]:
        raise CheckpointError(f"{shape[1]} is no named tuple with {', '.join(shape[2])} now")
    items = [builder(part) for part in shape[3]]
    return lambda leaves: cls(*(part(leaves) for part in items))


def _builder_of_module(shape: Described) -> Callable[[Sequence[Any]], Any]:
    cls = _registered(shape[1])
    if not issubclass(cls, Module):
        raise CheckpointError(f"{shape[1]} is no module")
    fields = [(name, _builder_of_field(part, cls)) for name, part in shape[2]]

    def make(leaves: Sequence[Any]) -> Any:
        made = object.__new__(cls)
        made.__dict__.update((name, part(leaves)) for name, part in fields)
        return made

    return make


def _builder_of_field(shape: Described, holder: type) -> Callable[[Sequence[Any]], Any]:
    if shape[0] != "is":
        return builder(shape)
    value = _value(shape[1], holder)
    return lambda leaves: value


def _registered(name: str) -> type:
    for cls in tree.registered():
        if _name(cls) == name:
            return cls
    raise _not_imported(name)


def _not_imported(name: str) -> CheckpointError:
    module = name.partition(":")[0]
    return CheckpointError(
        f"{where()}the program returns a {_class_of(name)}, a class that is not there: import "
        f"{module} before loading"
    )


def _looked_up(name: str) -> Any:
    """What is called so in a module that is imported; looks nothing up that would run code."""
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        if not isinstance(found, (types.ModuleType, type)) or part not in vars(found):
            raise _not_imported(name)
        found = vars(found)[part]
    return found


def _value(setting: Any, holder: type | None) -> Any:
    """The setting that JSON stands for.  Functions and classes only where `holder`, a class, has
    them from its own package, from NumPy's functions, or from here."""
    if not isinstance(setting, list):
        return setting
    tag, held = setting[0], setting[1]
    if tag == "float":
        return float.fromhex(held)
    if tag == "bytes":
        return bytes.fromhex(held)
    if tag == "tuple":
        return tuple(_value(item, holder) for item in held)
    if tag == "dtype":
        return dtypes.dtype(held)
    if tag == "numpy dtype":
        return dtypes.dtype(held).numpy
    if tag == "number":
        return np.frombuffer(bytes.fromhex(setting[2]), dtypes.dtype(held).numpy)[0]
    root = held.partition(":")[0].partition(".")[0]
    found = _looked_up(held) if holder is not None or root == "retrograde" else None
    own = holder is not None and root == holder.__module__.partition(".")[0]
    if root != "retrograde" and not own and not isinstance(found, np.ufunc):
        raise CheckpointError(f"{held} is kept in what the program returns: it is not looked up")
    return found


# --- checks


def check(shape: Any, count: int, what: str) -> None:
    """Raises CheckpointError unless `shape` is a description of `count` leaves."""
    seen: set[int] = set()
    _check(shape, count, seen, what)
    if len(seen) != count:
        raise CheckpointError(f"{what}: {len(seen)} leaves are described, and there are {count}")


def _check(shape: Any, count: int, seen: set[int], what: str) -> None:
    def require(holds: bool) -> None:
        if not holds:
            raise CheckpointError(f"{what}: the structure is no description of a tree")

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
    if tag in _DICTS or tag == "module":
        if tag == "module":
            require(len(rest) == 2 and isinstance(rest[0], str))
        pairs = rest[-1]
        require(len(rest) == 1 + (tag == "module") and isinstance(pairs, list))
        for pair in pairs:
            require(isinstance(pair, list) and len(pair) == 2 and _is_setting(pair[0]))
            require(tag != "module" or isinstance(pair[0], str))
            _check(pair[1], count, seen, what)
        return
    if tag in _LISTS:
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


def _plain(setting: Any) -> Any:
    """A setting as something that compares and hashes, with 1 and True apart."""
    if isinstance(setting, list):
        if setting[0] == "object":  # a class or function may have moved to another module
            return ("object", _class_of(setting[1]))
        return tuple(map(_plain, setting))
    return (type(setting).__name__, setting)


def _class_of(name: str) -> str:
    return name.partition(":")[2]


def _shown(setting: Any) -> str:
    if not isinstance(setting, list):
        return str(setting)
    if setting[0] == "float":
        return str(float.fromhex(setting[1]))
    if setting[0] == "tuple":
        return f"({', '.join(map(_shown, setting[1]))})"
    return str(setting[-1])
