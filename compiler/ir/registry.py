"""The table of ops: name -> `Op`; and the kinds that lowering goes by.

Invariant: names are unique; every op is registered when `retrograde.compiler.ops` is imported.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from retrograde.compiler.errors import UnsupportedError

if TYPE_CHECKING:
    from retrograde.compiler.ir.op import Op


class Kind(Enum):
    """How an op is lowered."""

    ELEMENTWISE = "elementwise"  # one result element from the elements at one (broadcast) index
    REDUCE = "reduce"  # over attrs["axes"]
    CUMULATIVE = "cumulative"  # along attrs["axis"]
    CONTRACT = "contract"  # dot_general
    MOVE = "move"  # elements change place only: reshape, transpose, slice, pad …
    INDEX = "index"  # places come from data: gather, scatter
    RANDOM = "random"  # counter-based bits
    CREATE = "create"  # no tensor input: constant, iota, dim_value
    REGION = "region"  # holds sub-graphs: call, scan, cond
    COMPOSITE = "composite"  # carries its decomposition
    OPAQUE = "opaque"  # evaluated by its reference: sort, debug_print


@dataclass(frozen=True, slots=True)
class NotDifferentiable:
    """Says, with the reason, that an op has no gradient: cotangents stop here.

    With `refuses` one that gets here is an error: the derivative is not zero, it is not there."""

    reason: str
    refuses: bool = False


_registry: dict[str, Op] = {}


def register(op: Op) -> Op:
    """Adds an op; names are unique."""
    if op.name in _registry:
        raise UnsupportedError(f"op {op.name!r} is declared twice")
    _registry[op.name] = op
    return op


def lookup(name: str) -> Op:
    """The op called `name`."""
    try:
        return _registry[name]
    except KeyError:
        raise UnsupportedError(f"unknown op {name!r}") from None


def all_ops() -> Iterator[Op]:
    """Every declared op, by name."""
    for name in sorted(_registry):
        yield _registry[name]
