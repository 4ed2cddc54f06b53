"""Functions of machine learning and statistics: activations, softmax and its relatives, erf."""

from __future__ import annotations

from typing import Any

from retrograde.compiler.ir.registry import lookup
from retrograde.numpy import primitives as p
from retrograde.numpy.dispatch import function
from retrograde.numpy.primitives import Array, ArrayLike, Axes
from retrograde.numpy.wrappers import unary

__all__ = [
    "erf",
    "erfc",
    "expit",
    "gelu",
    "log_softmax",
    "logsumexp",
    "relu",
    "sigmoid",
    "silu",
    "softmax",
    "softplus",
]

relu = unary("relu")
sigmoid = expit = unary("sigmoid")
softplus = unary("softplus")
erf = unary("erf")
erfc = unary("erfc")


@function
def gelu(x: ArrayLike, approximate: bool = True) -> Array:
    """x times the normal distribution function at x, by the tanh formula if `approximate`."""
    return lookup("gelu")(p.floating(x), approximate=bool(approximate))


@function
def silu(x: ArrayLike) -> Array:
    """x sigmoid(x)."""
    return lookup("silu")(p.floating(x))


@function
def softmax(x: ArrayLike, axis: int = -1) -> Array:
    """e^x over its sum along `axis`; zeros where the whole row is -inf."""
    x = p.floating(x)
    return lookup("softmax")(x, axis=p.one_axis(axis, x.ndim))


@function
def log_softmax(x: ArrayLike, axis: int = -1) -> Array:
    """The logarithm of softmax along `axis`."""
    x = p.floating(x)
    return lookup("log_softmax")(x, axis=p.one_axis(axis, x.ndim))


@function
def logsumexp(x: ArrayLike, axis: Axes = None, keepdims: bool = False) -> Any:
    """log(sum(e^x)) over `axis` without overflow; -inf where all is -inf."""
    return p.reduce("logsumexp", p.floating(x), axis, keepdims)
