"""What is known of every step beforehand, beside the tokens: calendars, plans, time stamps.

A tree of arrays [B, P, ...], whose place t goes with the token at place t of each row.  Invariant:
a step is given what belongs to its own places, wherever a window begins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde import tree
from retrograde.compiler.errors import DataError, ShapeError
from retrograde.compiler.ir import dtypes
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.graph import TensorType
from retrograde.compiler.ir.location import where
from retrograde.specs import Spec, is_spec

Array = npt.NDArray[Any]
Known = Mapping[str, Any]


def named(known: Known | None) -> dict[str, Any]:
    """What is known by the names of arguments; DataError for what is no dict."""
    if not isinstance(known, Mapping | None):
        raise DataError(
            f"{where()}known is {type(known).__name__}: it is a dict, from the names of arguments "
            "to arrays [B, P, ...]"
        )
    return _mapped(lambda x: x if is_spec(x) else np.asarray(x), known or {})


def declared(known: Known, batch: Dim, time: Dim) -> dict[str, Any]:
    """The specs of a function of all steps."""

    def spec(x: Any) -> Spec:
        if len(x.shape) < 2 or not all(isinstance(d, int) for d in x.shape[2:]):
            raise ShapeError(
                f"{where()}what is known of every step is [B, P, ...], in numbers behind P; got "
                f"{list(x.shape)}"
            )
        return Spec(dtypes.dtype(x.dtype), (batch, time, *x.shape[2:]))

    return _mapped(spec, known)


def check(known: Known, rows: int, steps: int) -> None:
    """ShapeError unless every array has so many rows; DataError if one has fewer steps."""
    for name, x in zip(tree.paths(dict(known)), tree.leaves(dict(known)), strict=True):
        if x.ndim < 2 or x.shape[0] != rows:
            raise ShapeError(
                f"{where()}{name} is {list(x.shape)}, and the prompts have {rows} rows: it is "
                f"[{rows}, P, ...], with what belongs to each place of the text"
            )
        if x.shape[1] < steps:
            raise DataError(
                f"{where()}{name} is known for {x.shape[1]} places, and {steps} are fed: those of "
                "the longest prompt and of all new tokens but the last"
            )


def reach(known: Known) -> int | None:
    """For how many places all of it is known; None where there is nothing."""
    return min((x.shape[1] for x in tree.leaves(dict(known))), default=None)


def cut(known: Known, start: int, stop: int) -> dict[str, Any]:
    """What belongs to the places from start to stop."""
    return _mapped(lambda x: x[:, start:stop], known)


def repeated(known: Known, times: int) -> dict[str, Any]:
    """Each row so many times, one after the other."""
    return _mapped(lambda x: np.repeat(x, times, axis=0), known)


def like(known: Known) -> Any:
    """What is the same for all that one program serves."""
    leaves, structure = tree.flatten(dict(known))
    return structure, tuple((np.dtype(x.dtype).str, tuple(x.shape[2:])) for x in leaves)


def fed(known: Known | None, types: Sequence[TensorType], rows: int, count: int) -> list[Array]:
    """The arrays of `count` new steps, in the order of the program's inputs."""
    given = tree.leaves(dict(known or {}))
    if len(given) != len(types):
        raise DataError(
            f"{where()}{len(types)} arrays are known of every step, and {len(given)} were given"
        )
    out = []
    for x, type in zip(given, types, strict=True):
        expected = [rows, count, *type.shape[2:]]
        if list(np.shape(x)) != expected:
            raise ShapeError(
                f"{where()}what is known of the new steps is {expected}, got {list(np.shape(x))}"
            )
        out.append(np.asarray(x, type.dtype.numpy))
    return out


def _mapped(f: Any, known: Known) -> dict[str, Any]:
    found: dict[str, Any] = tree.map(f, dict(known))
    return found
