"""Every model that looks along time, with the masks it takes and small numbers to give it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde import models, nn
from retrograde.models.bodies import body_of
from retrograde.nn.initial import source

Array = npt.NDArray[Any]
V, W, F, B, T, S = 7, 8, 3, 3, 8, 5
LENGTHS, SOURCES = np.array([8, 3, 6]), np.array([2, 5, 4])
SEGMENTS = np.array([[1, 1, 1, 2, 2, 2, 2, 3], [4, 4, 4, 0, 0, 0, 0, 0], [1, 2, 2, 2, 5, 5, 0, 0]])
INSIDE = np.arange(T) < LENGTHS[:, None]


@dataclass(frozen=True)
class Family:
    """A model: `call(model, frames, ids, **masks)` gives numbers [B, T, ...].  `window`: how many
    steps it looks back."""

    make: Callable[[], Any]
    call: Callable[..., Any]
    masks: tuple[str, ...] = ("lengths", "segments")
    causal: bool = True
    frames: bool = False
    window: int | None = None


class Events(nn.Module):
    """Events with time stamps and numbers, through a causal body."""

    events: models.EventEmbedding
    body: Any
    head: nn.Linear

    def __init__(self, kind: str) -> None:
        numbers = source(3)
        self.events = models.EventEmbedding(V, W, inputs=F, seed=numbers)
        self.body = body_of(
            kind, W, 1, bidirectional=False, heads=2, dropout=0.0, numbers=numbers, options={}
        )
        self.head = nn.Linear(W, V, seed=numbers)

    def __call__(
        self, kinds: Any, times: Any, values: Any, lengths: Any = None, segments: Any = None
    ) -> Any:
        x = self.events(kinds, times, values, lengths, segments)
        return self.head(self.body(x, lengths, segments))


def of_tokens(model: Any, frames: Any, ids: Any, **masks: Any) -> Any:
    return model(ids["tokens"], **masks)


def of_frames(model: Any, frames: Any, ids: Any, **masks: Any) -> Any:
    return model(frames["frames"], **masks)


def of_events(model: Any, frames: Any, ids: Any, **masks: Any) -> Any:
    return model(ids["tokens"], frames["times"], frames["frames"], **masks)


def of_pairs(model: Any, frames: Any, ids: Any, lengths: Any = None) -> Any:
    return model(frames["source"], ids["tokens"], ids["source_lengths"], lengths)


def of_trajectories(model: Any, frames: Any, ids: Any, **masks: Any) -> Any:
    return model(frames["times"], frames["frames"], ids["tokens"], **masks)


def gpt(**options: Any) -> Callable[[], Any]:
    return lambda: models.GPT(vocab=V, width=W, heads=2, context=T, **{"layers": 1, **options})


def tagger(body: str, **options: Any) -> Family:
    make = lambda: models.Tagger(  # noqa: E731
        tags=V, inputs=F, width=W, body=body, heads=2, **options
    )
    return Family(make, of_frames, causal=not options.get("bidirectional", True), frames=True)


def lm(cell: str) -> Family:
    return Family(lambda: models.RNNLM(vocab=V, width=W, layers=2, cell=cell), of_tokens)


MODERN = {"positions": "rotary", "mlp": "swiglu", "kv_heads": 1}
FAMILIES: dict[str, Family] = {
    "gpt": Family(gpt(layers=2), of_tokens),
    "gpt, no masks": Family(gpt(layers=2, tied=True), of_tokens, masks=()),
    "gpt, sinusoidal, post-norm": Family(gpt(positions="sinusoidal", norm="post"), of_tokens),
    "gpt, rotary, shared keys": Family(gpt(**MODERN), of_tokens),
    "gpt, window": Family(gpt(window=3, layers=2), of_tokens, window=5),
    "gpt, window alone": Family(gpt(**MODERN, window=2), of_tokens, masks=(), window=2),
    "encoder": Family(
        lambda: models.Encoder(inputs=F, width=W, layers=2, heads=2), of_frames, causal=False,
        frames=True,
    ),
    "encoder, rotary, causal": Family(
        lambda: models.Encoder(
            inputs=F, width=W, layers=1, heads=2, causal=True, window=3, **MODERN
        ),
        of_frames, frames=True, window=3,
    ),
    "seq2seq": Family(
        lambda: models.Seq2Seq(vocab=V, source_inputs=F, width=W, layers=1, heads=2), of_pairs,
        masks=("lengths",),
    ),
    "seq2seq, rotary, post-norm": Family(
        lambda: models.Seq2Seq(
            vocab=V, source_inputs=F, width=W, layers=1, heads=2, norm="post", **MODERN
        ),
        of_pairs, masks=("lengths",),
    ),
    "rnn seq2seq": Family(
        lambda: models.RNNSeq2Seq(vocab=V, source_inputs=F, width=W), of_pairs, masks=("lengths",)
    ),
    "rnn": lm("rnn"),
    "lstm": lm("lstm"),
    "gru": lm("gru"),
    "tcn": Family(lambda: models.TCN(vocab=V, width=W, layers=2, size=2), of_tokens, window=7),
    "ssm": Family(lambda: models.SSMLM(vocab=V, width=W, layers=2, state=2), of_tokens),
    "tagger, attention": tagger("attention"),
    "tagger, lstm": tagger("lstm"),
    "tagger, tcn around": tagger("tcn"),
    "tagger, ssm": tagger("ssm", bidirectional=False),
    "events, attention": Family(lambda: Events("attention"), of_events, frames=True),
    "events, gru": Family(lambda: Events("gru"), of_events, frames=True),
    "trajectories": Family(
        lambda: models.TrajectoryTransformer(states=F, actions=V, width=W, layers=1, heads=2),
        of_trajectories, frames=True,
    ),
}  # fmt: skip


def numbers() -> tuple[dict[str, Array], dict[str, Array]]:
    """What is given: floats, and integers."""
    rng = np.random.default_rng(4)
    frames = {
        "frames": rng.normal(size=(B, T, F)), "times": np.cumsum(rng.random((B, T)), 1),
        "source": rng.normal(size=(B, S, F)),
    }  # fmt: skip
    return {k: x.astype("f4") for k, x in frames.items()}, {
        "tokens": rng.integers(0, V, (B, T)), "source_lengths": SOURCES,
    }  # fmt: skip
