"""Launches that come again with other buffers: the lines of a list -> the same list, with each
repeated run of lines written once, beside a table of its buffers.

A model of many equal layers has the launches of one of them so many times.  Invariant: the list
launches the same kernels on the same buffers in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

from retrograde.compiler.codegen.spelling import INDENT

HOLE = "\0"  # in the text of a launch: the number of a buffer
SAVED = 16  # lines that a table has to save
LONGEST = 400  # launches of a run that is looked for
TRIES = 24  # places where a run may come again that are looked at


@dataclass(frozen=True, slots=True)
class Line:
    """A launch: its text with a hole for each buffer, and the numbers of the buffers."""

    text: str
    buffers: tuple[int, ...]

    def filled(self, numbers: Sequence[int]) -> str:
        """The text with these numbers in the holes."""
        parts = self.text.split(HOLE)
        ends = zip(numbers, parts[1:], strict=True)
        return parts[0] + "".join(f"{n}{rest}" for n, rest in ends)

    def __str__(self) -> str:
        return self.filled(self.buffers)


@dataclass
class _Run:
    """A launch with the lines above it that launch nothing."""

    above: list[str]
    launch: Line | str


def folded(lines: Sequence[Line | str], pad: str) -> list[str]:
    """The lines of a list as text, at the depth `pad`."""
    rows, below = _rows(lines)
    places: dict[int, list[int]] = {}
    texts: dict[str, int] = {}
    kinds = []  # by row: equal for launches of one text; each other row has a kind of its own
    for i, row in enumerate(rows):
        if _is_launch(row.launch):
            kinds.append(texts.setdefault(row.launch.text, i))
            places.setdefault(kinds[-1], []).append(i)
        else:
            kinds.append(-1 - i)
    out: list[str] = []
    at = 0
    while at < len(rows):
        period, times = _longest(kinds, at, places)
        if times > 1:
            out += _table(rows[at : at + period * times], period, pad)
            at += period * times
        else:
            out += [*rows[at].above, _shown(rows[at].launch, pad)]
            at += 1
    return out + below


def _rows(lines: Sequence[Line | str]) -> tuple[list[_Run], list[str]]:
    rows: list[_Run] = []
    above: list[str] = []
    for line in lines:
        if isinstance(line, str) and line.lstrip().startswith("#"):
            above.append(line)
        else:
            rows.append(_Run(above, line))
            above = []
    return rows, above


def _is_launch(x: Line | str) -> TypeGuard[Line]:
    return isinstance(x, Line)


def _shown(x: Line | str, pad: str) -> str:
    return f"{pad}{x}" if isinstance(x, Line) else x


def _longest(
    kinds: Sequence[int], at: int, places: dict[int, list[int]]
) -> tuple[int, int]:
    """(lines, times) of the run from `at` on that saves most lines; (1, 1) for none."""
    best = (1, 1)
    if kinds[at] < 0:
        return best
    again = places[kinds[at]]
    while again[0] <= at:  # places are asked for in order
        again.pop(0)
        if not again:
            return best
    for place in again[:TRIES]:
        period = place - at
        if period > LONGEST:
            break
        same = _alike(kinds, at, place)
        times = same // period + 1
        if period * (times - 1) > max(best[0] * (best[1] - 1), SAVED - 1):
            best = period, times
    return best


def _alike(kinds: Sequence[int], at: int, place: int) -> int:
    """How many launches from `place` on are those from `at` on."""
    most = len(kinds) - place
    count = 0
    while count < most and kinds[at + count] == kinds[place + count]:
        count += 1
    return count


def _table(rows: Sequence[_Run], period: int, pad: str) -> list[str]:
    """A run of lines once, with the buffers of every time; columns that are equal are one."""
    times = len(rows) // period
    held = [[*_buffers(rows[t * period : (t + 1) * period])] for t in range(times)]
    columns: dict[tuple[int, ...], int] = {}
    where = [columns.setdefault(column, len(columns)) for column in zip(*held, strict=True)]
    out = [f"{pad}*rt.repeated(at, bytes, ("]
    for numbers in zip(*columns, strict=True):
        out.append(f"{pad}{INDENT}({''.join(f'{n}, ' for n in numbers).rstrip()}),")
    out.append(f"{pad}), lambda at, bytes: [  # at[i]: of column i")
    column = iter(where)
    for row in rows[:period]:
        assert _is_launch(row.launch)
        out += [INDENT + line for line in row.above]
        text = row.launch.filled([next(column) for _ in row.launch.buffers])
        out.append(f"{pad}{INDENT}{text}")
    return [*out, f"{pad}]),"]


def _buffers(rows: Sequence[_Run]) -> list[int]:
    return [n for row in rows if _is_launch(row.launch) for n in row.launch.buffers]
