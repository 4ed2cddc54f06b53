"""Groups of parameters with settings of their own: patterns of names -> what differs there.

Invariant: the state has the names that it has without groups, so a checkpoint fits both.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from retrograde.compiler.errors import DataError
from retrograde.compiler.ir.location import where
from retrograde.optim.base import Optimizer
from retrograde.optim.parts import Arrays, nonnegative

FROZEN, RATE = "frozen", "rate"
Settings = Mapping[str, Any]


def groups(optimizer: Optimizer, settings: Mapping[str, Settings]) -> Groups:
    """`optimizer`, with other settings for the parameters whose names match a pattern.

    Patterns are those of file names ("*.bias", "blocks.0.*"); of several that match, later ones
    win, setting by setting.  `rate` multiplies the learning rate, `frozen` of True leaves the
    parameter as it is (it gets no gradient, no state, and no part in the norm), and every other
    name is an attribute of the optimizer: {"*.bias": {"weight_decay": 0.0}}.  A pattern that
    matches no parameter is a DataError when the step is compiled."""
    return Groups(optimizer, settings)


class Groups:
    """An optimizer whose settings depend on the names of parameters; see `groups`."""

    def __init__(self, optimizer: Optimizer, settings: Mapping[str, Settings]) -> None:
        if not isinstance(optimizer, Optimizer):
            raise DataError(
                f"{where()}groups take an optimizer of rg.optim, got a {type(optimizer).__name__}"
            )
        self.optimizer = optimizer
        self.settings = {pattern: dict(given) for pattern, given in settings.items()}
        for pattern, given in self.settings.items():
            for name, value in given.items():
                self._check(pattern, name, value)

    def _check(self, pattern: str, name: str, value: Any) -> None:
        if name == FROZEN:
            if not isinstance(value, bool):
                raise DataError(f"{where()}{pattern!r}: frozen is True or False, got {value!r}")
        elif name == RATE:
            nonnegative(value, f"{pattern!r}: the factor of the learning rate")
        elif name.startswith("_") or name not in vars(self.optimizer):
            known = ", ".join(n for n in vars(self.optimizer) if not n.startswith("_"))
            raise DataError(
                f"{where()}{pattern!r}: {type(self.optimizer).__name__} has no {name!r}; there is "
                f"{RATE}, {FROZEN}, {known}"
            )

    def frozen(self, names: Sequence[str]) -> set[str]:
        """The parameters that are not trained."""
        return {name for name in names if self._of(name).get(FROZEN)}

    def named(self, names: Sequence[str]) -> Grouped:
        """The optimizer of parameters of these names, in their order."""
        parts: dict[str, tuple[Optimizer, list[int]]] = {}
        for i, name in enumerate(names):
            chosen = {key: x for key, x in self._of(name).items() if key != FROZEN}
            key = repr(sorted(chosen.items()))
            parts.setdefault(key, (self._with(chosen), []))[1].append(i)
        return Grouped(self.optimizer, tuple(parts.values()))

    def check_patterns(self, names: Sequence[str]) -> None:
        """DataError for a pattern that matches no parameter."""
        for pattern in self.settings:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise DataError(
                    f"{where()}the group {pattern!r} has no parameter; there is "
                    f"{', '.join(names[:8])}{' …' if len(names) > 8 else ''}"
                )

    def _of(self, name: str) -> dict[str, Any]:
        """The settings of one parameter."""
        found: dict[str, Any] = {}
        for pattern, given in self.settings.items():
            if fnmatchcase(name, pattern):
                found |= given
        return found

    def _with(self, settings: Settings) -> Optimizer:
        made = copy.copy(self.optimizer)
        for name, value in settings.items():
            if name == RATE:
                made._rate = _Times(self.optimizer._rate, float(value))
            else:
                setattr(made, name, value)
        return made

    def init(self, params: Sequence[Any]) -> Any:
        """Not before names are known: `compile_training` asks for `named` first."""
        raise DataError(f"{where()}groups need the names of parameters: ask named(names) for it")

    def __repr__(self) -> str:
        return f"groups({self.optimizer!r}, {self.settings!r})"


class Grouped:
    """Optimizers, each for some of the parameters; the state is that of one for all of them."""

    def __init__(
        self, optimizer: Optimizer, parts: Sequence[tuple[Optimizer, Sequence[int]]]
    ) -> None:
        self.optimizer = optimizer
        self.parts = tuple(parts)

    def learning_rate(self, step: Any) -> Any:
        """That of parameters in no group."""
        return self.optimizer.learning_rate(step)

    def init(self, params: Sequence[Any]) -> dict[str, Arrays]:
        """State by name, each in the order of the parameters; None where a group has none."""
        found: dict[str, Arrays] = {}
        for own, places in self.parts:
            for name, values in own.init([params[i] for i in places]).items():
                whole = found.setdefault(name, [None] * len(params))
                for i, x in zip(places, values, strict=True):
                    whole[i] = x
        return found

    def update(
        self, grads: Arrays, state: dict[str, Arrays], params: Arrays, step: Any, scale: Any = 1.0
    ) -> tuple[Arrays, dict[str, Arrays]]:
        """Each group by its own settings."""
        out: Arrays = [None] * len(params)
        made: dict[str, Arrays] = {name: [None] * len(params) for name in state}
        for own, places in self.parts:
            given = {name: [values[i] for i in places] for name, values in state.items()}
            of_group = [[xs[i] for i in places] for xs in (grads, params)]
            new, after = own.update(of_group[0], given, of_group[1], step, scale)
            for k, i in enumerate(places):
                out[i] = new[k]
                for name, values in after.items():
                    made[name][i] = values[k]
        return out, made

    def __repr__(self) -> str:
        return f"{self.optimizer!r} in {len(self.parts)} groups"


class _Times:
    """A learning rate times a factor."""

    def __init__(self, rate: Any, factor: float) -> None:
        self.rate, self.factor = rate, factor

    def __call__(self, step: Any) -> Any:
        return (self.rate(step) if callable(self.rate) else self.rate) * self.factor
