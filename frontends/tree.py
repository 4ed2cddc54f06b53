"""Pytrees: nested containers and modules <-> a list of leaves and a structure.

Lists, tuples, named tuples, dicts (in the order of their sorted keys) and registered classes are
containers, None is an empty one, everything else is a leaf.  A leaf's path is its name:
`blocks.0.attn.qkv.weight`.  Invariant: `unflatten(structure, leaves)` gives back the tree, and one
array that a module holds in two places is one leaf, before and after.

Containers are walked by optree; a class says how it is taken apart once, by `register`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import optree

from retrograde.compiler.errors import ShapeError

NAMESPACE = "retrograde"

Tree = Any
TreeDef = optree.PyTreeSpec

# (object) -> its children, what else it is made of (hashable, comparable), the children's names
Flatten = Callable[[Any], tuple[Sequence[Any], Any, Sequence[str]]]
Unflatten = Callable[[Any, Sequence[Any]], Any]

_registered: dict[type, tuple[Flatten, Unflatten]] = {}


def register(cls: type, flatten: Flatten, unflatten: Unflatten) -> None:
    """Makes `cls` a container: `flatten(object)` -> (children, metadata, names of the children),
    `unflatten(metadata, children)` -> object."""
    optree.register_pytree_node(cls, flatten, unflatten, namespace=NAMESPACE)  # type: ignore[arg-type]
    _registered[cls] = flatten, unflatten


def is_registered(cls: type) -> bool:
    """Whether `register` was called for the class."""
    return cls in _registered


def registered() -> list[type]:
    """The classes that `register` was called for; of two that are called alike, the later first."""
    return list(reversed(_registered))


def parts(x: Any) -> tuple[list[Any], Any]:
    """The children of an object of a registered class, and its metadata."""
    children, metadata, _ = _registered[type(x)][0](x)
    return list(children), metadata


def put_together(cls: type, metadata: Any, children: Sequence[Any]) -> Any:
    """The object of a registered class that has these parts."""
    return _registered[cls][1](metadata, children)


def flatten(tree: Tree) -> tuple[list[Any], TreeDef]:
    """The leaves of `tree`, and its structure (hashable; equal for trees of one make)."""
    return optree.tree_flatten(tree, namespace=NAMESPACE)


def unflatten(structure: TreeDef, leaves: Iterable[Any]) -> Tree:
    """The tree of `structure` with these leaves."""
    return optree.tree_unflatten(structure, leaves)


def leaves(tree: Tree) -> list[Any]:
    """The leaves of `tree`."""
    return optree.tree_leaves(tree, namespace=NAMESPACE)


def structure(tree: Tree) -> TreeDef:
    """The structure of `tree`."""
    return optree.tree_structure(tree, namespace=NAMESPACE)


def paths(tree: Tree) -> list[str]:
    """The path of each leaf, "" for a tree that is a leaf itself."""
    return names(structure(tree))


def names(structure: TreeDef) -> list[str]:
    """The path of each leaf of a structure."""
    return [".".join(map(str, path)) for path in steps(structure)]


def steps(structure: TreeDef) -> list[tuple[Any, ...]]:
    """The path of each leaf as its steps: keys, indices, names of fields."""
    return [
        tuple(e.field if isinstance(e, optree.NamedTupleEntry) else e.entry for e in path)
        for path in structure.accessors()
    ]


def map(f: Callable[..., Any], tree: Tree, *rest: Tree) -> Tree:
    """`f` applied leaf by leaf to trees of one structure; the result has that structure.

    Raises ShapeError where the structures differ."""
    first, made = flatten(tree)
    columns = [first]
    for other in rest:
        found, other_made = flatten(other)
        if other_made != made:
            raise ShapeError(f"trees of unequal structure: {difference(made, other_made)}")
        columns.append(found)
    return unflatten(made, [f(*row) for row in zip(*columns, strict=True)])


def aligned(structure: TreeDef, given: Tree, what: str) -> list[Any]:
    """The leaves of `given` in the places of `structure`, None where it has none.

    Raises ShapeError, naming `what` it is, for a leaf that has no place."""
    found, made = flatten(given)
    if made == structure:
        return found
    by_path = dict(zip(names(made), found, strict=True))
    expected = names(structure)
    unknown = [path for path in by_path if path not in expected]
    if unknown:
        raise ShapeError(f"{what}: {difference(structure, made)}")
    return [by_path.get(path) for path in expected]


def difference(expected: TreeDef, got: TreeDef) -> str:
    """What tells two structures apart, in words."""
    a, b = names(expected), names(got)
    if a == [""] or b == [""]:  # one of them is an array by itself: it has no path
        return f"{_kind(a)} was expected, got {_kind(b)}"
    missing = [name for name in a if name not in b]
    unknown = [name for name in b if name not in a]
    parts = []
    if missing:
        parts.append(f"missing {_listed(missing)}")
    if unknown:
        parts.append(f"not expected {_listed(unknown)}")
    return (
        "; ".join(parts)
        or "the leaves have equal paths, and the containers, fields that are no "
        "arrays, or ties differ"
    )


def _kind(names: Sequence[str]) -> str:
    if names == [""]:
        return "one array"
    return f"a tree with {_listed(names)}" if names else "nothing"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:4])
    return shown + (f" and {len(names) - 4} more" if len(names) > 4 else "")
