"""Where the policy of `cartpole` acts: in gymnasium's environment, or by the same rules of ours."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retrograde.recipes import carts
from retrograde.recipes.cartpole import played
from retrograde.runtime.data.sets.cartpole import CartPole
from tests.recipes.small import pairs

EPISODES = 12


class Placed(CartPole):
    """Ours, from where an episode of theirs begins."""

    def reset(self, seed: int, episode: int = 0) -> Any:
        theirs = carts.Gymnasium()
        theirs.reset(seed, episode)
        return self.place(theirs.environment.unwrapped.state)


class Acting:
    """A policy between leaning and chance, which keeps what it saw: some episodes end early."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(7)
        self.seen: list[Any] = []

    def __call__(self, observations: Any, count: int) -> Any:
        self.seen.append(observations)
        leaning = observations @ np.array([0.0, 0.1, 1.0, 0.3]) > 0
        chance = self.rng.random(count) < np.linspace(0.0, 0.6, count)
        return np.where(chance, self.rng.integers(0, 2, count), leaning).astype(np.int32)


def test_both_kinds_go_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gymnasium", reason="gymnasium is missing: pip install retrograde[control]")
    found = []
    for kind in (carts.Gymnasium, Placed):
        monkeypatch.setattr(carts, "make", kind)
        acting = Acting()
        found.append((played(acting, EPISODES), np.stack(acting.seen)))
    (one, seen), (other, also) = found
    assert one.min() < 100 and one.max() == 500  # falls, and the limit
    np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(seen, also)


def test_the_evaluation_says_where_it_acted(
    run: Callable[..., Any], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [part for pair in pairs("cartpole") for part in ("--set", pair)]
    run("train", "cartpole", "--no-progress", "--steps", 2, *options)
    kept = here / "runs/cartpole-1/evaluation.json"
    places = ["CartPole-v1 of gymnasium "] if carts.has_gymnasium() else []
    for place in (*places, carts.OWN):
        if place == carts.OWN:
            monkeypatch.setattr(carts, "has_gymnasium", lambda: False)
            monkeypatch.setitem(sys.modules, "gymnasium", None)  # whoever imports it fails
        assert place in run("evaluate").output
        assert place in json.loads(kept.read_text())["part"]
