"""Packed batches: examples of many lengths -> rows of one length that hold several each.

Invariant: every example lies whole in one segment of one row, once an epoch; tokens, targets,
segments, positions, mask and resets are all written from the same list of places, so no target
belongs to another segment than its token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from retrograde.compiler.errors import DataError
from retrograde.runtime.data.epochs import (
    BATCHES,
    EpochBatches,
    Rest,
    checked_rest,
    shuffled,
)
from retrograde.runtime.data.examples import Batch, Collection, pad_value

MADE = ("segments", "positions", "mask", "resets")


class Packed(EpochBatches[Batch]):
    """Batches of rows of `length` steps, packed by first-fit decreasing.

    `examples` are as in `Padded`, every field with time first.  A batch has each field, `[B,
    length, …]`, and of the packing

    - `segments` int32: 1, 2, … in a row, 0 where nothing is,
    - `positions` int32: from 0 in each segment,
    - `mask` bool: where something is (and the field `mask` holds, where the examples have one),
    - `resets` bool: where a segment begins, or padding; left out unless `fields` asks for it.

    `fields` chooses among all these.  First-fit decreasing needs at most 11/9 of the fewest rows
    possible, + 6/9 (Dósa, "The tight bound of first fit decreasing bin-packing", 2007).  In each
    epoch equally long examples change places, and rows change batches.
    """

    def __init__(
        self,
        examples: Sequence[Any],
        batch: int,
        length: int,
        *,
        fields: Sequence[str] | None = None,
        pad: float | Mapping[str, Any] = 0,
        seed: int = 0,
        shuffle: bool = True,
        rest: Rest = "keep",
    ) -> None:
        super().__init__(seed)
        self._held = Collection(examples, "lengths")
        self.batch, self.length, self.pad = batch, length, pad
        self.shuffle, self.rest = shuffle, checked_rest(rest)
        self.fields = _fields(self._held, fields)
        lengths = self._held.longest
        if batch < 1 or length < 1:
            raise DataError(f"batch and length must be at least 1, not {batch} and {length}")
        if not lengths.all() or lengths.max() > length:
            number = int(lengths.argmin() if not lengths.all() else lengths.argmax())
            raise DataError(
                f"example {number} has {lengths[number]} steps, and a row takes 1 to {length}: "
                "leave it out, cut it in pieces, or give a greater length"
            )
        self._sizes = -np.sort(-lengths)
        self._bins = first_fit_decreasing(self._sizes, length)
        self.rows = int(self._bins.max()) + 1
        if self.rest == "drop" and self.rows < batch:
            raise DataError(
                f"{self.rows} rows are less than one batch of {batch}, and rest='drop' leaves out "
                "what is: use a smaller batch, or rest='keep'"
            )

    @property
    def batches_per_epoch(self) -> int:
        """How many batches make an epoch."""
        return self.rows // self.batch if self.rest == "drop" else -(-self.rows // self.batch)

    @property
    def efficiency(self) -> float:
        """The share of all places in an epoch's rows that is no padding."""
        return float(self._sizes.sum() / (self.rows * self.length))

    def _arrange(self, epoch: int) -> _Arrangement:
        count = len(self._held)
        order = shuffled(count, self.seed, epoch) if self.shuffle else np.arange(count)
        # The k-th longest takes the k-th place; among equals the order decides.
        ranked = order[np.argsort(-self._held.longest[order], kind="stable")]
        by_row = np.argsort(self._bins, kind="stable")
        starts = np.searchsorted(self._bins[by_row], np.arange(self.rows + 1))
        rows = np.arange(self.rows)
        if self.shuffle:
            rows = shuffled(self.rows, self.seed, epoch, BATCHES)
        return _Arrangement(ranked[by_row], starts, rows)

    def _make(self, plan: _Arrangement, number: int) -> Batch:
        rows = plan.rows[number * self.batch : (number + 1) * self.batch]
        firsts, counts = plan.starts[rows], np.diff(plan.starts)[rows]
        ranks = _counted(counts)  # of each sequence in its row
        chosen = plan.examples[np.repeat(firsts, counts) + ranks]
        lengths = self._held.longest[chosen]
        positions = _counted(lengths)
        # Rows are filled from the left, so a place is its row's start and how many went before it.
        filled = np.add.reduceat(lengths, np.cumsum(counts) - counts)
        places = np.repeat(np.arange(rows.size) * self.length, filled) + _counted(filled)
        parts = [self._held.get(example) for example in chosen.tolist()]

        def laid(values: Any, dtype: Any, filler: Any, *rest: int) -> Any:
            flat = np.full((rows.size * self.length, *rest), filler, dtype)
            flat[places] = values
            return flat.reshape(rows.size, self.length, *rest)

        made: Batch = {}
        for name in self.fields:
            if name == "segments":
                made[name] = laid(np.repeat(ranks + 1, lengths), np.int32, 0)
            elif name == "positions":
                made[name] = laid(positions, np.int32, 0)
            elif name == "resets":
                made[name] = laid(positions == 0, np.bool_, True)
            elif name == "mask":
                own = name in self._held.kinds
                values = np.concatenate([part[name] for part in parts]) if own else True
                made[name] = laid(values, np.bool_, False)
            else:
                dtype, rest = self._held.kinds[name]
                values = np.concatenate([part[name] for part in parts])
                made[name] = laid(values, dtype, pad_value(name, dtype, self.pad), *rest)
        return made

    def _describe(self) -> dict[str, Any]:
        return {
            "kind": "packed",
            "batch": self.batch,
            "length": self.length,
            "shuffle": self.shuffle,
            "rest": self.rest,
            **self._held.fingerprint(),
        }


