"""Streams: a source that is read from front to back -> batches, of more than memory holds.

A source is called with a number and gives the examples from that one on.  Invariant: what comes is
a function of (source, settings, seed) alone; every example comes once an epoch; a run resumes by
asking the source for the block it was in.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from retrograde.compiler.errors import DataError
from retrograde.runtime.data.epochs import (
    Rest,
    check_same,
    checked_position,
    checked_rest,
    checked_seed,
)
from retrograde.runtime.data.examples import Batch, Collection

Source = Callable[[int], Iterator[Any]]
_BLOCKS = 3  # the stream of random words, beside those of `epochs`
_EVERY = 1024  # lines between two remembered places of a file


class Streaming:
    """Batches of a source, each epoch anew, endless or for `epochs`.

    `source(start)` gives examples from number `start` on, the same at every call; a `describe()`
    of it, JSON, is kept in checkpoints.  Examples change places among `buffer` consecutive ones,
    all that is held in memory.  `collate` makes a batch of a list of examples (default: padded to
    the longest, as in `Padded`).
    """

    def __init__(
        self,
        source: Source,
        batch: int,
        *,
        collate: Callable[[list[Any]], Batch] | None = None,
        buffer: int = 1024,
        epochs: int | None = None,
        seed: int = 0,
        shuffle: bool = True,
        rest: Rest = "keep",
    ) -> None:
        if batch < 1 or buffer < 1:
            raise DataError(f"batch and buffer must be at least 1, not {batch} and {buffer}")
        if epochs is not None and epochs < 1:
            raise DataError(f"epochs must be at least 1, not {epochs}")
        self.source, self.batch, self.buffer, self.epochs = source, batch, buffer, epochs
        self.seed, self.shuffle, self.rest = checked_seed(seed), shuffle, checked_rest(rest)
        self._collate = collate or padded
        self.position = 0  # batches taken
        self.epoch = 0
        self._taken = 0  # examples of this epoch that were given out
        self._running: Iterator[tuple[list[Any], int, int]] | None = None

    def __iter__(self) -> Streaming:
        return self

    def __next__(self) -> Batch:
        if self._running is None:
            self._running = self._from(self.epoch, self._taken)
        chosen, epoch, taken = next(self._running)
        batch = self._collate(chosen)
        self.position, self.epoch, self._taken = self.position + 1, epoch, taken
        return batch

    def at(self, position: int) -> Batch:
        """Batch number `position`, by reading up to it from here, or from the start if it is past.

        The iterator stays where it is.  Raises `DataError` where there is no such batch.
        """
        back = position < self.position
        batches = self._from(0, 0) if back else self._from(self.epoch, self._taken)
        skipped = position if back else position - self.position
        found = next(itertools.islice(batches, max(0, skipped), None), None)
        if found is None or position < 0:
            raise DataError(f"there is no batch {position} in {self.epochs} epochs")
        return self._collate(found[0])

    def state(self) -> dict[str, Any]:
        """Where the iterator is, and of which source: JSON for a checkpoint."""
        return {
            "position": self.position,
            "epoch": self.epoch,
            "taken": self._taken,
            **self._identity(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken; raises `CheckpointError` if that was other data."""
        check_same(state, self._identity())
        places = [checked_position(state, name) for name in ("position", "epoch", "taken")]
        self.position, self.epoch, self._taken = places
        self._running = None

    def _from(self, epoch: int, taken: int) -> Iterator[tuple[list[Any], int, int]]:
        """The examples of each batch, with the epoch and place after it."""
        while self.epochs is None or epoch < self.epochs:
            fresh, given = taken == 0, 0
            examples = self._examples(epoch, taken)
            while chosen := list(itertools.islice(examples, self.batch)):
                if len(chosen) < self.batch and self.rest == "drop":
                    break
                taken, given = taken + len(chosen), given + 1
                yield chosen, epoch, taken
            if fresh and not given:
                raise DataError(
                    "the source gave too few examples for a batch in a whole epoch: it must start "
                    "anew at each call, and rest='drop' needs at least one whole batch"
                )
            epoch, taken = epoch + 1, 0

    def _examples(self, epoch: int, start: int) -> Iterator[Any]:
        """The examples of an epoch in its order, from the `start`-th of that order on."""
        block, skipped = divmod(start, self.buffer)
        source = self.source(block * self.buffer)
        while held := list(itertools.islice(source, self.buffer)):
            order = range(len(held))
            if self.shuffle:
                words = np.random.Philox(key=self.seed, counter=[0, block, epoch, _BLOCKS])
                order = np.argsort(words.random_raw(len(held)), kind="stable").tolist()
            for number in order[skipped:]:
                yield held[number]
            block, skipped = block + 1, 0

    def _identity(self) -> dict[str, Any]:
        describe = getattr(self.source, "describe", None)
        return {
            "kind": "streaming",
            "seed": self.seed,
            "batch": self.batch,
            "buffer": self.buffer,
            "shuffle": self.shuffle,
            "rest": self.rest,
            "source": None if describe is None else describe(),
        }


def padded(examples: list[Any]) -> Batch:
    """Examples side by side, padded with 0 to the longest, with their `lengths`."""
    held = Collection(examples)
    longest = held.lengths.max(axis=0).tolist()
    sizes = {name: max(1, size) for name, size in zip(held.names, longest, strict=True)}
    return held.padded(range(len(held)), sizes, 0)


class Lines:
    """The lines of a text file in UTF-8 as a source: `Lines(path, encode)` gives `encode(line)`.

    Lines that are blank are left out.  Where every 1024th line starts is remembered as the file is
    read, so that going back to a place takes no second reading of all before it.
    """

    def __init__(
        self, path: str | os.PathLike[str], encode: Callable[[str], Any] | None = None
    ) -> None:
        self.path = Path(path)
        self._encode = encode
        self._starts = {0: 0}  # the number of an example -> the byte its line starts at
        if not self.path.is_file():
            raise DataError(f"{path}: there is no such file")

    def __call__(self, start: int) -> Iterator[Any]:
        """The lines from number `start` on."""
        number = max(known for known in self._starts if known <= start)
        with self.path.open("rb") as file:
            file.seek(self._starts[number])
            place = file.tell()
            for line in file:
                begin, place = place, place + len(line)
                if not line.strip():
                    continue
                if number % _EVERY == 0:
                    self._starts[number] = begin
                if number >= start:
                    yield self._decoded(line, begin)
                number += 1

    def describe(self) -> dict[str, Any]:
        """The file's name and size."""
        return {"file": self.path.name, "bytes": self.path.stat().st_size}

    def _decoded(self, line: bytes, begin: int) -> Any:
        try:
            text = line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self.path}: not UTF-8 at byte {begin + error.start}. Convert it first."
            ) from error
        return text if self._encode is None else self._encode(text)
