"""`trace(fn, *specs)`: a function and what it will be given -> its graph.

Invariant: the inputs of the graph are the leaves of the specs under their names, then the arrays
that the function reads from outside; its outputs are the leaves of what the function returns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde import tree
from retrograde.captures import Captures, captures, snapshot
from retrograde.compiler.errors import DataError, DTypeError, ShapeError
from retrograde.compiler.ir import dtypes
from retrograde.compiler.ir.binding import bind_sizes
from retrograde.compiler.ir.builder import required
from retrograde.compiler.ir.dtypes import DType
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.graph import Graph, TensorType
from retrograde.compiler.ir.location import where
from retrograde.specs import is_spec, size_of, type_of, unified
from retrograde.tracing import (
    Traced,
    argument_names,
    checked_function,
    leaf_names,
    name_of,
    trace_root,
)

Array = npt.NDArray[Any]


def trace(fn: Callable[..., Any], *specs: Any) -> Graph:
    """The graph of `fn` for arguments as `specs` describe them.

    Specs are `rg.spec`, arrays, or trees of both; other leaves (numbers, strings) are passed to
    `fn` as they are.  Sizes of one name are one size, within the bounds of all of them.  Raises
    TraceError, with the user's line, for Python that cannot be traced."""
    return Declared.of(fn, specs).trace()[0].graph


@dataclass(frozen=True)
class Declared:
    """A function and the declaration of its arguments."""

    fn: Callable[..., Any]
    structure: tree.TreeDef
    leaves: tuple[Any, ...]  # specs, and what is no array
    names: tuple[str, ...]
    places: tuple[int, ...]  # the leaves that are arrays
    types: tuple[TensorType, ...]  # of these
    half: DType | None = None  # that precision is mixed with

    @classmethod
    def of(
        cls, fn: Callable[..., Any], specs: Sequence[Any], half: DType | None = None
    ) -> Declared:
        """With the sizes of one name made one."""
        checked_function(fn)
        leaves, structure = tree.flatten(tuple(specs))
        names = leaf_names(specs, argument_names(fn, len(specs)))
        places = tuple(i for i, x in enumerate(leaves) if is_spec(x))
        types = unified(type_of(leaves[i]) for i in places)
        return cls(fn, structure, tuple(leaves), tuple(names), places, tuple(types), half)

    @property
    def input_names(self) -> list[str]:
        return [self.names[i] for i in self.places]

    def trace(self) -> tuple[Traced, Captures]:
        """The graph, and how the arrays that it captured are found again."""
        before = snapshot(self.fn)

        def call(exprs: list[Expr]) -> Any:
            leaves = list(self.leaves)
            for i, x in zip(self.places, exprs, strict=True):
                leaves[i] = x
            with required().mixed(self.half):
                return self.fn(*tree.unflatten(self.structure, leaves))

        weak = [False] * len(self.types)
        traced = trace_root(name_of(self.fn), self.types, self.input_names, weak, call)
        return traced, captures(before, traced.captured)

    def arrays(self, args: Sequence[Any]) -> list[Array]:
        """The arrays of a call, checked against the declaration."""
        leaves, structure = tree.flatten(tuple(args))
        if structure != self.structure:
            raise ShapeError(
                f"{where()}{name_of(self.fn)} was compiled for other arguments: "
                f"{tree.difference(self.structure, structure)}"
            )
        traced = set(self.places)
        for i, (x, declared) in enumerate(zip(leaves, self.leaves, strict=True)):
            if i not in traced and (type(x) is not type(declared) or x != declared):
                raise DataError(
                    f"{where()}{self.names[i]} is {x!r}, and {name_of(self.fn)} was compiled for "
                    f"{declared!r}: compile it anew, or declare it as an array, rg.spec('f32')"
                )
        return [
            as_array(leaves[i], type, self.names[i])
            for i, type in zip(self.places, self.types, strict=True)
        ]

    def sizes(self, arrays: Sequence[Array]) -> dict[str, int]:
        """The value of every symbol; ShapeError where the shapes do not fit."""
        return bind_sizes(self.types, self.input_names, [x.shape for x in arrays])


def as_array(x: Any, type: TensorType, name: str) -> Array:
    """`x` as an array of the declared dtype; a plain number becomes one where that is exact.

    Raises DTypeError for an array of another dtype, naming the input."""
    if isinstance(x, (bool, int, float)):
        made = np.asarray(x).astype(type.dtype.numpy)
        if isinstance(x, float) or made == x:
            return made
    array = np.asarray(x)
    if array.dtype.newbyteorder("=") != type.dtype.numpy:  # bytes the other way round are read
        advice = f"convert it with .astype({type.dtype.numpy.name!r})"
        try:
            got = f"{dtypes.dtype(array.dtype)}{list(array.shape)}"
        except DTypeError:
            got, advice = f"a {x.__class__.__name__} of {array.dtype}", "give an array"
        raise DTypeError(f"{where()}{name}: expected {type}, got {got}: {advice}")
    return array


def checked_at(at: Mapping[str, int] | None, symbols: Mapping[str, Any]) -> dict[str, int]:
    """The sizes that a plan is made for; ShapeError for a name that is no size of the graph."""
    if at is not None and not isinstance(at, Mapping):
        raise ShapeError(f"{where()}at={at!r}: name the sizes, at={{'B': 32}}")
    given = {name: size_of(name, value) for name, value in (at or {}).items()}
    for name, value in given.items():
        if name not in symbols:
            known = ", ".join(symbols) or "none"
            raise ShapeError(f"{where()}at={given}: there is no size {name!r}; there are {known}")
        low, high = symbols[name].min, symbols[name].max
        if value < low or (high is not None and value > high):
            limits = f"at least {low}" if high is None else f"{low} to {high}"
            raise ShapeError(f"{where()}at={given}: {name} must be {limits}")
    return given
