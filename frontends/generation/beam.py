"""Beam search: prompts -> for each the likeliest continuation that was found.

Each row keeps the `beams` likeliest texts.  Texts of unequal lengths are compared by log
probability / ((5 + tokens) / 6)^penalty (Wu et al., Google's neural machine translation system,
2016), and a row ends when no open text can become better than its best complete one.  Invariant:
with one beam it is greedy search; what is found for a row does not depend on the other rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde.compiler.errors import DataError
from retrograde.generation.window import Window

Array = npt.NDArray[Any]


@dataclass
class Beam:
    """The open texts of one row: log probabilities [beams], new tokens of each; the best text that
    is complete."""

    scores: Array
    texts: list[list[int]] = field(default_factory=list)
    best: list[int] = field(default_factory=list)
    value: float = -np.inf
    done: bool = False

    def offer(self, text: list[int], score: float, count: int, penalty: float) -> None:
        """Takes a complete text if it is better than the best."""
        value = score / norm(count, penalty)
        if value > self.value:
            self.best, self.value = list(text), value


def norm(tokens: int, penalty: float) -> float:
    """What the log probability of a text is divided by."""
    return float(((5.0 + tokens) / 6.0) ** penalty)


def searched(
    window: Window,
    prompts: Sequence[Array],
    steps: int,
    beams: int,
    stop: frozenset[int] = frozenset(),
    never: Sequence[int] = (),
    penalty: float = 0.6,
) -> list[list[int]]:
    """The tokens that follow each prompt, a stop token not among them.  The window has beams rows
    for each prompt."""
    lengths = [len(p) for p in prompts]
    found = [
        Beam(np.where(np.arange(beams) == 0, 0.0, -np.inf), [[] for _ in range(beams)])
        for _ in prompts
    ]
    if not steps:
        return [[] for _ in prompts]
    here = min(lengths)
    start = np.stack([p[:here] for p in prompts])
    logits = window.extend(np.repeat(start, beams, axis=0))
    own = np.arange(beams)
    while True:
        tokens = np.repeat(window.text[:, -1], 1).reshape(len(prompts), beams)
        parents = np.tile(own, (len(prompts), 1))
        for r, row in enumerate(found):
            if row.done:
                continue
            if here < lengths[r]:
                tokens[r] = prompts[r][here]
                continue
            count = here - lengths[r] + 1  # tokens with the one to come
            scores = _log_softmax(logits[r * beams : (r + 1) * beams], never)
            parents[r], tokens[r] = _step(row, scores, beams, stop, count, steps, penalty)
        if all(row.done for row in found):
            return [row.best for row in found]
        flat = (parents + beams * np.arange(len(prompts))[:, None]).reshape(-1)
        logits = window.extend(tokens.reshape(-1, 1), flat)
        here += 1


def _step(
    row: Beam, scores: Array, beams: int, stop: frozenset[int], count: int, steps: int,
    penalty: float,
) -> tuple[Array, Array]:  # fmt: skip
    """Goes one token on: (which text each open one comes from, its new token)."""
    total = row.scores[:, None] + scores
    classes = total.shape[1]
    many = min(total.size, beams * (1 + len(stop)))  # so many that enough are not at their end
    order = np.argsort(-total.reshape(-1), kind="stable")[:many]
    parents = np.zeros(beams, np.int64)
    tokens = np.zeros(beams, np.int64)
    open_scores = np.full(beams, -np.inf)
    texts: list[list[int]] = []
    for place in order:
        parent, token = divmod(int(place), classes)
        score = float(total[parent, token])
        if score == -np.inf or len(texts) == beams:
            break
        if token in stop:
            row.offer(row.texts[parent], score, count, penalty)
            continue
        parents[len(texts)], tokens[len(texts)] = parent, token
        open_scores[len(texts)] = score
        texts.append([*row.texts[parent], token])
    row.scores = open_scores
    row.texts = texts + [[] for _ in range(beams - len(texts))]
    if count == steps or not texts:
        for text, score in zip(texts, open_scores, strict=False):
            row.offer(text, float(score), count, penalty)
        row.done = True
    else:  # log probabilities only fall, and the longest text is divided by most
        most = norm(steps if penalty > 0 else count + 1, penalty)
        row.done = bool(open_scores[0] / most <= row.value)
    return parents, tokens


def _log_softmax(logits: Array, never: Sequence[int]) -> Array:
    scores = logits.astype(np.float64)
    scores[:, list(never)] = -np.inf
    top = scores.max(axis=-1, keepdims=True)
    if not np.all(np.isfinite(top)):
        raise DataError("the model gives no number for any next token: its weights have none")
    out: Array = scores - top
    out -= np.log(np.exp(out).sum(axis=-1, keepdims=True))
    return out
