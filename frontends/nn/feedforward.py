"""Feed-forward parts of a transformer block: [..., width] -> [..., width], token by token.

Invariant: numbers of one token alone make that token's result.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import retrograde.numpy as rnp
from retrograde.compiler.errors import UnsupportedError
from retrograde.compiler.ir.location import skip_frames_under, where
from retrograde.nn import checks, initial
from retrograde.nn.initial import Source
from retrograde.nn.layers import Linear
from retrograde.nn.module import Module
from retrograde.numpy.primitives import Array

skip_frames_under(os.path.abspath(__file__))

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": rnp.gelu, "relu": rnp.relu, "silu": rnp.silu, "tanh": rnp.tanh,
}  # fmt: skip


class MLP(Module):
    """activation(x U + b) D + c: `up` U is [width, inner], `down` D [inner, width].

    `inner` is 4 width unless given (Vaswani et al. 2017).  `std` and `std_down` are the standard
    deviations of the first weights, if not those of Linear."""

    up: Linear
    down: Linear
    activation: str

    def __init__(
        self,
        width: int,
        inner: int | None = None,
        *,
        activation: str = "gelu",
        bias: bool = True,
        seed: int | Source | None = None,
        std: float | None = None,
        std_down: float | None = None,
    ) -> None:
        width = checks.positive(width, "the width of MLP")
        if activation not in ACTIVATIONS:
            raise UnsupportedError(
                f"{where()}the activation is {activation!r}: it is {', '.join(ACTIVATIONS)}"
            )
        numbers = initial.source(seed)
        inner = 4 * width if inner is None else inner
        self.up = Linear(width, inner, bias, seed=numbers, std=std)
        self.down = Linear(inner, width, bias, seed=numbers, std=std_down)
        self.activation = activation

    def __call__(self, x: Array) -> Array:
        return self.down(ACTIVATIONS[self.activation](self.up(x)))


class SwiGLU(Module):
    """(silu(x G) * (x U)) D: `gate` G and `up` U are [width, inner], `down` D [inner, width].

    Source: Shazeer 2020.  `inner` is 8/3 width, rounded up to a multiple of 8, unless given: as
    many parameters as an MLP four times as wide as its input has.  There are no biases unless
    asked for."""

    gate: Linear
    up: Linear
    down: Linear

    def __init__(
        self,
        width: int,
        inner: int | None = None,
        *,
        bias: bool = False,
        seed: int | Source | None = None,
        std: float | None = None,
        std_down: float | None = None,
    ) -> None:
        width = checks.positive(width, "the width of SwiGLU")
        numbers = initial.source(seed)
        inner = -(-8 * width // 24) * 8 if inner is None else inner
        self.gate = Linear(width, inner, bias, seed=numbers, std=std)
        self.up = Linear(width, inner, bias, seed=numbers, std=std)
        self.down = Linear(inner, width, bias, seed=numbers, std=std_down)

    def __call__(self, x: Array) -> Array:
        return self.down(rnp.silu(self.gate(x)) * self.up(x))
