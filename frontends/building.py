"""Descriptions of trees -> what makes such trees of leaves.

Invariant: no class is imported, and none called but containers, named tuples that are there, and
classes that are registered as parts of trees.
"""

from __future__ import annotations

import enum
import types
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from retrograde import tree
from retrograde.compiler.errors import DataError
from retrograde.compiler.ir import dtypes
from retrograde.nn.module import Module
from retrograde.structures import (
    DICTS,
    LISTS,
    Described,
    looked_up,
    name_of_class,
    not_imported,
)


def builder(shape: Described) -> Callable[[Sequence[Any]], Any]:
    """What makes a tree of leaves.  Raises DataError for a class that is not imported."""
    tag = shape[0]
    if tag == "leaf":
        index = shape[1]
        return lambda leaves: leaves[index]
    if tag == "none":
        return lambda leaves: None
    if tag == "is":
        value = _value(shape[1], None)
        return lambda leaves: value
    if tag in DICTS:
        pairs = [(_value(key, None), builder(part)) for key, part in shape[1]]
        make = DICTS[tag]
        return lambda leaves: make((key, part(leaves)) for key, part in pairs)
    if tag in LISTS:
        items, cls = [builder(part) for part in shape[1]], LISTS[tag]
        return lambda leaves: cls(part(leaves) for part in items)
    if tag == "named":
        return _builder_of_named(shape)
    if tag == "module":
        return _builder_of_module(shape)
    found, meta = _registered(shape[1]), _value(shape[2], None)
    parts = [builder(part) for part in shape[3]]
    return lambda leaves: tree.put_together(found, meta, [part(leaves) for part in parts])


def _builder_of_named(shape: Described) -> Callable[[Sequence[Any]], Any]:
    cls = looked_up(shape[1])
    fields = getattr(cls, "_fields", None)
    if not isinstance(cls, type) or not issubclass(cls, tuple) or list(fields or ()) != shape[2]:
        raise DataError(f"{shape[1]} is no named tuple with {', '.join(shape[2])} now")
    items = [builder(part) for part in shape[3]]
    return lambda leaves: cls(*(part(leaves) for part in items))


def _builder_of_module(shape: Described) -> Callable[[Sequence[Any]], Any]:
    cls = _registered(shape[1])
    if not issubclass(cls, Module):
        raise DataError(f"{shape[1]} is no module")
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
        if name_of_class(cls) == name:
            return cls
    raise not_imported(name)


def _value(setting: Any, holder: type | None) -> Any:
    """The setting that JSON stands for; a function or class only as a field of `holder`."""
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
    return _object(held, holder)


def _object(name: str, holder: type | None) -> Any:
    """What a module's field is set to: NumPy's functions, ours, and those of its own package.

    Others are not looked up: a file could put `os.system` where a model has its activation."""
    allowed = {"retrograde", *([holder.__module__.partition(".")[0]] if holder else ())}
    found = looked_up(name) if holder is not None else None
    if isinstance(found, np.ufunc):
        return found
    made = type(found) if isinstance(found, enum.Enum) else found
    kinds = (type, types.FunctionType)
    if not isinstance(made, kinds) or made.__module__.partition(".")[0] not in allowed:
        raise DataError(f"the program returns {name} in a module, and that is not looked up")
    return found
