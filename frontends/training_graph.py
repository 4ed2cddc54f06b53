"""The graph of a training step: loss, model, optimizer and a batch's specs -> one graph.

Inputs: parameters, optimizer state, step counter (these are donated), then the dropout key, the
batch, arrays of the model that are not trained, and arrays captured by closure.  Outputs: the new
parameters, state and counter, then the metrics.  Invariant: output i replaces input i for all that
is donated.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from retrograde import random, tree
from retrograde.accumulation import Split, accumulated
from retrograde.captures import Captures, captures, snapshot
from retrograde.compiler.errors import DataError, ShapeError
from retrograde.compiler.ir import dtypes
from retrograde.compiler.ir.builder import required
from retrograde.compiler.ir.expr import Expr, apply, cast
from retrograde.compiler.ir.graph import Graph, Origin, TensorType, same_type
from retrograde.compiler.ir.location import where
from retrograde.compiler.ir.registry import lookup
from retrograde.gradients import differentiated
from retrograde.mean import Mean
from retrograde.nn.context import dropout_keys
from retrograde.numpy import isfinite, minimum, sqrt
from retrograde.numpy import where as where_
from retrograde.precision import kept_where, next_scale
from retrograde.tracing import checked_function, expression, name_of, strong, trace_root
from retrograde.truncation import truncated
from retrograde.updating import AVERAGED, SCALING, Kept

UPDATE = Origin("update", "optimizer")
KEY = "key"  # the name of the dropout key, among the inputs and in checkpoints
KEY_TYPE = TensorType(dtypes.u32, (2,))


@dataclass(frozen=True)
class StepParts:
    """What a training step is made of, before it is traced."""

    loss: Callable[..., Any]
    optimizer: Any
    model: tree.TreeDef
    trained: tuple[int, ...]  # the model's leaves that are parameters
    parameters: tuple[TensorType, ...]
    fixed: tuple[TensorType, ...]  # of the other leaves
    state: tree.TreeDef
    state_types: tuple[TensorType, ...]
    batch: tree.TreeDef
    batch_leaves: tuple[Any, ...]  # specs, and settings that are passed on
    batch_places: tuple[int, ...]
    batch_types: tuple[TensorType, ...]
    names: tuple[str, ...]  # of all declared inputs, in their order
    clip_norm: float | None
    truncate: int | None
    split: Split | None = None  # of the batch into microbatches
    kept: Kept = field(default_factory=Kept)  # beside the optimizer's state, within it

    @property
    def donated(self) -> int:
        """How many inputs are state: parameters, the optimizer's, the counter."""
        return len(self.parameters) + len(self.state_types) + 1

    @property
    def types(self) -> tuple[TensorType, ...]:
        """Of all declared inputs."""
        counter = TensorType(dtypes.i64)
        return (
            *self.parameters, *self.state_types, counter, KEY_TYPE, *self.batch_types, *self.fixed
        )  # fmt: skip


@dataclass(frozen=True)
class TracedStep:
    """The graph of a step, the names of its metrics, and what it captured."""

    graph: Graph
    metrics: tuple[str, ...]
    captured: tuple[Any, ...]
    captures: Captures


def check_loss(loss: Callable[..., Any], model: Any, batch: Any) -> None:
    """DataError where `loss(model, **batch)` cannot be called so."""
    checked_function(loss)
    if not isinstance(batch, Mapping):
        return  # that has a message of its own
    try:
        signature = inspect.signature(loss)
    except (TypeError, ValueError):  # some builtins have no signature
        return
    try:
        signature.bind(model, **batch)
    except TypeError as error:
        raise DataError(
            f"{where()}{name_of(loss)}{signature} is called as loss(model, **batch), with "
            f"{', '.join(map(str, batch)) or 'no entries'} in the batch: {error}"
        ) from None


def trace_step(parts: StepParts) -> TracedStep:
    """Traces the loss, its gradients, the clipping and the update."""
    before = snapshot(parts.loss)
    traced = trace_root(
        f"train_{name_of(parts.loss)}",
        parts.types,
        parts.names,
        [False] * len(parts.types),
        lambda exprs: _step(parts, exprs),
    )
    n = parts.donated
    metrics = tuple(tree.names(traced.structure)[n:])
    metrics = tuple(name.rpartition(".")[2] for name in metrics)
    graph = traced.graph.replace(
        output_names=(*(f"new {name}" for name in parts.names[:n]), *metrics),
        aliases=tuple((i, i) for i in range(n)),
    )
    return TracedStep(graph, metrics, traced.captured, captures(before, traced.captured))


def _step(parts: StepParts, exprs: Sequence[Expr]) -> tuple[Any, ...]:
    given = iter(exprs)

    def take(count: int) -> list[Expr]:
        return [next(given) for _ in range(count)]

    params = take(len(parts.parameters))
    state = take(len(parts.state_types))
    step, key = take(2)
    batch = take(len(parts.batch_types))
    fixed = take(len(parts.fixed))
    with dropout_keys(random.fold_in(key, step)):
        scale = _loss_scale(parts, state)
        loss, grads = _loss_and_gradients(parts, params, fixed, batch, scale)
    with required().located(None, "optimizer", UPDATE):
        norm = global_norm(grads)
        if scale is not None:  # a power of two: both are exact
            loss, norm = loss / scale, norm / scale
        new_params, new_state = _updated(parts, grads, state, params, step, norm, scale)
        rate = strong(expression(parts.optimizer.learning_rate(step), "the learning rate"))
        counter = step + 1
        metrics = {"loss": loss, "grad_norm": norm, "lr": rate}
        if scale is not None:
            finite = isfinite(norm)
            new_params = kept_where(finite, new_params, params)
            new_state = _state_where(parts, finite, new_state, state)
            counter = where_(finite, counter, step)
            metrics |= {"scale": scale, "skipped": where_(finite, 0.0, 1.0)}
    return new_params, new_state, counter, metrics


