"""What a training step is made of: a loss, a model, an optimizer, a batch of specs -> `StepParts`.

Invariant: the names of all inputs are those of checkpoints: paths in the model, and for the
optimizer's state those of the parameters it belongs to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from retrograde import tree
from retrograde.accumulation import split_of
from retrograde.compiler.errors import DataError, DTypeError
from retrograde.compiler.ir import dtypes
from retrograde.compiler.ir.location import where
from retrograde.execution import Array
from retrograde.specs import is_spec, type_of, unified
from retrograde.training_graph import KEY, StepParts
from retrograde.updating import Kept


def model_leaf(x: Any, path: str) -> Array:
    if not isinstance(x, np.ndarray):
        raise DTypeError(
            f"{where()}{path} of the model is a {type(x).__name__}: its leaves are NumPy arrays; "
            "settings belong in other fields of a module"
        )
    dtypes.dtype(x.dtype)  # raises for what is not supported
    return x


def chosen(optimizer: Any, paths: Sequence[str], floats: list[int]) -> tuple[Any, list[int]]:
    """The optimizer of the parameters that it trains, and these: one whose settings depend on
    names (`rg.optim.groups`) is told them, and leaves out those that are frozen."""
    if not hasattr(optimizer, "named"):
        return optimizer, floats
    names = [paths[i] for i in floats]
    optimizer.check_patterns(names)
    frozen = optimizer.frozen(names)
    trained = [i for i in floats if paths[i] not in frozen]
    return optimizer.named([paths[i] for i in trained]), trained


def step_parts(
    loss: Callable[..., Any],
    optimizer: Any,
    model: tree.TreeDef,
    trained: Sequence[int],
    arrays: Sequence[Array],
    state: Sequence[Array],
    state_structure: tree.TreeDef,
    names: list[str],
    batch: Mapping[str, Any],
    clip_norm: float | None,
    truncate: int | None,
    accumulate: int = 1,
    kept: Kept | None = None,
) -> StepParts:
    """The declarations of every input, in order."""
    if not isinstance(batch, Mapping) or not batch:
        raise DataError(f"{where()}batch must be a dict of specs: {{'x': rg.spec('f32', 'B', 5)}}")
    leaves, structure = tree.flatten(dict(batch))
    places = [i for i, x in enumerate(leaves) if is_spec(x)]
    paths = tree.names(structure)
    chosen = set(trained)
    fixed = [i for i in range(len(arrays)) if i not in chosen]
    entries = [paths[i] for i in places]
    types = unified(type_of(leaves[i]) for i in places)
    split, types = split_of(types, entries, accumulate)
    model_paths = [path or "parameter" for path in tree.names(model)]
    return StepParts(
        loss,
        optimizer,
        model,
        tuple(trained),
        tuple(type_of(arrays[i]) for i in trained),
        tuple(type_of(arrays[i]) for i in fixed),
        state_structure,
        tuple(map(type_of, state)),
        structure,
        tuple(leaves),
        tuple(places),
        tuple(types),
        (*names, KEY, *entries, *(model_paths[i] for i in fixed)),
        clip_norm,
        truncate,
        split,
        kept or Kept(),
    )


def parameter_names(paths: Sequence[str], trained: Sequence[int]) -> list[str]:
    return [paths[i] for i in trained]


def state_names(paths: Sequence[str], parameters: Sequence[str]) -> list[str]:
    """The names of the optimizer's state: `m.3` is `m.blocks.0.weight` where the third parameter
    is called so."""
    out = []
    for path in paths:
        head, _, tail = path.rpartition(".")
        if tail.isdigit() and int(tail) < len(parameters):
            tail = parameters[int(tail)]
        out.append(f"{head}.{tail}" if head else tail)
    return out
