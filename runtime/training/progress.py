"""What a run shows while it trains: its status -> a bar on a terminal, plain lines elsewhere.

Invariant: showing never changes the run; `rich` is imported only for a terminal.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Any, Protocol

_LINE_SECONDS = 5.0  # between two plain lines


@dataclass(frozen=True)
class Status:
    """Where a run is.  `tokens_per_second` is None where the tokens of a step are not known."""

    step: int
    steps: int
    loss: float
    tokens_per_second: float | None
    steps_per_second: float
    seconds_left: float | None
    peak_bytes: int

    def __str__(self) -> str:
        return f"step {self.step}/{self.steps}  loss {self.loss:.4f}  {self.figures}"

    @property
    def figures(self) -> str:
        """Speed, time left and peak memory."""
        if self.tokens_per_second is None:
            speed = f"{self.steps_per_second:.3g} steps/s"
        else:
            speed = f"{_count(self.tokens_per_second)} tokens/s"
        left = "-" if self.seconds_left is None else duration(self.seconds_left)
        return f"{speed}  ETA {left}  peak {size(self.peak_bytes)}"


class Display(Protocol):
    """Shows one run."""

    def update(self, status: Status) -> None:
        """A step has ended."""

    def note(self, text: str) -> None:
        """A line to keep: a validation, the end of the run."""

    def close(self) -> None:
        """The run has ended, with or without an error."""


def make_display(steps: int, done: int, progress: bool) -> Display:
    """The display for standard output as it is; `progress=False` shows nothing."""
    if not progress:
        return SilentDisplay()
    if sys.stdout.isatty():
        return BarDisplay(steps, done)
    return LineDisplay()


class SilentDisplay:
    """Shows nothing."""

    def update(self, status: Status) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class LineDisplay:
    """A line every few seconds, for logs; the first and the last step always have one."""

    def __init__(self) -> None:
        self._shown_at = float("-inf")
        self._pending: Status | None = None

    def update(self, status: Status) -> None:
        """Print `status` if the last line is old enough, else keep it for later."""
        self._pending = status
        if time.monotonic() - self._shown_at >= _LINE_SECONDS or status.step == status.steps:
            self._show()

    def note(self, text: str) -> None:
        """Print `text` below the status it belongs to."""
        self._show()
        print(text, flush=True)

    def close(self) -> None:
        """Print the last status."""
        self._show()

    def _show(self) -> None:
        if self._pending is not None:
            print(self._pending, flush=True)
            self._shown_at = time.monotonic()
            self._pending = None


class BarDisplay:
    """A bar that fills, with the figures beside it."""

    def __init__(self, steps: int, done: int, console: Any = None) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=24),
            TextColumn("{task.description}"),
            console=console,
        )
        self._task = self._progress.add_task("", total=steps, completed=done)
        self._progress.start()

    def update(self, status: Status) -> None:
        """Move the bar to `status`."""
        text = f"loss {status.loss:.4f}  {status.figures}"
        self._progress.update(self._task, completed=status.step, description=text)

    def note(self, text: str) -> None:
        """Print `text` above the bar."""
        self._progress.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        """Leave the bar as it is, and give the terminal back."""
        self._progress.stop()


def duration(seconds: float) -> str:
    """`75` -> `1m 15s`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02d}m"


def size(count: int) -> str:
    """`1536` -> `1.5 KiB`."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{count} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.2f} GiB"


def _count(number: float) -> str:
    if number < 1000:
        return f"{number:.0f}"
    return f"{number / 1000:.1f}k" if number < 1e6 else f"{number / 1e6:.2f}M"