def _loss_scale(parts: StepParts, state: list[Expr]) -> Expr | None:
    """What the loss is multiplied by before it is differentiated; None: by nothing."""
    if not parts.kept.scaled:
        return None
    _, more = parts.kept.parted(tree.unflatten(parts.state, state))
    found: Expr = more[SCALING]["scale"]
    return found


def _state_where(
    parts: StepParts, finite: Expr, new: list[Expr], old: list[Expr]
) -> list[Expr]:
    """The state after a step, or as it was where gradients are no numbers; with the next scale."""
    own, more = parts.kept.parted(tree.unflatten(parts.state, kept_where(finite, new, old)))
    _, before = parts.kept.parted(tree.unflatten(parts.state, old))
    more[SCALING] = next_scale(before[SCALING], finite)
    return list(tree.flatten(parts.kept.joined(own, more))[0])


def loss_of(
    parts: StepParts, fixed: Sequence[Expr], batch: Sequence[Expr], scale: Expr | None = None
) -> Callable[[Sequence[Expr]], Any]:
    """The loss on a batch, times `scale`, as a function of the parameters."""
    leaves = list(parts.batch_leaves)
    for i, x in zip(parts.batch_places, batch, strict=True):
        leaves[i] = x
    keywords = tree.unflatten(parts.batch, leaves)

    def loss(trained: Sequence[Expr]) -> Any:
        mine, others = iter(trained), iter(fixed)
        chosen = set(parts.trained)
        whole = [next(mine) if i in chosen else next(others) for i in range(parts.model.num_leaves)]
        with truncated(parts.truncate), required().mixed(parts.kept.half):
            found = parts.loss(tree.unflatten(parts.model, whole), **keywords)
        if scale is None:
            return found
        return found * scale if isinstance(found, Mean) else cast(found, scale.dtype) * scale

    loss.__name__ = name_of(parts.loss)
    return loss


def _loss_and_gradients(
    parts: StepParts,
    params: list[Expr],
    fixed: list[Expr],
    batch: list[Expr],
    scale: Expr | None,
) -> tuple[Any, list[Expr]]:
    if parts.split is not None:
        return accumulated(
            parts.split,
            lambda trained, entries: loss_of(parts, fixed, entries, scale)(trained),
            name_of(parts.loss),
            params,
            batch,
        )
    loss = loss_of(parts, fixed, batch, scale)
    value, _, (grads,) = differentiated(loss, (0,), False, (params,), {})
    return value, grads


def global_norm(grads: Sequence[Expr]) -> Expr:
    """The Euclidean norm of all gradients together: one dot product each, nothing is squared."""
    total: Any = None
    for g in grads:
        flat = apply(lookup("reshape"), (g,), {"shape": (g.size,)})
        if flat.dtype.bytes == 2:
            flat = cast(flat, dtypes.f32)
        attrs = {"contract": ((0,), (0,)), "batch": ((), ())}
        part = apply(lookup("dot_general"), (flat, flat), attrs)
        total = part if total is None else total + part
    out: Expr = sqrt(total)
    return out


def _updated(
    parts: StepParts,
    grads: list[Expr],
    state: list[Expr],
    params: list[Expr],
    step: Expr,
    norm: Expr,
    loss_scale: Expr | None,
) -> tuple[list[Expr], list[Expr]]:
    """The new parameters and the leaves of the new state, in the types that they had.

    `norm` is that of the gradients divided by `loss_scale`, by which they are still multiplied."""
    scale: Any = 1.0
    if parts.clip_norm is not None:
        # As torch.nn.utils.clip_grad_norm_ does, with its guard against a norm of 0.
        scale = minimum(parts.clip_norm / (norm + 1e-6), 1.0)
    if loss_scale is not None:
        scale = scale / loss_scale
    update = parts.optimizer.update
    given, more = parts.kept.parted(tree.unflatten(parts.state, state))
    if _takes_scale(update):
        new_params, new_state = update(grads, given, params, step, scale)
    else:
        if isinstance(scale, Expr):
            grads = [g * cast(scale, g.dtype) for g in grads]
        new_params, new_state = update(grads, given, params, step)
    if AVERAGED in more:
        more[AVERAGED] = parts.kept.averaged(more[AVERAGED], new_params)
    leaves, structure = tree.flatten(parts.kept.joined(new_state, more))
    if structure != parts.state:
        raise ShapeError(
            f"{where()}{type(parts.optimizer).__name__}.update returns a state of another "
            f"structure than init: {tree.difference(parts.state, structure)}"
        )
    names = parts.names
    found = [expression(x) for x in (*new_params, *leaves)]
    for x, was, name in zip(found, (*parts.parameters, *parts.state_types), names, strict=False):
        if not same_type(x.type, was):
            raise ShapeError(
                f"{where()}{type(parts.optimizer).__name__}.update makes {x.type} of {name}, "
                f"which is {was}"
            )
    return found[: len(params)], found[len(params) :]


def _takes_scale(update: Callable[..., Any]) -> bool:
    parameters: Mapping[str, Any] = inspect.signature(update).parameters
    return "scale" in parameters
