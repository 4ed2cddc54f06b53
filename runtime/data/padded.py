"""Padded batches: examples -> `[B, T]` arrays with their lengths, in epochs or in length buckets.

Invariant: every example is in exactly one batch of an epoch (but for `rest="drop"`), and where an
example has ended only padding follows.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde.compiler.errors import DataError
from retrograde.runtime.data.epochs import (
    BATCHES,
    EpochBatches,
    Epochs,
    Rest,
    checked_rest,
    shuffled,
)
from retrograde.runtime.data.examples import Batch, Collection, Lengths

_CANDIDATES = 256  # edges that are tried


class Padded(EpochBatches[Batch]):
    """Batches of examples as they come, each padded to the longest in it.

    `examples` are mappings `{"field": array}` with time first, or rows of tokens (see
    `data.examples`).  A batch has every field, `[B, T, …]` or `[B]`, and `lengths`, int32[B].
    `lengths` may name the fields that have time instead, with the name of their lengths each.
    T is rounded up to a `multiple`, or is `length`; `pad` is one number or one for each field.
    """

    def __init__(
        self,
        examples: Sequence[Any],
        batch: int,
        *,
        length: int | None = None,
        multiple: int = 1,
        pad: float | Mapping[str, Any] = 0,
        lengths: Lengths = "lengths",
        seed: int = 0,
        shuffle: bool = True,
        rest: Rest = "keep",
    ) -> None:
        super().__init__(seed)
        self._held = Collection(examples, lengths)
        self._epochs = Epochs(len(self._held), batch, seed=seed, shuffle=shuffle, rest=rest)
        self.batch, self.length, self.multiple, self.pad = batch, length, multiple, pad
        if multiple < 1:
            raise DataError(f"multiple must be at least 1, not {multiple}")
        _check_longest(self._held, length)

    @property
    def batches_per_epoch(self) -> int:
        """How many batches make an epoch."""
        return self._epochs.batches_per_epoch

    def _arrange(self, epoch: int) -> Any:
        return self._epochs._arrange(epoch)

    def _make(self, plan: Any, number: int) -> Batch:
        chosen = self._epochs._make(plan, number)
        sizes = {}
        for column, name in enumerate(self._held.names):
            longest = int(self._held.lengths[chosen, column].max())
            sizes[name] = self.length or max(1, -(-longest // self.multiple)) * self.multiple
        return self._held.padded(chosen, sizes, self.pad)

    def _describe(self) -> dict[str, Any]:
        return {
            **self._epochs._describe(),
            "kind": "padded",
            "length": self.length,
            "multiple": self.multiple,
            **self._held.fingerprint(),
        }


class Buckets(EpochBatches[Batch]):
    """Batches of examples of similar length, so that little is padded and few sizes occur.

    An example is in the first bucket whose edge is not below its length; without `edges` there are
    at most `buckets`, with the edges that pad the least.  A batch has `batch` rows of one bucket,
    or with `tokens` as many as make so many tokens; it is padded to the least edge that its longest
    sequence does not exceed.  All else is as in `Padded`.
    """

    def __init__(
        self,
        examples: Sequence[Any],
        batch: int | None = None,
        *,
        tokens: int | None = None,
        edges: Sequence[int] | None = None,
        buckets: int = 8,
        pad: float | Mapping[str, Any] = 0,
        lengths: Lengths = "lengths",
        seed: int = 0,
        shuffle: bool = True,
        rest: Rest = "keep",
    ) -> None:
        super().__init__(seed)
        self._held = Collection(examples, lengths)
        self.batch, self.tokens, self.pad = batch, tokens, pad
        self.shuffle, self.rest = shuffle, checked_rest(rest)
        self.edges = _edges(self._held.longest, edges, buckets)
        if (batch is None) == (tokens is None) or (batch or tokens or 0) < 1:
            raise DataError(f"give batch or tokens, at least 1: not {batch} and {tokens}")
        if tokens is not None and tokens < self.edges[-1]:
            raise DataError(
                f"a batch of {tokens} tokens has no room for one sequence of {self.edges[-1]}: "
                "give more tokens, or leave long sequences out"
            )
        self._bucket = np.searchsorted(self.edges, self._held.longest)
        counts = np.bincount(self._bucket, minlength=len(self.edges))
        self._rows = [batch or max(1, (tokens or 1) // edge) for edge in self.edges]
        # Where each bucket's batches start among those of an epoch.
        self._batches = [
            count // rows if self.rest == "drop" else -(-count // rows)
            for count, rows in zip(counts.tolist(), self._rows, strict=True)
        ]
        if not sum(self._batches):
            raise DataError("no bucket fills a batch: use rest='keep', or a smaller batch")

    @property
    def batches_per_epoch(self) -> int:
        """How many batches make an epoch."""
        return sum(self._batches)

    @property
    def efficiency(self) -> float:
        """The share of tokens in an epoch that are no padding, if every row is its edge long."""
        edges = np.array(self.edges)[self._bucket]
        return float(self._held.longest.sum() / edges.sum())

    def _arrange(self, epoch: int) -> list[npt.NDArray[np.int64]]:
        count = len(self._held)
        order = shuffled(count, self.seed, epoch) if self.shuffle else np.arange(count)
        found: list[npt.NDArray[np.int64]] = []
        for bucket, (rows, batches) in enumerate(zip(self._rows, self._batches, strict=True)):
            inside = order[self._bucket[order] == bucket]
            found.extend(inside[k * rows : (k + 1) * rows] for k in range(batches))
        if not self.shuffle:
            return found
        return [found[i] for i in shuffled(len(found), self.seed, epoch, BATCHES).tolist()]

    def _make(self, plan: Any, number: int) -> Batch:
        chosen = plan[number]
        longest = self._held.lengths[chosen].max(axis=0).tolist()
        sizes = {
            name: self.edges[int(np.searchsorted(self.edges, length))]
            for name, length in zip(self._held.names, longest, strict=True)
        }
        return self._held.padded(chosen, sizes, self.pad)

    def _describe(self) -> dict[str, Any]:
        return {
            "kind": "buckets",
            "batch": self.batch,
            "tokens": self.tokens,
            "edges": self.edges,
            "shuffle": self.shuffle,
            "rest": self.rest,
            **self._held.fingerprint(),
        }


def _edges(lengths: npt.NDArray[np.int64], edges: Sequence[int] | None, buckets: int) -> list[int]:
    longest = max(1, int(lengths.max()))
    if edges is None:
        if buckets < 1:
            raise DataError(f"there must be at least one bucket, not {buckets}")
        return _least_padding(np.maximum(lengths, 1), buckets)
    given = [int(edge) for edge in edges]
    if not given or given[0] < 1 or any(a >= b for a, b in itertools.pairwise(given)):
        raise DataError(f"edges must be positive and rise, not {given}")
    if given[-1] < longest:
        raise DataError(
            f"the last edge is {given[-1]}, and a sequence has {longest} steps: add an edge of "
            "that, or leave longer sequences out"
        )
    return given


def _least_padding(lengths: npt.NDArray[np.int64], buckets: int) -> list[int]:
    """At most `buckets` edges with the fewest places in all, by dynamic programming.

    Edges are lengths that occur; of many, a part spread evenly over the examples.
    """
    ranked = np.sort(lengths)
    spread = ranked[np.linspace(0, ranked.size - 1, _CANDIDATES).astype(np.int64)]
    edges = np.unique(ranked if np.unique(ranked).size <= _CANDIDATES else spread)
    below = np.searchsorted(ranked, edges, side="right")
    # places[i, j]: of a bucket with the edge j behind one with the edge i (the last row: none).
    places = (below - np.append(below, 0)[:, None]) * edges.astype(np.float64)
    places[:-1][np.tri(edges.size, dtype=bool)] = np.inf
    least, before = places[-1], []
    for _ in range(min(buckets, edges.size) - 1):
        sums = np.append(least, 0.0)[:, None] + places
        before.append(sums.argmin(axis=0))
        least = sums.min(axis=0)
    found, at = [int(edges[-1])], edges.size - 1
    for row in reversed(before):
        at = int(row[at])
        if at == edges.size:
            break
        found.append(int(edges[at]))
    return found[::-1]


def _check_longest(held: Collection, length: int | None) -> None:
    if length is None:
        return
    number = int(held.longest.argmax())
    if length < 1 or held.longest[number] > length:
        raise DataError(
            f"example {number} has {held.longest[number]} steps, more than the length {length}: "
            "give a greater one, or leave it out"
        )
