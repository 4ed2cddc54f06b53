"""Optimizers: gradients, state and parameters -> new parameters and state, inside the traced step.

An optimizer is any object with

    init(params)                               -> a tree of arrays
    update(grads, state, params, step, scale)  -> (new params, new state)
    learning_rate(step)                        -> a number, for the metrics

where `params` and `grads` are lists, `step` counts from 0 and `scale` is a factor of all gradients
(from clipping; an `update` without it gets scaled gradients).  Learning rates are numbers or
functions of the step.  Invariant: what depends on the step alone is computed once, as a number, in
f64; state of 16-bit parameters is f32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import retrograde.numpy as rnp
from retrograde.compiler.errors import DataError
from retrograde.compiler.ir.expr import Expr
from retrograde.compiler.ir.location import where

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Lion",
    "Optimizer",
    "constant",
    "cosine",
    "linear",
    "warmup_cosine",
]

Schedule = Callable[[Any], Any]
Arrays = list[Any]
State = dict[str, Arrays]


# --- schedules


def constant(value: float) -> Schedule:
    """The same rate at every step."""
    return _Constant(_nonnegative(value, "the learning rate"))


def linear(start: float, end: float, steps: int) -> Schedule:
    """From `start` at step 0 to `end` at step `steps`, in a straight line; `end` from then on."""
    return _Linear(start, end, _positive(steps, "steps"))


def cosine(start: float, steps: int, end: float = 0.0) -> Schedule:
    """From `start` at step 0 to `end` at step `steps` along half a cosine; `end` from then on.

    Source: Loshchilov & Hutter, SGDR, 2017, without restarts."""
    return _WarmupCosine(start, 0, _positive(steps, "steps"), end)


def warmup_cosine(peak: float, warmup: int, steps: int, end: float = 0.0) -> Schedule:
    """Up to `peak` in `warmup` equal steps, the first of which is not 0; then down to `end` at step
    `steps` along half a cosine."""
    if not 0 <= warmup < steps:
        raise DataError(
            f"{where()}warmup_cosine: {warmup} steps of warm-up in {steps}: the warm-up must be "
            "shorter than the whole"
        )
    return _WarmupCosine(peak, warmup, steps, end)


@dataclass(frozen=True)
class _Constant:
    value: float

    def __call__(self, step: Any) -> Any:
        return self.value


@dataclass(frozen=True)
class _Linear:
    start: float
    end: float
    steps: int

    def __call__(self, step: Any) -> Any:
        return self.start + (self.end - self.start) * _progress(step, 0, self.steps)


@dataclass(frozen=True)
class _WarmupCosine:
    peak: float
    warmup: int
    steps: int
    end: float

    def __call__(self, step: Any) -> Any:
        progress = _progress(step, self.warmup, self.steps)
        half = 0.5 * (1.0 + rnp.cos(math.pi * progress))
        down = self.end + (self.peak - self.end) * half
        if self.warmup == 0:
            return down
        up = self.peak * ((_number(step) + 1.0) / self.warmup)
        return rnp.where(_number(step) < self.warmup, up, down)


def _number(step: Any) -> Any:
    return rnp.astype(step, "f64")


def _progress(step: Any, first: int, last: int) -> Any:
    """How much of the way from `first` to `last` is done, in [0, 1]."""
    return rnp.clip((_number(step) - first) / (last - first), 0.0, 1.0)


# --- optimizers


class Optimizer:
    """What the optimizers here share: a learning rate and state beside the parameters."""

    def __init__(self, learning_rate: float | Schedule) -> None:
        if not callable(learning_rate):
            _nonnegative(learning_rate, "the learning rate")
        self._rate = learning_rate

    def learning_rate(self, step: Any) -> Any:
        """The rate at a step (counted from 0)."""
        return self._rate(step) if callable(self._rate) else float(self._rate)

    def init(self, params: Sequence[Any]) -> Any:
        """The state before the first step, for parameters of these shapes and dtypes."""
        raise NotImplementedError

    def update(
        self, grads: Arrays, state: Any, params: Arrays, step: Any, scale: Any = 1.0
    ) -> tuple[Arrays, Any]:
        """The parameters and the state after a step."""
        raise NotImplementedError

    def __repr__(self) -> str:
        settings = {"learning_rate": self._rate, **vars(self)}
        shown = (f"{name}={value!r}" for name, value in settings.items() if name != "_rate")
        return f"{type(self).__name__}({', '.join(shown)})"


class SGD(Optimizer):
    """p -= rate * d, with d = momentum * d + g (Nesterov: g + momentum * d), as torch.optim.SGD.

    `weight_decay` adds that much of the parameter to its gradient."""

    def __init__(
        self,
        learning_rate: float | Schedule,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(learning_rate)
        self.momentum = _fraction(momentum, "momentum")
        self.nesterov = nesterov
        self.weight_decay = _nonnegative(weight_decay, "weight_decay")
        if nesterov and momentum == 0:
            raise DataError(f"{where()}SGD: Nesterov's step needs a momentum above 0")

    def init(self, params: Sequence[Any]) -> State:
        return {"momentum": _zeros(params)} if self.momentum else {}

    def update(
        self, grads: Arrays, state: State, params: Arrays, step: Any, scale: Any = 1.0
    ) -> tuple[Arrays, State]:
        numbers = _Numbers()
        rate = self.learning_rate(step)
        kept: Arrays = []
        out: Arrays = []
        for i, (p, g) in enumerate(zip(params, grads, strict=True)):
            g, wide = _wide(g), _wide(p)
            d = _scaled(g, numbers.of(scale, g))
            if self.weight_decay:
                d = d + wide * self.weight_decay
            if self.momentum:
                kept.append(state["momentum"][i] * self.momentum + d)
                d = d + kept[i] * self.momentum if self.nesterov else kept[i]
            out.append(_like(wide - d * numbers.of(rate, wide), p))
        return out, ({"momentum": kept} if self.momentum else {})


class Adam(Optimizer):
    """Adam (Kingma & Ba 2015), with the defaults of torch.optim.Adam.

    m = b1 m + (1 - b1) g,  v = b2 v + (1 - b2) g^2,  p -= rate / (1 - b1^t) * m / (sqrt(v / (1 -
    b2^t)) + eps).  `weight_decay` adds that much of the parameter to its gradient."""

    decoupled = False

    def __init__(
        self,
        learning_rate: float | Schedule = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(learning_rate)
        self.betas = (_fraction(betas[0], "betas[0]"), _fraction(betas[1], "betas[1]"))
        self.eps = _nonnegative(eps, "eps")
        self.weight_decay = _nonnegative(weight_decay, "weight_decay")

    def init(self, params: Sequence[Any]) -> State:
        return {"m": _zeros(params), "v": _zeros(params)}

    def update(
        self, grads: Arrays, state: State, params: Arrays, step: Any, scale: Any = 1.0
    ) -> tuple[Arrays, State]:
        numbers = _Numbers()
        (b1, b2), rate = self.betas, self.learning_rate(step)
        t = _number(step) + 1.0
        second = rnp.sqrt(1.0 - b2**t)
        # Both corrections as factors of the whole: sqrt(v / c) + eps = (sqrt(v) + eps sqrt(c)) /
        # sqrt(c), so that each parameter is passed over less often.
        size, floor = rate * second / (1.0 - b1**t), self.eps * second
        keep = 1.0 - rate * self.weight_decay if self.decoupled else 1.0
        into_m, into_v = (1.0 - b1) * scale, math.sqrt(1.0 - b2) * scale
        if self.weight_decay and not self.decoupled:
            into_m, into_v = 1.0 - b1, math.sqrt(1.0 - b2)
        made: State = {"m": [], "v": []}
        out: Arrays = []
        for i, (p, g) in enumerate(zip(params, grads, strict=True)):
            g, wide = _wide(g), _wide(p)
            if self.weight_decay and not self.decoupled:
                g = _scaled(g, numbers.of(scale, g)) + wide * self.weight_decay
            part = g * numbers.of(into_v, g)
            m = state["m"][i] * b1 + g * numbers.of(into_m, g)
            v = state["v"][i] * b2 + part * part
            direction = m / (rnp.sqrt(v) + numbers.of(floor, v))
            moved = _scaled(wide, numbers.of(keep, wide)) - direction * numbers.of(size, m)
            made["m"].append(m)
            made["v"].append(v)
            out.append(_like(moved, p))
        return out, made


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019): p -= rate * weight_decay * p
    before the step.  The defaults are those of torch.optim.AdamW."""

    decoupled = True

    def __init__(
        self,
        learning_rate: float | Schedule = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(learning_rate, betas, eps, weight_decay)


class Lion(Optimizer):
    """p -= rate * (sign(b1 m + (1 - b1) g) + weight_decay p),  m = b2 m + (1 - b2) g.

    Source: Chen et al., Symbolic discovery of optimization algorithms, 2023."""

    def __init__(
        self,
        learning_rate: float | Schedule = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(learning_rate)
        self.betas = (_fraction(betas[0], "betas[0]"), _fraction(betas[1], "betas[1]"))
        self.weight_decay = _nonnegative(weight_decay, "weight_decay")

    def init(self, params: Sequence[Any]) -> State:
        return {"m": _zeros(params)}

    def update(
        self, grads: Arrays, state: State, params: Arrays, step: Any, scale: Any = 1.0
    ) -> tuple[Arrays, State]:
        numbers = _Numbers()
        (b1, b2), rate = self.betas, self.learning_rate(step)
        keep = 1.0 - rate * self.weight_decay
        into_sign, into_m = (1.0 - b1) * scale, (1.0 - b2) * scale
        made: Arrays = []
        out: Arrays = []
        for p, g, m in zip(params, grads, state["m"], strict=True):
            g, wide = _wide(g), _wide(p)
            sign = rnp.sign(m * b1 + g * numbers.of(into_sign, g))
            made.append(m * b2 + g * numbers.of(into_m, g))
            moved = _scaled(wide, numbers.of(keep, wide)) - sign * numbers.of(rate, wide)
            out.append(_like(moved, p))
        return out, {"m": made}


# --- parts


class _Numbers:
    """Numbers that depend on the step, in the dtype of each parameter, made once for each."""

    def __init__(self) -> None:
        self._made: dict[tuple[Any, str], tuple[Any, Any]] = {}

    def of(self, number: Any, like: Any) -> Any:
        """`number` to be combined with `like`; plain numbers take its dtype anyway."""
        if not isinstance(number, (Expr, np.ndarray)):
            return number
        key = (id(number), str(like.dtype))
        if key not in self._made:
            self._made[key] = (rnp.astype(number, like.dtype), number)  # alive: no id comes twice
        return self._made[key][0]


def _scaled(x: Any, factor: Any) -> Any:
    return x if isinstance(factor, float) and factor == 1.0 else x * factor


def _wide(x: Any) -> Any:
    """`x` as the update is computed: 16-bit floats as f32."""
    return rnp.astype(x, "f32") if _is_narrow(x) else x


def _like(x: Any, p: Any) -> Any:
    return rnp.astype(x, p.dtype) if _is_narrow(p) else x


def _is_narrow(x: Any) -> bool:
    return str(x.dtype) in ("f16", "bf16", "float16", "bfloat16")


def _zeros(params: Sequence[Any]) -> Arrays:
    return [np.zeros(p.shape, np.float32 if _is_narrow(p) else p.dtype) for p in params]


def _fraction(x: float, name: str) -> float:
    if not 0.0 <= x < 1.0:
        raise DataError(f"{where()}{name} is {x!r}: it lies from 0 to below 1")
    return x


def _nonnegative(x: float, name: str) -> float:
    if not isinstance(x, (int, float)) or not x >= 0.0:
        raise DataError(f"{where()}{name} is {x!r}: it is a number, not below 0")
    return x


def _positive(x: int, name: str) -> int:
    if x < 1:
        raise DataError(f"{where()}{name} is {x!r}: give at least 1")
    return x
