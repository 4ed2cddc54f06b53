"""The recipe `cartpole`: logged episodes of a mediocre policy -> a policy told what to reach.

A causal network reads at each step the return that is to come, the state, and the action before;
it learns which action was taken there (Chen et al., "Decision Transformer", 2021).  Asked for more
than most episodes reached, it does what the best of them did.  Invariant: an action depends on
what came before it alone, and every episode that is acted in has a start that was not logged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import retrograde as rg
import retrograde.numpy as rnp
from retrograde import nn
from retrograde.cli.recipe import Settings, Training, settings_of
from retrograde.cli.settings import Setting
from retrograde.compiler.errors import DataError
from retrograde.recipes import carts, pictures, task
from retrograde.recipes.tagging import within
from retrograde.recipes.task import Array, Evaluation, Saved, Task, Totals
from retrograde.runtime.data.padded import Padded
from retrograde.runtime.data.sets import cartpole as data_set

EPISODES = 50
_SHOWN = 10  # episodes of a prediction
_START = 2  # the action before the first one
_SEED = 1000  # of the episodes that are acted in
_TARGETS = (50.0, 100.0, 200.0, 300.0, 500.0)
_SPREAD = np.array([0.5, 0.6, 0.08, 0.6], np.float32)  # about the deviations of a state


class Policy(nn.Module):
    """Returns to go, states and actions before [B, T, …] -> logits [B, T, 2] of the action."""

    of_state: nn.Linear
    before: nn.Embedding
    blocks: tuple[PolicyBlock, ...]
    norm: nn.LayerNorm
    head: nn.Linear
    positions: nn.Embedding

    def __init__(
        self, context: int, width: int, layers: int, heads: int, dropout: float, seed: int
    ) -> None:
        numbers = nn.initial.source(seed)
        self.of_state = nn.Linear(5, width, seed=numbers)
        self.before = nn.Embedding(3, width, seed=numbers, std=0.1)
        self.positions = nn.Embedding(context, width, seed=numbers)
        self.blocks = tuple(PolicyBlock(width, heads, dropout, numbers) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 2, seed=numbers)

    def __call__(self, to_go: Any, states: Any, before: Any) -> Any:
        told = rnp.concatenate(
            [states * (1.0 / _SPREAD), to_go[:, :, None] * np.float32(1 / data_set.MOST_STEPS)],
            axis=-1,
        )
        x = self.of_state(told) + self.before(before)
        x = x + self.positions(rnp.arange(before.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class PolicyBlock(nn.Module):
    """Causal attention and a network, each added to what they read."""

    attention_norm: nn.LayerNorm
    attention: nn.MultiHeadAttention
    mlp_norm: nn.LayerNorm
    up: nn.Linear
    down: nn.Linear
    dropout: nn.Dropout

    def __init__(self, width: int, heads: int, dropout: float, numbers: nn.Source) -> None:
        self.attention_norm = nn.LayerNorm(width)
        self.attention = nn.MultiHeadAttention(width, heads, dropout=dropout, seed=numbers)
        self.mlp_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width, seed=numbers)
        self.down = nn.Linear(4 * width, width, seed=numbers)
        self.dropout = nn.Dropout(dropout)

    def __call__(self, x: Any) -> Any:
        x = x + self.attention(self.attention_norm(x))
        return x + self.dropout(self.down(rnp.gelu(self.up(self.mlp_norm(x)))))


def loss(model: Any, to_go: Any, states: Any, before: Any, actions: Any, lengths: Any) -> Any:
    """The mean cross-entropy of a logged action, in nats."""
    logits = model(to_go, states, before)
    return rg.losses.cross_entropy(logits, actions, within(lengths, actions))


def measured(
    model: Any, to_go: Any, states: Any, before: Any, actions: Any, lengths: Any
) -> Mapping[str, Any]:
    """The loss and the share of logged actions that are said."""
    logits = model(to_go, states, before)
    inside = within(lengths, actions)
    right = rnp.logical_and(inside, rnp.equal(rnp.argmax(logits, axis=-1), actions))
    return {
        "loss": rg.losses.cross_entropy(logits, actions, inside),
        "accuracy": rg.Mean(rnp.sum(rnp.astype(right, "f32")), rnp.sum(rnp.astype(inside, "i32"))),
    }


def pieces(episodes: Sequence[data_set.Episode], context: int) -> list[dict[str, Array]]:
    """Each episode as pieces of at most `context` steps, half of one apart."""
    found = []
    for episode in episodes:
        before = np.concatenate([[_START], episode.actions[:-1]]).astype(np.int32)
        count = episode.actions.size
        for start in range(0, max(1, count - context // 2), max(1, context // 2)):
            here = slice(start, start + context)
            found.append(
                {
                    "to_go": episode.to_go[here],
                    "states": episode.observations[here],
                    "before": before[here],
                    "actions": episode.actions[here],
                }
            )
    return found


@dataclass(frozen=True)
class CartPole(Task):
    """The recipe."""

    name: str = "cartpole"
    settings: tuple[Setting, ...] = settings_of(
        (
            Setting("context", 16, int, "steps that the policy sees"),
            Setting("batch", 64, int, "pieces of episodes a step"),
            Setting("width", 64, int, "of the model"),
            Setting("layers", 2, int, "blocks of the model"),
            Setting("heads", 4, int, "of attention"),
            Setting("target", 500.0, float, "the return that is asked for"),
            *task.training_settings(1e-3, warmup=50, weight_decay=0.05, dropout=0.1),
        ),
        steps=600,
        time_limit=500.0,
        validate_every=200,
        threads=1,
    )

    def build(self, settings: Settings) -> Training:
        """Makes the episodes, the model and its batches."""
        data = data_set.load()
        context = settings["context"]
        noted = {"returns": [episode.total for episode in data.training]}
        batches = Padded(
            pieces(data.training, context),
            settings["batch"],
            length=context,
            seed=settings["seed"],
        )
        kept = Padded(pieces(data.validation, context), 64, length=context, shuffle=False)
        specs = specs_of(context)
        at = {"B": settings["batch"], **({"T": context} if context > 1 else {})}
        return Training(
            model=self.make_model(settings, noted),
            loss=loss,
            optimizer=task.adamw(settings),
            specs=specs,
            at=at,
            batches=batches,
            clip_norm=settings["clip_norm"],
            validate=Totals(
                measured,
                lambda: map(kept.at, range(kept.batches_per_epoch)),
                specs,
                at,
                settings["backend"],
            ),
            meta={"noted": noted},
        )

    def make_model(self, settings: Settings, noted: Mapping[str, Any]) -> Any:
        return Policy(
            settings["context"],
            settings["width"],
            settings["layers"],
            settings["heads"],
            settings["dropout"],
            settings["seed"],
        )

    def evaluate(self, saved: Saved) -> Evaluation:
        """The mean return of 50 episodes, and what comes of asking for less."""
        target = saved.settings["target"]
        asked = np.array(sorted({*_TARGETS, target}))
        logged = np.array(saved.noted["returns"])
        policy = policy_of(saved, EPISODES)
        rng = np.random.Generator(np.random.Philox(0))
        chance = played(lambda _, count: rng.integers(0, 2, count), EPISODES)
        reached = {
            "the likelier action": np.array([acted(saved, policy, t).mean() for t in asked]),
            "drawn actions": np.array([acted(saved, policy, t, draw=True).mean() for t in asked]),
        }
        said = self.build(saved.settings).validate
        assert said is not None
        return Evaluation(
            f"{EPISODES} new episodes in {carts.place()}",
            {
                **_returns(acted(saved, policy, target)),
                "logged actions said, taught": said(saved.model)["accuracy"],
            },
            {
                "drawn actions": _returns(acted(saved, policy, target, draw=True)),
                "logged": _returns(logged),
                "by chance": _returns(chance),
            },
            {
                "returns.svg": pictures.lines(
                    {"asked for": (asked, asked), **{k: (asked, v) for k, v in reached.items()}},
                    "return that is asked for", "mean return", f"{EPISODES} episodes each",
                )
            },
            "taught: in logged episodes of the validation part, whose actions before are known\n"
            + "\n".join(
                f"{how}, asked for: "
                + ", ".join(f"{t:.0f} -> {mean:.0f}" for t, mean in zip(asked, means, strict=True))
                for how, means in reached.items()
            ),
        )  # fmt: skip

    def predict(self, saved: Saved, inputs: Sequence[str]) -> Iterable[str]:
        """Inputs are returns to ask for; each in ten episodes of drawn actions."""
        targets = [_number(text) for text in inputs]
        policy = policy_of(saved, _SHOWN)
        for text, target in zip(inputs, targets, strict=True):
            returns = acted(saved, policy, target, _SHOWN, draw=True)
            yield (
                f"{text}: " + " ".join(f"{r:.0f}" for r in returns) + f", mean {returns.mean():.1f}"
            )


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise DataError(f"{text!r}: give a return to ask for, a number") from None


def specs_of(context: int) -> dict[str, Any]:
    """What a batch is made of."""
    time = rg.dim("T", max=context)
    return {
        "to_go": rg.spec("f32", "B", time),
        "states": rg.spec("f32", "B", time, 4),
        "before": rg.spec("i32", "B", time),
        "actions": rg.spec("i32", "B", time),
        "lengths": rg.spec("i32", "B"),
    }


def policy_of(saved: Saved, episodes: int) -> Any:
    """The compiled policy: `policy(model, seen)` -> logits of the next action, [episodes, 2]."""
    context = saved.settings["context"]
    specs = specs_of(context)
    del specs["actions"], specs["lengths"]
    return rg.compile(
        lambda model, seen: model(seen["to_go"], seen["states"], seen["before"])[:, -1],
        saved.model.eval(),
        specs,
        at={"B": episodes, **({"T": context} if context > 1 else {})},
        backend=saved.settings["backend"],
    )


def acted(
    saved: Saved, policy: Any, target: float, episodes: int | None = None, draw: bool = False
) -> Array:
    """The returns of episodes in which the policy acts, asked for `target`.

    It takes the likelier action, or draws one by the chances that it gives to both."""
    episodes = EPISODES if episodes is None else episodes
    context = saved.settings["context"]
    model = saved.model.eval()
    rng = np.random.Generator(np.random.Philox(1))
    states: list[Array] = []
    before = [np.full(episodes, _START, np.int32)]

    def act(observations: Array, count: int) -> Array:
        states.append(observations)
        here = slice(max(0, len(states) - context), len(states))
        # One is got for each step, so that much less remains to be reached.
        to_go = np.maximum(target - np.arange(here.start, here.stop), 1.0).astype(np.float32)
        seen = {
            "to_go": np.tile(to_go, (count, 1)),
            "states": np.ascontiguousarray(np.stack(states[here], axis=1)),
            "before": np.ascontiguousarray(np.stack(before[here], axis=1)),
        }
        lean = policy(model, seen) @ np.array([-1.0, 1.0])
        words = rng.random(count) if draw else np.full(count, 0.5)
        actions: Array = (words < 1.0 / (1.0 + np.exp(-lean))).astype(np.int32)
        before.append(actions)
        return actions

    return played(act, episodes)


def played(act: Any, episodes: int) -> Array:
    """The returns of `episodes` episodes at once; `act(observations [n, 4], n)` gives actions."""
    every = [carts.make() for _ in range(episodes)]
    seen = np.stack([cart.reset(_SEED, k) for k, cart in enumerate(every)])
    returns = np.zeros(episodes)
    going = np.ones(episodes, bool)
    while going.any():
        actions = act(seen.copy(), episodes)
        for k in np.flatnonzero(going):
            seen[k], reward, over = every[k].step(int(actions[k]))
            returns[k] += reward
            going[k] = not over
    return returns


def _returns(returns: Array) -> dict[str, float]:
    return {
        "mean return": float(returns.mean()),
        "least": float(returns.min()),
        "most": float(returns.max()),
    }
