"""CartPole: the rules are those of gymnasium, the logged policy is mediocre, the episodes fixed."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrograde.compiler.errors import DataError
from retrograde.runtime.data.sets import cartpole
from retrograde.runtime.data.sets.cartpole import CartPole

states = st.tuples(*(st.floats(-bound, bound, width=64) for bound in (2.4, 4.0, 0.2, 4.0)))


@given(states, st.integers(0, 1))
def test_a_step_keeps_the_laws_of_motion(state: tuple[float, ...], action: int) -> None:
    """The accelerations solve the two equations of motion of Barto, Sutton and Anderson (1983),
    without friction: of the cart and pole together, and of the pole about its pivot."""
    x, speed, angle, turning = state
    after = cartpole.following(np.array(state), action).tolist()
    linear = (after[1] - speed) / cartpole.SECONDS
    angular = (after[3] - turning) / cartpole.SECONDS
    assert after[0] == pytest.approx(x + cartpole.SECONDS * speed)
    assert after[2] == pytest.approx(angle + cartpole.SECONDS * turning)
    force = 10.0 if action else -10.0
    together = 1.1 * linear + 0.1 * 0.5 * (angular * math.cos(angle) - turning**2 * math.sin(angle))
    assert together == pytest.approx(force, abs=1e-9)
    about = 4 / 3 * 0.5 * angular + linear * math.cos(angle)
    assert about == pytest.approx(9.8 * math.sin(angle), abs=1e-9)


@given(st.integers(0, 2**32 - 1))
def test_the_rules_are_those_of_gymnasium(seed: int) -> None:
    gymnasium = pytest.importorskip("gymnasium")
    theirs: Any = gymnasium.make("CartPole-v1").unwrapped
    limit = gymnasium.spec("CartPole-v1").max_episode_steps
    assert limit == cartpole.MOST_STEPS
    first, _ = theirs.reset(seed=seed)
    ours = CartPole()
    assert np.abs(first).max() <= 0.05
    start = np.array(theirs.state, np.float64)
    np.testing.assert_array_equal(ours.place(start), first)
    rng = np.random.default_rng(seed)
    over, steps = False, 0
    while not over:
        # Now by chance, now leaning: episodes of all lengths, up to the limit.
        leaning = ours.state @ np.array([0.0, 0.1, 1.0, 0.3]) > 0
        action = int(leaning if rng.random() < (seed % 4) / 3 else rng.integers(2))
        observation, reward, over = ours.step(action)
        their_observation, their_reward, terminated, _, _ = theirs.step(action)
        steps += 1
        np.testing.assert_array_equal(observation, their_observation)
        assert reward == their_reward
        assert over == (terminated or steps == limit)


def test_the_policy_is_mediocre_and_its_episodes_uneven() -> None:
    for seed in (0, 1, 2):
        data = cartpole.load(seed=seed)
        assert [len(data.training), len(data.validation)] == [360, 40]
        for part in (data.training, data.validation):
            totals = np.array([episode.total for episode in part])
            assert 40 <= totals.mean() <= 200
        assert totals.min() < 20
        assert max(episode.total for episode in data.training) == 500


def test_an_episode_is_of_its_seed_and_number_alone() -> None:
    data = cartpole.load(30, seed=3)
    digest = hashlib.sha256()
    for number, episode in enumerate(data.training + data.validation):
        again = cartpole.logged(number, seed=3)
        for name in ("observations", "actions", "rewards"):
            np.testing.assert_array_equal(getattr(episode, name), getattr(again, name))
        digest.update(episode.actions.tobytes())
    assert digest.hexdigest()[:16] == PINNED
    assert cartpole.logged(0, 4).actions.tobytes() != cartpole.logged(0, 3).actions.tobytes()


PINNED = "1b65254243e04809"


def test_an_episode_follows_the_rules_and_ends_where_the_pole_falls() -> None:
    for number in range(20):
        episode = cartpole.logged(number)
        count = len(episode.actions)
        assert episode.observations.shape == (count, 4)
        assert episode.observations.dtype == np.float32
        assert np.abs(episode.observations[0]).max() <= 0.05
        assert count == 500 or count == episode.total < 500
        assert episode.to_go.tolist() == list(range(count, 0, -1))
        cart = CartPole()
        cart.place(episode.observations[0].astype(np.float64))
        for step in range(min(count - 1, 30)):
            seen, _, over = cart.step(int(episode.actions[step]))
            assert not over
            np.testing.assert_allclose(seen, episode.observations[step + 1], atol=1e-4)


def test_resets_are_drawn_by_seed_and_episode() -> None:
    cart = CartPole()
    firsts = [cart.reset(7, episode) for episode in range(50)]
    np.testing.assert_array_equal(CartPole().reset(7, 3), firsts[3])
    assert len({first.tobytes() for first in firsts}) == 50
    assert 0.03 < np.abs(firsts).max() <= 0.05
    assert cartpole.logged(3, 7).observations[0].tobytes() != firsts[3].tobytes()


def test_what_cannot_be() -> None:
    cart = CartPole()
    with pytest.raises(DataError, match="the episode is over"):
        cart.step(1)
    cart.place([0.0, 0.0, 0.2, 3.0])
    assert cart.step(0)[2]
    with pytest.raises(DataError, match="the episode is over"):
        cart.step(0)
    cart.reset(0)
    with pytest.raises(DataError, match="an action is 0 or 1, not 2"):
        cart.step(2)
    for state in ([0.0] * 3, [0.0, 0.0, 0.0, float("nan")]):
        with pytest.raises(DataError, match="a state is 4 numbers"):
            cart.place(state)
    for arguments in ((9, 0), (20, -1), (20, 2**64)):
        with pytest.raises(DataError, match=r"at least 10 episodes|neither may be"):
            cartpole.load(*arguments)
