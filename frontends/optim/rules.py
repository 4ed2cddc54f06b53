"""The update rules: SGD, Adam, AdamW, Lion, each as its paper writes it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import retrograde.numpy as rnp
from retrograde.compiler.errors import DataError
from retrograde.compiler.ir.location import where
from retrograde.optim.base import Optimizer, State
from retrograde.optim.parts import (
    Arrays,
    Numbers,
    fraction,
    like,
    nonnegative,
    number,
    scaled,
    widened,
    zeros,
)
from retrograde.optim.schedules import Schedule


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
        self.momentum = fraction(momentum, "momentum")
        self.nesterov = nesterov
        self.weight_decay = nonnegative(weight_decay, "weight_decay")
        if nesterov and momentum == 0:
            raise DataError(f"{where()}SGD: Nesterov's step needs a momentum above 0")

    def init(self, params: Sequence[Any]) -> State:
        return {"momentum": zeros(params)} if self.momentum else {}

    def update(
        self, grads: Arrays, state: State, params: Arrays, step: Any, scale: Any = 1.0
    ) -> tuple[Arrays, State]:
        numbers = Numbers()
        rate = self.learning_rate(step)
        kept: Arrays = []
        out: Arrays = []
        for i, (p, g) in enumerate(zip(params, grads, strict=True)):
            g, wide = widened(g), widened(p)
            d = scaled(g, numbers.of(scale, g))
            if self.weight_decay:
                d = d + wide * self.weight_decay
            if self.momentum:
                kept.append(state["momentum"][i] * self.momentum + d)
                d = d + kept[i] * self.momentum if self.nesterov else kept[i]
            out.append(like(wide - d * numbers.of(rate, wide), p))
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
        self.betas = (fraction(betas[0], "betas[0]"), fraction(betas[1], "betas[1]"))
        self.eps = nonnegative(eps, "eps")
        self.weight_decay = nonnegative(weight_decay, "weight_decay")

    def init(self, params: Sequence[Any]) -> State:
        return {"m": zeros(params), "v": zeros(params)}

    def update(
        self, grads: Arrays, state: State, params: Arrays, step: Any, scale: Any = 1.0
    ) -> tuple[Arrays, State]:
        numbers = Numbers()
        (b1, b2), rate = self.betas, self.learning_rate(step)
        t = number(step) + 1.0
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
            g, wide = widened(g), widened(p)
            if self.weight_decay and not self.decoupled:
                g = scaled(g, numbers.of(scale, g)) + wide * self.weight_decay
            part = g * numbers.of(into_v, g)
            m = state["m"][i] * b1 + g * numbers.of(into_m, g)
            v = state["v"][i] * b2 + part * part
            direction = m / (rnp.sqrt(v) + numbers.of(floor, v))
            moved = scaled(wide, numbers.of(keep, wide)) - direction * numbers.of(size, m)
            made["m"].append(m)
            made["v"].append(v)
            out.append(like(moved, p))
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
        self.betas = (fraction(betas[0], "betas[0]"), fraction(betas[1], "betas[1]"))
        self.weight_decay = nonnegative(weight_decay, "weight_decay")

    def init(self, params: Sequence[Any]) -> State:
        return {"m": zeros(params)}

    def update(
        self, grads: Arrays, state: State, params: Arrays, step: Any, scale: Any = 1.0
    ) -> tuple[Arrays, State]:
        numbers = Numbers()
        (b1, b2), rate = self.betas, self.learning_rate(step)
        keep = 1.0 - rate * self.weight_decay
        into_sign, into_m = (1.0 - b1) * scale, (1.0 - b2) * scale
        made: Arrays = []
        out: Arrays = []
        for p, g, m in zip(params, grads, state["m"], strict=True):
            g, wide = widened(g), widened(p)
            sign = rnp.sign(m * b1 + g * numbers.of(into_sign, g))
            made.append(m * b2 + g * numbers.of(into_m, g))
            moved = scaled(wide, numbers.of(keep, wide)) - sign * numbers.of(rate, wide)
            out.append(like(moved, p))
        return out, {"m": made}
