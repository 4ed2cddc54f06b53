"""Modules: a class with fields <-> the arrays in it and a structure; calls named by their path.

A field that holds an array, a traced value, a module, or a list, tuple or dict with any of these
is part of the tree; every other field is static: part of the structure, compared and hashed.  The
field path (`blocks.0.attn.qkv.weight`) is the name of the parameter and the scope of the nodes.

Invariant: within the outermost module one array object is one leaf, however many fields hold it
(tied weights), and a module that is put together from other leaves has the same ties.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, dataclass_transform, get_origin

import numpy as np

from retrograde import scopes, tree
from retrograde.compiler.errors import ShapeError, TraceError
from retrograde.compiler.ir import dtypes
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.location import where

_MODE = "training"


# --- what a module is made of


@dataclass(frozen=True, slots=True)
class _Leaf:
    """The place of the leaf number `index`."""

    index: int


@dataclass(frozen=True, slots=True)
class _Static:
    """What is no array.  The type is compared too: 1, 1.0 and True are three things."""

    type: type
    value: Any


@dataclass(frozen=True, slots=True)
class _Part:
    """A module, list, tuple or dict: its class, the names of its parts, and these."""

    type: Any
    names: tuple[Any, ...]
    parts: tuple[_Leaf | _Static | _Part, ...]


def is_leaf(x: Any) -> bool:
    """Whether a field of this value is a leaf: arrays, traced values, specs; no numbers."""
    return hasattr(x, "shape") and hasattr(x, "dtype") and not isinstance(x, np.generic)


class _Taking:
    """Takes one outermost module apart."""

    def __init__(self) -> None:
        self.leaves: list[Any] = []
        self.paths: list[str] = []
        self.index: dict[int, int] = {}

    def take(self, x: Any, path: str) -> _Leaf | _Static | _Part:
        if isinstance(x, Module):
            fields = vars(x)
            return self._part(type(x), tuple(fields), tuple(fields.values()), path)
        if is_leaf(x):
            return self._leaf(x, path)
        if isinstance(x, dict):
            names = _sorted(x)
            return self._part(dict, names, tuple(x[name] for name in names), path)
        if isinstance(x, (list, tuple)):
            return self._part(type(x), tuple(range(len(x))), tuple(x), path)
        try:
            hash(x)
        except TypeError:
            raise TraceError(
                f"{where()}the field {path!r} holds a {type(x).__name__}, which is no array and "
                "cannot be hashed: keep arrays, modules, lists, tuples and dicts of these, or "
                "hashable settings in a module"
            ) from None
        return _Static(type(x), x)

    def _leaf(self, x: Any, path: str) -> _Leaf:
        index = self.index.get(id(x))
        if index is None:
            index = self.index[id(x)] = len(self.leaves)
            self.leaves.append(x)
            self.paths.append(path)
        return _Leaf(index)

    def _part(self, cls: type, names: tuple[Any, ...], values: Sequence[Any], path: str) -> _Part:
        prefix = f"{path}." if path else ""
        parts = tuple(self.take(v, f"{prefix}{n}") for n, v in zip(names, values, strict=True))
        return _Part(cls, names, parts)


def _sorted(x: dict[Any, Any]) -> tuple[Any, ...]:
    try:
        return tuple(sorted(x))
    except TypeError:
        return tuple(x)


def _take_apart(module: Module) -> tuple[list[Any], _Part, list[str]]:
    taking = _Taking()
    made = taking.take(module, "")
    assert isinstance(made, _Part)
    return taking.leaves, made, taking.paths


def _put_together(made: _Part, leaves: Sequence[Any]) -> Any:
    return _build(made, _distinct(leaves), "")


def _build(made: _Leaf | _Static | _Part, leaves: Sequence[Any], path: str) -> Any:
    if isinstance(made, _Leaf):
        return leaves[made.index]
    if isinstance(made, _Static):
        return made.value
    prefix = f"{path}." if path else ""
    parts = [
        _build(part, leaves, f"{prefix}{name}")
        for name, part in zip(made.names, made.parts, strict=True)
    ]
    if issubclass(made.type, Module):
        module = object.__new__(made.type)
        module.__dict__.update(zip(made.names, parts, strict=True))
        scopes.bind(module, path)
        return module
    if made.type is dict:
        return dict(zip(made.names, parts, strict=True))
    if hasattr(made.type, "_fields"):  # a named tuple
        return made.type(*parts)
    return made.type(parts)


def _distinct(leaves: Sequence[Any]) -> list[Any]:
    """The leaves, no object twice: what is equal by chance (two gradients) is not tied by it.

    NumPy makes scalars of 0-d results; as leaves they are arrays again."""
    seen: set[int] = set()
    out = []
    for x in leaves:
        if isinstance(x, np.generic):
            x = np.asarray(x)
        elif id(x) in seen:
            if isinstance(x, np.ndarray):
                x = x.view()
            elif isinstance(x, Expr):
                x = type(x)(x.value, x.builder, x.weak)
        seen.add(id(x))
        out.append(x)
    return out


# --- the class


@dataclass_transform(eq_default=False, field_specifiers=(dataclasses.field,))
class Module:
    """A part of a model: its arrays are leaves of a tree, its other fields are settings.

    A subclass with annotated fields gets its `__init__`, as a dataclass does; a class may define
    its own instead and set attributes there.  Calling a module runs its `__call__` under the name
    of the field that holds it.  `training` tells whether Dropout and the like are at work.
    """

    training: ClassVar[bool] = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = vars(cls)
        if "__init__" not in own and any(map(_is_field, own.get("__annotations__", {}).values())):
            dataclasses.dataclass(eq=False, repr=False)(cls)
        if "__call__" in own:
            setattr(cls, "__call__", _scoped(own["__call__"]))  # noqa: B010
        tree.register(cls, _take_apart, _put_together)

    def train(self) -> Self:
        """A copy that shares the arrays, in training mode throughout."""
        return self._with_mode(True)

    def eval(self) -> Self:
        """A copy that shares the arrays, with dropout off throughout."""
        return self._with_mode(False)

    def _with_mode(self, training: bool) -> Self:
        copy = self._copy()
        for module, _ in modules(copy):
            if training:
                vars(module).pop(_MODE, None)
            else:
                vars(module)[_MODE] = False
        return copy

    def _copy(self) -> Self:
        leaves, made, _ = _take_apart(self)
        copy: Self = _build(made, leaves, "")
        return copy

    def parameters(self) -> dict[str, Any]:
        """The arrays by path; a tied one once, under the first of its paths."""
        leaves, _, paths = _take_apart(self)
        return dict(zip(paths, leaves, strict=True))

    def replace(self, arrays: Mapping[str, Any] | None = None, /, **more: Any) -> Self:
        """A copy with other arrays at these paths: `m.replace({"head.weight": w})`.

        A tied array changes wherever it stands.  Raises ShapeError for a path that there is not."""
        changes = {**(arrays or {}), **more}
        leaves, made, paths = _take_apart(self)
        unknown = [path for path in changes if path not in paths]
        if unknown:
            raise ShapeError(
                f"no array is called {unknown[0]!r} in this {type(self).__name__}: there are "
                f"{', '.join(paths) or 'none'}"
            )
        copy: Self = _put_together(
            made, [changes.get(path, x) for path, x in zip(paths, leaves, strict=True)]
        )
        return copy

    def __repr__(self) -> str:
        return _shown(self)


def _is_field(annotation: Any) -> bool:
    text = annotation if isinstance(annotation, str) else ""
    return (
        get_origin(annotation) is not ClassVar
        and annotation is not ClassVar
        and not (text.startswith(("ClassVar", "typing.ClassVar")))
    )


def _scoped(call: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(call)
    def scoped(self: Module, *args: Any, **kwargs: Any) -> Any:
        with scopes.entered(self, modules):
            return call(self, *args, **kwargs)

    return scoped


def modules(root: Any) -> Iterator[tuple[Module, str]]:
    """Every module in `root` with its path, outermost first; a shared one under its first path."""
    seen: set[int] = set()

    def visit(x: Any, path: str) -> Iterator[tuple[Module, str]]:
        if isinstance(x, Module):
            if id(x) in seen:
                return
            seen.add(id(x))
            yield x, path
            items: Any = vars(x).items()
        elif isinstance(x, dict):
            items = ((name, x[name]) for name in _sorted(x))
        elif isinstance(x, (list, tuple)):
            items = enumerate(x)
        else:
            return
        for name, part in items:
            yield from visit(part, f"{path}.{name}" if path else str(name))

    return visit(root, "")


# --- how a module prints


def _shown(x: Any, indent: str = "") -> str:
    """On one line if that fits, else one field a line."""
    if is_leaf(x):
        return f"{dtypes.dtype(x.dtype)}[{','.join(map(str, x.shape))}]"
    if isinstance(x, Module):
        fields = [(f"{name}=", v) for name, v in vars(x).items()]
        opening, closing = f"{type(x).__name__}(", ")"
    elif isinstance(x, dict):
        fields = [(f"{name!r}: ", v) for name, v in x.items()]
        opening, closing = "{", "}"
    elif isinstance(x, (list, tuple)):
        fields = [("", v) for v in x]
        opening, closing = ("[", "]") if isinstance(x, list) else ("(", ")")
    else:
        return repr(x)
    inner = indent + "  "
    parts = [label + _shown(v, inner) for label, v in fields]
    line = opening + ", ".join(parts) + closing
    if len(indent) + len(line) <= 100 and "\n" not in line:
        return line
    return opening + "".join(f"\n{inner}{part}," for part in parts) + f"\n{indent}{closing}"
