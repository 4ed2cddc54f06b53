"""Recurrent cells: one step in time, `cell(carry, x) -> (carry, y)`, as any user writes one.

Input: a carry and x [..., inputs]; output: the next carry and y, which is the new state h [...,
width].  `cell.initial(*batch)` is the carry before the first step: zeros [*batch, width].

First values: weights are even in ±1/sqrt(width), as PyTorch's are; biases are 0, gains 1, and the
forget gate of an LSTM has the bias 1 (Gers, Schmidhuber & Cummins 2000; Jozefowicz, Zaremba &
Sutskever 2015), so that a new cell remembers.  Projections are [inputs, outputs]; the gates lie
side by side along the outputs, in PyTorch's order.  Invariant: where PyTorch has two biases that
are only ever added (`bias_ih` and `bias_hh`), there is one here.

`dropout` drops numbers of the state h on its way into the gates; inside of a loop the same ones at
every step (Gal & Ghahramani 2016).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import retrograde.numpy as rnp
from retrograde.compiler.errors import UnsupportedError
from retrograde.compiler.ir.dims import Dim
from retrograde.compiler.ir.location import skip_frames_under, where
from retrograde.nn import checks, initial
from retrograde.nn.initial import Source
from retrograde.nn.layers import Dropout, LayerNorm
from retrograde.nn.module import Module
from retrograde.numpy.primitives import Array

skip_frames_under(os.path.abspath(__file__))

NONLINEARITIES: dict[str, Callable[[Array], Array]] = {"tanh": rnp.tanh, "relu": rnp.relu}
RESETS = ("after", "before")


class RNNCell(Module):
    """h' = tanh(x W + h U + b), or relu in place of tanh (Elman 1990).  The carry is h.

    `weight_input` W is [inputs, width], `weight_recurrent` U [width, width], `bias` [width] or
    None."""

    weight_input: Array
    weight_recurrent: Array
    bias: Array | None
    dropout: Dropout
    nonlinearity: str

    def __init__(
        self,
        inputs: int,
        width: int,
        *,
        nonlinearity: str = "tanh",
        bias: bool = True,
        dropout: float = 0.0,
        seed: int | Source | None = None,
    ) -> None:
        self.nonlinearity = _one_of(nonlinearity, tuple(NONLINEARITIES), "the nonlinearity")
        self.weight_input, self.weight_recurrent = _weights(inputs, width, 1, seed)
        self.bias = initial.zeros(width) if bias else None
        self.dropout = Dropout(dropout)

    def initial(self, *batch: Dim) -> Array:
        """The first carry: h [*batch, width]."""
        return _zeros(batch, self.weight_recurrent)

    def __call__(self, carry: Array, x: Array) -> tuple[Array, Array]:
        _check(self, x)
        summed = x @ self.weight_input + self.dropout(carry) @ self.weight_recurrent
        h = NONLINEARITIES[self.nonlinearity](_plus(summed, self.bias))
        return h, h


class LSTMCell(Module):
    """Long short-term memory (Hochreiter & Schmidhuber 1997; with the forget gate of Gers et al.).

    The carry is (h, c).  Of the gates i, f, g, o = x W + h U + b:

        c' = sigmoid(f) c + sigmoid(i) tanh(g)        h' = sigmoid(o) tanh(c')

    `peephole` lets the gates see the memory (Gers & Schmidhuber 2000): i + p_i c, f + p_f c and
    o + p_o c', with `peepholes` p [3, width].  `projection` makes h' shorter (Sak, Senior &
    Beaufays 2014): h' [projection] is what it was times `weight_projection` [width, projection].

    `weight_input` W is [inputs, 4 width], `weight_recurrent` U [width or projection, 4 width],
    `bias` [4 width] or None; its part for f begins as `forget_bias`."""

    weight_input: Array
    weight_recurrent: Array
    bias: Array | None
    peepholes: Array | None
    weight_projection: Array | None
    dropout: Dropout

    def __init__(
        self,
        inputs: int,
        width: int,
        *,
        bias: bool = True,
        peephole: bool = False,
        projection: int | None = None,
        forget_bias: float = 1.0,
        dropout: float = 0.0,
        seed: int | Source | None = None,
    ) -> None:
        numbers = initial.source(seed)
        out = width if projection is None else checks.positive(projection, "the projection")
        self.weight_input, self.weight_recurrent = _weights(inputs, width, 4, numbers, out)
        self.bias = _forgetting(width, forget_bias) if bias else None
        self.peepholes = _even((3, width), width, numbers) if peephole else None
        shorter = None if projection is None else _even((width, out), width, numbers)
        self.weight_projection = shorter
        self.dropout = Dropout(dropout)

    def initial(self, *batch: Dim) -> tuple[Array, Array]:
        """The first carry: h [*batch, width or projection] and c [*batch, width]."""
        h = _zeros(batch, self.weight_recurrent)
        return h, _zeros(batch, self.weight_recurrent, _parts(self.weight_recurrent, 4))

    def __call__(
        self, carry: tuple[Array, Array], x: Array
    ) -> tuple[tuple[Array, Array], Array]:
        _check(self, x)
        h, c = carry
        gates = x @ self.weight_input + self.dropout(h) @ self.weight_recurrent
        i, f, g, o = rnp.split(_plus(gates, self.bias), 4, axis=-1)
        if self.peepholes is not None:
            i = i + self.peepholes[0] * c
            f = f + self.peepholes[1] * c
        c = rnp.sigmoid(f) * c + rnp.sigmoid(i) * rnp.tanh(g)
        if self.peepholes is not None:
            o = o + self.peepholes[2] * c
        h = rnp.sigmoid(o) * rnp.tanh(c)
        if self.weight_projection is not None:
            h = h @ self.weight_projection
        return (h, c), h


class GRUCell(Module):
    """The gated recurrent unit (Cho et al. 2014).  The carry is h.

    Of x W + b, whose parts are r, z and n, and of h U, whose parts are r', z' and n':

        h' = (1 - z) n + z h     with r = sigmoid(r + r'), z = sigmoid(z + z') and
        reset="after":     n = tanh(n + r * (n' + b'))       as in PyTorch and cuDNN, the default;
        reset="before":    n = tanh(n + (r * h) U_n)         as first published.

    "after" resets the product, which makes all of h U one product; "before" resets the state.
    `weight_input` W is [inputs, 3 width], `weight_recurrent` U [width, 3 width], `bias` b [3 width]
    or None, and `recurrent_bias` b' [width], which only "after" has."""

    weight_input: Array
    weight_recurrent: Array
    bias: Array | None
    recurrent_bias: Array | None
    dropout: Dropout
    reset: str

    def __init__(
        self,
        inputs: int,
        width: int,
        *,
        bias: bool = True,
        reset: str = "after",
        dropout: float = 0.0,
        seed: int | Source | None = None,
    ) -> None:
        self.reset = _one_of(reset, RESETS, "reset")
        self.weight_input, self.weight_recurrent = _weights(inputs, width, 3, seed)
        self.bias = initial.zeros(3 * width) if bias else None
        self.recurrent_bias = initial.zeros(width) if bias and reset == "after" else None
        self.dropout = Dropout(dropout)

    def initial(self, *batch: Dim) -> Array:
        """The first carry: h [*batch, width]."""
        return _zeros(batch, self.weight_recurrent)

    def __call__(self, carry: Array, x: Array) -> tuple[Array, Array]:
        _check(self, x)
        h = self.dropout(carry)
        r, z, n = rnp.split(_plus(x @ self.weight_input, self.bias), 3, axis=-1)
        if self.reset == "after":
            of_r, of_z, of_n = rnp.split(h @ self.weight_recurrent, 3, axis=-1)
            r, z = rnp.sigmoid(r + of_r), rnp.sigmoid(z + of_z)
            n = rnp.tanh(n + r * _plus(of_n, self.recurrent_bias))
        else:
            width = self.weight_recurrent.shape[0]
            of_r, of_z = rnp.split(h @ self.weight_recurrent[:, : 2 * width], 2, axis=-1)
            r, z = rnp.sigmoid(r + of_r), rnp.sigmoid(z + of_z)
            n = rnp.tanh(n + (r * h) @ self.weight_recurrent[:, 2 * width :])
        out = (1.0 - z) * n + z * carry
        return out, out


class LayerNormLSTMCell(Module):
    """An LSTM whose sums are normalised: Ba, Kiros & Hinton 2016, equations 20 to 22.

    The carry is (h, c).  Of i, f, g, o = norm(x W) + norm(h U) + b:

        c' = sigmoid(f) c + sigmoid(i) tanh(g)        h' = sigmoid(o) tanh(norm(c'))

    The norms of the sums have gains and no biases, since b follows."""

    weight_input: Array
    weight_recurrent: Array
    bias: Array
    norm_input: LayerNorm
    norm_recurrent: LayerNorm
    norm_memory: LayerNorm
    dropout: Dropout

    def __init__(
        self,
        inputs: int,
        width: int,
        *,
        forget_bias: float = 1.0,
        dropout: float = 0.0,
        seed: int | Source | None = None,
    ) -> None:
        self.weight_input, self.weight_recurrent = _weights(inputs, width, 4, seed)
        self.bias = _forgetting(width, forget_bias)
        self.norm_input = LayerNorm(4 * width, bias=False)
        self.norm_recurrent = LayerNorm(4 * width, bias=False)
        self.norm_memory = LayerNorm(width)
        self.dropout = Dropout(dropout)

    def initial(self, *batch: Dim) -> tuple[Array, Array]:
        """The first carry: h and c, both [*batch, width]."""
        return _zeros(batch, self.weight_recurrent), _zeros(batch, self.weight_recurrent)

    def __call__(
        self, carry: tuple[Array, Array], x: Array
    ) -> tuple[tuple[Array, Array], Array]:
        _check(self, x)
        h, c = carry
        recurrent = self.norm_recurrent(self.dropout(h) @ self.weight_recurrent)
        gates = self.norm_input(x @ self.weight_input) + recurrent + self.bias
        i, f, g, o = rnp.split(gates, 4, axis=-1)
        c = rnp.sigmoid(f) * c + rnp.sigmoid(i) * rnp.tanh(g)
        h = rnp.sigmoid(o) * rnp.tanh(self.norm_memory(c))
        return (h, c), h


class LayerNormGRUCell(Module):
    """A GRU whose sums are normalised: Ba, Kiros & Hinton 2016, in their supplement.

    The carry is h.  The gates r and z are norm(x W) + norm(h U) + b over both together, the
    candidate is n = tanh(norm(x W_n) + b_n + r * norm(h U_n)), and h' = (1 - z) n + z h as in
    GRUCell (the paper's z is 1 - z here)."""

    weight_input: Array
    weight_recurrent: Array
    bias: Array
    norm_input: LayerNorm
    norm_recurrent: LayerNorm
    norm_candidate_input: LayerNorm
    norm_candidate: LayerNorm
    dropout: Dropout

    def __init__(
        self,
        inputs: int,
        width: int,
        *,
        dropout: float = 0.0,
        seed: int | Source | None = None,
    ) -> None:
        self.weight_input, self.weight_recurrent = _weights(inputs, width, 3, seed)
        self.bias = initial.zeros(3 * width)
        self.norm_input = LayerNorm(2 * width, bias=False)
        self.norm_recurrent = LayerNorm(2 * width, bias=False)
        self.norm_candidate_input = LayerNorm(width, bias=False)
        self.norm_candidate = LayerNorm(width)
        self.dropout = Dropout(dropout)

    def initial(self, *batch: Dim) -> Array:
        """The first carry: h [*batch, width]."""
        return _zeros(batch, self.weight_recurrent)

    def __call__(self, carry: Array, x: Array) -> tuple[Array, Array]:
        _check(self, x)
        both = 2 * self.weight_recurrent.shape[0]
        of_x = x @ self.weight_input
        of_h = self.dropout(carry) @ self.weight_recurrent
        gates = self.norm_input(of_x[..., :both]) + self.norm_recurrent(of_h[..., :both])
        r, z = rnp.split(rnp.sigmoid(gates + self.bias[:both]), 2, axis=-1)
        candidate = self.norm_candidate_input(of_x[..., both:]) + self.bias[both:]
        n = rnp.tanh(candidate + r * self.norm_candidate(of_h[..., both:]))
        out = (1.0 - z) * n + z * carry
        return out, out


# --- what they share


def _weights(
    inputs: int, width: int, gates: int, seed: int | Source | None, out: int | None = None
) -> tuple[Array, Array]:
    """First values of the projections of x and of h, side by side for each gate."""
    inputs = checks.positive(inputs, "the number of inputs of a cell")
    width = checks.positive(width, "the width of a cell")
    numbers = initial.source(seed)
    recurrent = (width if out is None else out, gates * width)
    return _even((inputs, gates * width), width, numbers), _even(recurrent, width, numbers)


def _even(shape: Sequence[int], width: int, numbers: Source) -> Array:
    most = 1.0 / math.sqrt(width)
    return numbers.uniform(shape, -most, most)


def _forgetting(width: int, forget_bias: float) -> Array:
    """Biases of the gates i, f, g, o."""
    bias = initial.zeros(4 * width)
    bias[width : 2 * width] = forget_bias
    return bias


def _parts(weight: Array, gates: int) -> int:
    return int(weight.shape[1]) // gates


def _zeros(batch: tuple[Dim, ...], recurrent: Array, width: int | None = None) -> Array:
    """The state before the first step, in the dtype of the weights."""
    size = recurrent.shape[0] if width is None else width
    return rnp.zeros((*batch, size), recurrent.dtype)


def _plus(x: Array, bias: Array | None) -> Array:
    return x if bias is None else x + bias


def _check(cell: Any, x: Array) -> None:
    checks.last_axis(x, cell.weight_input.shape[0], type(cell).__name__)


def _one_of(value: str, known: tuple[str, ...], what: str) -> str:
    if value not in known:
        raise UnsupportedError(f"{where()}{what} is {value!r}: it is {' or '.join(known)}")
    return value
