"""Metrics of a run: records -> one JSON object a line; steps and tokens -> speed and time left.

Invariant: the file consists of whole lines.  A record is written and flushed at once, and a line
that a crash cut short is removed when the file is opened again.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from retrograde.compiler.errors import CheckpointError, DataError

_BLOCK = 1 << 16


class MetricsWriter:
    """Appends records to a JSONL file.

    `position=None` starts an empty file.  A `position` that an earlier writer had continues there:
    what was written after it, by steps that will run again, is removed.  A position beyond the end
    removes no record.
    """

    def __init__(self, path: str | os.PathLike[str], position: int | None = None) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Not "a": a file in append mode writes at its end, wherever it is told to be.
            mode = "wb" if position is None else _update_mode(self.path)
            self._file: IO[bytes] = open(self.path, mode)  # noqa: SIM115  closed by `close`
        except OSError as error:
            raise DataError(
                f"{self.path}: the metrics cannot be written: {error.strerror or error}. "
                "Choose another path for them."
            ) from error
        if position is not None:
            try:
                self._continue_at(position)
            except BaseException:
                self._file.close()
                raise

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record.  NaN and infinities, which JSON lacks, become strings."""
        line = json.dumps({key: _plain(value) for key, value in record.items()}, allow_nan=False)
        self._file.write(line.encode("ascii") + b"\n")
        self._file.flush()

    @property
    def position(self) -> int:
        """Bytes written so far: where a writer that resumes from here has to continue."""
        return self._file.tell()

    def sync(self) -> None:
        """Bring all records to the disk: a checkpoint must not be ahead of its metrics."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; closing twice does no harm."""
        self._file.close()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _continue_at(self, position: int) -> None:
        size = self._file.seek(0, os.SEEK_END)
        # A shorter file lost its end with the machine, or is new: what it has is kept.
        end = position if position <= size else self._end_of_last_line(size)
        if not self._are_records(size) or not self._ends_line(end):
            raise CheckpointError(
                f"{self.path}: not the metrics of this run: they are JSON records, and a line "
                f"ends at byte {end}. Nothing was changed; choose another path for the metrics."
            )
        self._file.seek(end)
        self._file.truncate()

    def _are_records(self, size: int) -> bool:
        self._file.seek(0)
        return size == 0 or self._file.read(1) == b"{"

    def _ends_line(self, end: int) -> bool:
        self._file.seek(max(0, end - 1))
        return end == 0 or self._file.read(1) == b"\n"

    def _end_of_last_line(self, size: int) -> int:
        end = size
        while end > 0:
            start = max(0, end - _BLOCK)
            self._file.seek(start)
            newline = self._file.read(end - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
        return 0


class Meter:
    """Speed over the last `window` seconds of stepping, and the time that is left.

    Time between `pause` and `resume` (validation, saving) counts as no stepping.
    """

    def __init__(
        self, steps_left: int, window: float = 20.0, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._clock = clock
        self._window = window
        self._left = steps_left
        self._elapsed = 0.0
        self._since = clock()
        self._tokens = 0
        # (seconds of stepping, steps left, tokens) at the end of each step in the window.
        self._marks: deque[tuple[float, int, int]] = deque([(0.0, steps_left, 0)])

    def step(self, tokens: int) -> None:
        """One more step over `tokens` tokens has ended."""
        now = self._clock()
        self._elapsed += now - self._since
        self._since = now
        self._left -= 1
        self._tokens += tokens
        self._marks.append((self._elapsed, self._left, self._tokens))
        # Two marks are always kept, so that steps longer than the window are still measured.
        while len(self._marks) > 2 and self._marks[1][0] <= self._elapsed - self._window:
            self._marks.popleft()

    def pause(self) -> None:
        """What follows is no stepping."""
        self._elapsed += self._clock() - self._since

    def resume(self) -> None:
        """Stepping goes on."""
        self._since = self._clock()

    @property
    def tokens_per_second(self) -> float:
        """Over the window; 0 before the first step."""
        return self._rate(2)

    @property
    def steps_per_second(self) -> float:
        """Over the window; 0 before the first step."""
        return -self._rate(1)

    @property
    def seconds_left(self) -> float | None:
        """For the remaining steps at the present speed; None before the first step."""
        speed = self.steps_per_second
        return max(0, self._left) / speed if speed > 0 else None

    def _rate(self, column: int) -> float:
        first, last = self._marks[0], self._marks[-1]
        seconds = last[0] - first[0]
        return (last[column] - first[column]) / seconds if seconds > 0 else 0.0


def _update_mode(path: Path) -> str:
    return "r+b" if path.exists() else "w+b"


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    return value
