"""Where a policy acts: gymnasium's CartPole-v1 where it is installed, else the same rules of ours.

`reset(seed, episode)` gives the first observation, float32[4], `step(action)` the next one, the
reward, and whether the episode is over.  Invariant: an episode is a function of (seed, its number)
and of the actions; from one state both kinds go the same way.
"""

from __future__ import annotations

import importlib.util
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

import numpy as np

from retrograde.recipes.task import Array
from retrograde.runtime.data.sets.cartpole import CartPole

OWN = "the simulator of Retrograde"


class Cart(Protocol):
    """One cart with its pole."""

    def reset(self, seed: int, episode: int = 0) -> Array: ...

    def step(self, action: int) -> tuple[Array, float, bool]: ...


class Gymnasium:
    """The environment as gymnasium makes it, with its own starts and its limit of 500 steps."""

    def __init__(self) -> None:
        import gymnasium

        # The checker looks at each observation anew; the environment is theirs.
        self.environment: Any = gymnasium.make("CartPole-v1", disable_env_checker=True)

    def reset(self, seed: int, episode: int = 0) -> Array:
        observation, _ = self.environment.reset(seed=seed + episode)
        return np.asarray(observation, np.float32)

    def step(self, action: int) -> tuple[Array, float, bool]:
        observation, reward, fallen, ended, _ = self.environment.step(action)
        return np.asarray(observation, np.float32), float(reward), bool(fallen or ended)


def make() -> Cart:
    """A cart of the kind that is there."""
    return Gymnasium() if has_gymnasium() else CartPole()


def has_gymnasium() -> bool:
    """Whether gymnasium is installed."""
    return importlib.util.find_spec("gymnasium") is not None


def place() -> str:
    """What `make` acts in, in words."""
    if not has_gymnasium():
        return OWN
    try:
        return f"CartPole-v1 of gymnasium {version('gymnasium')}"
    except PackageNotFoundError:  # a copy beside the program
        return "CartPole-v1 of gymnasium"
