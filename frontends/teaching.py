"""Scheduled sampling: the tokens that a model is taught with, some of them its own.

Source: Bengio et al., Scheduled sampling for sequence prediction with recurrent neural networks,
2015; in passes over all positions at once, as Mihaylova & Martins 2019 and Duckworth et al. 2019.
Invariant: no gradient flows through a sample, and at rate 0 the tokens are those given.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import retrograde.numpy as rnp
from retrograde import random
from retrograde.compiler.errors import DataError, DTypeError, ShapeError
from retrograde.compiler.ir import dtypes
from retrograde.compiler.ir.location import skip_frames_under, where
from retrograde.custom import stop_gradient
from retrograde.nn.context import dropout_key

skip_frames_under(os.path.abspath(__file__))

_SCOPE = "scheduled_sampling"


def scheduled_sampling(
    model: Callable[[Any], Any],
    tokens: Any,
    rate: Any,
    *,
    passes: int = 1,
    temperature: float = 1.0,
    key: Any = None,
) -> Any:
    """The tokens [B, T] to give `model(tokens) -> logits [B, T, V]`: each one behind the first is
    replaced, with the chance `rate`, by what the model itself says there.

    `rate` is a number or a single traced one, such as an entry of the batch that follows a
    schedule.  What the model says is drawn from its logits (over `temperature`; 0: the likeliest)
    by the tokens before.  In one pass these are the given ones; each further pass reads those of
    the pass before, and after T - 1 passes every token follows from those that it is given with, as
    if drawn one by one.  The positions are drawn once.  No gradient flows through the samples, nor
    through the passes that make them.  Draws depend on the seed and the step of the training and on
    the row, or on `key`; outside of a training step without a key it is a DataError."""
    tokens = rnp.asarray(tokens)
    if len(tokens.shape) != 2 or not dtypes.dtype(tokens.dtype).is_integer:
        raise ShapeError(
            f"{where()}scheduled_sampling takes integer tokens [B, T], got "
            f"{tokens.dtype}{list(tokens.shape)}"
        )
    if isinstance(rate, (int, float)) and not 0.0 <= rate <= 1.0:
        raise DataError(f"{where()}the rate is {rate!r}: it is a chance, from 0 to 1")
    if passes < 1:
        raise DataError(f"{where()}passes is {passes}: it is at least 1")
    if not temperature >= 0.0:
        raise DataError(f"{where()}the temperature is {temperature!r}: it is 0 or more")
    found = dropout_key(_SCOPE) if key is None else key
    if found is None:
        raise DataError(
            f"{where()}scheduled_sampling draws by the key of a training step, and none is at "
            "work: give it a key=rg.random.key(0)"
        )
    own = random.bernoulli(random.fold_in(found, 0), rate, tokens.shape)
    own = rnp.logical_and(own, rnp.arange(tokens.shape[1]) > 0)
    mixed = tokens
    for _ in range(passes):
        logits = stop_gradient(model(mixed))
        if len(logits.shape) != 3 or not dtypes.dtype(logits.dtype).is_float:
            raise DTypeError(
                f"{where()}the model gives {logits.dtype}{list(logits.shape)}, and "
                "scheduled_sampling draws from logits [B, T, V]"
            )
        said = _said(logits, temperature, random.fold_in(found, 1))
        later = rnp.concatenate([tokens[:, :1], said[:, :-1]], axis=1)
        mixed = rnp.where(own, rnp.astype(later, tokens.dtype), tokens)
    return mixed


def _said(logits: Any, temperature: float, key: Any) -> Any:
    """A token for each position: drawn by the same numbers in each pass."""
    if temperature == 0.0:
        return rnp.argmax(logits, axis=-1)
    return random.categorical(key, rnp.astype(logits, "f32") / temperature)
