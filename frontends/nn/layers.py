"""Layers that work on the last axis: Linear, Embedding, LayerNorm, RMSNorm, Dropout, Sequential.

Input: arrays [..., width]; output: arrays of the same leading axes.  Invariant: a layer holds its
parameters as float32 arrays and computes in the dtype that these and its argument promote to; one
`seed` (an integer, a `Source` to draw on, or None) fixes its first values.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import retrograde.numpy as rnp
from retrograde.compiler.errors import DTypeError, TraceError
from retrograde.compiler.ir import dtypes
from retrograde.compiler.ir.expr import narrowed
from retrograde.compiler.ir.location import skip_frames_under, where
from retrograde.compiler.ir.registry import lookup
from retrograde.nn import checks, context, initial
from retrograde.nn.initial import Source
from retrograde.nn.module import Module
from retrograde.numpy.dispatch import function
from retrograde.numpy.primitives import Array, floating

skip_frames_under(os.path.abspath(__file__))


class Linear(Module):
    """x @ weight + bias: [..., inputs] -> [..., outputs].

    `weight` is [inputs, outputs], normal with variance 1/inputs (or standard deviation `std`);
    `bias` is [outputs], zeros, or None."""

    weight: Array
    bias: Array | None

    def __init__(
        self,
        inputs: int,
        outputs: int,
        bias: bool = True,
        *,
        seed: int | Source | None = None,
        std: float | None = None,
    ) -> None:
        inputs = checks.positive(inputs, "the number of inputs of Linear")
        outputs = checks.positive(outputs, "the number of outputs of Linear")
        spread = 1.0 / math.sqrt(inputs) if std is None else std
        self.weight = initial.source(seed).normal((inputs, outputs), spread)
        self.bias = initial.zeros(outputs) if bias else None

    def __call__(self, x: Array) -> Array:
        checks.last_axis(x, self.weight.shape[0], "Linear")
        out = rnp.matmul(x, self.weight)
        return out if self.bias is None else out + self.bias


class Embedding(Module):
    """Rows of a table: integers [...] -> [..., width].

    `weight` is [rows, width], normal with standard deviation `std`.  A number below 0 or beyond the
    rows is a DataError when the program runs."""

    weight: Array

    def __init__(
        self, rows: int, width: int, *, seed: int | Source | None = None, std: float = 0.02
    ) -> None:
        rows = checks.positive(rows, "the number of rows of Embedding")
        width = checks.positive(width, "the width of Embedding")
        self.weight = initial.source(seed).normal((rows, width), std)

    def __call__(self, ids: Array) -> Array:
        return _rows(self.weight, ids)

    def attend(self, x: Array) -> Array:
        """x times the table transposed, [..., width] -> [..., rows]: the head of tied weights."""
        checks.last_axis(x, self.weight.shape[1], "Embedding.attend")
        return rnp.matmul(x, rnp.matrix_transpose(self.weight))


@function
def _rows(table: Array, ids: Array) -> Array:
    if not hasattr(ids, "dtype") or not dtypes.dtype(ids.dtype).is_integer:
        got = checks.shown(ids) if hasattr(ids, "dtype") else type(ids).__name__
        raise DTypeError(f"{where()}Embedding takes integers, got {got}")
    # Not rnp.take: counting from the end would turn a wrong token into another one.
    return narrowed(lookup("gather")(table, ids, axes=(0,), wrap=False))


class LayerNorm(Module):
    """(x - mean) / sqrt(variance + eps) over the last axis, times a gain, plus a bias.

    Source: Ba, Kiros & Hinton 2016.  `weight` (the gain) and `bias` are [width]."""

    weight: Array
    bias: Array | None
    eps: float

    def __init__(self, width: int, eps: float = 1e-5, *, bias: bool = True) -> None:
        width = checks.positive(width, "the width of LayerNorm")
        self.weight = initial.ones(width)
        self.bias = initial.zeros(width) if bias else None
        self.eps = float(eps)

    def __call__(self, x: Array) -> Array:
        checks.last_axis(x, self.weight.shape[0], "LayerNorm")
        return _layer_norm(self.eps, x, self.weight, *([] if self.bias is None else [self.bias]))


class RMSNorm(Module):
    """x / sqrt(mean of x^2 + eps) over the last axis, times a gain.

    Source: Zhang & Sennrich 2019.  `weight` (the gain) is [width]."""

    weight: Array
    eps: float

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        self.weight = initial.ones(checks.positive(width, "the width of RMSNorm"))
        self.eps = float(eps)

    def __call__(self, x: Array) -> Array:
        checks.last_axis(x, self.weight.shape[0], "RMSNorm")
        return _rms_norm(self.eps, x, self.weight)


@function
def _layer_norm(eps: float, *operands: Array) -> Array:
    return lookup("layer_norm")(*map(floating, operands), eps=eps)[0]


@function
def _rms_norm(eps: float, *operands: Array) -> Array:
    return lookup("rms_norm")(*map(floating, operands), eps=eps)[0]


class Dropout(Module):
    """Zeros each element with probability `rate` and divides the others by 1 - rate.

    Source: Srivastava et al. 2014, in the form that leaves evaluation alone: off in `model.eval()`
    and outside of training.  The mask depends on the seed of the training step, the step, the place
    of the layer in the model and the row, so it needs no key from the caller."""

    rate: float

    def __init__(self, rate: float) -> None:
        self.rate = checks.rate(rate, "the rate of Dropout")

    def __call__(self, x: Array) -> Array:
        if self.rate == 0.0 or not self.training:
            return x
        key = context.dropout_key()
        if key is None:
            return x
        return dropped(x, self.rate, key)


def dropped(x: Array, rate: float, key: Array) -> Array:
    """`x` with a part of it zeroed, the rest made larger by as much."""
    import retrograde.random as random

    kept = random.bernoulli(key, 1.0 - rate, x.shape)
    return rnp.where(kept, x * (1.0 / (1.0 - rate)), 0.0)


class Sequential(Module):
    """Layers or functions, one after the other: `Sequential(Linear(5, 7), rnp.tanh)`."""

    layers: tuple[Any, ...]

    def __init__(self, *layers: Callable[[Array], Array]) -> None:
        for layer in layers:
            if not callable(layer):
                raise TraceError(
                    f"{where()}Sequential takes layers and functions, got a "
                    f"{type(layer).__name__}; a list is spread out: Sequential(*layers)"
                )
        self.layers = layers

    def __call__(self, x: Array) -> Array:
        for layer in self.layers:
            x = layer(x)
        return x

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, index: int) -> Any:
        return self.layers[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.layers)