@dataclass(frozen=True)
class _Arrangement:
    """An epoch: row r holds examples[starts[r] : starts[r + 1]]; batches take `rows` in turn."""

    examples: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]


def _counted(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """From 0 up for each of `counts`, one behind the other: [2, 3] -> [0, 1, 0, 1, 2]."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


def first_fit_decreasing(sizes: npt.NDArray[Any], capacity: int) -> npt.NDArray[np.int64]:
    """The bin of each size, int64[n]: the first that still has room for it.

    `sizes` fall and lie from 1 to `capacity`.  A tree over the bins holds the most room in each
    subtree, so that the first bin with enough is found in O(log n) (Johnson, "Near-optimal bin
    packing algorithms", 1973); as many equal sizes as fit are put there at once.
    """
    leaves = 1
    while leaves < sizes.size:
        leaves *= 2
    room = [capacity] * (2 * leaves)
    found = np.empty(sizes.size, np.int64)
    values, counts = np.unique(-np.asarray(sizes, np.int64), return_counts=True)
    done = 0
    for size, left in zip((-values).tolist(), counts.tolist(), strict=True):
        while left:
            node = 1
            while node < leaves:
                node *= 2
                node += room[node] < size  # the left child, unless nothing in it has room
            taken = min(left, room[node] // size)
            found[done : done + taken] = node - leaves
            done, left = done + taken, left - taken
            room[node] -= taken * size
            while node > 1:
                node //= 2
                room[node] = max(room[2 * node], room[2 * node + 1])
    return found


def _fields(held: Collection, chosen: Sequence[str] | None) -> tuple[str, ...]:
    for name in held.kinds:
        if name not in held.timed:
            raise DataError(
                f"field {name!r} has no time axis, and a row holds several sequences: repeat it "
                "over the time, or use Padded or Buckets"
            )
        if name in MADE and name != "mask":
            raise DataError(f"the packing makes {name!r}: give the examples' own another name")
    own = [name for name in held.kinds if name != "mask"]
    if chosen is None:
        return (*own, "segments", "positions", "mask")
    if unknown := set(chosen) - {*own, *MADE}:
        raise DataError(f"there is no field {min(unknown)!r}; there are {', '.join([*own, *MADE])}")
    return tuple(chosen)
