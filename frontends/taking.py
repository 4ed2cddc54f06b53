"""Trees that fit a description -> their leaves.

A tree fits by its containers, fields and settings; of a class it is the name that counts, so that
none has to be there when a description is read.  Invariant: what does not fit is refused with the
path of the part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from retrograde import tree
from retrograde.compiler.errors import DataError, ShapeError
from retrograde.compiler.ir.location import where
from retrograde.nn.module import Module
from retrograde.structures import (
    DICTS,
    LISTS,
    Described,
    class_of,
    comparable,
    setting,
    shown,
)


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
        found = setting(x, path)
        if comparable(found) != comparable(shape[1]):
            raise DataError(
                f"{where()}{path} is {x!r}, and the program was saved for {shown(shape[1])}"
            )
    elif tag == "none":
        if x is not None:
            raise _misfit(path, "None", x)
    elif tag in DICTS:
        _take_items(shape, x, leaves, path)
    elif tag in LISTS:
        if type(x) is not LISTS[tag] or len(x) != len(shape[1]):
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
    keys = {comparable(key): key for key, _ in shape[1]}
    if not isinstance(x, Mapping):
        raise _misfit(path, "a dict", x)
    given = {comparable(setting(key, path)): value for key, value in x.items()}
    missing, unknown = keys.keys() - given.keys(), given.keys() - keys.keys()
    if missing or unknown:
        said = f"{min(missing)} is missing" if missing else f"{min(unknown)} is not expected"
        raise ShapeError(f"{where()}{path}: {said}, among {len(keys)} keys")
    for key, part in shape[1]:
        _take(part, given[comparable(key)], leaves, f"{path}.{shown(key)}")


def _take_module(shape: Described, x: Any, leaves: list[Any], path: str) -> None:
    name = class_of(shape[1])
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
        elif tag in LISTS:
            for i, item in enumerate(part[1]):
                visit(item, f"{prefix}{i}")
        elif tag in DICTS or tag == "module":
            for key, item in part[-1]:
                visit(item, f"{prefix}{shown(key)}")
        elif tag in ("named", "class"):
            names = part[2] if tag == "named" else range(len(part[3]))
            for key, item in zip(names, part[3], strict=True):
                visit(item, f"{prefix}{key}")

    visit(shape, path)
    return [(path, index) for index, path in found.items()]


def _take_registered(shape: Described, x: Any, leaves: list[Any], path: str) -> None:
    name = class_of(shape[1])
    if not tree.is_registered(type(x)) or type(x).__qualname__ != name:
        raise _misfit(path, f"a {name}", x)
    parts, meta = tree.parts(x)
    if comparable(setting(meta, path)) != comparable(shape[2]) or len(parts) != len(shape[3]):
        raise ShapeError(f"{where()}{path}: this {name} is made up in another way than when saved")
    for i, (part, item) in enumerate(zip(shape[3], parts, strict=True)):
        _take(part, item, leaves, f"{path}.{i}")


def _misfit(path: str, expected: str, x: Any) -> ShapeError:
    return ShapeError(f"{where()}{path}: {expected} was expected, got a {type(x).__name__}")
