"""Prefetching: batches -> the same batches, made in a thread while the step before is running.

Invariant: `state()` is that of the batches that were taken, not of those made ahead; an error of
the batches comes where their batch would have; no thread outlives `close`, or the object itself.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Mapping
from typing import Any, Generic, Protocol, TypeVar

from retrograde.compiler.errors import DataError

B_co = TypeVar("B_co", covariant=True)
B = TypeVar("B")


class Batches(Protocol[B_co]):
    """What all batches of this package have."""

    def __next__(self) -> B_co: ...

    def at(self, position: int) -> B_co: ...

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: Mapping[str, Any]) -> None: ...


class Prefetch(Generic[B]):
    """`batches`, of which up to `depth` are made ahead.  Leave them alone while this is used.

    The thread starts with the first batch that is taken.  `close` (also at the end of a `with`)
    ends it, and `batches` then go on behind the last one taken; so does this, if asked again.
    """

    def __init__(self, batches: Batches[B], depth: int = 2) -> None:
        if depth < 1:
            raise DataError(f"depth must be at least 1, not {depth}")
        self.batches, self.depth = batches, depth
        self._taken: dict[str, Any] | None = None  # the state behind the last batch taken
        self._line: _Line[B] | None = None
        self._finish: weakref.finalize[Any, Any] | None = None

    def __iter__(self) -> Prefetch[B]:
        return self

    def __next__(self) -> B:
        if self._line is None:
            self._start()
        assert self._line is not None
        made = self._line.take()
        if isinstance(made, BaseException):
            # The thread has ended; asked again, it tries the same batch again.
            self.close()
            raise made
        batch, self._taken = made
        return batch

    def at(self, position: int) -> B:
        """Batch number `position`, made here and now; the iterator stays where it is."""
        if self._line is None:
            return self.batches.at(position)
        with self._line.making:
            return self.batches.at(position)

    def state(self) -> dict[str, Any]:
        """The state behind the last batch that was taken."""
        return self.batches.state() if self._taken is None else dict(self._taken)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken; raises `CheckpointError` if that was other data."""
        self.close()
        self.batches.restore(state)
        self._taken = None

    def close(self) -> None:
        """End the thread; what it made ahead is made again if it is asked for."""
        if self._finish is None:
            return
        self._finish()
        self._line = self._finish = None
        if self._taken is not None:
            self.batches.restore(self._taken)
            self._taken = None

    def __enter__(self) -> Prefetch[B]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        self._taken = self.batches.state()
        line: _Line[B] = _Line(self.depth)
        # The thread knows the line and the batches but not this object, which can so be forgotten.
        thread = threading.Thread(
            target=_make, args=(self.batches, line), name="retrograde-prefetch", daemon=True
        )
        thread.start()
        self._line, self._finish = line, weakref.finalize(self, _end, line, thread)


class _Line(Generic[B]):
    """What the thread made and nobody took yet: at most `depth` batches, or an error at the end."""

    def __init__(self, depth: int) -> None:
        self.making = threading.Lock()  # held while the batches are asked for one
        self._depth = depth
        self._made: deque[tuple[B, dict[str, Any]] | BaseException] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def wait_for_room(self) -> bool:
        """Whether another is wanted; False once the line is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._made) < self._depth)
            return not self._closed

    def put(self, made: tuple[B, dict[str, Any]] | BaseException) -> None:
        with self._changed:
            self._made.append(made)
            self._changed.notify_all()

    def take(self) -> tuple[B, dict[str, Any]] | BaseException:
        with self._changed:
            self._changed.wait_for(lambda: self._made)
            made = self._made.popleft()
            self._changed.notify_all()
            return made

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._made.clear()
            self._changed.notify_all()


def _make(batches: Batches[B], line: _Line[B]) -> None:
    while line.wait_for_room():
        try:
            with line.making:
                made = next(batches), batches.state()
        except BaseException as error:  # StopIteration too: it is the consumer's to see
            line.put(error)
            return
        line.put(made)


def _end(line: _Line[Any], thread: threading.Thread) -> None:
    line.close()
    thread.join()
