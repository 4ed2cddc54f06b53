"""Batches: one long row of tokens -> `{"tokens": int32[B, T], "targets": int32[B, T]}`.

Invariant: targets are the tokens one place later, and batch k is a function of (tokens, B, T, seed,
k) alone, so a run that resumes at batch k sees what the uninterrupted run saw.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde.compiler.errors import CheckpointError, DataError
from retrograde.runtime.data.epochs import BATCHES, EpochBatches, Rest, checked_rest, shuffled
from retrograde.runtime.data.token_file import TokenFile, checksum

Tokens = npt.NDArray[Any] | TokenFile
Batch = dict[str, npt.NDArray[np.int32]]


class Windows:
    """An endless iterator over batches of random windows, drawn with replacement."""

    def __init__(self, tokens: Tokens, batch: int, length: int, seed: int = 0) -> None:
        """`tokens` are integers on one axis, or a `TokenFile`, of which only windows are read.

        `seed` is a whole number from 0 to 2**64 - 1.  Raises `DataError` for what cannot be.
        """
        self._tokens = _checked(tokens, batch, length)
        self._crc32 = tokens.crc32 if isinstance(tokens, TokenFile) else None
        if not 0 <= seed < 1 << 64:
            raise DataError(f"the seed must be from 0 to 2**64 - 1, not {seed}")
        self.batch, self.length, self.seed = batch, length, seed
        self.position = 0

    def __iter__(self) -> Windows:
        return self

    def __next__(self) -> Batch:
        batch = self.at(self.position)
        self.position += 1
        return batch

    def at(self, position: int) -> Batch:
        """Batch number `position`; the iterator stays where it is."""
        # Philox is a block cipher over a counter: the batch's number in the third word leaves
        # 2**128 blocks to each batch.  Its raw words are fixed by NumPy for good (NEP 19), which
        # the distributions of `Generator` are not.  The remainder favours no start by more than
        # one part in 2**64 / starts.
        source = np.random.Philox(key=self.seed, counter=[0, 0, position, 0])
        starts = self._tokens.size - self.length
        words = source.random_raw(self.batch) % np.uint64(starts)
        return _windows(self._tokens, words.astype(np.int64), self.length)

    def state(self) -> dict[str, Any]:
        """Where the iterator is, and of which data: JSON for a checkpoint."""
        return {"position": self.position, **self._identity}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken; raises `CheckpointError` if that was other data."""
        for name, here in self._identity.items():
            if state.get(name) != here:
                raise CheckpointError(
                    f"the checkpoint was made with other data: its {name} is "
                    f"{state.get(name)!r}, here it is {here!r}. Resume with the text, batch, "
                    "length and seed of that run, or start a new one without resuming."
                )
        position = state.get("position")
        if not isinstance(position, int) or position < 0:
            raise CheckpointError(f"the checkpoint has no position in the data, but {position!r}")
        self.position = position

    @cached_property
    def _identity(self) -> dict[str, Any]:
        return {
            "batch": self.batch,
            "length": self.length,
            "seed": self.seed,
            "tokens": int(self._tokens.size),
            "crc32": checksum(self._tokens) if self._crc32 is None else self._crc32,
        }


class EpochWindows(EpochBatches[Batch]):
    """Windows that do not overlap, in another order each epoch: a token is a target at most once.

    Each epoch starts at another token, so that windows begin elsewhere; fewer than 2 `length`
    tokens at the two ends are left out of an epoch.  The last batch is smaller where `batch` does
    not divide the number of windows, unless `rest="drop"` leaves it out.
    """

    def __init__(
        self, tokens: Tokens, batch: int, length: int, seed: int = 0, rest: Rest = "keep"
    ) -> None:
        super().__init__(seed)
        self._tokens = _checked(tokens, batch, length)
        self._crc32 = tokens.crc32 if isinstance(tokens, TokenFile) else None
        self.batch, self.length, self.rest = batch, length, checked_rest(rest)
        # As many as fit behind the latest start, so that every epoch has equally many.
        self.windows = max(1, (self._tokens.size - length) // length)
        self._starts = min(length, self._tokens.size - self.windows * length)
        if self.rest == "drop" and self.windows < batch:
            raise DataError(
                f"{self.windows} windows are less than one batch of {batch}, and rest='drop' "
                "leaves out what is: use a longer text, a smaller batch, or rest='keep'"
            )

    @property
    def batches_per_epoch(self) -> int:
        """How many batches make an epoch."""
        drops = self.rest == "drop"
        return self.windows // self.batch if drops else -(-self.windows // self.batch)

    def _arrange(self, epoch: int) -> npt.NDArray[np.int64]:
        start = int(shuffled(self._starts, self.seed, epoch, BATCHES)[0])
        return start + self.length * shuffled(self.windows, self.seed, epoch)

    def _make(self, plan: Any, number: int) -> Batch:
        chosen = plan[number * self.batch : (number + 1) * self.batch]
        return _windows(self._tokens, chosen, self.length)

    def _describe(self) -> dict[str, Any]:
        return {
            "kind": "windows",
            "batch": self.batch,
            "length": self.length,
            "rest": self.rest,
            "tokens": int(self._tokens.size),
            "crc32": checksum(self._tokens) if self._crc32 is None else self._crc32,
        }


def evaluation_batches(
    tokens: Tokens, batch: int, length: int, limit: int | None = None
) -> Iterator[Batch]:
    """Non-overlapping windows of `tokens` in order, `batch` at a time, the last batch maybe fewer.

    A rest that fills no window is left out.  With `limit`, at most so many batches, whose windows
    are spread evenly over the text.  The batches are not all of one size: weight their losses.
    """
    checked = _checked(tokens, batch, length)
    if limit is not None and limit < 1:
        raise DataError(f"the number of evaluation batches must be at least 1, not {limit}")
    count = (checked.size - 1) // length
    kept = count if limit is None else min(count, limit * batch)
    starts = np.arange(kept, dtype=np.int64) * count // kept * length
    # The checks above run at the call, not at the first batch: hence the inner generator.
    return (
        _windows(checked, starts[first : first + batch], length) for first in range(0, kept, batch)
    )


def _checked(tokens: Tokens, batch: int, length: int) -> npt.NDArray[Any]:
    if batch < 1 or length < 1:
        raise DataError(f"batch and length must be at least 1, not {batch} and {length}")
    mapped = isinstance(tokens, TokenFile)
    tokens = tokens.tokens if isinstance(tokens, TokenFile) else tokens
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise DataError(f"tokens must be integers on one axis, not {tokens.dtype}{tokens.shape}")
    if tokens.size < length + 1:
        raise DataError(
            f"the text is too short: a window of {length} and the token after it need "
            f"{length + 1} tokens, and there are {tokens.size}. Use a longer text or a shorter "
            "window."
        )
    if not np.can_cast(tokens.dtype, np.int32) and tokens.max() > np.iinfo(np.int32).max:
        raise DataError(f"the token {tokens.max()} does not fit 32 bits")
    return tokens if mapped else np.ascontiguousarray(tokens, dtype=np.int32)


def _windows(tokens: npt.NDArray[Any], starts: npt.NDArray[np.int64], length: int) -> Batch:
    rows = np.lib.stride_tricks.sliding_window_view(tokens, length + 1)[starts]
    return {
        "tokens": np.ascontiguousarray(rows[:, :-1], np.int32),
        "targets": np.ascontiguousarray(rows[:, 1:], np.int32),
    }
