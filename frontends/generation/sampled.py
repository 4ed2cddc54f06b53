"""Rows of text that go on: prompts -> the tokens that follow, one step after the other.

Rows begin together at the first token.  One whose prompt goes on is fed that while others are
sampled already.  Invariant: what follows a prompt does not depend on the other rows, up to rounding
of the logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde.generation.choosing import Sampling, Stream
from retrograde.generation.window import Window

Array = npt.NDArray[Any]


def followed(
    window: Window,
    prompts: Sequence[Array],
    steps: int | None,
    sampling: Sampling,
    stop: frozenset[int] = frozenset(),
    never: Sequence[int] = (),
) -> Iterator[list[int | None]]:
    """At each step the new token of each row; None for a row that has none there.

    A row ends after so many `steps`, or with a stop token, which is told as None."""
    lengths = [len(p) for p in prompts]
    streams = [Stream(sampling, row) for row in range(len(prompts))]
    left = [-1 if steps is None else steps for _ in prompts]
    here = min(lengths)
    if not any(left):
        return
    logits = window.extend(np.stack([p[:here] for p in prompts]))
    while True:
        going = [r for r, n in enumerate(left) if n]
        ahead = min(lengths[r] for r in going) - here
        if ahead > 0:  # prompts alone
            fed = np.repeat(window.text[:, -1:], ahead, axis=1)
            for r in going:
                fed[r] = prompts[r][here : here + ahead]
            logits = window.extend(fed)
            here += ahead
        told: list[int | None] = [None] * len(prompts)
        after = window.text[:, -1].copy()  # what a row that has ended is fed does not matter
        for r in going:
            if here < lengths[r]:
                after[r] = prompts[r][here]
                continue
            token = streams[r].choose(logits[r], never)
            left[r] -= 1
            if token in stop:
                left[r] = 0
                continue
            told[r] = after[r] = token
        yield told
        if not any(left):
            return
        logits = window.extend(after[:, None])
        here += 1
