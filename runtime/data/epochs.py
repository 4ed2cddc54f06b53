"""Epochs: how many things there are -> every one of them once, in an order of each epoch's own.

Invariant: batch k is a function of (what is batched, the settings, the seed, k) alone, so a run
that resumes at batch k, be it in the midst of an epoch, sees what the uninterrupted run saw.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from retrograde.compiler.errors import CheckpointError, DataError

Rest = Literal["keep", "drop"]
B = TypeVar("B")

ORDER = 1  # streams of random words of one seed and epoch; `Windows` has 0
BATCHES = 2


def shuffled(count: int, seed: int, epoch: int, stream: int = ORDER) -> npt.NDArray[np.int64]:
    """The numbers from 0 to `count` - 1 in the order of (seed, epoch), int64[count].

    Philox is a block cipher over a counter, and its raw words are fixed by NumPy for good (NEP 19),
    which `Generator.permutation` is not.
    """
    source = np.random.Philox(key=seed, counter=[0, 0, epoch, stream])
    return np.argsort(source.random_raw(count), kind="stable").astype(np.int64)


def checked_seed(seed: int) -> int:
    """`seed`, if it is one; raises `DataError` otherwise."""
    if not 0 <= seed < 1 << 64:
        raise DataError(f"the seed must be from 0 to 2**64 - 1, not {seed}")
    return seed


def checked_rest(rest: str) -> Rest:
    """`rest`, if it is one of both; raises `DataError` otherwise."""
    if rest == "keep" or rest == "drop":
        return rest  # type: ignore[return-value]
    raise DataError(f"rest is 'keep' or 'drop' (the last batch of an epoch), not {rest!r}")


class EpochBatches(ABC, Generic[B]):
    """An endless iterator over batches, of which every epoch has equally many.

    `seed` decides the orders, `position` is how many batches were taken.  The subclass tells
    `batches_per_epoch`, makes batch `number` of an epoch, and describes itself in `_describe`.
    """

    def __init__(self, seed: int) -> None:
        self.seed = checked_seed(seed)
        self.position = 0
        self._described: dict[str, Any] | None = None
        self._plan: tuple[int, Any] | None = None

    @property
    @abstractmethod
    def batches_per_epoch(self) -> int:
        """How many batches make an epoch; at least 1."""

    @abstractmethod
    def _make(self, plan: Any, number: int) -> B:
        """Batch `number` of the epoch of which `plan` is what `_arrange` gave."""

    @abstractmethod
    def _arrange(self, epoch: int) -> Any:
        """What is where in an epoch; kept until another epoch is asked for."""

    @abstractmethod
    def _describe(self) -> dict[str, Any]:
        """What two runs must have in common to see the same batches: JSON."""

    @property
    def epoch(self) -> int:
        """The epoch that the next batch belongs to, counted from 0."""
        return self.position // self.batches_per_epoch

    def __iter__(self) -> EpochBatches[B]:
        return self

    def __next__(self) -> B:
        batch = self.at(self.position)
        self.position += 1
        return batch

    def at(self, position: int) -> B:
        """Batch number `position`; the iterator stays where it is."""
        if position < 0:
            raise DataError(f"there is no batch {position}: they are counted from 0")
        epoch, number = divmod(position, self.batches_per_epoch)
        held = self._plan  # read once: another thread may arrange an epoch at the same time
        if held is None or held[0] != epoch:
            held = (epoch, self._arrange(epoch))
            self._plan = held
        return self._make(held[1], number)

    def state(self) -> dict[str, Any]:
        """Where the iterator is, and of which data: JSON for a checkpoint."""
        return {"position": self.position, **self._identity()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken; raises `CheckpointError` if that was other data."""
        check_same(state, self._identity())
        self.position = checked_position(state)

    def _identity(self) -> dict[str, Any]:
        if self._described is None:
            self._described = {"seed": self.seed, **self._describe()}
        return self._described


def check_same(state: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Raises `CheckpointError` unless `state` has everything of `identity`."""
    for name, here in identity.items():
        if state.get(name) != here:
            raise CheckpointError(
                f"the checkpoint was made with other data or batches: their {name} is "
                f"{state.get(name)!r}, here it is {here!r}. Resume with the data and settings of "
                "that run, or start a new one without resuming."
            )


def checked_position(state: Mapping[str, Any], name: str = "position") -> int:
    """The position in `state`; raises `CheckpointError` where there is none."""
    position = state.get(name)
    if not isinstance(position, int) or isinstance(position, bool) or position < 0:
        raise CheckpointError(f"the checkpoint has no {name} in the data, but {position!r}")
    return position


class Epochs(EpochBatches[npt.NDArray[np.int64]]):
    """Endless batches of numbers below `count`, int64[<= batch]: each number once an epoch.

    With `shuffle=False` every epoch is in order.  The last batch of an epoch is smaller where
    `batch` does not divide `count`; `rest="drop"` leaves it out, and so other numbers each time.
    """

    def __init__(
        self,
        count: int,
        batch: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        rest: Rest = "keep",
    ) -> None:
        super().__init__(seed)
        if count < 1 or batch < 1:
            raise DataError(f"count and batch must be at least 1, not {count} and {batch}")
        if checked_rest(rest) == "drop" and count < batch:
            raise DataError(
                f"{count} are less than one batch of {batch}, and rest='drop' leaves out what is: "
                "use a smaller batch, or rest='keep'"
            )
        self.count, self.batch, self.shuffle, self.rest = count, batch, shuffle, rest

    @property
    def batches_per_epoch(self) -> int:
        """How many batches make an epoch."""
        return self.count // self.batch if self.rest == "drop" else -(-self.count // self.batch)

    def order(self, epoch: int) -> npt.NDArray[np.int64]:
        """All numbers in the order of `epoch`."""
        return shuffled(self.count, self.seed, epoch) if self.shuffle else np.arange(self.count)

    def _arrange(self, epoch: int) -> npt.NDArray[np.int64]:
        return self.order(epoch)

    def _make(self, plan: Any, number: int) -> npt.NDArray[np.int64]:
        chosen: npt.NDArray[np.int64] = plan[number * self.batch : (number + 1) * self.batch]
        return chosen.copy()

    def _describe(self) -> dict[str, Any]:
        return {
            "kind": "epochs",
            "count": self.count,
            "batch": self.batch,
            "shuffle": self.shuffle,
            "rest": self.rest,
        }
