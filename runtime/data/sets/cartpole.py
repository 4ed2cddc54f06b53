"""CartPole: balancing a pole -> episodes logged under a mediocre policy, and the rules themselves.

The dynamics are those of Barto, Sutton and Anderson, "Neuronlike adaptive elements that can solve
difficult learning control problems", IEEE Trans. SMC 13 (1983), with the constants and the limit of
500 steps of CartPole-v1.  Made here, so nothing is downloaded.  Invariant: an episode is a function
of (seed, its number) alone, drawn from words that NumPy fixes for good.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde.compiler.errors import DataError
from retrograde.runtime.data.packages import Package

ABOUT = "control: logged episodes of a mediocre policy, made here"
PACKAGES: tuple[Package, ...] = ()

GRAVITY = 9.8
CART_MASS = 1.0
POLE_MASS = 0.1
HALF_LENGTH = 0.5
FORCE = 10.0
SECONDS = 0.02  # between two steps, by Euler's rule
MOST_STEPS = 500
_ANGLE = 12 * 2 * math.pi / 360  # beyond which the pole has fallen
_PLACE = 2.4  # beyond which the cart has left the track
_START = 0.05  # each number of the first state is between -0.05 and 0.05
_TOTAL_MASS = POLE_MASS + CART_MASS
_MOMENT = POLE_MASS * HALF_LENGTH
_LOGGED = 1  # the stream of random words; other uses of a seed take others
_EVALUATED = 2

# The policy pushes right where WEIGHTS · state + noise > 0; the noise, normal, has a deviation
# drawn for each episode between 0 and NOISE, and this share of the episodes pushes at random.
WEIGHTS = (0.0, 0.1, 1.0, 0.3)
NOISE = 1.2
RANDOM_SHARE = 0.3


@dataclass(frozen=True)
class Episode:
    """`observations[t]` float32[T, 4] led to `actions[t]` int32[T] and `rewards[t]` float32[T].

    A state is (place of the cart, its speed, angle of the pole, its speed), in m and radians."""

    observations: npt.NDArray[np.float32]
    actions: npt.NDArray[np.int32]
    rewards: npt.NDArray[np.float32]

    @property
    def total(self) -> float:
        """The return: the sum of the rewards."""
        return float(self.rewards.sum())

    @property
    def to_go(self) -> npt.NDArray[np.float32]:
        """The return from each step on, float32[T]."""
        return np.ascontiguousarray(self.rewards[::-1].cumsum()[::-1])


class CartPole:
    """One cart with its pole: `reset`, then `step` until it says that the episode is over."""

    def __init__(self) -> None:
        self.state = np.zeros(4)
        self._steps = MOST_STEPS  # over, until the first reset

    def reset(self, seed: int, episode: int = 0) -> npt.NDArray[np.float32]:
        """The first observation, drawn by (seed, episode)."""
        return self.place(_first(_words(seed, episode, _EVALUATED, 4)))

    def place(self, state: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Start an episode in `state`, 4 numbers."""
        self.state = np.asarray(state, np.float64).copy()
        if self.state.shape != (4,) or not np.isfinite(self.state).all():
            raise DataError(f"a state is 4 numbers, not {self.state}")
        self._steps = 0
        return self.state.astype(np.float32)

    def step(self, action: int) -> tuple[npt.NDArray[np.float32], float, bool]:
        """Push left (0) or right (1): the next observation, the reward, whether it is over."""
        if action not in (0, 1):
            raise DataError(f"an action is 0 or 1, not {action!r}")
        if self._steps >= MOST_STEPS:
            raise DataError("the episode is over: reset the cart first")
        self.state = following(self.state, int(action))
        self._steps += 1
        fallen = abs(self.state[0]) > _PLACE or abs(self.state[2]) > _ANGLE
        over = bool(fallen or self._steps >= MOST_STEPS)
        if over:
            self._steps = MOST_STEPS
        return self.state.astype(np.float32), 1.0, over


def following(state: npt.NDArray[np.float64], action: int) -> npt.NDArray[np.float64]:
    """The state 0.02 s after a push left (0) or right (1), in float64."""
    x, speed, angle, turning = state.tolist()
    force = FORCE if action == 1 else -FORCE
    cosine, sine = math.cos(angle), math.sin(angle)
    push = (force + _MOMENT * turning**2 * sine) / _TOTAL_MASS
    angular = (GRAVITY * sine - cosine * push) / (
        HALF_LENGTH * (4.0 / 3.0 - POLE_MASS * cosine**2 / _TOTAL_MASS)
    )
    linear = push - _MOMENT * angular * cosine / _TOTAL_MASS
    return np.array(
        [
            x + SECONDS * speed,
            speed + SECONDS * linear,
            angle + SECONDS * turning,
            turning + SECONDS * angular,
        ]
    )


@dataclass(frozen=True)
class Logged:
    """The episodes, of which the last tenth are for validation."""

    training: list[Episode]
    validation: list[Episode]


def load(episodes: int = 400, seed: int = 0) -> Logged:
    """`episodes` logged episodes, of a mean return of at most 200."""
    if episodes < 10:
        raise DataError(f"there must be at least 10 episodes, not {episodes}")
    made = [logged(number, seed) for number in range(episodes)]
    held_out = episodes - episodes // 10
    return Logged(made[:held_out], made[held_out:])


def logged(number: int, seed: int = 0) -> Episode:
    """Episode `number` of the behaviour policy (see `WEIGHTS`)."""
    if not 0 <= seed < 1 << 64 or number < 0:
        raise DataError(f"seed {seed}, episode {number}: neither may be negative")
    words = _uniform(_words(seed, number, _LOGGED, 6 + 2 * MOST_STEPS))
    at_random, deviation = words[4] < RANDOM_SHARE, NOISE * words[5]
    # Box and Muller: two even numbers make a normal one.
    even = words[6:].reshape(2, MOST_STEPS)
    noise = np.sqrt(-2.0 * np.log1p(-even[0])) * np.cos(2 * np.pi * even[1])
    cart = CartPole()
    seen = [cart.place(_spread(words[:4]))]
    actions: list[int] = []
    over = False
    while not over:
        leaning = 0.0 if at_random else float(cart.state @ np.array(WEIGHTS))
        spread = 1.0 if at_random else deviation
        actions.append(int(leaning + spread * noise[len(actions)] > 0.0))
        observation, _, over = cart.step(actions[-1])
        seen.append(observation)
    count = len(actions)
    return Episode(np.stack(seen[:count]), np.array(actions, np.int32), np.ones(count, np.float32))


def _words(seed: int, episode: int, stream: int, count: int) -> npt.NDArray[np.uint64]:
    source = np.random.Philox(key=seed, counter=[0, 0, episode, stream])
    words: Any = source.random_raw(count)
    return np.asarray(words, np.uint64)


def _uniform(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    return np.asarray((words >> np.uint64(11)) * 2.0**-53, np.float64)


def _first(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    return _spread(_uniform(words))


def _spread(uniform: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Numbers from 0 to 1 as the numbers of a first state."""
    return np.asarray(_START * (2.0 * uniform - 1.0))
