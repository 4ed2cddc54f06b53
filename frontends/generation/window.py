"""What a model looks at of a text that outgrows it: (session, tokens so far) -> the next logits.

What is known of every place beforehand goes with the tokens that stand there.

A model that looks at `longest` tokens at most sees the last ones of a longer text.  They are
computed anew where the window moves: for every token, or if `keep` is less than longest - 1, only
when the window is full, after which `keep` tokens are left.  Invariant: what is seen of t tokens
depends on t alone, not on how they were fed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde.compiler.errors import DataError
from retrograde.compiler.ir.location import where
from retrograde.generation import known as beside
from retrograde.generation.decoder import Session

Array = npt.NDArray[Any]


class Window:
    """Rows of text, and the session that has seen their end."""

    def __init__(
        self, session: Session, keep: int | None = None, known: Mapping[str, Any] | None = None
    ) -> None:
        longest = session.of.longest
        if keep is not None and longest is None:
            raise DataError(f"{where()}keep={keep}: the model looks at texts of any length")
        if keep is not None and longest is not None and not 0 <= keep < longest:
            raise DataError(f"{where()}keep is {keep}: it is from 0 to {longest - 1}")
        self.session = session
        self.known = dict(known or {})
        self.longest = longest
        self.moved = 1 if keep is None or longest is None else longest - keep
        self.text = np.zeros((session.rows, 0), np.int64)
        self._from = 0  # the first token that is seen

    def extend(self, tokens: Array, parents: Array | None = None) -> Array:
        """The logits [B, V] behind the tokens [B, N]; with `parents` [B] behind other rows."""
        before = self.text if parents is None else self.text[parents]
        self.text = np.concatenate([before, tokens], axis=1)
        count = self.text.shape[1]
        start = self._start(count)
        if start != self._from:
            self.session.restart()
            self._from = start
            parents = None
        new = self._from + self.session.start
        known = beside.cut(self.known, new, count)
        out: Array = self.session.feed(self.text[:, new:], parents, known)[:, -1]
        return out

    def _start(self, count: int) -> int:
        if self.longest is None or count <= self.longest:
            return 0
        return -(-(count - self.longest) // self.moved) * self.moved
